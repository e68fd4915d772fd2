"""The axes of a grid: fields of the run's config, and the values they take."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mtljax.errors import check_options, unknown
from mtljax.methods import describe as describe_method
from mtljax.training.config import MethodConfig, OptimizerConfig, TrainConfig
from mtljax.training.optimizers import describe as describe_optimizer
from mtljax.training.overrides import replaced

NAMES = ("method.name", "optimizer.name")  # they are labels, not conditions
_OPTIONS = ("method.options.", "optimizer.options.")
_NO_AXES = {
    "name": "a cell is named by what varies",
    "seed": "list seeds in `seeds`",
    "checkpoints": "cells keep none",
    "tensorboard": "cells write none",
}


@dataclass(frozen=True)
class Axis:
    """One axis of a grid: fields that vary together.

    Attributes:
      fields: dotted paths into the run's config, such as "optimizer.learning_rate" or "method.options.c".
      values: the points, each with one value a field.
    """

    fields: tuple[str, ...]
    values: tuple[tuple[Any, ...], ...]

    def __post_init__(self) -> None:
        """Every point has a value for every field."""
        if any(len(point) != len(self.fields) for point in self.values):
            raise ValueError(f"the axis {', '.join(self.fields)} needs {len(self.fields)} values at every point")


def product(fields: Mapping[str, Sequence[Any]]) -> tuple[Axis, ...]:
    """Axes that multiply, one a field.

    >>> len(product({"optimizer.learning_rate": (1e-3, 3e-3), "model.options.features": (32, 64)}))
    2
    """
    return tuple(Axis((name,), tuple((value,) for value in _listed(name, values))) for name, values in fields.items())


def zipped(fields: Mapping[str, Sequence[Any]]) -> tuple[Axis, ...]:
    """One axis of fields that vary together, their values paired by position.

    >>> zipped({"batch_size": (64, 128), "epochs": (2, 4)})[0].values
    ((64, 2), (128, 4))
    """
    columns = {name: _listed(name, values) for name, values in fields.items()}
    if len({len(values) for values in columns.values()}) != 1:
        counts = ", ".join(f"{name} {len(values)}" for name, values in columns.items()) or "none"
        raise ValueError(f"zipped pairs values by position and needs as many of each field, got {counts}")
    return (Axis(tuple(columns), tuple(zip(*columns.values(), strict=True))),)


def _listed(name: str, values: Sequence[Any]) -> tuple[Any, ...]:
    if isinstance(values, str | Mapping) or not isinstance(values, Iterable):
        raise ValueError(f"the axis {name} needs several values, such as (1, 2), got {values!r}")
    return tuple(values)


def check_axes(
    axes: Sequence[Axis], base: TrainConfig, methods: Sequence[MethodConfig], optimizers: Sequence[OptimizerConfig]
) -> None:
    """Checks that every axis names fields that exist, once, and values of their types.

    Args:
      axes: of the study.
      base: the run that they vary.
      methods: the study's.
      optimizers: the study's.

    Raises:
      ValueError: if not; an unknown field names the nearest.
    """
    fields = [name for axis in axes for name in axis.fields]
    for name in fields:
        if name in _NO_AXES:
            raise ValueError(f"{name} cannot be an axis: {_NO_AXES[name]}")
        if fields.count(name) > 1:
            raise ValueError(f"{name} is in two axes; each field varies along one")
    for axis in axes:
        if not axis.values:
            raise ValueError(f"the grid is empty: the axis {', '.join(axis.fields)} lists nothing")
        for column, name in enumerate(axis.fields):
            for point in axis.values:
                replaced(base, name, point[column])
    for name in fields:
        if name.startswith(_OPTIONS):
            group = name.partition(".")[0]
            configs = methods if group == "method" else optimizers
            _check_option(axes, name, [*(config.name for config in configs), *_values(axes, f"{group}.name")])


def _check_option(axes: Sequence[Axis], name: str, used: Sequence[str]) -> None:
    """At least one of the methods, or optimizers, that are used takes the option, and those that do all its values."""
    group, _, option = name.split(".", 2)
    takes = {each: _takes(group, each) for each in used}
    if not any(option in valid for valid in takes.values()):
        raise unknown("config key", name, {f"{group}.options.{other}" for valid in takes.values() for other in valid})
    for each, valid in takes.items():
        for value in _values(axes, name) if option in valid else ():
            check_options(f"{group} {each}", {option: value}, _build(group, each))


def _values(axes: Sequence[Axis], name: str) -> list[Any]:
    """The values of a field along its axis; none where it has no axis."""
    return [point[axis.fields.index(name)] for axis in axes if name in axis.fields for point in axis.values]


def applies(config: TrainConfig, name: str) -> bool:
    """Whether the method or optimizer of a config takes the option that an axis varies."""
    if not name.startswith(_OPTIONS):
        return True
    group, _, option = name.split(".", 2)
    return option in _takes(group, getattr(config, group).name)


def _takes(group: str, name: str) -> set[str]:
    """The options of a method or an optimizer."""
    return set(inspect.signature(_build(group, name)).parameters) - {
        "num_tasks" if group == "method" else "learning_rate"
    }


def _build(group: str, name: str) -> Callable[..., Any]:
    return describe_method(name).build if group == "method" else describe_optimizer(name)
