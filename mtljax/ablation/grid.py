"""The grid of a study: what varies, and the cells that follow from it.

A study multiplies methods, optimizers and further axes, and repeats each point with every seed. Values that are
hyperparameters (`tuned`) are to be chosen on validation data; the other axes are conditions to be compared.
"""

import dataclasses
import itertools
import json
import math
import re
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from mtljax.ablation.axes import NAMES, Axis, applies, check_axes
from mtljax.ablation.cell import Cell
from mtljax.ablation.names import label, optimizer_label, short, unvaried, value_text, with_unique_names
from mtljax.errors import unknown
from mtljax.training.config import MethodConfig, OptimizerConfig, TrainConfig
from mtljax.training.overrides import checked, replaced

SINGLE_TASK = "single-task"
SCALARIZATION = "scalarization (tuned)"
WEIGHTS = "method.options.weights"
MOST_CELLS = 10_000
LEAST_WEIGHT = 0.01  # of the sampled weights, before they are scaled
TaskNames: TypeAlias = Sequence[str] | Callable[[TrainConfig], Sequence[str]]


@dataclass(frozen=True)
class Pair:
    """A method with an optimizer of its own.

    Attributes:
      method: such as `adatask`, whose direction already is the step of one Adam a task.
      optimizer: what follows it, such as plain SGD.
      label: the optimizer's name in tables and figures, such as the "adam" that this one's method replaces; "" for its
        own.
    """

    method: MethodConfig
    optimizer: OptimizerConfig
    label: str = ""


@dataclass(frozen=True)
class StudyConfig:
    """A grid of runs.

    Attributes:
      name: a short name, the directory under runs/.
      question: what the study asks, for the report.
      base: the run that all cells vary; its own method, optimizer and seed are what `mtljax train` uses.
      methods: the methods compared.
      optimizers: the optimizers each is trained with.
      pairs: further methods, each with one optimizer of its own.
      seeds: the seeds of each.
      baselines: whether single-task runs, one network a task, are part of the study.
      single_methods: what else trains one network a task, as SAM does: rows beside the baselines, which stay what
        everything is measured against. The axes leave their options alone.
      axes: what else varies, made with `product` and `zipped`; several axes multiply. The options of a method or an
        optimizer vary only for those that take them.
      weight_grid: how many fixed weights of the losses are part of the study as tuned scalarization: for two tasks so
        many points evenly inside the simplex (9: shares of 0.1 to 0.9), for more so many log-uniform samples whose
        shares differ by up to 100, the same in every study; scaled to sum to K, so that equal weights are `ew`. 0
        leaves it out.
      tuned: the fields of `axes` whose value is chosen on validation, per method and optimizer; None for those under
        "optimizer." and "method.options.". The others are conditions, which are compared.
    """

    name: str
    question: str = ""
    base: TrainConfig = field(default_factory=TrainConfig)
    methods: tuple[MethodConfig, ...] = (MethodConfig("ew"),)
    optimizers: tuple[OptimizerConfig, ...] = (OptimizerConfig(),)
    pairs: tuple[Pair, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    baselines: bool = True
    single_methods: tuple[MethodConfig, ...] = ()
    axes: tuple[Axis, ...] = ()
    weight_grid: int = 9
    tuned: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Checks everything that can be checked without data."""
        if not isinstance(self.axes, tuple | list) or not all(isinstance(axis, Axis) for axis in self.axes):
            raise ValueError(f"axes must be made with product(...) and zipped(...), joined by +, got {self.axes!r}")
        for name, hint in typing.get_type_hints(StudyConfig).items():
            object.__setattr__(self, name, checked(hint, getattr(self, name), name))  # lists become tuples
        for axis in ("methods", "optimizers", "seeds"):
            if not getattr(self, axis):
                raise ValueError(f"the study {self.name!r} is empty: {axis} lists nothing")
        if self.weight_grid < 0:
            raise ValueError(f"weight_grid must be at least 0, got {self.weight_grid}")
        every = self.combinations
        check_axes(self.axes, self.base, [pair.method for pair in every], [pair.optimizer for pair in every])
        for name in self.tuned or ():
            if name not in self.fields:
                raise unknown("field in tuned, which names fields of axes:", name, self.fields)

    @property
    def combinations(self) -> tuple[Pair, ...]:
        """Every method with every optimizer, then the pairs."""
        return (*(Pair(method, optimizer) for method in self.methods for optimizer in self.optimizers), *self.pairs)

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields that the axes vary."""
        return tuple(name for axis in self.axes for name in axis.fields)

    @property
    def chosen(self) -> tuple[str, ...]:
        """Those of them that are chosen on validation."""
        if self.tuned is not None:
            return self.tuned
        return tuple(f for f in self.fields if f.startswith(("optimizer.", "method.options.")) and f not in NAMES)


def cells(study: StudyConfig, tasks: TaskNames, *, most: int | None = None) -> list[Cell]:
    """The runs of a study: single-task baselines, then tuned scalarization, then the methods; seeds innermost.

    Args:
      study: the grid.
      tasks: names of the tasks; or, where they depend on what varies, a function of the run's config.
      most: how many cells there may be, None for any number.

    Returns:
      One cell a run.

    Raises:
      ValueError: if the study lists a run twice, an optimizer or method option is not one, or there are too many cells.
    """
    names = tasks if callable(tasks) else lambda config: tasks
    if most is not None and (count := _count(study, names)) > most:
        raise ValueError(
            f"the study {study.name!r} has about {count:,} cells, more than {most:,}: add --yes if you mean it"
        )
    return with_unique_names(study.name, list(_every(study, names)))


def _every(study: StudyConfig, names: Callable[[TrainConfig], Sequence[str]]) -> Iterator[Cell]:
    for method, role in _single(study):
        for optimizer in study.optimizers:
            for config, varied in _points(study, method, optimizer, of_method=False):
                for task in sorted(names(config)):
                    scales = {name: scale for name, scale in config.loss_scales.items() if name == task}
                    alone = dataclasses.replace(config, tasks=(task,), loss_scales=scales)
                    yield from _cells(study, alone, varied, role, kind="single")
    for optimizer in study.optimizers if study.weight_grid else ():
        for config, varied in _points(study, MethodConfig("scalarization"), optimizer, of_method=False):
            for index, weights in enumerate(weight_grid(sorted(names(config)), study.weight_grid)):
                weighted = replaced(config, WEIGHTS, weights)
                yield from _cells(study, weighted, {**varied, WEIGHTS: weights}, "scalarization", index)
    for pair in study.combinations:
        for config, varied in _points(study, pair.method, pair.optimizer, of_method=True):
            yield from _cells(study, config, varied, "method", named=pair.label)


def _single(study: StudyConfig) -> list[tuple[MethodConfig, str]]:
    """What trains one network a task, with its role: the plain gradient is the baseline."""
    plain = [(MethodConfig("ew"), "single")] if study.baselines else []
    return plain + [(method, "method") for method in study.single_methods]


def weight_grid(tasks: Sequence[str], count: int) -> list[dict[str, float]]:
    """The weights of tuned scalarization, by task: those of `ew` on average, so that a learning rate means the same.

    >>> [point["a"] for point in weight_grid(["a", "b"], 3)]
    [0.5, 1.0, 1.5]

    Args:
      tasks: names of the tasks, sorted.
      count: how many points.

    Returns:
      Weights that sum to the number of tasks; none for a single task, which has nothing to weigh.
    """
    if len(tasks) < 2:
        return []
    if len(tasks) == 2:
        parts = count + 1
        return [dict(zip(tasks, (2 * i / parts, 2 * (parts - i) / parts), strict=True)) for i in range(1, parts)]
    random = np.random.default_rng(0)
    samples = np.exp(random.uniform(math.log(LEAST_WEIGHT), 0.0, (count, len(tasks))))
    samples *= len(tasks) / samples.sum(axis=1, keepdims=True)
    return [dict(zip(tasks, map(float, sample.round(6)), strict=True)) for sample in samples]


def _points(
    study: StudyConfig, method: MethodConfig, optimizer: OptimizerConfig, *, of_method: bool
) -> Iterator[tuple[TrainConfig, dict[str, Any]]]:
    """The points of the axes for one method and optimizer: a config, and what varied in it, each once."""
    base = dataclasses.replace(study.base, method=method, optimizer=optimizer, checkpoints=False, tensorboard=False)
    seen = set()
    for combination in itertools.product(*(axis.values for axis in study.axes)):
        pairs = [
            (name, value)
            for axis, point in zip(study.axes, combination, strict=True)
            for name, value in zip(axis.fields, point, strict=True)
            if of_method or not name.startswith("method.")
        ]
        config, varied = base, {}
        for name, value in sorted(pairs, key=lambda pair: pair[0] not in NAMES):  # options belong to a name
            if applies(config, name):
                config = replaced(config, name, value)
                varied[name] = value
        key = json.dumps(varied, sort_keys=True, default=repr)
        if key not in seen or len(varied) == len(
            study.fields
        ):  # a value listed twice is told, one that is left out is not
            seen.add(key)
            yield config, varied


def _cells(
    study: StudyConfig,
    config: TrainConfig,
    varied: Mapping[str, Any],
    role: str,
    index: int | None = None,
    kind: str = "multi",
    named: str = "",
) -> Iterator[Cell]:
    """The cells of one point, a seed each."""
    tuned = (*study.chosen, WEIGHTS) if role == "scalarization" else study.chosen
    setting = {name: value for name, value in varied.items() if name in tuned}
    condition = {name: value for name, value in varied.items() if name not in tuned and name not in NAMES}
    optimizer = named or optimizer_label(config.optimizer, varied)
    method = {"single": SINGLE_TASK, "scalarization": SCALARIZATION}.get(role) or label(
        config.method.name, unvaried(config.method.options, "method.options.", varied)
    )
    if kind == "single" and role == "method":
        method = f"{SINGLE_TASK} {method}"
    parts = [method if role == "method" else role.replace("single", SINGLE_TASK)]
    parts += [*(config.tasks if kind == "single" else ()), optimizer]
    for name, value in varied.items():
        if name == WEIGHTS and index is not None:
            shown = "_".join(f"{weight:.3g}" for weight in value.values())
            parts.append(f"weights={index if len(value) > 2 else shown}")
        elif name not in NAMES:
            parts.append(f"{short(name, study.fields)}={value_text(value)}")
    stem = re.sub(r"[^A-Za-z0-9._=-]+", "_", "-".join(parts))
    for seed in study.seeds:
        name = f"{stem}-seed{seed}"
        seeded = dataclasses.replace(config, name=name, seed=seed)
        yield Cell(name, kind, method, optimizer, seeded, role, setting, condition)


def _count(study: StudyConfig, names: Callable[[TrainConfig], Sequence[str]]) -> int:
    """How many cells there are at most, without making them; tasks are counted in the base."""

    def points(method: MethodConfig, optimizer: OptimizerConfig, of_method: bool) -> int:
        config = dataclasses.replace(study.base, method=method, optimizer=optimizer)
        named = any(name in NAMES for name in study.fields)
        counts = [
            len(axis.values)
            for axis in study.axes
            if any((named or applies(config, f)) and (of_method or not f.startswith("method.")) for f in axis.fields)
        ]
        return math.prod(counts)

    tasks = len(names(study.base))
    beside = tasks * len(_single(study)) + (study.weight_grid if tasks > 1 else 0)
    plain = MethodConfig("ew")
    count = sum(points(plain, optimizer, False) for optimizer in study.optimizers) * beside
    count += sum(points(pair.method, pair.optimizer, True) for pair in study.combinations)
    return count * len(study.seeds)
