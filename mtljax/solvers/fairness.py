"""Nash-MTL and FairGrad: the combination whose inner products with the gradients are powers of its weights."""

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp

from mtljax.solvers._linear import advance, cholesky_solver, finite, iterate, longest_step, product, rounding

if TYPE_CHECKING:
    from jaxtyping import Array, Float


class _Point(NamedTuple):
    """An iterate of the primal-dual method, in units of the largest scale s."""

    z: jax.Array  # (K,) w_k |g_k|, positive
    y: jax.Array  # (K,) positive; C z in the end
    level: jax.Array  # () logarithm of the least z_k y_k aimed at


@partial(jax.jit, static_argnames="iterations")
def fairness_weights(
    cosines: "Float[Array, 'K K']", norms: "Float[Array, 'K']", alpha: jax.typing.ArrayLike, *, iterations: int = 64
) -> "Float[Array, 'K']":
    """Solves `sum_j g_k.g_j w_j = w_k^(-1/alpha)` for positive w (FairGrad, arXiv 2402.15638; Nash-MTL for alpha = 1).

    In unit-diagonal coordinates, `z = norms w`, the solution has `C z = y` and `z_k^(1/alpha) y_k = s_k^(1 + 1/alpha)`
    with `s_k = |g_k|^((1 - alpha) / (1 + alpha))`, which is what z_k and y_k are in the absence of other tasks. It
    minimises a convex potential. The second equation is linear in logarithms, and Newton's method on the pair (z, y)
    converges in 5 to 15 iterations where the s_k are alike. Where they differ by decades, the products z_k y_k start
    at one, as on the central path of an interior-point method, and sink together until each meets its own equation.

    Args:
        cosines: shape (K, K), unit-diagonal Gramian.
        norms: shape (K,), lengths of the gradients.
        alpha: the fairness, at least 0.01 (below, the equation is stiff and the iteration may stop short); may be a
            tracer.
        iterations: bound on the number of Newton steps, static.

    Returns:
        w, shape (K,), nonnegative, 0 for a zero gradient; of degree -2 alpha / (1 + alpha) in `norms`. Values beyond
        the dtype's range are cut to its largest number. If some gradients contradict each other (a combination of them
        with positive weights is 0) there is no solution: their weights grow to about eps^(-alpha / (1 + alpha)) and
        make d orthogonal to them, up to rounding times that, while the other tasks share what is left.
    """
    eps = jnp.finfo(norms.dtype).eps
    live = (norms >= jnp.finfo(norms.dtype).tiny) & (jnp.diagonal(cosines) > 0)
    power = 1 / jnp.asarray(alpha, norms.dtype)
    log_norms = jnp.log(jnp.where(live, norms, 1))
    log_scale = log_norms * (power - 1) / (power + 1)
    unit = jnp.max(jnp.where(live, log_scale, -jnp.inf), initial=-jnp.inf)
    unit = jnp.where(jnp.any(live), unit, 0)
    log_scale = jnp.where(live, log_scale - unit, 0)
    bottom = 2 * jnp.log(eps)  # products of this size do not show in d
    c = jnp.where(jnp.eye(len(norms), dtype=bool), 1, cosines)

    def iteration(point: _Point) -> tuple[_Point, jax.Array]:
        z, y, level = point
        own, central = (1 + power) * log_scale - power * jnp.log(z), level - jnp.log(z)
        exponent = jnp.where(own > central, power, 1)
        log_error = jnp.maximum(own, central) - jnp.log(y)
        stiffness = exponent * y / z
        # The error that takes a z or y to zero, all else equal, is as much as its step may correct: no single variable
        # may hold up the others.
        log_error = jnp.maximum(log_error, -jnp.minimum(exponent * (1 + 1 / stiffness), 1 + stiffness))
        solve = cholesky_solver(c + jnp.diag(stiffness + rounding(norms) * (1 + stiffness)))
        dz = solve(y * log_error + y - product(c, z))
        dy = y * (log_error - exponent * dz / z)
        step = jnp.minimum(longest_step(z, dz), longest_step(y, dy))
        new = (z + step * dz, y + step * dy)
        lower = level - jnp.where(step > 0.98, 9, jnp.where(step > 0.7, 3, 0))
        moved = step * jnp.max(jnp.abs(dz)) / jnp.max(z)
        done = (moved < 8 * eps) & (step > 0.7) & (jnp.all(own >= central) | (level <= bottom))
        return advance(new, _Point(*new, jnp.maximum(lower, bottom)), point, done)

    ones = jnp.ones_like(norms)
    z, y, _ = iterate(iteration, _Point(ones, ones, jnp.zeros((), norms.dtype)), iterations)
    # Tasks that others serve so well that their own weight is far below rounding in d: it follows from y alone.
    exact = jnp.exp(((1 + power) * log_scale - jnp.log(y)) / power)
    z = jnp.where(power * y > z / eps**0.5, jnp.minimum(z, exact), z)
    return jnp.where(live, finite(z * jnp.exp(unit - log_norms)), 0)
