"""CAGrad: the best worst-case improvement within a ball around the mean gradient."""

from typing import Any

import jax.numpy as jnp
import optax
from jax import lax

from mtljax.gradients import Gramian
from mtljax.methods._base import Scalar, check, check_choice, weighting
from mtljax.solvers import cagrad_weights

RESCALES = ("none", "1+c", "1+c^2")


def cagrad(
    c: Scalar = 0.4, *, rescale: str = "none", num_tasks: int | None = None, update_every: int | None = None
) -> optax.GradientTransformationExtraArgs:
    """Conflict-averse gradient descent (Liu et al., arXiv:2110.14048).

    d = argmax min_k ⟨g_k, d⟩ subject to ‖d - g_0‖ ≤ c ‖g_0‖, with g_0 the mean gradient. Its dual gives
    d = g_0 + c ‖g_0‖ g_w / ‖g_w‖, where g_w = Σ_k w_k g_k and w minimises ⟨g_w, g_0⟩ + c ‖g_0‖ ‖g_w‖ over the simplex.
    c = 0 is the mean; c ≥ 1 never conflicts with a task. Cost: K backward passes and one K x K problem.

    Where g_w = 0 (a Pareto-stationary point) no direction improves all tasks, and d = g_0; if all gradients are zero,
    d = 0. Tasks with a zero gradient count in the mean but not in the minimum. The scale is the paper's; the official
    code divides by 1 + c² by default (its toy by 1 + c) and multiplies by K.

    >>> import jax.numpy as jnp, mtljax as mtl
    >>> jacobian = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    >>> tx = mtl.cagrad(c=0.5)
    >>> gradient, _ = tx.update(jacobian, tx.init(jnp.zeros(2)))
    >>> [round(float(x), 4) for x in gradient]
    [0.75, 0.75]

    Args:
      c: radius of the ball relative to ‖g_0‖, at least 0; the paper's 0.4. May be a tracer.
      rescale: "none", or what to divide d by: "1+c" or "1+c^2".
      num_tasks: K; needed to read the weights from the state and for `update_every`.
      update_every: solve every n updates and reuse the weights in between; None solves at every update.

    Returns:
      A transformation from K task gradients to one gradient; a task's own parameters get their own gradient unscaled.

    Raises:
      ValueError: if c is negative or `rescale` unknown.
    """
    check(lambda: bool(c >= 0), c, "cagrad: c must be >= 0")
    check_choice("cagrad", "rescale", rescale, RESCALES)

    def weigh(memory: Any, *, gramian: Gramian, num_tasks: int, **_: Any) -> Any:
        cosines, norms = gramian
        worst = cagrad_weights(cosines, norms, c)
        # Lengths relative to the longest gradient, so that their squares neither under- nor overflow.
        longest = jnp.max(norms)
        relative = norms / jnp.where(longest > 0, longest, 1)

        def length(weights: Any) -> Any:
            scaled = weights * relative
            product = jnp.vdot(scaled, jnp.matmul(cosines, scaled, precision=lax.Precision.HIGHEST))
            return jnp.sqrt(jnp.maximum(product, 0)), jnp.max(scaled)

        mean = jnp.full(num_tasks, 1 / num_tasks, cosines.dtype)
        mean_length, _ = length(mean)
        worst_length, largest = length(worst)
        # Below rounding of its terms, g_w has no direction.
        vanishes = worst_length <= jnp.sqrt(jnp.finfo(cosines.dtype).eps) * largest
        step = jnp.where(vanishes, 0, c * mean_length / jnp.where(vanishes, 1, worst_length))
        divisor = {"none": 1, "1+c": 1 + c, "1+c^2": 1 + c**2}[rescale]
        return (mean + step * worst) / divisor, memory

    return weighting("cagrad", weigh, needs="gramian", num_tasks=num_tasks, update_every=update_every)
