"""IMTL-G: the combination that projects equally on every unit gradient."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from mtljax.methods._base import weighting
from mtljax.methods._signals import Signals
from mtljax.methods.registry import COMMON, register
from mtljax.solvers import finite, unit_solve


@register(
    needs="gramian", paper="IMTL, ICLR 2021", properties=(*COMMON, "non-conflicting if independent", "scale-free")
)
def imtl_g(
    *, guard: bool = True, num_tasks: int | None = None, update_every: int | None = None
) -> optax.GradientTransformationExtraArgs:
    """Impartial multi-task learning, gradient balance (Liu et al., ICLR 2021, "Towards impartial multi-task learning").

    d = Σ_k w_k g_k with Σ_k w_k = 1 and the same projection ⟨d, g_k⟩ / ‖g_k‖ on every gradient. With C the cosines of
    the gradients and y = C⁺ 1, w_k is proportional to y_k / ‖g_k‖. Two tasks: w_1 = ‖g_2‖ / (‖g_1‖ + ‖g_2‖). The
    direction does not depend on the scales of the losses, the length does. Cost: K backward passes and one K x K
    eigendecomposition.

    Σ_k y_k u_k, in the unit gradients u_k, descends on every loss, but Σ_k y_k / ‖g_k‖ can be negative, and then
    dividing by it makes the paper's d ascend on every loss. `guard` divides by its absolute value: the weights then sum
    to -1. As the sum goes through 0 the update grows without bound; it is kept above K ε times the sum of the absolute
    values, with ε the machine epsilon. Differences: there is no official code, LibMTL solves the paper's K - 1
    differences of gradients, and Nash-MTL's forks add 1e-8 to a singular system. Here the pseudo-inverse takes its
    place: gradients that are dependent up to rounding get projections as equal as least squares can make them, and if
    the unit gradients sum to 0 there is no direction to prefer and d = 0. A Gramian resolves no more: where unit
    gradients are 1e-6 apart, float64 leaves d an error of up to 2e-3, and nearer than 10 √ε they count as one. Tasks
    with a zero gradient are left out; if all are, d = 0. There is nothing else to set.

    >>> import jax.numpy as jnp, mtljax as mtl
    >>> jacobian = jnp.array([[2.0, 0.0], [0.0, 1.0]])
    >>> tx = mtl.imtl_g()
    >>> gradient, _ = tx.update(jacobian, tx.init(jnp.zeros(2)))
    >>> [round(float(x), 4) for x in gradient]
    [0.6667, 0.6667]

    Args:
      guard: whether the update is turned around where it would ascend on every loss; False is the paper.
      num_tasks: K; needed to read the weights from the state and for `update_every`.
      update_every: solve every n updates and reuse the weights in between; None solves at every update.

    Returns:
      A transformation from K task gradients to one gradient; a task's own parameters get their own gradient unscaled.

    References:
      Liu et al., `Towards Impartial Multi-task Learning <https://openreview.net/forum?id=IMPnRXEWpvr>`_, ICLR 2021
    """

    def weigh(memory: Any, signals: Signals) -> Any:
        return impartial_weights(signals.gramian.cosines, signals.gramian.norms, guard), memory

    return weighting("imtl_g", weigh, needs="gramian", num_tasks=num_tasks, update_every=update_every)


def impartial_weights(cosines: jax.Array, norms: jax.Array, guard: bool) -> jax.Array:
    """The (K,) weights of IMTL-G."""
    live = norms > 0
    y, _ = equal_projections(cosines)
    smallest = jnp.min(jnp.where(live, norms, jnp.inf))
    shares = jnp.where(live, y * (smallest / jnp.where(live, norms, 1)), 0)
    total = jnp.sum(shares)
    size = jnp.abs(total)
    size = jnp.maximum(size, len(norms) * jnp.finfo(norms.dtype).eps * jnp.sum(jnp.abs(shares)))
    size = jnp.where(size > 0, size, 1)
    return finite(shares / (size if guard else jnp.where(total < 0, -size, size)))


def equal_projections(cosines: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The shortest combination of unit gradients whose projections on them are nearest to 1.

    Args:
      cosines: (K, K), unit-diagonal Gramian C.

    Returns:
      y = C⁺ 1, (K,), and the projections C y, (K,): 1 each, unless gradients are dependent. Both 0 where the unit
      gradients sum to zero up to rounding.
    """
    y = unit_solve(cosines, jnp.ones_like(cosines[0]))
    projections = jnp.matmul(cosines, y, precision=lax.Precision.HIGHEST)
    exists = jnp.max(jnp.abs(projections)) > 8 * len(y) * jnp.finfo(y.dtype).eps
    return jnp.where(exists, y, 0), jnp.where(exists, projections, 0)
