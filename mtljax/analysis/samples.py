"""Gradients of single examples, made by vmap, or one after the other where vmap is slow."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtljax.analysis.similarity import layer_names
from mtljax.gradients import PyTree, TaskGradients, task_gradients
from mtljax.gradients.arguments import evaluated
from mtljax.gradients.backend import platform
from mtljax.gradients.inspection import contains_convolution

_KEPT = 8  # losses functions whose compiled gradients are kept


class Gradients(NamedTuple):
    """The compiled gradients of single examples.

    Attributes:
      tasks: the names of all tasks, sorted.
      keep: for each leaf of params, whether gradients are taken there.
      layers: for each of those, the layer it belongs to.
      rows: `(params, args, indices, which) -> leaves (N, K, *shape)`; `which` are indices of tasks, None for all.
    """

    tasks: tuple[str, ...]
    keep: tuple[bool, ...]
    layers: tuple[str, ...]
    rows: Callable[..., list[jax.Array]]


def sample_gradients(
    losses_fn: Callable[..., Any],
    params: PyTree,
    *args: Any,
    indices: Any = None,
    argnums: tuple[int, ...] = (-1,),
) -> PyTree:
    """The gradients of the losses on single examples, one backward pass an example and task.

    Where losses are means over examples, the mean over the examples is the gradient on the batch. Batch statistics are
    those of each example alone: pass losses that use running averages. By vmap; with convolutions on a CPU, where that
    is slow, one example after the other.

    Args:
      losses_fn: `losses_fn(params, *args)` returns a dict of scalar losses; it is called on batches of one.
      params: where.
      *args: further arguments of `losses_fn`.
      indices: (N,) which examples, None for all.
      argnums: which of `args` hold a batch, on the leading axis of all their leaves; by default the last.

    Returns:
      A pytree like params, each leaf (N, K, *shape), the tasks in sorted order of their names.

    Raises:
      ValueError: if the arguments hold no batch, or leading axes differ.
    """
    chosen = examples(args, argnums) if indices is None else jnp.asarray(indices)
    params, args = jax.tree.map(jnp.asarray, (params, args))
    leaves, treedef = jax.tree.flatten(params)
    gradients = gradients_of(losses_fn, params, args, argnums, keep=(True,) * len(leaves))
    return treedef.unflatten(gradients.rows(params, args, chosen, None))


def examples(args: tuple[Any, ...], argnums: tuple[int, ...]) -> Any:
    """The indices of all examples."""
    if not args or not all(-len(args) <= index < len(args) for index in argnums):
        raise ValueError(
            f"no batch: argnums={argnums} must name some of the {len(args)} arguments after the parameters"
        )
    lengths = {jnp.shape(leaf)[:1] for index in argnums for leaf in jax.tree.leaves(args[index])}
    if len(lengths) != 1 or () in lengths or (0,) in lengths:
        raise ValueError(f"a batch needs the same leading axis on every leaf, got {sorted(lengths)}; see argnums")
    return np.arange(lengths.pop()[0], dtype=np.int32)


def gradients_of(
    losses_fn: Callable[..., Any],
    params: PyTree,
    args: tuple[Any, ...],
    argnums: tuple[int, ...],
    keep: tuple[bool, ...] | None,
) -> Gradients:
    """The compiled gradients for arrays like these, made once; `keep` None takes the shared parameters."""
    leaves, treedef = jax.tree.flatten((params, args))
    shapes = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
    batched = frozenset(index % len(args) for index in argnums) if args else frozenset()
    try:
        hash(losses_fn)
    except TypeError:  # a method of an object that holds a dict, say: nothing to find it by
        return _compiled.__wrapped__(losses_fn, treedef, shapes, batched, keep)
    return _compiled(losses_fn, treedef, shapes, batched, keep)


@functools.lru_cache(maxsize=_KEPT)
def _compiled(
    losses_fn: Callable[..., Any],
    treedef: Any,
    shapes: tuple[tuple[tuple[int, ...], Any], ...],
    batched: frozenset[int],
    keep: tuple[bool, ...] | None,
) -> Gradients:
    params, args = treedef.unflatten([jax.ShapeDtypeStruct(*shape) for shape in shapes])
    args = tuple(_one(arg) if i in batched else arg for i, arg in enumerate(args))
    if keep is None:
        traced: list[TaskGradients] = []
        jax.eval_shape(lambda p, a: traced.append(task_gradients(losses_fn, p, *a)[1]), params, args)
        keep = tuple(jax.tree.leaves(traced[0].shared))
    names: tuple[str, ...] = ()

    def named(params: PyTree, *args: Any) -> Any:
        nonlocal names
        values = evaluated(losses_fn(params, *args))
        names = values.tasks
        return values.losses

    jaxpr = jax.make_jaxpr(named)(params, *args)
    mapped = platform() != "cpu" or not contains_convolution(jaxpr.jaxpr)

    def rows(params: PyTree, args: tuple[Any, ...], index: Any, which: jax.Array | None) -> list[jax.Array]:
        """The gradients of one example, leaves (K, *shape)."""
        leaves, treedef = jax.tree.flatten(params)

        def vector(free: list[jax.Array]) -> jax.Array:
            rest = iter(free)
            merged = [next(rest) if kept else leaf for leaf, kept in zip(leaves, keep, strict=True)]
            one = [
                jax.tree.map(lambda leaf: leaf[index][None], arg) if i in batched else arg for i, arg in enumerate(args)
            ]
            values = jnp.stack(evaluated(losses_fn(treedef.unflatten(merged), *one)).losses)
            return values if which is None else values[which]

        values, pull = jax.vjp(vector, [leaf for leaf, kept in zip(leaves, keep, strict=True) if kept])
        one_hot = jnp.eye(len(values), dtype=values.dtype)
        if mapped:
            return jax.vmap(lambda row: pull(row)[0])(one_hot)
        return _stacked([pull(row)[0] for row in one_hot])

    single = jax.jit(rows)

    def one_by_one(params: PyTree, args: Any, indices: Any, which: jax.Array | None) -> list[jax.Array]:
        return _stacked([single(params, args, index, which) for index in indices])

    together = jax.jit(jax.vmap(rows, in_axes=(None, None, 0, None)))
    return Gradients(names, keep, layer_names(params, keep), together if mapped else one_by_one)


def _one(batch: PyTree) -> PyTree:
    """The shapes of a batch of one."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype), batch)


@jax.jit
def _stacked(parts: list[list[jax.Array]]) -> list[jax.Array]:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts)
