"""CAGrad: the best worst-case improvement within a ball around the mean gradient."""

from typing import Any

import optax

from mtljax.methods._base import weighting
from mtljax.methods._checks import Scalar, check_choice, check_range
from mtljax.methods._losses import mean_of_present
from mtljax.methods._signals import Signals
from mtljax.methods.registry import COMMON, register
from mtljax.solvers import cagrad_combination

RESCALES = ("none", "1+c", "1+c^2")


@register(needs="gramian", paper="2110.14048", properties=COMMON)
def cagrad(
    c: Scalar = 0.4, *, rescale: str = "none", num_tasks: int | None = None, update_every: int | None = None
) -> optax.GradientTransformationExtraArgs:
    """Conflict-averse gradient descent (Liu et al., arXiv:2110.14048).

    d = argmax min_k ⟨g_k, d⟩ subject to ‖d - g_0‖ ≤ c ‖g_0‖, with g_0 the mean gradient. Its dual gives
    d = g_0 + c ‖g_0‖ g_w / ‖g_w‖, where g_w = Σ_k w_k g_k and w minimises ⟨g_w, g_0⟩ + c ‖g_0‖ ‖g_w‖ over the simplex.
    c = 0 is the mean; c ≥ 1 never conflicts with a task. Cost: K backward passes and one K x K problem.

    At a Pareto-stationary point g_w may be 0 and its direction undefined; d is then read off the solver's dual
    variables. Between exactly opposite gradients those lose their digits: d then stays in the ball, is no worse for the
    worst task than g_0, and than 0 where c ≥ 1, but need not be the best. All this is up to rounding in units of the
    longest gradient (its root in a ‖g_0‖ that small), and weights beyond the dtype's range are cut to its largest
    number. Tasks with a zero gradient count neither in the mean nor in the minimum; if all gradients are zero, d = 0.
    The scale is the paper's; the official code divides by 1 + c² by default (its toy by 1 + c) and multiplies by K.

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

    References:
      Liu et al., `Conflict-Averse Gradient Descent for Multi-task Learning <https://arxiv.org/abs/2110.14048>`_,
      NeurIPS 2021
    """
    check_range("cagrad", ">= 0", c=c)
    check_choice("cagrad", "rescale", rescale, RESCALES)

    def weigh(memory: Any, signals: Signals) -> Any:
        divisor = {"none": 1, "1+c": 1 + c, "1+c^2": 1 + c**2}[rescale]
        combination = cagrad_combination(signals.gramian.cosines, signals.gramian.norms, c) / divisor
        return mean_of_present(combination, signals.gramian.norms > 0), memory

    return weighting("cagrad", weigh, needs="gramian", num_tasks=num_tasks, update_every=update_every)
