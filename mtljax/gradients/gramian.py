"""Inner products of task gradients in coordinates where nothing under- or overflows."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

OUT_OF_RANGE = "out_of_range"  # the name of what runs for extreme gradients alone, in compiled programs


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

    Where all squared lengths are well within the dtype's range the products are taken as they are. Elsewhere rows are
    first brought into range by powers of two, so that rows of 1e-30 and of 1e15 are equally exact.

    Args:
      rows: arrays (K, *shape), together the K gradients; float32 or float64.
      num_tasks: K, needed when there is no piece.
      axis_name: axis of pmap or shard_map over which the coordinates are spread, every device holding others.

    Returns:
      The Gramian in unit-diagonal coordinates, in the dtype of the pieces (float32 when there is none).
    """
    if not rows:
        return Gramian(jnp.zeros((num_tasks, num_tasks)), jnp.zeros(num_tasks))

    def products(scale: jax.Array | None) -> jax.Array:
        pieces = rows if scale is None else [piece * column(scale, piece) for piece in rows]
        total = jnp.asarray(sum(_products(piece, piece) for piece in pieces))
        return total if axis_name is None else lax.psum(total, axis_name)

    return _in_range(products)


def gramian_of_pairs(rows: Sequence[Sequence[jax.Array]]) -> Gramian:
    """As `scaled_gramian`, for K separate gradients, each in pieces of any shape, which are not copied together.

    Made of K (K + 1) / 2 products, so for a few tasks.
    """
    if not rows[0]:
        return scaled_gramian([], len(rows))

    def products(scale: jax.Array | None) -> jax.Array:
        scaled = rows if scale is None else [[piece * scale[k] for piece in row] for k, row in enumerate(rows)]
        upper = {(i, j): _dot(a, b) for i, a in enumerate(scaled) for j, b in enumerate(scaled) if i <= j}
        order = range(len(rows))
        return jnp.stack([jnp.stack([upper[min(i, j), max(i, j)] for j in order]) for i in order])

    return _in_range(products)


def _dot(left: Sequence[jax.Array], right: Sequence[jax.Array]) -> jax.Array:
    """The inner product of two gradients in pieces, by products of matrices, which a CPU shares among its cores."""
    each = [_products(a[None], b[None]) for a, b in zip(left, right, strict=True)]
    return jnp.stack(each).sum()


def _products(left: jax.Array, right: jax.Array) -> jax.Array:
    """Inner products of rows (K, *shape) and (L, *shape), (K, L): flattened, a row would lose how it is sharded."""
    axes = (trailing(left), trailing(right))
    return jnp.tensordot(left, right, axes=axes, precision=lax.Precision.HIGHEST, out_sharding=_replicated(left))


def _replicated(array: jax.Array) -> NamedSharding | None:
    """The sharding of a small result, which products over explicitly sharded axes have to name."""
    mesh = jax.typeof(array).sharding.mesh
    return NamedSharding(mesh, PartitionSpec()) if explicitly_sharded(array) else None


def explicitly_sharded(array: jax.Array) -> bool:
    """Whether the array lies on a mesh with axes of type Explicit, where jax wants every sharding named."""
    return AxisType.Explicit in jax.typeof(array).sharding.mesh.axis_types


def trailing(rows: jax.Array) -> tuple[int, ...]:
    """All axes but the first: sums over them keep how a leaf is sharded, where flattening would gather it."""
    return tuple(range(1, rows.ndim))


def column(values: jax.Array, rows: jax.Array) -> jax.Array:
    """(K,) values in the shape (K, 1, ...) that broadcasts against rows (K, *shape)."""
    return values.reshape(-1, *(1,) * (rows.ndim - 1))


def _in_range(products: Callable[[jax.Array | None], jax.Array]) -> Gramian:
    """The Gramian of the products of the rows, taken again with scaled rows where they may under- or overflow.

    Args:
      products: (K,) powers of two that scale the rows, None for none, to (K, K) inner products.

    Returns:
      The Gramian of the rows as they are.
    """
    plain = products(None)
    squares, limits = jnp.diagonal(plain), jnp.finfo(plain.dtype)
    # Up by these, the smallest number has a square; down by those, the sum of 2^30 squares of the largest is finite.
    up, down = (2.0 ** round(share * exponent) for share, exponent in ((-0.7, limits.minexp), (-0.63, limits.maxexp)))
    scale = jnp.where(squares > limits.max**0.9, down, jnp.where(squares < limits.tiny**0.65, up, 1.0))
    scale = scale.astype(plain.dtype)

    def rescued() -> jax.Array:
        with jax.named_scope(OUT_OF_RANGE):
            return products(scale)

    scaled = lax.cond(jnp.all(scale == 1), lambda: plain, rescued)
    lengths = jnp.sqrt(jnp.diagonal(scaled))
    return unit_diagonal(_outer_scaled(scaled, inverse(lengths)), lengths / scale)


def unit_diagonal(cosines: jax.Array, norms: jax.Array) -> Gramian:
    """The Gramian with cosines as computed, up to rounding, made symmetric, with a diagonal of exactly 1 or 0."""
    cosines = jnp.clip((cosines + cosines.T) / 2, -1, 1)
    identity = jnp.eye(len(norms), dtype=bool)
    return Gramian(jnp.where(identity, (norms > 0).astype(cosines.dtype), cosines), norms)


def cross_gramian(left: Sequence[jax.Array], right: Sequence[jax.Array], num_tasks: int) -> CrossGramian:
    """The inner products of the gradients of the same tasks on two batches.

    Args:
      left: arrays (K, *shape), together the K gradients on the first batch.
      right: the same on the second.
      num_tasks: K, needed when there is no piece.

    Returns:
      The products in unit-diagonal coordinates.
    """
    if not left:
        return CrossGramian(jnp.zeros((num_tasks, num_tasks)), jnp.zeros(num_tasks), jnp.zeros(num_tasks))
    # One scale for the whole row: the pieces of a row and those of its partner need not peak together.
    (a, a_scale), (b, b_scale) = _rows_over_peaks(left), _rows_over_peaks(right)
    products = sum(_products(x, y) for x, y in zip(a, b, strict=True))
    a_length, b_length = (jnp.sqrt(sum(jnp.sum(x * x, axis=trailing(x)) for x in units)) for units in (a, b))
    cosines = jnp.clip(inverse(a_length)[:, None] * products * inverse(b_length)[None, :], -1, 1)
    return CrossGramian(cosines, a_length * a_scale, b_length * b_scale)


def _rows_over_peaks(rows: Sequence[jax.Array]) -> tuple[list[jax.Array], jax.Array]:
    """Each row over all pieces divided by its largest entry, and those entries (1 for a zero row), (K,)."""
    peak = jnp.stack([jnp.max(jnp.abs(piece), axis=trailing(piece)) for piece in rows]).max(axis=0)
    scale = jnp.where(peak > 0, peak, 1)
    return [piece / column(scale, piece) for piece in rows], scale


def _outer_scaled(matrix: jax.Array, factors: jax.Array) -> jax.Array:
    return factors[:, None] * matrix * factors[None, :]


def inverse(lengths: jax.Array) -> jax.Array:
    """1 / lengths, and 0 where a length is 0."""
    return jnp.where(lengths > 0, 1 / jnp.where(lengths > 0, lengths, 1), 0)
