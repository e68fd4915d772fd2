"""Checks of hyperparameters, which may be tracers."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
from jax.core import Tracer

Scalar: TypeAlias = float | jax.Array


def is_concrete(value: Any) -> bool:
    """Whether a hyperparameter has a value now, so that it can be checked; tracers have none."""
    return not isinstance(value, Tracer)


def check(condition: Callable[[], bool], value: Any, message: str) -> None:
    """Raises ValueError with `message` and the value when a concrete value fails `condition`."""
    if not is_concrete(value):
        return
    with jax.ensure_compile_time_eval():  # a concrete value inside a jitted constructor is still concrete
        valid = condition()
    if not valid:
        raise ValueError(f"{message}, got {value}")


def check_choice(name: str, argument: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises ValueError when a string hyperparameter is none of its choices."""
    if value not in choices:
        raise ValueError(f"{name}: {argument} must be one of {', '.join(map(repr, choices))}, got {value!r}")


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
