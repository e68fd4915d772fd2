"""What every engine offers, and the sums and averages they share."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from mtljax.gradients.gramian import Gramian, explicitly_sharded

PyTree: TypeAlias = Any
_SMALL = 1 << 16  # numbers in a vector that is joined with others


class Layout(NamedTuple):
    """Which parameters enter what.

    Attributes:
      shared: pytree of bools like params: the parameters that several tasks share.
      gramian: pytree of bools like params: those of the shared ones that enter Gramians.
      tasks: for each leaf of params, the tasks that have a gradient there.
      num_tasks: K.
    """

    shared: PyTree
    gramian: PyTree
    tasks: tuple[tuple[int, ...], ...]
    num_tasks: int


class Engine(Protocol):
    """One way to make the gradients of K tasks, and what methods ask of them."""

    @property
    def layout(self) -> Layout:
        """Which parameters enter what."""
        ...

    def rows(self) -> PyTree:
        """The Jacobian: pytree like params, each leaf (K, *shape)."""
        ...

    def gramian(self) -> Gramian:
        """Inner products of the gradients over the parameters that enter Gramians."""
        ...

    def combine(self, weights: jax.Array, own_weights: jax.Array) -> PyTree:
        """The sum of the gradients, pytree like params: shared leaves by (K,) `weights`, others by `own_weights`."""
        ...

    def at(self, params_per_task: PyTree) -> tuple[PyTree, jax.Array]:
        """Jacobian and (K,) losses with task k at its own parameters, leaves (K, *shape)."""
        ...

    def changes(self, move: Callable[[PyTree], tuple[PyTree, jax.Array]]) -> PyTree:
        """How each gradient changes where `move` takes its task, leaves (K, *shape); see `TaskGradients.changes`."""
        ...

    def held(self) -> "Engine":
        """An engine whose Gramian and combination share their backward passes."""
        ...


def chosen_pieces(tree: PyTree, chosen: PyTree, *, axis: int) -> list[jax.Array]:
    """The chosen leaves of gradients, in float32 at least, small vectors such as biases joined into one.

    Args:
      tree: one gradient, or a Jacobian.
      chosen: pytree of bools of the same structure.
      axis: where the axes of parameters begin: 0 for a gradient, 1 for a Jacobian.

    Returns:
      Arrays. Joining saves one small product a vector; matrices stay as they are, for a flat one would be gathered
      where it is sharded.
    """
    leaves = [
        leaf.astype(accumulation(leaf.dtype))
        for leaf, keep in zip(jax.tree.leaves(tree), jax.tree.leaves(chosen), strict=True)
        if keep and leaf.size
    ]
    vectors = [
        leaf for leaf in leaves if leaf.ndim == axis + 1 and leaf.shape[axis] <= _SMALL and not explicitly_sharded(leaf)
    ]
    if len(vectors) < 2 or len({leaf.dtype for leaf in vectors}) > 1:
        return leaves
    joined = {id(leaf) for leaf in vectors}
    return [*(leaf for leaf in leaves if id(leaf) not in joined), jnp.concatenate(vectors, axis=axis)]


def weighted_sum(weights: jax.Array, rows: jax.Array) -> jax.Array:
    """Σ_k weights[k] rows[k], accumulated in float32 at least, in the dtype of the rows."""
    dtype = accumulation(rows.dtype)
    total = jnp.tensordot(weights.astype(dtype), rows.astype(dtype), axes=1, precision=lax.Precision.HIGHEST)
    return total.astype(rows.dtype)


def sum_over_tasks(weights: jax.Array, rows: jax.Array, tasks: tuple[int, ...]) -> jax.Array:
    """`weighted_sum` over the tasks with a gradient here: leaving the zeros out lets the compiler drop them."""
    if len(tasks) == len(rows):
        return weighted_sum(weights, rows)
    if not tasks:
        return jnp.zeros(rows.shape[1:], rows.dtype)
    return weighted_sum(weights[jnp.asarray(tasks, dtype=jnp.int32)], jnp.stack([rows[k] for k in tasks]))


def differences(after: PyTree, before: PyTree, moved: jax.Array) -> PyTree:
    """`after - before` where the mask, (K,) or (1,), says so, else 0; pytrees with leaves (K, *shape)."""
    return jax.tree.map(lambda a, b: jnp.where(moved.reshape(-1, *(1,) * (b.ndim - 1)), a - b, 0), after, before)


def accumulation(dtype: Any) -> Any:
    """The dtype sums are taken in."""
    return jnp.promote_types(dtype, jnp.float32)


def mean(tree: PyTree, axis_name: Any) -> PyTree:
    """The average over the axis, if there is one."""
    return tree if axis_name is None else lax.pmean(tree, axis_name)


def varying(tree: PyTree, axis_name: Any) -> PyTree:
    """Marks arrays as differing over the axis, so that shard_map does not sum their cotangents by itself."""
    if axis_name is None:
        return tree
    axes = axis_name if isinstance(axis_name, tuple) else (axis_name,)

    def cast(leaf: jax.Array, axis: Any) -> jax.Array:
        try:
            return lax.pcast(leaf, axis, to="varying")
        except ValueError:  # already varying, or the axis is vmap's: nothing to mark
            return leaf

    for axis in axes:
        tree = jax.tree.map(lambda leaf, axis=axis: cast(leaf, axis), tree)
    return tree
