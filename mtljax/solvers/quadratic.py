"""Quadratic programs: the shortest vector of a hull and projections onto a dual cone."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import lax

from mtljax.solvers._linear import (
    advance,
    centred,
    cholesky_solver,
    finite,
    iterate,
    longest_step,
    normalised,
    on_simplex,
    product,
    rounding,
)

if TYPE_CHECKING:
    from jaxtyping import Array, Float


@partial(jax.jit, static_argnames="iterations")
def nonnegative_qp(
    matrix: "Float[Array, 'K K']", linear: "Float[Array, 'K']", *, iterations: int = 20
) -> "Float[Array, 'K']":
    """Minimises `x'Qx / 2 - b'x` over `x >= 0`.

    A primal-dual interior-point method with Mehrotra's predictor and corrector (SIAM J. Optim. 2(4), 1992), run in
    coordinates where Q has unit diagonal and the largest entry of b is one, so the result does not depend on the
    scales of the rows. Singular Q needs no care: each Newton system carries a proximal term at the level of rounding,
    which leaves the fixed point alone. One Cholesky factorisation of a K x K matrix an iteration.

    Args:
        matrix: Q, shape (K, K), symmetric positive semidefinite. A variable with a zero row gets the value 0.
        linear: b, shape (K,), with the problem bounded below (b in the range of Q plus the negative orthant). If it is
            not, the result is finite and has no meaning. vmap over `linear` for several right-hand sides.
        iterations: bound on the number of interior-point iterations, static.

    Returns:
        The minimiser, shape (K,), in the dtype of `linear`. Where there are several, one near their analytic centre.
    """
    limits = jnp.finfo(linear.dtype)
    diagonal = jnp.diagonal(matrix)
    live = diagonal >= limits.tiny
    scale = jnp.where(live, lax.rsqrt(jnp.where(live, diagonal, 1)), 0)
    q = jnp.where(jnp.eye(len(linear), dtype=bool), 1, matrix * scale[:, None] * scale)
    b, size = normalised(linear)
    b, scaled_size = normalised(b * scale)
    x = _interior_point(q, lambda x: product(q, x) - b, b, iterations)
    return finite(x * scaled_size * scale * size)


def _interior_point(q: jax.Array, slope: Callable[[jax.Array], jax.Array], b: jax.Array, iterations: int) -> jax.Array:
    """The minimiser in coordinates of unit scale. `slope` is `Qx - b` and bounds the exactness; q serves the steps."""
    eps = jnp.finfo(b.dtype).eps
    proximal = rounding(b)

    def iteration(point: tuple[jax.Array, jax.Array]) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        x, z = point
        ratio = z / x
        solve = cholesky_solver(q + jnp.diag(ratio + proximal * (1 + ratio)))
        residual = slope(x)

        def direction(complementarity: jax.Array) -> tuple[jax.Array, jax.Array]:
            dx = solve(complementarity / x - residual)
            return dx, complementarity / x - z - ratio * dx

        dx, dz = direction(jnp.zeros_like(x))
        step = jnp.minimum(longest_step(x, dx), longest_step(z, dz))
        gap = jnp.mean(x * z)
        target = centred(jnp.mean((x + step * dx) * (z + step * dz)), gap)
        # eps^2 keeps x and z from underflowing; d = J'x of a unit-scale problem is then exact to eps
        dx, dz = direction(jnp.maximum(target, eps**2) - dx * dz)
        step = jnp.minimum(longest_step(x, dx), longest_step(z, dz))
        new = (x + step * dx, z + step * dz)
        return advance(new, new, point, gap < 4 * eps**2)

    return iterate(iteration, (jnp.ones_like(b), jnp.ones_like(b)), iterations)[0]


@jax.jit
def dual_cone_weights(
    cosines: "Float[Array, 'K K']", norms: "Float[Array, 'K']", u: "Float[Array, 'K']"
) -> "Float[Array, 'K']":
    """Weights of the projection of `sum_k u_k g_k` onto the dual cone of the gradients.

    Minimises `|sum_k v_k g_k|^2` subject to `v >= u`: the problem of UPGrad (one u a task: vmap over it) and of
    DualProj (arXiv 2406.16232, Proposition 1). The projection conflicts with no gradient: `g_k . sum_j v_j g_j >= 0`.

    Args:
        cosines: shape (K, K), unit-diagonal Gramian.
        norms: shape (K,), lengths of the gradients.
        u: shape (K,), lower bounds, at least 0.

    Returns:
        v, shape (K,). `v_k = u_k` for a zero gradient. Values beyond the dtype's range are cut to its largest number.
    """
    live = norms >= jnp.finfo(norms.dtype).tiny
    relative, largest = normalised(norms)
    bounds, u_size = normalised(u)
    y, y_size = normalised(relative * bounds)
    excess = nonnegative_qp(cosines, -product(cosines, y))
    stretch = finite(largest / jnp.where(live, norms, 1))
    return finite(u + jnp.where(live, finite(excess * y_size * stretch) * u_size, 0))


@jax.jit
def upgrad_weights(cosines: "Float[Array, 'K K']", norms: "Float[Array, 'K']") -> "Float[Array, 'K']":
    """Weights of the mean of the gradients, each projected onto the dual cone (UPGrad, arXiv 2406.16232).

    In unit-diagonal coordinates the K projections `u_k + sum_j x_kj u_j` depend on the cosines alone, so the weights
    are exactly linear in the lengths. All K problems start from the same matrix and are pivoted side by side; if one
    does not end, or misses the optimality conditions by more than rounding, as happens where the Gramian is nearly
    singular, the interior-point method takes over.

    Args:
        cosines: shape (K, K), unit-diagonal Gramian.
        norms: shape (K,), lengths of the gradients.

    Returns:
        w, shape (K,), at least 1/K. Values beyond the dtype's range are cut to its largest number.
    """
    live = norms >= jnp.finfo(norms.dtype).tiny
    excess, solved = _by_pivoting(cosines)
    excess = lax.cond(solved, lambda: excess, lambda: jax.vmap(nonnegative_qp, (None, 0))(cosines, -cosines))
    relative, largest = normalised(norms)
    added = product(relative, excess) * finite(largest / jnp.where(live, norms, 1))
    return finite((1 + jnp.where(live, added, 0)) / len(norms))


def _by_pivoting(cosines: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The (K, K) solutions x_k of min |u_k + sum_j x_kj u_j|^2 with x >= 0, and whether they are that.

    Principal pivoting of the complementarity problems `slack = C x + C_k, x >= 0, slack >= 0, x slack = 0`: each
    exchanges the variable with the most negative value between x and slack, until there is none.
    """
    num_tasks = len(cosines)
    tasks = jnp.arange(num_tasks)
    small = rounding(cosines)
    negative = -4 * jnp.finfo(cosines.dtype).eps

    def pivot(state: tuple[jax.Array, jax.Array]) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        table, free = state
        pivots = jnp.argmin(table[:, :, -1], axis=1)
        row = table[tasks, pivots]
        sign = jnp.where(free, -1, 1) * jnp.where(free[tasks, pivots], -1, 1)[:, None]
        column = sign * row[:, :-1]  # tables are symmetric but for the sign between variables of either kind
        size = row[tasks, pivots]
        usable = (row[:, -1] < negative) & (size > small)
        unit = (tasks == pivots[:, None]).astype(table.dtype)
        row = (row - jnp.pad(unit, ((0, 0), (0, 1)))) / jnp.where(usable, size, jnp.inf)[:, None]
        table = table - (column + unit)[:, :, None] * row[:, None, :]
        return (table, free ^ ((unit > 0) & usable[:, None])), ~jnp.any(usable)

    start = jnp.concatenate([jnp.broadcast_to(cosines, (num_tasks,) * 3), cosines[:, :, None]], axis=2)
    _, free = iterate(pivot, (start, jnp.zeros((num_tasks, num_tasks), bool)), 2 * num_tasks)

    # The table has lost digits on the way: solve once more for the variables it found.
    both = free[:, :, None] & free[:, None, :]
    identity = jnp.eye(num_tasks, dtype=cosines.dtype)
    solve = cholesky_solver(jnp.where(both, cosines, 0) + identity * jnp.where(free, small, 1)[:, None, :])
    x = solve(jnp.where(free, -cosines, 0))
    x = jnp.maximum(x + solve(jnp.where(free, -cosines - product(x, cosines), 0)), 0)
    slack = cosines + product(x, cosines)
    tolerance = small * (1 + jnp.sum(x, axis=1, keepdims=True))
    return x, jnp.all(jnp.where(x > 0, jnp.abs(slack), -slack) <= tolerance)


@jax.jit
def min_norm_weights(cosines: "Float[Array, 'K K']", norms: "Float[Array, 'K']") -> "Float[Array, 'K']":
    """Weights of the shortest vector in the convex hull of the gradients (MGDA, arXiv 1810.04650, Eq. 3).

    Minimises `|sum_k w_k g_k|^2` over the simplex. In `y_k = w_k |g_k| / min|g|` the simplex reads `a'y = 1` with
    `a_k = min|g| / |g_k|`, and the minimiser of `y'Cy + (a'y - 1)^2` over `y >= 0` is a multiple, between 1/2
    and 1, of the wanted one: a nonnegative quadratic program without the constraint.

    Args:
        cosines: shape (K, K), unit-diagonal Gramian.
        norms: shape (K,), lengths of the gradients.

    Returns:
        w, shape (K,), nonnegative with sum 1. Zero gradients are excluded: they get weight 0 and the others are solved
        for as if alone. All gradients zero: 1/K each. At a Pareto-stationary point (0 in the hull) the combination is 0
        up to rounding.
    """
    live = norms >= jnp.finfo(norms.dtype).tiny
    smallest = jnp.min(jnp.where(live, norms, jnp.inf))
    a = jnp.where(live, smallest / jnp.where(live, norms, 1), 0)
    unit = jnp.where(jnp.eye(len(a), dtype=bool), 1, cosines)

    def slope(y: jax.Array) -> jax.Array:
        # From the cosines as they are: of nearly opposite gradients the sum with a a' would round away the difference.
        return product(unit, y) + a * (jnp.sum(a * y) - 1)

    y = _interior_point(unit + jnp.outer(a, a), slope, a, iterations=20)
    return on_simplex(y * a, live)
