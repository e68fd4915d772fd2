"""Gradients at the shared representation: one encoder backward pass, however many tasks."""

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mtljax.gradients.backend import is_assumed
from mtljax.gradients.backward import Backward, Linear, transposed
from mtljax.gradients.engine import PyTree, chosen_pieces, mean, sum_over_tasks, varying, weighted_sum
from mtljax.gradients.gramian import Gramian, scaled_gramian
from mtljax.gradients.inspection import leaf_dependence


@dataclasses.dataclass(frozen=True)
class SplitLosses:
    """Losses split at the shared representation; called, it is their composition.

    Attributes:
      encode: `(params, *args, **kwargs) -> z`, a pytree.
      heads: `(params, z, *args, **kwargs) -> {task: loss}`, or with `has_aux` a pair of that and the auxiliary output.
    """

    encode: Callable[..., PyTree]
    heads: Callable[..., Any]

    def __call__(self, params: PyTree, *args: Any, **kwargs: Any) -> Any:
        """The losses of the composition."""
        return self.heads(params, self.encode(params, *args, **kwargs), *args, **kwargs)


def split(encode: Callable[..., PyTree], heads: Callable[..., Any]) -> SplitLosses:
    """Losses split at the shared representation, which mode "features" needs and every other mode accepts.

    >>> import jax.numpy as jnp, mtljax as mtl
    >>> losses_fn = mtl.split(
    ...     lambda p, x: jnp.tanh(x @ p["shared"]),
    ...     lambda p, z, x: {"left": jnp.mean(z @ p["left"]), "right": jnp.mean(-z @ p["right"])},
    ... )
    >>> params = {"shared": jnp.eye(2), "left": jnp.ones(2), "right": jnp.ones(2)}
    >>> _, grads = mtl.task_gradients(losses_fn, params, jnp.ones((4, 2)), mode="features")
    >>> jnp.round(grads.gramian(), 6).tolist()
    [[0.5, -0.5], [-0.5, 0.5]]

    The Gramian of "features" compares tasks example by example. Where two tasks have no example in common (each reads
    an input of its own, or labels are on different examples) their product is exactly 0 whatever the gradients of the
    parameters do, and a method sees no conflict: mode "features" warns of that, and another mode is the cure. It warns
    of products that are exactly 0 alone: tasks with few examples in common are nearly as blind, without a word.

    Args:
      encode: `(params, *args, **kwargs) -> z`, the representation: a pytree, examples along the leading axis. What it
        holds besides, such as batch statistics to be handed on, has no gradient and takes no part.
      heads: `(params, z, *args, **kwargs) -> {task: loss}`, or `({task: loss}, aux)` with `has_aux`.

    Returns:
      A losses function for `value_and_grad` and `task_gradients`.
    """
    return SplitLosses(encode, heads)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Features(Backward):
    """Gramian at the representation; the combination is one backward pass of the encoder.

    Attributes:
      names: of the tasks.
      encoder: tangent of params to the tangents of the floating leaves of z.
      heads: tangents of params and of those leaves to K tangents of losses.
      z: the floating leaves of z.
      heads_rows: gradients of the heads to params and to z, leading axis K; None before `held`.
    """

    names: tuple[str, ...]
    encoder: Linear
    heads: Linear
    z: tuple[jax.Array, ...]
    heads_rows: tuple[PyTree, tuple[jax.Array, ...]] | None = None

    def held(self) -> "Features":
        """One that holds the gradients of the heads."""
        if self.heads_rows is not None:
            return self
        rows: Any = transposed(self.heads, (self.params, self.z), self.dtypes, self.passes, self.axis_name)
        return dataclasses.replace(self, heads_rows=rows)

    def gramian(self) -> Gramian:
        """Every example is a coordinate, so that those of several devices add up; warns of tasks it cannot compare."""
        _, z_rows = self._rows_of_heads()
        num_tasks = self.layout.num_tasks
        rows = chosen_pieces(z_rows, [True] * len(z_rows), axis=1)
        gramian = scaled_gramian(rows, num_tasks, axis_name=self.axis_name)
        _warn_of_disjoint_tasks(gramian, z_rows, self.names, self.axis_name)
        # Each device's losses are means over its own examples: of the whole batch's mean they are the D-th part.
        devices = 1 if self.axis_name is None else lax.psum(1, self.axis_name)
        return gramian._replace(norms=gramian.norms / devices)

    def combine(self, weights: jax.Array, own_weights: jax.Array) -> PyTree:
        """One backward pass of the encoder, two where it has parameters of single tasks."""
        if self.heads_rows is None:
            return super().combine(weights, own_weights)
        params_rows, z_rows = self.heads_rows
        leaves, treedef = jax.tree.flatten(self.params)
        shared, rows = jax.tree.leaves(self.layout.shared), jax.tree.leaves(params_rows)
        zeros = tuple(map(jnp.zeros_like, self.z))
        in_encoder = [bool(outputs) for outputs in _dependence(self.encoder, self.params)]
        in_heads = _dependence(lambda tangent: self.heads(tangent, zeros), self.params)

        def through_encoder(weights: jax.Array) -> list[jax.Array]:
            cotangents = varying(tuple(weighted_sum(weights, rows) for rows in z_rows), self.axis_name)
            return jax.tree.leaves(jax.linear_transpose(self.encoder, self.params)(cotangents)[0])

        encoded = through_encoder(weights)
        own_in_encoder = any(used and not flag for used, flag in zip(in_encoder, shared, strict=True))
        own_encoded = through_encoder(own_weights) if own_in_encoder else encoded
        combined = []
        for i, leaf in enumerate(leaves):
            total = (encoded if shared[i] else own_encoded)[i] if in_encoder[i] else jnp.zeros_like(leaf)
            if in_heads[i]:
                total = total + sum_over_tasks(weights if shared[i] else own_weights, rows[i], in_heads[i])
            combined.append(total)
        return mean(jax.tree.unflatten(treedef, combined), self.axis_name)

    def _rows_of_heads(self) -> tuple[PyTree, tuple[jax.Array, ...]]:
        rows = self.held().heads_rows
        assert rows is not None
        return rows


def linearize_split(
    losses_fn: SplitLosses,
    params: PyTree,
    flat: Callable[[Any], tuple[tuple[Any, ...], Any]],
    *args: Any,
    **kwargs: Any,
) -> tuple[tuple[jax.Array, ...], Linear, dict[str, Any], Any]:
    """Runs both halves once.

    Args:
      losses_fn: the halves.
      params: where.
      flat: the result of the heads to (K losses, aux).
      *args: further arguments of both halves.
      **kwargs: the same by name.

    Returns:
      The losses, their linearization, the attributes of `Features` that hold its halves, and aux.
    """
    treedef, floating = None, ()

    def encode(p: PyTree) -> tuple[tuple[jax.Array, ...], list[Any]]:
        nonlocal treedef, floating
        leaves, treedef = jax.tree.flatten(losses_fn.encode(p, *args, **kwargs))
        floating = tuple(bool(jnp.issubdtype(jnp.result_type(leaf), jnp.floating)) for leaf in leaves)
        chosen = tuple(jnp.asarray(leaf) for leaf, keep in zip(leaves, floating, strict=True) if keep)
        return chosen, [leaf for leaf, keep in zip(leaves, floating, strict=True) if not keep]

    z, encoder, rest = jax.linearize(encode, params, has_aux=True)

    def heads(p: PyTree, chosen: tuple[jax.Array, ...]) -> tuple[tuple[jax.Array, ...], Any]:
        assert treedef is not None
        some, others = iter(chosen), iter(rest)
        leaves = [next(some) if keep else next(others) for keep in floating]
        return flat(losses_fn.heads(p, jax.tree.unflatten(treedef, leaves), *args, **kwargs))

    values, linear, aux = jax.linearize(heads, params, z, has_aux=True)
    return values, lambda tangent: linear(tangent, encoder(tangent)), {"encoder": encoder, "heads": linear, "z": z}, aux


def _warn_of_disjoint_tasks(
    gramian: Gramian, z_rows: tuple[jax.Array, ...], names: tuple[str, ...], axis_name: Any
) -> None:
    """Warns, when the program runs, of pairs of tasks with gradients on no example in common."""
    num_tasks = len(names)
    present = gramian.norms > 0
    orthogonal = jnp.triu((gramian.cosines == 0) & present[:, None] & present[None, :], 1)

    def warn(disjoint: Any) -> None:
        pairs = [f"{names[i]!r} and {names[j]!r}" for i, j in np.argwhere(np.asarray(disjoint))]
        if pairs:
            warnings.warn(
                f'mode="features" compares tasks example by example, and the tasks {", ".join(pairs)} have no example '
                'in common: their conflicts are invisible to it, so use mode="jacrev", "loop" or "two_pass"',
                stacklevel=2,
            )

    def look(z_rows: tuple[jax.Array, ...]) -> None:
        common = jnp.zeros((num_tasks, num_tasks))
        for rows in z_rows:
            examples = rows.reshape(num_tasks, rows.shape[1] if rows.ndim > 1 else 1, -1)
            touched = jnp.any(examples != 0, axis=2).astype(jnp.float32)
            common += jnp.matmul(touched, touched.T, precision=lax.Precision.HIGHEST)
        common = common if axis_name is None else lax.psum(common, axis_name)
        jax.debug.callback(warn, orthogonal & (common == 0))

    if num_tasks > 1 and not is_assumed():  # disjoint tasks have a product of exactly 0; under vmap every program looks
        lax.cond(jnp.any(orthogonal), look, lambda _: None, z_rows)


def _dependence(linear: Linear, params: PyTree) -> list[tuple[int, ...]]:
    return leaf_dependence(jax.make_jaxpr(linear)(params).jaxpr)
