"""The linearized losses and the ways to transpose them."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from mtljax.gradients.choice import Passes

PyTree: TypeAlias = Any
Linear: TypeAlias = Callable[..., tuple[jax.Array, ...]]


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

    def rows(self) -> tuple[PyTree, ...]:
        """The K gradients as K pytrees like params, averaged over the axis."""
        found = rows_apart(self.linear, (self.params,), self.dtypes, self.axis_name)
        return mean(tuple(row for (row,) in found), self.axis_name)

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
            return self._change(before, move, select)

        basis = jnp.eye(len(self.tasks))
        if self.passes == "mapped":
            return lax.map(lambda one_hot: row(one_hot, lambda losses: jnp.sum(one_hot * jnp.stack(losses))), basis)
        rows = []
        for k in range(len(self.tasks)):
            # As in two_pass: task k waits for task k - 1.
            basis = lax.optimization_barrier((basis, rows[-1]))[0] if rows else basis
            rows.append(row(basis[k], lambda losses, k=k: losses[k]))
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)

    def changes_of(self, rows: Sequence[PyTree], move: Callable[[PyTree], tuple[PyTree, jax.Array]]) -> PyTree:
        """The same with the K gradients at `params` given."""
        found = [self._change(row, move, lambda losses, k=k: losses[k]) for k, row in enumerate(rows)]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *found)

    def _change(
        self,
        before: PyTree,
        move: Callable[[PyTree], tuple[PyTree, jax.Array]],
        select: Callable[[tuple[jax.Array, ...]], jax.Array],
    ) -> PyTree:
        """How one gradient changes where `move` takes it; `select` is its loss among the K."""
        points, moved = move(jax.tree.map(lambda leaf: leaf[None], before))
        params = varying(jax.tree.map(lambda leaf: leaf[0], points), self.axis_name)
        after = mean(jax.grad(lambda p: select(self.losses_fn(p)))(params), self.axis_name)
        return jax.tree.map(lambda a, b: jnp.where(moved[0], a - b, 0), after, before)


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
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows_apart(linear, primals, dtypes, axis_name))


def rows_apart(
    linear: Linear, primals: tuple[PyTree, ...], dtypes: Sequence[Any], axis_name: Any
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


def differences(after: PyTree, before: PyTree, moved: jax.Array) -> PyTree:
    """`after - before` where the mask, (K,) or (1,), says so, else 0; pytrees with leaves (K, *shape)."""
    return jax.tree.map(lambda a, b: jnp.where(moved.reshape(-1, *(1,) * (b.ndim - 1)), a - b, 0), after, before)


def gramian_rows(jacobian: PyTree, chosen: PyTree, num_tasks: int) -> list[jax.Array]:
    """The chosen leaves of a Jacobian as pieces (K, n_i), in float32 at least."""
    return [
        leaf.reshape(num_tasks, -1).astype(accumulation(leaf.dtype))
        for leaf, keep in zip(jax.tree.leaves(jacobian), jax.tree.leaves(chosen), strict=True)
        if keep and leaf.size
    ]


def gramian_pieces(row: PyTree, chosen: PyTree) -> list[jax.Array]:
    """The chosen leaves of one gradient as pieces (n_i,), in float32 at least."""
    return [
        leaf.reshape(-1).astype(accumulation(leaf.dtype))
        for leaf, keep in zip(jax.tree.leaves(row), jax.tree.leaves(chosen), strict=True)
        if keep and leaf.size
    ]


def combined_rows(
    rows: Sequence[PyTree],
    shared: PyTree,
    leaf_tasks: Sequence[tuple[int, ...]],
    weights: jax.Array,
    own_weights: jax.Array,
) -> PyTree:
    """The weighted sum of gradients that lie apart: one pass over them, pytree like params.

    Shared leaves get the (K,) weights, the others own ones, of the tasks that have a gradient there.
    """
    combined = []
    for leaves, is_shared, tasks in zip(
        zip(*map(jax.tree.leaves, rows), strict=True), jax.tree.leaves(shared), leaf_tasks, strict=True
    ):
        dtype = accumulation(leaves[0].dtype)
        chosen = (weights if is_shared else own_weights).astype(dtype)
        of = range(len(rows)) if is_shared else tasks
        total = sum((chosen[k] * leaves[k].astype(dtype) for k in of), jnp.zeros(leaves[0].shape, dtype))
        combined.append(total.astype(leaves[0].dtype))
    return jax.tree.unflatten(jax.tree.structure(shared), combined)


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
