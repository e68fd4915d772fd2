"""Inner products of task gradients in coordinates where nothing under- or overflows."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class Gramian(NamedTuple):
    """The Gramian of the task gradients in unit-diagonal coordinates, where nothing under- or overflows.

    The Gramian itself is `diag(norms) @ cosines @ diag(norms)`.

    Attributes:
      cosines: (K, K), inner products of the normalised gradients; row, column and diagonal of a zero gradient are 0.
      norms: (K,), the Euclidean norms of the gradients.
    """

    cosines: jax.Array
    norms: jax.Array

    def dense(self) -> jax.Array:
        """The (K, K) matrix of inner products; entries beyond the dtype's range under- or overflow."""
        return self.norms[:, None] * self.cosines * self.norms[None, :]


class CrossGramian(NamedTuple):
    """Inner products of the task gradients on two batches, `diag(left) @ cosines @ diag(right)`.

    Attributes:
      cosines: (K, K), of normalised gradients, first batch by second; 0 where either is zero.
      left: (K,), norms on the first batch.
      right: (K,), norms on the second.
    """

    cosines: jax.Array
    left: jax.Array
    right: jax.Array


def scaled_gramian(rows: Sequence[jax.Array], num_tasks: int, *, axis_name: Any = None) -> Gramian:
    """The Gramian of gradients given in pieces.

    Where all squared lengths are well within the dtype's range the products are taken as they are. Elsewhere each row
    of a piece is first divided by its largest entry, so that rows of 1e-30 and of 1e15 are equally exact.

    Args:
      rows: arrays (K, n_i), together the K gradients; float32 or float64.
      num_tasks: K, needed when there is no piece.
      axis_name: axis of pmap or shard_map over which the coordinates are spread, every device holding others.

    Returns:
      The Gramian in unit-diagonal coordinates, in the dtype of the pieces (float32 when there is none).
    """
    if not rows:
        return Gramian(jnp.zeros((num_tasks, num_tasks)), jnp.zeros(num_tasks))
    products = jnp.asarray(sum(jnp.matmul(piece, piece.T, precision=lax.Precision.HIGHEST) for piece in rows))
    products = products if axis_name is None else lax.psum(products, axis_name)
    return _in_range(products, list(rows), lambda rows: _scaled_products(rows, axis_name))


def gramian_of_pairs(rows: Sequence[Sequence[jax.Array]]) -> Gramian:
    """As `scaled_gramian`, for K separate gradients, each in pieces (n_i,): nothing is copied together.

    Made of K (K + 1) / 2 products, so for a few tasks.
    """
    if not rows[0]:
        return scaled_gramian([], len(rows))

    def products(rows: Sequence[Sequence[jax.Array]]) -> jax.Array:
        upper = {(i, j): _dot(a, b) for i, a in enumerate(rows) for j, b in enumerate(rows) if i <= j}
        order = range(len(rows))
        return jnp.stack([jnp.stack([upper[min(i, j), max(i, j)] for j in order]) for i in order])

    def scaled(rows: Sequence[Sequence[jax.Array]]) -> tuple[jax.Array, jax.Array]:
        peaks = jnp.stack([jnp.stack([jnp.max(jnp.abs(piece)) for piece in row]).max() for row in rows])
        scale = jnp.where(peaks > 0, peaks, 1)
        return products([[piece / scale[k] for piece in row] for k, row in enumerate(rows)]), peaks

    return _in_range(products(rows), [list(row) for row in rows], scaled)


def _dot(left: Sequence[jax.Array], right: Sequence[jax.Array]) -> jax.Array:
    """The inner product of two gradients in pieces, by products of matrices, which a CPU shares among its cores."""
    each = [
        jnp.matmul(a[None, :], b[:, None], precision=lax.Precision.HIGHEST) for a, b in zip(left, right, strict=True)
    ]
    return jnp.stack(each).sum()


def _in_range(products: jax.Array, rows: Any, rescaled: Callable[[Any], tuple[jax.Array, jax.Array]]) -> Gramian:
    """The Gramian of these products, or, where they may under- or overflow, of those `rescaled` makes of the rows."""
    squares, limits = jnp.diagonal(products), jnp.finfo(products.dtype)
    safe = jnp.all((squares > limits.tiny**0.65) & (squares < limits.max**0.9))
    products, scale = lax.cond(safe, lambda rows: (products, jnp.ones_like(squares)), rescaled, rows)
    lengths = jnp.sqrt(jnp.diagonal(products))
    return unit_diagonal(_outer_scaled(products, inverse(lengths)), lengths * scale)


def _scaled_products(rows: Sequence[jax.Array], axis_name: Any) -> tuple[jax.Array, jax.Array]:
    """Products of the rows divided by their largest entries, and those entries (K,)."""
    parts = []
    for piece in rows:
        unit, peak = _unit_peaks(piece)
        parts.append((jnp.matmul(unit, unit.T, precision=lax.Precision.HIGHEST), peak))
    scale = jnp.stack([peak for _, peak in parts]).max(axis=0)
    scale = scale if axis_name is None else lax.pmax(scale, axis_name)
    products = sum(_outer_scaled(product, peak / jnp.where(scale > 0, scale, 1)) for product, peak in parts)
    products = products if axis_name is None else lax.psum(products, axis_name)
    return jnp.asarray(products), scale


def unit_diagonal(cosines: jax.Array, norms: jax.Array) -> Gramian:
    """The Gramian with cosines as computed, up to rounding, made symmetric, with a diagonal of exactly 1 or 0."""
    cosines = jnp.clip((cosines + cosines.T) / 2, -1, 1)
    identity = jnp.eye(len(norms), dtype=bool)
    return Gramian(jnp.where(identity, (norms > 0).astype(cosines.dtype), cosines), norms)


def cross_gramian(left: Sequence[jax.Array], right: Sequence[jax.Array], num_tasks: int) -> CrossGramian:
    """The inner products of the gradients of the same tasks on two batches.

    Args:
      left: arrays (K, n_i), together the K gradients on the first batch.
      right: the same on the second.
      num_tasks: K, needed when there is no piece.

    Returns:
      The products in unit-diagonal coordinates.
    """
    if not left:
        return CrossGramian(jnp.zeros((num_tasks, num_tasks)), jnp.zeros(num_tasks), jnp.zeros(num_tasks))
    # One scale for the whole row: the pieces of a row and those of its partner need not peak together.
    (a, a_scale), (b, b_scale) = _rows_over_peaks(left), _rows_over_peaks(right)
    products = sum(jnp.matmul(x, y.T, precision=lax.Precision.HIGHEST) for x, y in zip(a, b, strict=True))
    a_length, b_length = (jnp.sqrt(sum(jnp.sum(x * x, axis=1) for x in units)) for units in (a, b))
    cosines = jnp.clip(inverse(a_length)[:, None] * products * inverse(b_length)[None, :], -1, 1)
    return CrossGramian(cosines, a_length * a_scale, b_length * b_scale)


def _unit_peaks(piece: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The rows divided by their largest entries, and those entries (K,); zero rows stay zero."""
    peak = jnp.max(jnp.abs(piece), axis=1)
    return piece / jnp.where(peak > 0, peak, 1)[:, None], peak


def _rows_over_peaks(rows: Sequence[jax.Array]) -> tuple[list[jax.Array], jax.Array]:
    """Each row over all pieces divided by its largest entry, and those entries (1 for a zero row), (K,)."""
    peak = jnp.stack([jnp.max(jnp.abs(piece), axis=1) for piece in rows]).max(axis=0)
    scale = jnp.where(peak > 0, peak, 1)
    return [piece / scale[:, None] for piece in rows], scale


def _outer_scaled(matrix: jax.Array, factors: jax.Array) -> jax.Array:
    return factors[:, None] * matrix * factors[None, :]


def inverse(lengths: jax.Array) -> jax.Array:
    """1 / lengths, and 0 where a length is 0."""
    return jnp.where(lengths > 0, 1 / jnp.where(lengths > 0, lengths, 1), 0)
