"""The K x K problems behind the methods, solved inside jit with a fixed number of iterations.

Every solver is a pure function of arrays: it can be jitted, vmapped and scanned, and K is read from the shapes. A
Gramian comes in unit-diagonal coordinates, as `cosines[i, j] = g_i.g_j / (|g_i| |g_j|)` (row, column and diagonal
zero where `g_i = 0`) and `norms[i] = |g_i|`; it is never multiplied out, because products of norms leave the range
of float32. No tolerance is absolute: every threshold is a multiple of the machine epsilon of the dtype, applied after
normalisation.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

_State = TypeVar("_State")
_TO_BOUNDARY = 0.995  # share of the way to the boundary that a step may go
_PROXIMAL = 32  # times sqrt(K) eps: above the rounding of a Gramian of K unit rows, so that Cholesky succeeds


@partial(jax.jit, static_argnames="iterations")
def nonnegative_qp(matrix: jax.Array, linear: jax.Array, *, iterations: int = 20) -> jax.Array:
    """Minimises `x'Qx / 2 - b'x` over `x >= 0`.

    A primal-dual interior-point method with Mehrotra's predictor and corrector (SIAM J. Optim. 2(4), 1992), run in
    coordinates where Q has unit diagonal and the largest entry of b is one, so the result does not depend on the
    scales of the rows. Singular Q needs no care: each Newton system carries a proximal term at the level of rounding,
    which leaves the fixed point alone. One Cholesky factorisation of a K x K matrix an iteration.

    Args:
        matrix: Q, shape (K, K), symmetric positive semidefinite. A variable with a zero row gets the value 0.
        linear: b, shape (K,), with the problem bounded below (b in the range of Q plus the negative orthant). If it is
            not, the result is finite and has no meaning. vmap over `linear` for several right-hand sides.
        iterations: number of interior-point iterations, static.

    Returns:
        The minimiser, shape (K,), in the dtype of `linear`. Where there are several, one near their analytic centre.
    """
    limits = jnp.finfo(linear.dtype)
    diagonal = jnp.diagonal(matrix)
    live = diagonal >= limits.tiny
    scale = jnp.where(live, lax.rsqrt(jnp.where(live, diagonal, 1)), 0)
    q = jnp.where(jnp.eye(len(linear), dtype=bool), 1, matrix * scale[:, None] * scale)
    b, size = _normalised(linear)
    b, scaled_size = _normalised(b * scale)
    proximal = _PROXIMAL * len(linear) ** 0.5 * limits.eps

    def iteration(_: int, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        x, z = state
        ratio = z / x
        solve = _cholesky_solver(q + jnp.diag(ratio + proximal * (1 + ratio)))
        residual = _product(q, x) - b

        def direction(complementarity: jax.Array) -> tuple[jax.Array, jax.Array]:
            dx = solve(complementarity / x - residual)
            return dx, complementarity / x - z - ratio * dx

        dx, dz = direction(jnp.zeros_like(x))
        step = jnp.minimum(_longest_step(x, dx), _longest_step(z, dz))
        target = _centred(jnp.mean((x + step * dx) * (z + step * dz)), jnp.mean(x * z))
        # eps^2 keeps x and z from underflowing; d = J'x of a unit-scale problem is then exact to eps
        dx, dz = direction(jnp.maximum(target, limits.eps**2) - dx * dz)
        step = jnp.minimum(_longest_step(x, dx), _longest_step(z, dz))
        new = (x + step * dx, z + step * dz)
        return _accepted(new, new, state)

    x, _ = lax.fori_loop(0, iterations, iteration, (jnp.ones_like(b), jnp.ones_like(b)))
    return _finite(x * scaled_size * scale * size)


@jax.jit
def dual_cone_weights(cosines: jax.Array, norms: jax.Array, u: jax.Array) -> jax.Array:
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
    relative, largest = _normalised(norms)
    bounds, u_size = _normalised(u)
    y, y_size = _normalised(relative * bounds)
    excess = nonnegative_qp(cosines, -_product(cosines, y))
    stretch = _finite(largest / jnp.where(live, norms, 1))
    return _finite(u + jnp.where(live, _finite(excess * y_size * stretch) * u_size, 0))


@jax.jit
def min_norm_weights(cosines: jax.Array, norms: jax.Array) -> jax.Array:
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
    return _on_simplex(nonnegative_qp(cosines + jnp.outer(a, a), a) * a, live)


@partial(jax.jit, static_argnames="iterations")
def cagrad_weights(cosines: jax.Array, norms: jax.Array, c: jax.typing.ArrayLike, *, iterations: int = 30) -> jax.Array:
    """Weights of the worst task combination in CAGrad (arXiv 2110.14048, Eq. 4).

    Minimises `g_w.g_0 + c |g_0| |g_w|` over the simplex, with `g_w = sum_k w_k g_k` and `g_0` the mean of all K
    gradients, zero ones included. The update is `d = g_0 + c |g_0| g_w / |g_w|`; see `cagrad_combination`.

    Args:
        cosines: shape (K, K), unit-diagonal Gramian.
        norms: shape (K,), lengths of the gradients. Lengths below eps^2 times the largest count as that.
        c: radius of the trust region in units of `|g_0|`, at least 0; may be a tracer.
        iterations: number of interior-point iterations, static. 30 serve lengths that span 12 decades, 16 serve 2.

    Returns:
        w, shape (K,), nonnegative with sum 1; not unique where gradients are linearly dependent, and meaningless for
        d at c = 0. Zero gradients get weight 0, and 1/K each if all are zero.
    """
    live = norms >= jnp.finfo(norms.dtype).tiny
    path, relative, _ = _cagrad_path(cosines, norms, c, iterations)
    return _on_simplex(jnp.where(live, path.y / relative, 0), live)


@partial(jax.jit, static_argnames="iterations")
def cagrad_combination(
    cosines: jax.Array, norms: jax.Array, c: jax.typing.ArrayLike, *, iterations: int = 30
) -> jax.Array:
    """Coefficients v of CAGrad's update itself: `d = sum_k v_k g_k = g_0 + c |g_0| g_w / |g_w|`.

    Use it instead of dividing by `|g_w|`: at a Pareto-stationary point with `c >= 1`, `g_w` is 0 and the quotient
    is noise of length `c |g_0|`. The dual solution of the barrier method is the maximiser of `min_k g_k.d` there
    too, which may lie inside the trust region.

    Args:
        cosines: shape (K, K), unit-diagonal Gramian.
        norms: shape (K,), lengths of the gradients.
        c: radius of the trust region in units of `|g_0|`, at least 0; may be a tracer.
        iterations: as in `cagrad_weights`.

    Returns:
        v, shape (K,), at least 1/K. Homogeneous of degree 0 in `norms`.
    """
    path, relative, mean = _cagrad_path(cosines, norms, c, iterations)
    live = norms >= jnp.finfo(norms.dtype).tiny
    return _finite(1 / len(norms) + jnp.where(live, jnp.asarray(c, norms.dtype) * mean * path.eta / relative, 0))


class _Path(NamedTuple):
    """An iterate of the barrier method for CAGrad, in units of the longest gradient."""

    y: jax.Array  # (K,) w_k |g_k|, positive
    eta: jax.Array  # (K,) coefficients of e, the dual of |g_w|: a subgradient, g_w / |g_w| in the limit
    price: jax.Array  # () dual of sum w = 1; the value min_k g_k.d in the end
    z: jax.Array  # (K,) slack of g_k.d >= price, positive


def _cagrad_path(
    cosines: jax.Array, norms: jax.Array, c: jax.typing.ArrayLike, iterations: int
) -> tuple[_Path, jax.Array, jax.Array]:
    """Follows the central path of CAGrad's problem.

    With `y = w norms` and unit rows U it minimises `h'y + c |U'y|` over `a'y = 1, y >= 0`. The barrier of the
    cone `t >= |r|, r = U'y`, with t minimised out, replaces `|r|` by a smooth function of gradient `r / t`, where
    `t = s + mu / c` and `s^2 = r^2 + (mu / c)^2`. As in Andersen et al. (SIAM J. Sci. Comput. 22(1), 2000) the
    direction `e = U'eta` is a variable of its own that stays in the unit ball: substituting `e = r / t` would make
    Newton's method stall near r = 0.

    Returns:
        The last iterate, the norms in units of the longest (clipped to eps^2), and `|g_0|` in that unit.
    """
    dtype = cosines.dtype
    num_tasks = len(norms)
    eps = jnp.finfo(dtype).eps
    live = norms >= jnp.finfo(norms.dtype).tiny
    relative, _ = _normalised(norms)
    correlations = _product(cosines, relative) / num_tasks
    mean = jnp.sqrt(jnp.maximum(jnp.sum(relative * correlations), 0) / num_tasks)
    h = jnp.clip(correlations / jnp.where(mean > 0, mean, 1), -1, 1)
    c = jnp.maximum(jnp.asarray(c, dtype), eps)  # at c = 0 the weights do not matter; eps keeps the barrier defined
    h, c = h / jnp.maximum(c, 1), jnp.minimum(c, 1)
    # A zero gradient becomes an orthogonal one that costs 3; any other costs h + c |e| <= 2, so its weight goes to 0.
    relative = jnp.where(live, jnp.maximum(relative, eps**2), 1)
    h = jnp.where(live, h, 3)
    cosines = jnp.where(jnp.eye(num_tasks, dtype=bool), 1, cosines)
    a = 1 / relative

    def gap(y: jax.Array, z: jax.Array, ky: jax.Array, along: jax.Array) -> jax.Array:
        length = jnp.sqrt(jnp.maximum(jnp.sum(y * ky), 0))
        return (jnp.sum(y * z) + c * jnp.maximum(length - along, 0)) / (num_tasks + 1)

    def smoothed(r2: jax.Array, mu: jax.Array) -> tuple[jax.Array, jax.Array]:
        s = jnp.sqrt((mu / c) ** 2 + r2)
        return s, s + mu / c

    def iteration(_: int, path: _Path) -> _Path:
        y, eta, price, z = path.y, path.eta, path.price, path.z
        ky, q = _product(cosines, jnp.stack([y, eta], axis=1)).T
        r2 = jnp.maximum(jnp.sum(y * ky), 0)
        mu = gap(y, z, ky, jnp.sum(y * q))
        s, t = smoothed(r2, mu)
        ratio = z / y
        cross = jnp.outer(ky, q)
        curvature = c / t * (cosines - (cross + cross.T) / (2 * s))
        diagonal = jnp.maximum(jnp.diagonal(curvature), 0) + ratio
        # a'dy is known, so adding a multiple of a a' changes no solution; along y the curvature is zero without it
        weight = 1 / jnp.max(a * a / diagonal)
        proximal = _PROXIMAL * num_tasks**0.5 * eps * diagonal
        solve = _cholesky_solver(curvature + weight * jnp.outer(a, a) + jnp.diag(ratio + proximal))
        excess = jnp.sum(a * y) - 1
        solve_a = solve(a)

        def direction(target: jax.Array, second_order: jax.Array) -> _Path:
            _, goal = smoothed(r2, target)
            complementarity = (target - second_order) / y
            dy = solve(complementarity - (h + c * ky / goal - price * a) - weight * excess * a)
            dprice = -(excess + jnp.sum(a * dy)) / jnp.sum(a * solve_a)
            dy = dy + dprice * solve_a
            # symmetrised like the matrix, or the slacks z would no longer be those of e
            turn = (eta * jnp.sum(ky * dy) + y * jnp.sum(q * dy)) / (2 * s)
            deta = y / goal - eta + (dy - turn) / t
            return _Path(dy, deta, dprice, complementarity - z - ratio * dy)

        def advanced(step: _Path) -> tuple[_Path, jax.Array]:
            kd = _product(cosines, step.eta)
            inside = jnp.maximum(1 - jnp.sum(eta * q), 0)
            half, square = jnp.sum(eta * kd), jnp.maximum(jnp.sum(step.eta * kd), 0)
            root = half + jnp.sqrt(half**2 + square * inside)  # |e + l de| = 1 at l = inside / root
            to_ball = jnp.where(root > 0, _TO_BOUNDARY * inside / jnp.where(root > 0, root, 1), 1)
            to_ball = jnp.where(to_ball > 0, jnp.minimum(to_ball, 1), 1)  # rounding put e on the sphere: let it move
            primal, dual = _longest_step(y, step.y), jnp.minimum(_longest_step(z, step.z), to_ball)
            new = _Path(y + primal * step.y, eta + dual * step.eta, price + dual * step.price, z + dual * step.z)
            return new, jnp.sum(new.y * (q + dual * kd))

        predictor = direction(jnp.zeros_like(mu), jnp.zeros_like(y))
        guess, along = advanced(predictor)
        target = _centred(gap(guess.y, guess.z, _product(cosines, guess.y), along), mu)
        target = jnp.maximum(target, eps**1.5 * c * jnp.sum(y))
        new = advanced(direction(target, predictor.y * predictor.z))[0]
        return _accepted((new.y, new.z), new, path)

    y = relative / num_tasks
    r2 = jnp.maximum(jnp.sum(y * _product(cosines, y)), 0)
    eta = y / smoothed(r2, jnp.ones((), dtype))[1]
    gradient = h + c * _product(cosines, eta)
    price = jnp.min(gradient / a) - 1  # so low that every y_k z_k is near 1/K: well centred
    start = _Path(y, eta, price, gradient - price * a)
    return lax.fori_loop(0, iterations, iteration, start), relative, mean


def _product(matrix: jax.Array, other: jax.Array) -> jax.Array:
    return jnp.matmul(matrix, other, precision=lax.Precision.HIGHEST)


def _normalised(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    size = jnp.max(jnp.abs(x))
    return x / jnp.where(size > 0, size, 1), size


def _finite(x: jax.Array) -> jax.Array:
    limit = jnp.finfo(x.dtype).max
    return jnp.clip(x, -limit, limit)


def _on_simplex(w: jax.Array, live: jax.Array) -> jax.Array:
    w = jnp.where(jnp.sum(w) > 0, w, jnp.where(jnp.any(live), live, True).astype(w.dtype))
    return w / jnp.sum(w)


def _cholesky_solver(matrix: jax.Array) -> Callable[[jax.Array], jax.Array]:
    factor = lax.linalg.cholesky(matrix, symmetrize_input=False)
    triangular = partial(lax.linalg.triangular_solve, factor, left_side=True, lower=True)
    return lambda rhs: triangular(triangular(rhs[:, None]), transpose_a=True)[:, 0]


def _longest_step(x: jax.Array, dx: jax.Array) -> jax.Array:
    return 1 / jnp.maximum(1, jnp.max(-dx / x) / _TO_BOUNDARY)


def _centred(predicted: jax.Array, current: jax.Array) -> jax.Array:
    return current * jnp.clip(predicted / current, 0, 1) ** 3  # Mehrotra's rule


def _accepted(positive: tuple[jax.Array, jax.Array], new: _State, old: _State) -> _State:
    """The new iterate, or the old one where rounding (or an unbounded problem) spoiled the new one."""
    finite = jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(new)])
    return jax.tree.map(partial(jnp.where, jnp.all(finite) & (jnp.min(jnp.minimum(*positive)) > 0)), new, old)
