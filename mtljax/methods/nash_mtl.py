"""Nash-MTL: the bargaining solution, where every task gains in proportion."""

from typing import Any

import jax.numpy as jnp
import optax
from jax import lax

from mtljax.methods._base import weighting
from mtljax.methods._checks import Scalar, check_range
from mtljax.methods._signals import Signals
from mtljax.methods.registry import NEVER_CONFLICTS, register
from mtljax.solvers import fairness_weights


@register(
    needs="gramian",
    paper="2202.01017",
    properties=("row span", "permutable", "rotatable", *NEVER_CONFLICTS, "scale-free"),
)
def nash_mtl(
    max_norm: Scalar | None = None, *, num_tasks: int | None = None, update_every: int | None = None
) -> optax.GradientTransformationExtraArgs:
    """Multi-task learning as a bargaining game (Navon et al., arXiv:2202.01017).

    d = argmax Σ_k log⟨g_k, d⟩ on a sphere, which is d = Σ_k a_k g_k with G a = 1 / a for the Gramian G. Then
    ⟨g_k, d⟩ = 1 / a_k > 0 for every task, the direction does not change when a loss is multiplied by a positive number,
    and ‖d‖ = √K whatever the gradients: the length of a step is up to the learning rate alone. Cost: K backward passes
    and one K x K problem.

    Official code solves by up to 20 convex programs from the weights of the step before, divides the Gramian by its
    Frobenius norm, and clips d to norm 1 by default; with `max_norm=1` d has norm 1 too. Here the equation is solved to
    rounding at every update. Its `update_weights_every` is `update_every`.

    A task with a zero gradient gets the weight 0 and K counts the others; if all are zero, d = 0. Where some gradients
    contradict each other (a combination of them with positive weights is 0), no d improves them all: d is then, up to
    the square root of rounding, orthogonal to those and the solution for what is left of the others, and ‖d‖² counts
    only these. At a Pareto-stationary point that involves every task d vanishes up to the same rounding.

    >>> import jax.numpy as jnp, mtljax as mtl
    >>> jacobian = jnp.array([[10.0, 0.0], [0.0, 0.1]])
    >>> tx = mtl.nash_mtl()
    >>> gradient, _ = tx.update(jacobian, tx.init(jnp.zeros(2)))
    >>> [round(float(x), 4) for x in gradient]
    [1.0, 1.0]

    Args:
      max_norm: d is scaled down to this norm where it is longer, positive; None leaves it. May be a tracer.
      num_tasks: K; needed to read the weights from the state and for `update_every`.
      update_every: solve every n updates and reuse the weights in between; None solves at every update.

    Returns:
      A transformation from K task gradients to one gradient; a task's own parameters get their own gradient unscaled.

    Raises:
      ValueError: if `max_norm` is not positive.

    References:
      Navon et al., `Multi-Task Learning as a Bargaining Game <https://arxiv.org/abs/2202.01017>`_, ICML 2022
    """
    if max_norm is not None:
        check_range("nash_mtl", "> 0", max_norm=max_norm)

    def weigh(memory: Any, signals: Signals) -> Any:
        weights = fairness_weights(signals.gramian.cosines, signals.gramian.norms, 1.0)
        if max_norm is None:
            return weights, memory
        lengths = weights * signals.gramian.norms
        square = jnp.sum(lengths * jnp.matmul(signals.gramian.cosines, lengths, precision=lax.Precision.HIGHEST))
        norm = jnp.sqrt(jnp.maximum(square, 0))
        return weights * jnp.where(norm > max_norm, max_norm / jnp.where(norm > 0, norm, 1), 1), memory

    return weighting("nash_mtl", weigh, needs="gramian", num_tasks=num_tasks, update_every=update_every)
