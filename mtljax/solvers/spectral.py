"""Aligned-MTL: the polar factor of the gradients, from their Gramian."""

from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import lax

from mtljax.solvers._linear import finite, iterate, normalised, product, rounding, triangular_solve, unit_solve

if TYPE_CHECKING:
    from jaxtyping import Array, Float

_SWEEPS = 24  # bound on a quadratically convergent iteration that takes 3 to 9


@partial(jax.jit, static_argnames="scale")
def aligned_weights(cosines: "Float[Array, 'K K']", norms: "Float[Array, 'K']", *, scale: str) -> "Float[Array, 'K']":
    """Weights of the sum of the aligned gradients (Aligned-MTL, arXiv 2305.19000).

    With the singular value decomposition `J = V S Q'` of the gradients, the aligned ones are the rows of `sigma V Q'`.

    The eigenvalues of the Gramian are the squares of S, and where lengths span 12 decades rounding leaves nothing of
    the small ones. So the Gramian is never formed but factored, as `B B'` with `B = diag(norms) L` and L a Cholesky
    factor of the cosines, and `B = V S W'` comes from Jacobi rotations of the columns of B, which find the small
    singular values of a graded matrix to as many digits as the large ones (Demmel and Veselic, SIAM J. Matrix Anal.
    Appl. 13(4), 1992). The weights w with `B'w = sigma W V'1` then take one triangular solve with L.

    Args:
        cosines: shape (K, K), unit-diagonal Gramian.
        norms: shape (K,), lengths of the gradients. Those below sqrt(tiny / eps) times the largest count as zero.
        scale: what sigma is, of the nonzero singular values: "min", "median" (the lower one of an even number), "rmse"
            (the root of their mean square).

    Returns:
        w, shape (K,); where gradients are linearly dependent, those of least `sum_k (w_k |g_k|)^2`. 0 for zero
        gradients.
    """
    limits = jnp.finfo(norms.dtype)
    relative, _ = normalised(norms)
    relative = jnp.where(relative > (limits.tiny / limits.eps) ** 0.5, relative, 0)
    live = relative > 0
    cosines = jnp.where(live[:, None] & live, cosines, 0)
    lower, pivots = _pivoted_cholesky(cosines, relative)
    kept = jnp.any(lower != 0, axis=0)

    columns, right = _orthogonal_columns(relative[:, None] * lower)
    values = jnp.sqrt(jnp.sum(columns**2, axis=0))
    polar = product(right, jnp.sum(columns, axis=0) / jnp.where(values > 0, values, 1))

    triangle = jnp.where(kept, lower[pivots], jnp.eye(len(norms), dtype=lower.dtype))
    solution = jnp.zeros_like(norms).at[pivots].set(triangular_solve(triangle, polar, transpose=True))
    shortest = unit_solve(cosines, product(lower, polar))
    y = jnp.where(jnp.sum(kept) == jnp.sum(live), solution, shortest)
    return jnp.where(live, finite(_sigma(values, scale) * y / jnp.where(live, relative, 1)), 0)


def _sigma(values: jax.Array, scale: str) -> jax.Array:
    count = jnp.sum(values > 0)
    if scale == "rmse":
        return jnp.sqrt(jnp.sum(values**2) / jnp.maximum(count, 1))
    ordered = jnp.sort(jnp.where(values > 0, values, jnp.inf))
    sigma = ordered[0 if scale == "min" else jnp.maximum(count - 1, 0) // 2]
    return jnp.where(count > 0, sigma, 0)


def _pivoted_cholesky(cosines: jax.Array, relative: jax.Array) -> tuple[jax.Array, jax.Array]:
    """L with `cosines = L L'`, columns in the order of the pivots and rows as they are; and the pivots, (K,).

    The pivots are those of the Gramian itself, the longest remainder first, so that the columns of
    `diag(relative) L` get shorter. Rows that depend on the pivots before them add a zero column, at the end.
    """
    cutoff = rounding(relative)

    def step(j: jax.Array, state: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        lower, remaining, pivots = state
        length = jnp.where(remaining > cutoff, relative * jnp.sqrt(jnp.abs(remaining)), 0)
        pivot = jnp.argmax(jnp.where(remaining < 0, -1, length))  # rows taken before are at -1
        root = jnp.sqrt(jnp.maximum(remaining[pivot], cutoff))
        column = (cosines[:, pivot] - product(lower, lower[pivot])) / root
        column = jnp.where(remaining < 0, 0, column).at[pivot].set(root)
        column = jnp.where(remaining[pivot] > cutoff, column, 0)
        remaining = jnp.where(remaining < 0, -1, jnp.maximum(remaining - column**2, 0)).at[pivot].set(-1)
        return lower.at[:, j].set(column), remaining, pivots.at[j].set(pivot)

    start = (jnp.zeros_like(cosines), jnp.diagonal(cosines), jnp.zeros(len(relative), int))
    lower, _, pivots = lax.fori_loop(0, len(relative), step, start)
    return lower, pivots


def _orthogonal_columns(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`matrix @ rotation` with orthogonal columns, and the rotation, by one-sided Jacobi.

    In a sweep every two columns meet once, as in a tournament: in each round those of the upper half of the table meet
    those of the lower, side by side, and then all but the first move on by one place.
    """
    num_columns = matrix.shape[1]
    size = num_columns + num_columns % 2
    half = size // 2
    # Rows of the table are columns of the matrix, followed by those of the rotation so far.
    table = jnp.concatenate([matrix.T, jnp.eye(num_columns, dtype=matrix.dtype)], axis=1)
    table = jnp.pad(table, ((0, size - num_columns), (0, 0)))
    circle = jnp.concatenate([jnp.arange(half), jnp.arange(size - 1, half - 1, -1)])
    moves = jnp.zeros(size, int).at[circle].set(jnp.concatenate([circle[:1], jnp.roll(circle[1:], 1)]))

    def play(_: jax.Array, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        table, worst = state
        upper, lower = table[:half], table[half:]
        x, y = upper[:, :num_columns], lower[:, :num_columns]
        xx, yy, xy = jnp.sum(x * x, axis=1), jnp.sum(y * y, axis=1), jnp.sum(x * y, axis=1)
        oblique = xy != 0
        cosine = jnp.where(oblique, jnp.abs(xy) / (jnp.sqrt(xx) * jnp.sqrt(yy)), 0)
        slope = (yy - xx) / jnp.where(oblique, 2 * xy, 1)
        tangent = jnp.where(oblique, jnp.where(slope < 0, -1, 1) / (jnp.abs(slope) + jnp.hypot(1, slope)), 0)[:, None]
        upper, lower = upper - tangent * lower, tangent * upper + lower
        table = jnp.concatenate([upper, lower]) * lax.rsqrt(1 + jnp.concatenate([tangent, tangent]) ** 2)
        return table[moves], jnp.maximum(worst, jnp.max(cosine))

    def sweep(table: jax.Array) -> tuple[jax.Array, jax.Array]:
        table, worst = lax.fori_loop(0, size - 1, play, (table, jnp.zeros((), matrix.dtype)))
        # Convergence is quadratic: after a sweep that met no larger cosine, what is left is rounding.
        return table, worst < jnp.finfo(matrix.dtype).eps ** 0.5

    table = iterate(sweep, table, _SWEEPS)[:num_columns]
    return table[:, :num_columns].T, table[:, num_columns:].T
