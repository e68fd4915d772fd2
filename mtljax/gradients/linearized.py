"""The linearized losses and the ways to transpose them."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from mtljax.gradients.choice import Passes
from mtljax.gradients.gramian import Gramian, inverse, scaled_gramian, unit_diagonal

PyTree: TypeAlias = Any
Linear: TypeAlias = Callable[..., tuple[jax.Array, ...]]


class Prepared(NamedTuple):
    """What a Gramian method reads, made without holding the whole Jacobian.

    Attributes:
      gramian: the Gramian of the K gradients.
      combine: `(weights, own_weights) -> gradient`, pytree like params: shared parameters get the (K,) weights, a
        task's own parameters its own weight.
    """

    gramian: Gramian
    combine: Callable[[jax.Array, jax.Array], PyTree]


class Linearized(NamedTuple):
    """K losses at `params` and their linearization.

    Attributes:
      losses_fn: params to K losses, sorted by task.
      linear: tangent of params to K tangents of losses.
      params: where.
      tasks: K names.
      dtypes: of the losses.
      passes: K backward passes "mapped" (one pullback under vmap, as in jax.jacrev) or "unrolled".
      axis_name: axis to average over, or None.
    """

    losses_fn: Callable[[PyTree], tuple[jax.Array, ...]]
    linear: Linear
    params: PyTree
    tasks: tuple[str, ...]
    dtypes: tuple[Any, ...]
    passes: Passes
    axis_name: Any

    def jacobian(self) -> PyTree:
        """Pytree like params, each leaf (K, *shape), averaged over the axis."""
        return mean(self.local_jacobian(), self.axis_name)

    def local_jacobian(self) -> PyTree:
        """The same, of this device's part of the batch."""
        (jacobian,) = transposed_rows(self.linear, (self.params,), self.dtypes, self.passes, self.axis_name)
        return jacobian

    def weighted(self, weights: jax.Array) -> PyTree:
        """The gradient of the (K,)-weighted sum of the losses: one backward pass."""
        cotangents = tuple(weights[k].astype(dtype) for k, dtype in enumerate(self.dtypes))
        cotangents = varying(cotangents, self.axis_name)
        return mean(jax.linear_transpose(self.linear, self.params)(cotangents)[0], self.axis_name)

    def combined(self, shared: PyTree, weights: jax.Array, own_weights: jax.Array) -> PyTree:
        """As `weighted`, with own weights for the leaves that are not shared: one more pass, through those alone."""
        weighted = self.weighted(weights)
        if own_weights is weights or all(jax.tree.leaves(shared)):
            return weighted
        own = self.weighted(own_weights)
        return jax.tree.map(lambda s, a, b: a if s else b, shared, weighted, own)

    def losses_at(self, params: PyTree) -> tuple[jax.Array, ...]:
        """K losses at other parameters."""
        return mean(self.losses_fn(varying(params, self.axis_name)), self.axis_name)

    def at(self, params_per_task: PyTree) -> tuple[PyTree, jax.Array]:
        """Jacobian and (K,) losses with task k at its own parameters."""
        params_per_task = varying(params_per_task, self.axis_name)
        num_tasks = len(self.tasks)
        if self.passes == "mapped":

            def selected(params: PyTree, one_hot: jax.Array) -> jax.Array:
                return jnp.sum(one_hot * jnp.stack(self.losses_fn(params)))  # a product would round losses to TF32

            losses, jacobian = jax.vmap(jax.value_and_grad(selected))(params_per_task, jnp.eye(num_tasks))
        else:
            values, rows = [], []
            for k in range(num_tasks):
                params = jax.tree.map(lambda leaf, k=k: leaf[k], params_per_task)
                value, row = jax.value_and_grad(lambda p, k=k: self.losses_fn(p)[k])(params)
                values.append(value)
                rows.append(row)
            losses = jnp.stack(values)
            jacobian = jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)
        return mean((jacobian, losses), self.axis_name)

    def changes(self, move: Callable[[PyTree], tuple[PyTree, jax.Array]]) -> PyTree:
        """Row k: the gradient of task k where `move` takes it, minus that at `params`, one task at a time.

        So two gradients live at a time beside the result.
        """
        pullback = jax.linear_transpose(self.linear, self.params)

        def row(one_hot: jax.Array, select: Callable[[tuple[jax.Array, ...]], jax.Array]) -> PyTree:
            cotangents = tuple(one_hot[k].astype(dtype) for k, dtype in enumerate(self.dtypes))
            before = mean(pullback(varying(cotangents, self.axis_name))[0], self.axis_name)
            points, moved = move(jax.tree.map(lambda leaf: leaf[None], before))
            params = varying(jax.tree.map(lambda leaf: leaf[0], points), self.axis_name)
            after = mean(jax.grad(lambda p: select(self.losses_fn(p)))(params), self.axis_name)
            return jax.tree.map(lambda a, b: jnp.where(moved[0], a - b, 0), after, before)

        basis = jnp.eye(len(self.tasks))
        if self.passes == "mapped":
            return lax.map(lambda one_hot: row(one_hot, lambda losses: jnp.sum(one_hot * jnp.stack(losses))), basis)
        rows = []
        for k in range(len(self.tasks)):
            # As in two_pass: task k waits for task k - 1.
            basis = lax.optimization_barrier((basis, rows[-1]))[0] if rows else basis
            rows.append(row(basis[k], lambda losses, k=k: losses[k]))
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)


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


def transposed_rows(
    linear: Linear, primals: tuple[PyTree, ...], dtypes: Sequence[Any], passes: Passes, axis_name: Any
) -> tuple[PyTree, ...]:
    """The rows of a linear map to K scalars, as pytrees like its arguments with a leading task axis."""
    if passes == "mapped":
        # What jax.jacrev does after its forward pass: one pullback, mapped over the unit vectors. jacrev itself
        # would run the forward pass again, or differentiate the linear map, which custom_vjp forbids.
        pullback = jax.linear_transpose(lambda *tangents: jnp.stack(linear(*tangents)), *primals)
        basis = varying(jnp.eye(len(dtypes), dtype=jnp.result_type(*dtypes)), axis_name)
        return tuple(jax.vmap(lambda cotangent: tuple(pullback(cotangent)))(basis))
    # Transposing one output at a time leaves the other tasks' heads out of each backward pass.
    rows = [
        tuple(
            jax.linear_transpose(lambda *tangents, k=k: linear(*tangents)[k], *primals)(
                varying(jnp.ones((), dtype), axis_name)
            )
        )
        for k, dtype in enumerate(dtypes)
    ]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)


def gramian_rows(jacobian: PyTree, chosen: PyTree, num_tasks: int) -> list[jax.Array]:
    """The chosen leaves of a Jacobian as pieces (K, n_i), in float32 at least."""
    return [
        leaf.reshape(num_tasks, -1).astype(accumulation(leaf.dtype))
        for leaf, keep in zip(jax.tree.leaves(jacobian), jax.tree.leaves(chosen), strict=True)
        if keep and leaf.size
    ]


def weighted_rows(weights: jax.Array, rows: jax.Array) -> jax.Array:
    """Σ_k weights[k] rows[k], accumulated in float32 at least, in the dtype of the rows."""
    dtype = accumulation(rows.dtype)
    total = jnp.tensordot(weights.astype(dtype), rows.astype(dtype), axes=1, precision=lax.Precision.HIGHEST)
    return total.astype(rows.dtype)


def own_rows(weights: jax.Array, rows: jax.Array, tasks: tuple[int, ...]) -> jax.Array:
    """`weighted_rows` over the tasks that have a gradient here: leaving the zeros out lets the compiler drop them."""
    if not tasks:
        return jnp.zeros(rows.shape[1:], rows.dtype)
    return weighted_rows(weights[jnp.asarray(tasks, dtype=jnp.int32)], jnp.stack([rows[k] for k in tasks]))


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


def _sum_of_squares(leaf: jax.Array) -> jax.Array:
    return jnp.sum(jnp.square(leaf.astype(accumulation(leaf.dtype))))
