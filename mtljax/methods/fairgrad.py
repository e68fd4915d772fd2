"""FairGrad: α-fair improvement of all tasks."""

from typing import Any

import optax

from mtljax.methods._base import weighting
from mtljax.methods._checks import Scalar, check_range
from mtljax.methods._signals import Signals
from mtljax.methods.registry import NEVER_CONFLICTS, register
from mtljax.solvers import fairness_weights


@register(
    needs="gramian",
    paper="2402.15638",
    properties=("row span", "permutable", "rotatable", *NEVER_CONFLICTS, "scale-free"),
)
def fairgrad(
    alpha: Scalar = 1.0, *, num_tasks: int | None = None, update_every: int | None = None
) -> optax.GradientTransformationExtraArgs:
    """Fair resource allocation (Ban & Ji, arXiv:2402.15638).

    d = argmax Σ_k ⟨g_k, d⟩^(1 - α) / (1 - α) on a sphere, which is d = Σ_k w_k g_k with G w = w^(-1/α) elementwise for
    the Gramian G. α → 0 tends to the plain sum, projected where that conflicts with a task, α = 1 is Nash-MTL, α = 2
    minimises the potential delay, and α → ∞ maximises the worst improvement. Where there is a solution, d conflicts
    with no task. Cost: K backward passes and one K x K problem.

    The default α = 1 is that of the class in the official code, whose published runs use 2. The weights solve the
    equation as it stands: d has degree (1 - α) / (1 + α) in the gradients, so for α > 1 smaller gradients give longer
    steps, and for α = 1 ‖d‖ = √K. Official code starts a least-squares solver from 1 / K, multiplies d by K and clips
    its norm to 1 (`optax.clip_by_global_norm(1.0)` after this method). Here the equation is solved to rounding, also
    for gradients whose lengths differ by many decades.

    A task with a zero gradient gets the weight 0; if all are zero, d = 0. Where some gradients contradict each other (a
    combination of them with positive weights is 0; of generic ones, as soon as K > P) there is no solution: d is then
    the solution for what is left of the others, plus a vector without meaning, which may conflict, of about ε^(1/(1+α))
    times the usual length (float32: 3e-4 at α = 1, 0.2 at α = 10). Weights beyond the range of the dtype
    (a gradient of norm 1e-30 at α = 10, in float32) are cut to its largest number.

    >>> import jax.numpy as jnp, mtljax as mtl
    >>> jacobian = jnp.array([[8.0, 0.0], [0.0, 1.0]])
    >>> tx = mtl.fairgrad(alpha=2.0)
    >>> gradient, _ = tx.update(jacobian, tx.init(jnp.zeros(2)))
    >>> [round(float(x), 4) for x in gradient]
    [0.5, 1.0]

    Args:
      alpha: the fairness, positive. From 0.01 up the equation is solved; below, the iteration may stop short. May be a
        tracer.
      num_tasks: K; needed to read the weights from the state and for `update_every`.
      update_every: solve every n updates and reuse the weights in between; None solves at every update.

    Returns:
      A transformation from K task gradients to one gradient; a task's own parameters get their own gradient unscaled.

    Raises:
      ValueError: if alpha is not positive and finite.

    References:
      Ban and Ji, `Fair Resource Allocation in Multi-Task Learning <https://arxiv.org/abs/2402.15638>`_, ICML 2024
    """
    check_range("fairgrad", "> 0", alpha=alpha)

    def weigh(memory: Any, signals: Signals) -> Any:
        return fairness_weights(signals.gramian.cosines, signals.gramian.norms, alpha), memory

    return weighting("fairgrad", weigh, needs="gramian", num_tasks=num_tasks, update_every=update_every)
