"""CAGrad: the best worst case in a ball around the mean gradient."""

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mtljax.solvers._linear import (
    TO_BOUNDARY,
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
    unit_solve,
)

if TYPE_CHECKING:
    from jaxtyping import Array, Float


@partial(jax.jit, static_argnames="iterations")
def cagrad_weights(
    cosines: "Float[Array, 'K K']", norms: "Float[Array, 'K']", c: jax.typing.ArrayLike, *, iterations: int = 30
) -> "Float[Array, 'K']":
    """Weights of the worst task combination in CAGrad (arXiv 2110.14048, Eq. 4).

    Minimises `g_w.g_0 + c |g_0| |g_w|` over the simplex, with `g_w = sum_k w_k g_k` and `g_0` the mean of all K
    gradients, zero ones included. The update is `d = g_0 + c |g_0| g_w / |g_w|`; see `cagrad_combination`.

    Args:
        cosines: shape (K, K), unit-diagonal Gramian.
        norms: shape (K,), lengths of the gradients. Lengths below eps^2 times the largest count as that.
        c: radius of the trust region in units of `|g_0|`, at least 0; may be a tracer.
        iterations: bound on the number of interior-point iterations, static. Lengths that span 2 decades take up to
            16, 12 decades up to 28.

    Returns:
        w, shape (K,), nonnegative with sum 1; not unique where gradients are linearly dependent, and meaningless for
        d at c = 0. Zero gradients get weight 0, and 1/K each if all are zero.
    """
    live = norms >= jnp.finfo(norms.dtype).tiny
    path, relative, _ = _cagrad_path(cosines, norms, c, iterations)
    return on_simplex(jnp.where(live, path.y / relative, 0), live)


@partial(jax.jit, static_argnames="iterations")
def cagrad_combination(
    cosines: "Float[Array, 'K K']", norms: "Float[Array, 'K']", c: jax.typing.ArrayLike, *, iterations: int = 30
) -> "Float[Array, 'K']":
    """Coefficients v of CAGrad's update itself: `d = sum_k v_k g_k = g_0 + c |g_0| g_w / |g_w|`.

    Use it instead of dividing by `|g_w|`: at a Pareto-stationary point with `c >= 1`, `g_w` is 0 and the quotient
    is noise of length `c |g_0|`. The dual solution of the barrier method is the maximiser of `min_k g_k.d` there
    too, which may lie inside the trust region. Two tasks are solved in closed form.

    Args:
        cosines: shape (K, K), unit-diagonal Gramian.
        norms: shape (K,), lengths of the gradients.
        c: radius of the trust region in units of `|g_0|`, at least 0; may be a tracer.
        iterations: as in `cagrad_weights`; not used for two tasks.

    Returns:
        v, shape (K,), at least 1/K. Homogeneous of degree 0 in `norms`. Values beyond the dtype's range are cut to its
        largest number.
    """
    live = norms >= jnp.finfo(norms.dtype).tiny
    if len(norms) == 2:
        eta, radius = _of_two(cosines[0, 1], norms, c)
    else:
        path, relative, mean = _cagrad_path(cosines, norms, c, iterations)
        radius = jnp.asarray(c, norms.dtype) * mean
        eta = lax.cond(
            jnp.max(jnp.abs(path.eta)) > jnp.finfo(norms.dtype).eps ** -0.5,
            lambda: _guarded(path.eta, jnp.where(live, cosines, 0), jnp.where(live, relative, 0), radius, c),
            lambda: path.eta,
        )
    # The path took the shortest gradients for longer than they are: their share of d is that of their true length.
    exact = jnp.maximum(normalised(norms)[0], jnp.finfo(norms.dtype).tiny)
    return finite(1 / len(norms) + jnp.where(live, radius * eta / exact, 0))


def _of_two(cosine: jax.Array, norms: jax.Array, c: jax.typing.ArrayLike) -> tuple[jax.Array, jax.Array]:
    """The direction e of `d = g_0 + radius e` for two tasks, as coefficients of the unit gradients, and the radius.

    Where one task is the worst whatever e is, e points along its gradient. Else both gain alike, `(g_1 - g_2).d = 0`:
    this is a component of e along `g_1 - g_2`, and what it leaves of the length 1 goes across, where both gain. Between
    opposite gradients the way across is rounding: its length is taken for longer than it is by that much, so that e
    stays in its ball.
    """
    live = norms >= jnp.finfo(norms.dtype).tiny
    lengths, sign = normalised(norms)[0], jnp.array([1, -1], norms.dtype)
    both = jnp.prod(lengths)
    gap = 1 - jnp.clip(cosine, -1, 1)  # differences are taken so that nothing cancels between near gradients
    radius = jnp.asarray(c, norms.dtype) * jnp.sqrt((lengths[0] - lengths[1]) ** 2 + 2 * (2 - gap) * both) / 2
    distance = jnp.sqrt((lengths[0] - lengths[1]) ** 2 + 2 * gap * both)
    across = lengths[::-1] - lengths + gap * lengths
    excess = (lengths[0] - lengths[1]) * jnp.sum(lengths) / 2  # (g_1 - g_2).g_0
    alone = jnp.where(jnp.all(live), sign * excess + radius * across[::-1] <= 0, live)
    along = jnp.clip(excess / jnp.where(radius * distance > 0, radius * distance, 1), -1, 1)
    width = distance * jnp.sqrt(gap * (2 - gap + rounding(norms)))
    alike = jnp.sqrt(1 - along**2) * across / jnp.where(width > 0, width, 1)
    alike = alike - sign * along * lengths / jnp.where(distance > 0, distance, 1)
    count = jnp.sum(alone)
    return jnp.where(count > 0, alone / jnp.maximum(count, 1), jnp.where(jnp.any(live), alike, 0)), radius


def _guarded(
    eta: jax.Array, cosines: jax.Array, relative: jax.Array, radius: jax.Array, c: jax.typing.ArrayLike
) -> jax.Array:
    """Coefficients of e that keep the promises of CAGrad where the barrier method lost its digits.

    Between opposite gradients eta grows without bound, along combinations that are zero, and d would be their rounding.
    Without those combinations, and inside the ball, it competes for the best worst case with the mean gradient itself
    (e = 0) and, where the ball reaches it, with d = 0.
    """
    eta = unit_solve(cosines, product(cosines, eta))
    eta = eta / jnp.maximum(1, jnp.sqrt(jnp.maximum(jnp.sum(eta * product(cosines, eta)), 0)))
    even = relative / len(relative)
    to_zero = jnp.where(radius > 0, -even / jnp.where(radius > 0, radius, 1), 0)
    candidates = jnp.stack([eta, jnp.zeros_like(eta), jnp.where(jnp.asarray(c) >= 1, to_zero, 0)])
    gains = product(even + radius * candidates, cosines) * relative
    worst = jnp.min(jnp.where(relative > 0, gains, jnp.inf), axis=1)
    return candidates[jnp.argmax(worst)]


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
    relative, _ = normalised(norms)
    correlations = product(cosines, relative) / num_tasks
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

    def iteration(path: _Path) -> tuple[_Path, jax.Array]:
        y, eta, price, z = path.y, path.eta, path.price, path.z
        ky, q = product(cosines, jnp.stack([y, eta], axis=1)).T
        r2 = jnp.maximum(jnp.sum(y * ky), 0)
        along = jnp.sum(y * q)
        mu = gap(y, z, ky, along)
        s, t = smoothed(r2, mu)
        ratio = z / y
        cross = jnp.outer(ky, q)
        curvature = c / t * (cosines - (cross + cross.T) / (2 * s))
        diagonal = jnp.maximum(jnp.diagonal(curvature), 0) + ratio
        # a'dy is known, so adding a multiple of a a' changes no solution; along y the curvature is zero without it
        weight = 1 / jnp.max(a * a / diagonal)
        proximal = rounding(norms) * diagonal
        solve = cholesky_solver(curvature + weight * jnp.outer(a, a) + jnp.diag(ratio + proximal))
        excess = jnp.sum(a * y) - 1

        def aimed(target: jax.Array, second_order: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
            _, goal = smoothed(r2, target)
            complementarity = (target - second_order) / y
            return complementarity, goal, complementarity - (h + c * ky / goal - price * a) - weight * excess * a

        def direction(complementarity: jax.Array, goal: jax.Array, dy: jax.Array) -> _Path:
            dprice = -(excess + jnp.sum(a * dy)) / jnp.sum(a * solve_a)
            dy = dy + dprice * solve_a
            # symmetrised like the matrix, or the slacks z would no longer be those of e
            turn = (eta * jnp.sum(ky * dy) + y * jnp.sum(q * dy)) / (2 * s)
            deta = y / goal - eta + (dy - turn) / t
            return _Path(dy, deta, dprice, complementarity - z - ratio * dy)

        def advanced(step: _Path) -> tuple[_Path, jax.Array]:
            kd = product(cosines, step.eta)
            inside = jnp.maximum(1 - jnp.sum(eta * q), 0)
            half, square = jnp.sum(eta * kd), jnp.maximum(jnp.sum(step.eta * kd), 0)
            root = half + jnp.sqrt(half**2 + square * inside)  # |e + l de| = 1 at l = inside / root
            to_ball = jnp.where(root > 0, TO_BOUNDARY * inside / jnp.where(root > 0, root, 1), 1)
            to_ball = jnp.where(to_ball > 0, jnp.minimum(to_ball, 1), 1)  # rounding put e on the sphere: let it move
            primal, dual = longest_step(y, step.y), jnp.minimum(longest_step(z, step.z), to_ball)
            new = _Path(y + primal * step.y, eta + dual * step.eta, price + dual * step.price, z + dual * step.z)
            return new, jnp.sum(new.y * (q + dual * kd))

        complementarity, goal, rhs = aimed(jnp.zeros_like(mu), jnp.zeros_like(y))
        solve_a, dy = solve(jnp.stack([a, rhs]))
        predictor = direction(complementarity, goal, dy)
        guess, guess_along = advanced(predictor)
        target = centred(gap(guess.y, guess.z, product(cosines, guess.y), guess_along), mu)
        total, least = jnp.sum(y), eps**1.5 * c * jnp.sum(y)
        complementarity, goal, rhs = aimed(jnp.maximum(target, least), predictor.y * predictor.z)
        new = advanced(direction(complementarity, goal, solve(rhs)))[0]
        done = (jnp.sum(y * z) < 8 * num_tasks * least) & (jnp.sqrt(r2) - along < 8 * eps * total)
        return advance((new.y, new.z), new, path, done)

    y = relative / num_tasks
    r2 = jnp.maximum(jnp.sum(y * product(cosines, y)), 0)
    eta = y / smoothed(r2, jnp.ones((), dtype))[1]
    gradient = h + c * product(cosines, eta)
    price = jnp.min(gradient / a) - 1  # so low that every y_k z_k is near 1/K: well centred
    start = _Path(y, eta, price, gradient - price * a)
    return iterate(iteration, start, iterations), relative, mean
