"""An `nnx.Module` in the place of parameters, as pure functions see it."""

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from mtljax.gradients.engine import PyTree


class Functional(NamedTuple):
    """Losses of a module as losses of its parameters.

    Attributes:
      losses_fn: `(params, *args, **kwargs) -> (losses, (aux, state))`, pure: the module's other state comes out.
      params: the module's parameters as nested dicts of arrays.
      treedef: structure of the parameters as an `nnx.State`.
      rebuild: parameters to a copy of the module that holds them.
    """

    losses_fn: Callable[..., Any]
    params: PyTree
    treedef: Any
    rebuild: Callable[[PyTree], Any]


def is_nnx_module(params: Any) -> bool:
    """Whether these are an `nnx.Module`; without importing flax for those who do not use it."""
    nnx = sys.modules.get("flax.nnx")
    return nnx is not None and isinstance(params, nnx.Module)


def functional(losses_fn: Callable[..., Any], module: Any, wrt: Any = None, has_aux: bool = False) -> Functional:
    """Splits a module into parameters and the rest.

    Args:
      losses_fn: `(module, *args, **kwargs) -> losses`, or `(losses, aux)` with `has_aux`.
      module: an `nnx.Module`.
      wrt: which variables are parameters, None for `nnx.Param`.
      has_aux: whether there is aux.

    Returns:
      The losses as a function of the parameters, and these.
    """
    from flax import nnx

    chosen = nnx.Param if wrt is None else wrt
    graph, state, rest = nnx.split(module, chosen, ...)
    treedef, (others, other_treedef) = jax.tree.structure(state), jax.tree.flatten(rest)

    def rebuild(params: PyTree) -> Any:
        # Unflattened anew, so that the variables belong to the trace that changes them.
        moving = jax.tree.unflatten(other_treedef, others)
        return nnx.merge(graph, jax.tree.unflatten(treedef, jax.tree.leaves(params)), moving)

    def pure(params: PyTree, *args: Any, **kwargs: Any) -> Any:
        copy = rebuild(params)
        result = losses_fn(copy, *args, **kwargs)
        losses, aux = result if has_aux else (result, None)
        return losses, (aux, nnx.split(copy, chosen, ...)[2])

    return Functional(pure, nnx.to_pure_dict(state), treedef, rebuild)


def move(module: Any, state: Any) -> None:
    """Puts the rest of a module's state, batch statistics and dropout streams, into it."""
    from flax import nnx

    nnx.update(module, state)
