"""Checks of hyperparameters, which may be tracers."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
from jax.core import Tracer

Scalar: TypeAlias = float | jax.Array
Build = TypeVar("Build", bound=Callable[..., Any])


class _Range(NamedTuple):
    text: str
    holds: Callable[[Any], Any]


_RANGES = {
    "any": _Range("finite", jnp.isfinite),
    ">= 0": _Range(">= 0 and finite", lambda x: (x >= 0) & (x < jnp.inf)),
    "> 0": _Range("> 0 and finite", lambda x: (x > 0) & (x < jnp.inf)),
    "[0, 1]": _Range("in [0, 1]", lambda x: (x >= 0) & (x <= 1)),
    "[0, 1)": _Range("in [0, 1)", lambda x: (x >= 0) & (x < 1)),
    "whole >= 0": _Range("a whole number >= 0", lambda x: (x >= 0) & (x % 1 == 0)),
    "whole >= 1": _Range("a whole number >= 1", lambda x: (x >= 1) & (x % 1 == 0)),
}


def check_range(name: str, accepted: str, **values: Any) -> None:
    """Raises ValueError when a concrete hyperparameter of a method, a number or several, is out of its range.

    Args:
      name: the method.
      accepted: one of "any", ">= 0", "> 0", "[0, 1]", "[0, 1)", "whole >= 0", "whole >= 1"; all want finite numbers.
      **values: the hyperparameters by name; tracers are not checked.
    """
    text, holds = _RANGES[accepted]
    for argument, value in values.items():
        if not is_concrete(value):
            continue
        with jax.ensure_compile_time_eval():  # a concrete value inside a jitted constructor is still concrete
            valid = bool(jnp.all(holds(jnp.asarray(value))))
        if not valid:
            raise ValueError(f"{name}: {argument} must be {text}, got {value}")


def is_concrete(value: Any) -> bool:
    """Whether a hyperparameter has a value now, so that it can be checked; tracers have none."""
    return not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(value))


def check_choice(name: str, argument: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises ValueError when a string hyperparameter is none of its choices."""
    if value not in choices:
        raise ValueError(f"{name}: {argument} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_seed(name: str, seed: Any) -> None:
    """Raises ValueError when a seed is no whole number."""
    if seed is not None and is_concrete(seed) and not jnp.issubdtype(jnp.result_type(seed), jnp.integer):
        raise ValueError(f"{name}: seed must be a whole number, got {seed!r}")


def check_num_tasks(name: str, num_tasks: Any) -> None:
    """Raises ValueError when K is no positive whole number."""
    if num_tasks is None or not is_concrete(num_tasks):
        return
    whole = hasattr(num_tasks, "dtype") or isinstance(num_tasks, int)
    if isinstance(num_tasks, bool) or not whole or int(num_tasks) < 1:
        raise ValueError(f"{name}: num_tasks must be at least 1, a whole number, got {num_tasks!r}")


def static_int(value: Any, name: str, argument: str) -> int:
    """An int that shapes the state; inject_hyperparams under jit would turn it into a tracer."""
    if not is_concrete(value):
        raise ValueError(
            f'{name}: {argument} shapes the state: pass static_args="{argument}" to optax.inject_hyperparams'
        )
    return int(value)


def by_task(values: Any) -> tuple[Any, tuple[str, ...] | None]:
    """A hyperparameter that may be a dict by task name.

    Args:
      values: the dict, or anything else.

    Returns:
      The values of the dict as a list in sorted order of the names, and these; anything else as it is, and None.
    """
    if not isinstance(values, Mapping):
        return values, None
    names = tuple(sorted(values))
    return [values[name] for name in names], names


def typed(build: Build) -> Build:
    """A constructor that answers an argument of the wrong type with one sentence.

    What is expected follows from the default and the annotation: true or false, a number, or numbers by task.
    """
    parameters = inspect.signature(build).parameters

    @functools.wraps(build)
    def checked(*args: Any, **kwargs: Any) -> Any:
        for argument, value in {**dict(zip(parameters, args, strict=False)), **kwargs}.items():
            if argument in parameters:
                _check_type(build.__name__, parameters[argument], value)
        return build(*args, **kwargs)

    return checked  # pyright: ignore[reportReturnType]


def _check_type(name: str, parameter: inspect.Parameter, value: Any) -> None:
    annotation, default = str(parameter.annotation), parameter.default
    if hasattr(value, "dtype") or value is default or (value is None and "None" in annotation):
        return
    if "GradientTransformation" in annotation and not callable(getattr(value, "update", None)):
        raise ValueError(
            f"{name}: {parameter.name} must be an optax transformation, got {value!r}"
            + (": mtl.methods.create(name) builds a method by its name" if parameter.name.endswith("base") else "")
        )
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise ValueError(f"{name}: {parameter.name} must be True or False, got {value!r}")
        return
    if not (isinstance(default, (int, float)) or "float" in annotation):
        return
    values = [value]
    if "Mapping" in annotation and isinstance(value, Mapping):
        values = list(value.values())
    elif "Sequence" in annotation and isinstance(value, Sequence) and not isinstance(value, str):
        values = list(value)
    numbers = [isinstance(each, (int, float)) or hasattr(each, "dtype") for each in values]
    if not numbers or not all(numbers) or isinstance(value, bool):
        expected = "one number a task" if "Sequence" in annotation else "a number"
        raise ValueError(f"{name}: {parameter.name} must be {expected}, got {value!r}")
