"""Engines of backward passes: K of them (jacrev, loop), over the last layers alone, in two passes, scattered."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from mtljax.gradients.backend import platform
from mtljax.gradients.choice import MOST_WRITTEN_OUT, Passes
from mtljax.gradients.engine import (
    Layout,
    PyTree,
    accumulation,
    mean,
    sum_over_tasks,
    varying,
    weighted_sum,
)
from mtljax.gradients.gramian import Gramian, inverse, scaled_gramian, unit_diagonal
from mtljax.gradients.held import Separate, Stacked

Linear: TypeAlias = Callable[..., tuple[jax.Array, ...]]
Select: TypeAlias = Callable[[tuple[jax.Array, ...]], jax.Array]
Move: TypeAlias = Callable[[PyTree], tuple[PyTree, jax.Array]]

# Up to how many gradients are held as separate pytrees, by platform; the products of pairs grow with K * K. On a CPU,
# measured: faster for 2 tasks, no slower for 3. On a TPU, by its compiler's estimates, far cheaper at 3 and 10: it
# takes the pairs in one pass. A GPU's compiler reads gradients anew for each pair: one Jacobian moves fewer bytes.
MOST_SEPARATE = {"cpu": 4, "tpu": MOST_WRITTEN_OUT}


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Backward:
    """K losses, linearized at `params`: modes "jacrev" and "loop".

    Attributes:
      layout: which parameters enter what.
      losses_fn: params to K losses, sorted by task.
      linear: tangent of params to K tangents of losses.
      params: where.
      dtypes: of the losses.
      passes: how K backward passes are made, see `Choice`.
      axis_name: axis to average over, or None.
    """

    layout: Layout
    losses_fn: Callable[[PyTree], tuple[jax.Array, ...]]
    linear: Linear
    params: PyTree
    dtypes: tuple[Any, ...]
    passes: Passes
    axis_name: Any

    def rows(self) -> PyTree:
        """K backward passes, averaged over the axis."""
        return mean(self.local_rows(), self.axis_name)

    def local_rows(self) -> PyTree:
        """The same, of this device's part of the batch."""
        return transposed(self.linear, (self.params,), self.dtypes, self.passes, self.axis_name)[0]

    def held(self) -> Any:
        """The K gradients, held."""
        if self.passes == "unrolled" and self.layout.num_tasks <= MOST_SEPARATE.get(platform(), 1):
            rows = separate_rows(self.linear, (self.params,), self.dtypes, self.axis_name)
            return Separate(self.layout, mean(tuple(row for (row,) in rows), self.axis_name), self)
        return self.stacked()

    def stacked(self) -> Stacked:
        """The K gradients, held in one Jacobian."""
        return Stacked(self.layout, self.rows(), self)

    def gramian(self) -> Gramian:
        """Of the K gradients."""
        return self.held().gramian()

    def combine(self, weights: jax.Array, own_weights: jax.Array) -> PyTree:
        """One backward pass of the weighted sum; where own weights differ one more, through those leaves alone."""
        weighted = self.weighted(weights)
        if own_weights is weights or all(jax.tree.leaves(self.layout.shared)):
            return weighted
        own = self.weighted(own_weights)
        return jax.tree.map(lambda s, a, b: a if s else b, self.layout.shared, weighted, own)

    def weighted(self, weights: jax.Array) -> PyTree:
        """The gradient of the (K,)-weighted sum of the losses: one backward pass."""
        return self._pullback(jax.linear_transpose(self.linear, self.params), weights)

    def _pullback(self, transposed: Callable[..., Any], weights: jax.Array) -> PyTree:
        cotangents = tuple(weights[k].astype(dtype) for k, dtype in enumerate(self.dtypes))
        return mean(transposed(varying(cotangents, self.axis_name))[0], self.axis_name)

    def losses_at(self, params: PyTree) -> tuple[jax.Array, ...]:
        """K losses at other parameters."""
        return mean(self.losses_fn(varying(params, self.axis_name)), self.axis_name)

    def at(self, params_per_task: PyTree) -> tuple[PyTree, jax.Array]:
        """One gradient a task, where it stands."""
        params_per_task = varying(params_per_task, self.axis_name)
        num_tasks = self.layout.num_tasks
        if self.passes != "unrolled":

            def selected(params: PyTree, one_hot: jax.Array) -> jax.Array:
                return jnp.sum(one_hot * jnp.stack(self.losses_fn(params)))  # a product would round losses to TF32

            pair = params_per_task, jnp.eye(num_tasks)
            evaluate = jax.value_and_grad(selected)
            every = jax.vmap(evaluate)(*pair) if self.passes == "mapped" else lax.map(lambda one: evaluate(*one), pair)
            losses, jacobian = every
        else:
            every = []
            for k in range(num_tasks):
                params = jax.tree.map(lambda leaf, k=k: leaf[k], params_per_task)
                every.append(jax.value_and_grad(lambda p, k=k: self.losses_fn(p)[k])(params))
            losses, jacobian = jax.tree.map(lambda *leaves: jnp.stack(leaves), *every)
        return mean((jacobian, losses), self.axis_name)

    def changes(self, move: Move) -> PyTree:
        """See `TaskGradients.changes`; two gradients live at a time beside the result."""
        pullback = jax.linear_transpose(self.linear, self.params)

        def row(one_hot: jax.Array, select: Select) -> PyTree:
            return self.change(self._pullback(pullback, one_hot), move, select)

        basis = jnp.eye(self.layout.num_tasks)
        if self.passes != "unrolled":
            return lax.map(lambda one_hot: row(one_hot, lambda losses: jnp.sum(one_hot * jnp.stack(losses))), basis)
        return _one_by_one(basis, lambda one_hot, k: row(one_hot, lambda losses: losses[k]))

    def change(self, before: PyTree, move: Move, select: Select) -> PyTree:
        """How one gradient changes where `move` takes it; `select` is its loss among the K."""
        points, moved = move(jax.tree.map(lambda leaf: leaf[None], before))
        params = varying(jax.tree.map(lambda leaf: leaf[0], points), self.axis_name)
        after = mean(jax.grad(lambda p: select(self.losses_fn(p)))(params), self.axis_name)
        return jax.tree.map(lambda a, b: jnp.where(moved[0], a - b, 0), after, before)


class Subset(Backward):
    """Gramian over some leaves alone; the compiler leaves out what only the others need: K short backward passes."""

    def held(self) -> "Subset":
        """Itself: the combination is one backward pass of the weighted sum."""
        return self

    def gramian(self) -> Gramian:
        """Of the chosen leaves."""
        return self.stacked().gramian()


class TwoPass(Backward):
    """Gramian from one gradient at a time: K forward-mode passes and one backward pass more, K - 1 gradients less.

    Column k of the Gramian is J g_k: the gradient of task k, pushed forward through the linearized losses.
    """

    def held(self) -> "TwoPass":
        """Itself: the combination is one backward pass of the weighted sum."""
        return self

    def gramian(self) -> Gramian:
        """Column by column."""
        num_tasks, chosen, axis_name = self.layout.num_tasks, self.layout.gramian, self.axis_name
        if not any(jax.tree.leaves(chosen)):
            return scaled_gramian([], num_tasks)
        pullback = jax.linear_transpose(self.linear, self.params)

        def column(one_hot: jax.Array, _: int = 0) -> tuple[jax.Array, jax.Array, jax.Array]:
            gradient = self._pullback(pullback, one_hot)
            leaves = [leaf for leaf, keep in zip(*map(jax.tree.leaves, (gradient, chosen)), strict=True) if keep]
            peak = jnp.stack([jnp.max(jnp.abs(leaf), initial=0) for leaf in leaves]).max()
            scale = jnp.where(peak > 0, peak, 1)
            unit = jax.tree.map(lambda leaf, keep: leaf / scale if keep else jnp.zeros_like(leaf), gradient, chosen)
            squares = [jnp.sum(jnp.square(leaf.astype(accumulation(leaf.dtype)))) for leaf in jax.tree.leaves(unit)]
            length = jnp.sqrt(sum(squares))
            products = mean(jnp.stack(self.linear(varying(unit, axis_name))), axis_name)
            return products.astype(length.dtype), length, peak

        basis = jnp.eye(num_tasks)
        columns = _one_by_one(basis, column) if self.passes == "unrolled" else lax.map(column, basis)
        products, lengths, peaks = columns
        norms = lengths * peaks
        return unit_diagonal(products * inverse(lengths)[:, None] * inverse(norms)[None, :], norms)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Scattered(Backward):
    """Each device keeps the Jacobian of its part of the shared parameters, summed over devices.

    A reduce-scatter of the K x P Jacobian, the sum of the shards' K x K Gramians and an all-gather of one gradient
    move (K + 1) P floats, where averaging the Jacobian moves 2 K P.

    Attributes:
      shard: (K, n) this device's part, None before `held`.
      local: the Jacobian of this device's part of the batch, None before `held`.
    """

    shard: jax.Array | None = None
    local: PyTree | None = None

    def held(self) -> "Scattered":
        """One that holds its shard."""
        if self.local is not None:
            return self
        local = self.local_rows()
        pairs = zip(*map(jax.tree.leaves, (local, self.layout.shared)), strict=True)
        rows = [leaf.reshape(len(leaf), -1).astype(accumulation(leaf.dtype)) for leaf, keep in pairs if keep]
        if not rows:
            return dataclasses.replace(self, local=local)
        flat = jnp.concatenate(rows, axis=1)
        devices = lax.psum(1, self.axis_name)
        flat = jnp.pad(flat, ((0, 0), (0, -flat.shape[1] % devices)))
        shard = lax.psum_scatter(flat, self.axis_name, scatter_dimension=1, tiled=True) / devices
        return dataclasses.replace(self, shard=shard, local=local)

    def gramian(self) -> Gramian:
        """The sum of the shards' Gramians."""
        shard = self.held().shard
        rows = [] if shard is None else [shard]
        return scaled_gramian(rows, self.layout.num_tasks, axis_name=self.axis_name)

    def combine(self, weights: jax.Array, own_weights: jax.Array) -> PyTree:
        """From the shards where they are held."""
        if self.local is None:
            return super().combine(weights, own_weights)
        leaves, treedef = jax.tree.flatten(self.local)
        masks = jax.tree.leaves(self.layout.shared)
        own = [
            sum_over_tasks(own_weights, leaf, tasks)
            for leaf, is_shared, tasks in zip(leaves, masks, self.layout.tasks, strict=True)
            if not is_shared
        ]
        remaining = iter(mean(own, self.axis_name))
        gathered = jnp.zeros(0)
        if self.shard is not None:
            gathered = lax.all_gather(weighted_sum(weights, self.shard), self.axis_name, tiled=True)
        combined, start = [], 0
        for leaf, is_shared in zip(leaves, masks, strict=True):
            if not is_shared:
                combined.append(next(remaining))
                continue
            stop = start + leaf[0].size
            combined.append(gathered[start:stop].reshape(leaf.shape[1:]).astype(leaf.dtype))
            start = stop
        return jax.tree.unflatten(treedef, combined)


def transposed(
    linear: Linear, primals: tuple[PyTree, ...], dtypes: tuple[Any, ...], passes: Passes, axis_name: Any
) -> tuple[PyTree, ...]:
    """The rows of a linear map to K scalars, as pytrees like its arguments with a leading task axis."""
    if passes == "unrolled":
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *separate_rows(linear, primals, dtypes, axis_name))
    # What jax.jacrev does after its forward pass: one pullback, mapped over the unit vectors. jacrev itself would run
    # the forward pass again, or differentiate the linear map, which custom_vjp forbids.
    pullback = jax.linear_transpose(lambda *tangents: jnp.stack(linear(*tangents)), *primals)
    basis = varying(jnp.eye(len(dtypes), dtype=jnp.result_type(*dtypes)), axis_name)
    row = lambda cotangent: tuple(pullback(cotangent))  # noqa: E731
    return jax.vmap(row)(basis) if passes == "mapped" else lax.map(row, basis)


def separate_rows(
    linear: Linear, primals: tuple[PyTree, ...], dtypes: tuple[Any, ...], axis_name: Any
) -> list[tuple[PyTree, ...]]:
    """The same rows one by one: transposing one output leaves the other tasks' heads out of its backward pass."""
    return [
        tuple(
            jax.linear_transpose(lambda *tangents, k=k: linear(*tangents)[k], *primals)(
                varying(jnp.ones((), dtype), axis_name)
            )
        )
        for k, dtype in enumerate(dtypes)
    ]


def _one_by_one(basis: jax.Array, row: Callable[[jax.Array, int], PyTree]) -> PyTree:
    """The rows stacked; a barrier makes task k wait for task k - 1, so that their gradients do not live together."""
    rows: list[PyTree] = []
    for k in range(len(basis)):
        basis = lax.optimization_barrier((basis, rows[-1]))[0] if rows else basis
        rows.append(row(basis[k], k))
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)
