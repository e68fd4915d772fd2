"""Nash-MTL and FairGrad: the combination whose inner products with the gradients are powers of its weights."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtljax.solvers._linear import advance, cholesky_solver, finite, iterate, longest_step, product, rounding


class _Point(NamedTuple):
    """An iterate of the primal-dual method, in units of the largest scale s."""

    z: jax.Array  # (K,) w_k |g_k|, positive
    y: jax.Array  # (K,) positive; C z in the end
    level: jax.Array  # () logarithm that the scales have been lowered to


@partial(jax.jit, static_argnames="iterations")
def fairness_weights(
    cosines: jax.Array, norms: jax.Array, alpha: jax.typing.ArrayLike, *, iterations: int = 64
) -> jax.Array:
    """Solves `sum_j g_k.g_j w_j = w_k^(-1/alpha)` for positive w (FairGrad, arXiv 2402.15638; Nash-MTL for alpha = 1).

    In unit-diagonal coordinates, `z = norms w`, the solution has `C z = y` and `z_k^(1/alpha) y_k = s_k^(1 + 1/alpha)`
    with `s_k = |g_k|^((1 - alpha) / (1 + alpha))`, which is z_k where nothing conflicts or agrees. It minimises a
    convex potential; the second equation is linear in logarithms, and Newton's method on the pair (z, y), as in
    interior-point methods, converges in 5 to 15 iterations. Where the scales s differ by decades it starts from equal
    ones and lowers all but the largest step by step, each to its own value.

    Args:
        cosines: shape (K, K), unit-diagonal Gramian.
        norms: shape (K,), lengths of the gradients.
        alpha: the fairness, positive; may be a tracer.
        iterations: bound on the number of Newton steps, static.

    Returns:
        w, shape (K,), nonnegative, 0 for a zero gradient; of degree -2 alpha / (1 + alpha) in `norms`. Values beyond
        the dtype's range are cut to its largest number. There is no solution where gradients contradict each other
        (0 is a combination of some with positive weights): C carries a multiple K eps of the identity, so that the
        weights of those grow to about (K eps)^(-alpha / (1 + alpha)) times the others, d is orthogonal to them and
        shares out what the other tasks can have.
    """
    num_tasks = len(norms)
    eps = jnp.finfo(norms.dtype).eps
    live = (norms >= jnp.finfo(norms.dtype).tiny) & (jnp.diagonal(cosines) > 0)
    power = 1 / jnp.asarray(alpha, norms.dtype)
    log_norms = jnp.log(jnp.where(live, norms, 1))
    log_scale = log_norms * (power - 1) / (power + 1)
    unit = jnp.max(jnp.where(live, log_scale, -jnp.inf), initial=-jnp.inf)
    unit = jnp.where(jnp.any(live), unit, 0)
    log_scale = jnp.where(live, log_scale - unit, 0)
    lowest = 1.5 * jnp.log(eps)  # d does not see smaller ones
    identity = jnp.eye(num_tasks, dtype=norms.dtype)
    c = jnp.where(identity > 0, 1, cosines)

    def iteration(point: _Point) -> tuple[_Point, jax.Array]:
        z, y, level = point
        target = jnp.maximum(log_scale, jnp.maximum(level, lowest))
        log_error = (1 + power) * target - power * jnp.log(z) - jnp.log(y)
        stiffness = power * y / z
        # The error that takes a z or y to zero, all else equal, is as much as its step may correct: no single variable
        # may hold up the others.
        log_error = jnp.maximum(log_error, -jnp.minimum(power * (1 + 1 / stiffness), 1 + stiffness))
        solve = cholesky_solver(c + jnp.diag(stiffness + rounding(norms) * (1 + stiffness)))
        dz = solve(y * log_error + y - product(c, z))
        dy = y * (log_error - power * dz / z)
        step = jnp.minimum(longest_step(z, dz), longest_step(y, dy))
        floor = eps**3 * jnp.max(z)
        new = (jnp.maximum(z + step * dz, floor), jnp.maximum(y + step * dy, floor))
        moved = step * jnp.max(jnp.abs(dz)) / jnp.max(z)
        done = (moved < 8 * eps) & jnp.all(target == jnp.maximum(log_scale, lowest))
        return advance(new, _Point(*new, jnp.where(step > 0.5, level - 4, level)), point, done)

    ones = jnp.ones_like(norms)
    z, y, _ = iterate(iteration, _Point(ones, ones, jnp.zeros((), norms.dtype)), iterations)
    # Tasks that others serve so well that their own weight is far below rounding in d: it follows from y alone.
    exact = jnp.exp(((1 + power) * log_scale - jnp.log(y)) / power)
    z = jnp.where(power * y > z / eps**0.5, exact, z)
    return jnp.where(live, finite(z * jnp.exp(unit - log_norms)), 0)
