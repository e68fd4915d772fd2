"""Gradients at the shared representation: one encoder backward pass, however many tasks."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from mtljax.gradients.arguments import leaf_dependence
from mtljax.gradients.gramian import scaled_gramian
from mtljax.gradients.linearized import (
    Linear,
    Linearized,
    gramian_rows,
    mean,
    own_rows,
    transposed_rows,
    varying,
    weighted_rows,
)
from mtljax.gradients.prepared import Prepared

PyTree: TypeAlias = Any


@dataclasses.dataclass(frozen=True)
class SplitLosses:
    """Losses split at the shared representation; called, it is their composition.

    Attributes:
      encode: `(params, *args) -> z`, a pytree.
      heads: `(params, z, *args) -> {task: loss}`, or with `has_aux` a pair of that and the auxiliary output.
    """

    encode: Callable[..., PyTree]
    heads: Callable[..., Any]

    def __call__(self, params: PyTree, *args: Any) -> Any:
        """The losses of the composition."""
        return self.heads(params, self.encode(params, *args), *args)


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

    Args:
      encode: `(params, *args) -> z`, the representation: a pytree. What it holds besides, such as batch statistics to
        be handed on, has no gradient and takes no part.
      heads: `(params, z, *args) -> {task: loss}`, or `({task: loss}, aux)` with `has_aux`.

    Returns:
      A losses function for `task_gradients`.
    """
    return SplitLosses(encode, heads)


class Halves(NamedTuple):
    """The linearized halves of split losses.

    Attributes:
      encoder: tangent of params to the tangents of the floating leaves of z.
      heads: tangents of params and of those leaves to K tangents of losses.
      z: the floating leaves of z.
    """

    encoder: Linear
    heads: Linear
    z: tuple[jax.Array, ...]

    def composed(self, tangent: PyTree) -> tuple[jax.Array, ...]:
        """Tangent of params to K tangents of losses."""
        return self.heads(tangent, self.encoder(tangent))


def linearize_halves(
    losses_fn: SplitLosses, params: PyTree, args: tuple[Any, ...], flat: Callable[[Any], tuple[tuple[Any, ...], Any]]
) -> tuple[tuple[jax.Array, ...], Halves, Any]:
    """Runs both halves once.

    Args:
      losses_fn: the halves.
      params: where.
      args: further arguments.
      flat: the result of the heads to (K losses, aux).

    Returns:
      The losses, the linearized halves and aux.
    """
    treedef, floating = None, ()

    def encode(p: PyTree) -> tuple[tuple[jax.Array, ...], list[Any]]:
        nonlocal treedef, floating
        leaves, treedef = jax.tree.flatten(losses_fn.encode(p, *args))
        floating = tuple(bool(jnp.issubdtype(jnp.result_type(leaf), jnp.floating)) for leaf in leaves)
        chosen = tuple(jnp.asarray(leaf) for leaf, keep in zip(leaves, floating, strict=True) if keep)
        return chosen, [leaf for leaf, keep in zip(leaves, floating, strict=True) if not keep]

    z, encoder, rest = jax.linearize(encode, params, has_aux=True)

    def heads(p: PyTree, chosen: tuple[jax.Array, ...]) -> tuple[tuple[jax.Array, ...], Any]:
        assert treedef is not None
        some, others = iter(chosen), iter(rest)
        leaves = [next(some) if keep else next(others) for keep in floating]
        return flat(losses_fn.heads(p, jax.tree.unflatten(treedef, leaves), *args))

    values, linear, aux = jax.linearize(heads, params, z, has_aux=True)
    return values, Halves(encoder, linear, z), aux


def prepare_features(linearized: Linearized, halves: Halves, shared: PyTree) -> Prepared:
    """Gramian of the gradients at z; the combination is one backward pass of the encoder.

    Args:
      linearized: the whole.
      halves: its halves.
      shared: pytree of bools like params.

    Returns:
      The Gramian over z: every example is a coordinate, so that those of several devices add up.
    """
    num_tasks, axis_name = len(linearized.tasks), linearized.axis_name
    leaves, treedef = jax.tree.flatten(linearized.params)
    zeros = tuple(map(jnp.zeros_like, halves.z))
    masks = jax.tree.leaves(shared)
    encoder_leaves = [
        bool(outputs) for outputs in leaf_dependence(jax.make_jaxpr(halves.encoder)(linearized.params).jaxpr)
    ]
    heads_tasks = leaf_dependence(jax.make_jaxpr(lambda t: halves.heads(t, zeros))(linearized.params).jaxpr)
    params_rows, z_rows = transposed_rows(
        halves.heads, (linearized.params, halves.z), linearized.dtypes, linearized.passes, axis_name
    )
    params_rows = jax.tree.leaves(params_rows)
    gramian = scaled_gramian(gramian_rows(z_rows, [True] * len(z_rows), num_tasks), num_tasks, axis_name=axis_name)
    # Each device's losses are means over its own examples: of the whole batch's mean they are the D-th part.
    devices = 1 if axis_name is None else jax.lax.psum(1, axis_name)
    gramian = gramian._replace(norms=gramian.norms / devices)

    def through_encoder(weights: jax.Array) -> list[jax.Array]:
        cotangents = varying(tuple(weighted_rows(weights, rows) for rows in z_rows), axis_name)
        return jax.tree.leaves(jax.linear_transpose(halves.encoder, linearized.params)(cotangents)[0])

    def combine(weights: jax.Array, own_weights: jax.Array) -> PyTree:
        encoded = through_encoder(weights)
        own_in_encoder = any(used and not mask for used, mask in zip(encoder_leaves, masks, strict=True))
        own_encoded = through_encoder(own_weights) if own_in_encoder else encoded
        combined = []
        for i, leaf in enumerate(leaves):
            total = encoded[i] if masks[i] else own_encoded[i]
            total = total if encoder_leaves[i] else jnp.zeros_like(leaf)
            if heads_tasks[i]:
                total = total + own_rows(weights if masks[i] else own_weights, params_rows[i], heads_tasks[i])
            combined.append(total)
        return mean(jax.tree.unflatten(treedef, combined), axis_name)

    return Prepared(gramian, combine)
