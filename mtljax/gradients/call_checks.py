"""Checks of a call of a gradient function, before anything is evaluated."""

import difflib
import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from mtljax.errors import unknown

_METHOD_ARGS = ("losses_after", "present", "solve")


def check_call(
    losses_fn: Callable[..., Any], method_state: Any, method_args: Mapping[str, Any], kwargs: Mapping[str, Any]
) -> None:
    """Refuses what is no state of a method, and arguments of a method that it does not read or the losses got."""
    if method_state is None or isinstance(method_state, (Mapping, list, jax.Array, np.ndarray)):
        got = type(method_state).__name__
        raise ValueError(
            f"the second argument is the state of the method, from .init(params) or the last call, got {got}"
        )
    for name in method_args:  # other names may be those of another transformation in the chain
        if name in ("losses", "shared"):
            raise ValueError(f"method_args: {name} is known already; a method may be told {', '.join(_METHOD_ARGS)}")
        if name not in _METHOD_ARGS and difflib.get_close_matches(name, _METHOD_ARGS, cutoff=0.7):
            raise unknown("argument of a method in method_args", name, _METHOD_ARGS)
    for name in set(kwargs) & set(_METHOD_ARGS):
        if not _takes(losses_fn, name):
            raise ValueError(f"{name} is for the method, not for losses_fn: pass method_args={{{name!r}: ...}}")


def _takes(losses_fn: Callable[..., Any], name: str) -> bool:
    """Whether the losses have a keyword argument of this name, as far as their signature tells."""
    parameters = inspect.signature(losses_fn).parameters
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


# States that only an optimizer keeps; behind a method, they say that the chain ends in updates.
_OPTIMIZERS = (
    "ScaleByAdamState",
    "TraceState",
    "ScaleByRmsState",
    "ScaleByRssState",
    "ScaleByLionState",
    "FactoredState",
)


def warn_of_optimizer(state: Any) -> None:
    """Warns where an optimizer follows the method in its chain: what comes out is an update, not a gradient."""

    def names(node: Any) -> set[str]:
        children = jax.tree_util.default_registry.flatten_one_level(node)
        return {type(node).__name__}.union(*(names(child) for child in (children[0] if children else ())))

    if type(state) is not tuple:
        return
    methods = [i for i, each in enumerate(state) if {"MethodState", "FsMtlState"} & names(each)]
    behind = state[methods[-1] + 1 :] if methods else ()
    if any(set(_OPTIMIZERS) & names(each) for each in behind):
        warnings.warn(
            "value_and_grad: the method's chain holds an optimizer, so an update comes out and not a gradient: put "
            "the optimizer behind the gradient, or take the whole chain with mtl.task_gradients",
            stacklevel=3,
        )
