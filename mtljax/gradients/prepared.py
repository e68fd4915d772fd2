"""The ways to a Gramian, and to a combination with it, that do not hold the Jacobian in one piece."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from mtljax.gradients.gramian import Gramian, inverse, scaled_gramian, unit_diagonal
from mtljax.gradients.linearized import (
    Linearized,
    accumulation,
    gramian_rows,
    mean,
    own_rows,
    varying,
    weighted_rows,
)

PyTree: TypeAlias = Any


class Prepared(NamedTuple):
    """What a Gramian method reads, made without holding the whole Jacobian.

    Attributes:
      gramian: the Gramian of the K gradients.
      combine: `(weights, own_weights) -> gradient`, pytree like params: shared parameters get the (K,) weights, a
        task's own parameters its own weight.
    """

    gramian: Gramian
    combine: Callable[[jax.Array, jax.Array], PyTree]


def prepare_subset(linearized: Linearized, shared: PyTree, chosen: PyTree) -> Prepared:
    """Gramian over the chosen leaves alone; the combination is one backward pass of the weighted sum.

    The compiler leaves out what only the other leaves need: with the last layers chosen, K short backward passes.
    """
    rows = gramian_rows(linearized.jacobian(), chosen, len(linearized.tasks))
    return Prepared(
        scaled_gramian(rows, len(linearized.tasks)), lambda weights, own: linearized.combined(shared, weights, own)
    )


def prepare_two_pass(linearized: Linearized, shared: PyTree, chosen: PyTree) -> Prepared:
    """Gramian from one gradient at a time; the combination is one backward pass of the weighted sum.

    Column k of the Gramian is J g_k: the gradient of task k, pushed forward through the linearized losses. So one
    gradient lives at a time, at the price of K forward-mode passes and one more backward pass.
    """
    num_tasks, dtypes, axis_name = len(linearized.tasks), linearized.dtypes, linearized.axis_name
    pullback = jax.linear_transpose(linearized.linear, linearized.params)

    def column(one_hot: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        cotangents = varying(tuple(one_hot[k].astype(dtype) for k, dtype in enumerate(dtypes)), axis_name)
        gradient = mean(pullback(cotangents)[0], axis_name)
        leaves = [leaf for leaf, keep in zip(*map(jax.tree.leaves, (gradient, chosen)), strict=True) if keep]
        peak = jnp.stack([jnp.max(jnp.abs(leaf), initial=0) for leaf in leaves]).max()
        scale = jnp.where(peak > 0, peak, 1)
        unit = jax.tree.map(lambda leaf, keep: leaf / scale if keep else jnp.zeros_like(leaf), gradient, chosen)
        length = jnp.sqrt(sum(map(_sum_of_squares, jax.tree.leaves(unit))))
        products = mean(jnp.stack(linearized.linear(varying(unit, axis_name))), axis_name)
        return products.astype(length.dtype), length, peak

    basis = jnp.eye(num_tasks)
    if not any(jax.tree.leaves(chosen)):
        gramian = scaled_gramian([], num_tasks)
    else:
        if linearized.passes == "mapped":
            products, lengths, peaks = lax.map(column, basis)
        else:
            columns = []
            for k in range(num_tasks):
                # The barrier makes task k wait for task k - 1, so that their gradients do not live together.
                basis = lax.optimization_barrier((basis, columns[-1]))[0] if columns else basis
                columns.append(column(basis[k]))
            products, lengths, peaks = (jnp.stack(each) for each in zip(*columns, strict=True))
        norms = lengths * peaks
        gramian = unit_diagonal(products * inverse(lengths)[:, None] * inverse(norms)[None, :], norms)
    return Prepared(gramian, lambda weights, own: linearized.combined(shared, weights, own))


def prepare_scattered(linearized: Linearized, shared: PyTree, leaf_tasks: Sequence[tuple[int, ...]]) -> Prepared:
    """Each device keeps the Jacobian of its part of the shared parameters, summed over devices.

    A reduce-scatter of the K x P Jacobian, the sum of the shards' K x K Gramians and an all-gather of one gradient
    move (K + 1) P floats, where averaging the Jacobian moves 2 K P.
    """
    num_tasks, axis_name = len(linearized.tasks), linearized.axis_name
    leaves, treedef = jax.tree.flatten(linearized.local_jacobian())
    masks = jax.tree.leaves(shared)
    rows = gramian_rows(jax.tree.unflatten(treedef, leaves), shared, num_tasks)
    devices = lax.psum(1, axis_name)
    if rows:
        flat = jnp.concatenate(rows, axis=1)
        size = flat.shape[1]
        flat = jnp.pad(flat, ((0, 0), (0, -size % devices)))
        shard = lax.psum_scatter(flat, axis_name, scatter_dimension=1, tiled=True) / devices
        gramian = scaled_gramian([shard], num_tasks, axis_name=axis_name)
    else:
        shard, size, gramian = None, 0, scaled_gramian([], num_tasks)

    def combine(weights: jax.Array, own_weights: jax.Array) -> PyTree:
        own = [
            None if is_shared else own_rows(own_weights, leaf, tasks)
            for leaf, is_shared, tasks in zip(leaves, masks, leaf_tasks, strict=True)
        ]
        own = iter(mean([leaf for leaf in own if leaf is not None], axis_name))
        if shard is None:
            gathered = jnp.zeros(0)
        else:
            gathered = lax.all_gather(weighted_rows(weights, shard), axis_name, tiled=True)[:size]
        combined, start = [], 0
        for leaf, is_shared in zip(leaves, masks, strict=True):
            if not is_shared:
                combined.append(next(own))
                continue
            shape = leaf.shape[1:]
            stop = start + leaf[0].size
            combined.append(gathered[start:stop].reshape(shape).astype(leaf.dtype))
            start = stop
        return jax.tree.unflatten(treedef, combined)

    return Prepared(gramian, combine)


def _sum_of_squares(leaf: jax.Array) -> jax.Array:
    return jnp.sum(jnp.square(leaf.astype(accumulation(leaf.dtype))))
