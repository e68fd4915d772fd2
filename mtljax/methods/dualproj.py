"""DualProj: the mean gradient made to conflict with none."""

from typing import Any

import jax.numpy as jnp
import optax

from mtljax.methods._base import weighting
from mtljax.methods._losses import mean_of_present
from mtljax.methods._signals import Signals
from mtljax.methods.registry import COMMON, NEVER_CONFLICTS, register
from mtljax.solvers import dual_cone_weights


@register(needs="gramian", paper="2406.16232", properties=(*COMMON, *NEVER_CONFLICTS, "sum"))
def dualproj(*, num_tasks: int | None = None, update_every: int | None = None) -> optax.GradientTransformationExtraArgs:
    """Dual cone projection (Lopez-Paz & Ranzato, arXiv:1706.08840; as a rule for tasks, arXiv:2406.16232).

    d is the nearest vector to the mean gradient among those that conflict with no task, ⟨g_k, d⟩ ≥ 0 for all k:
    d = Σ_k v_k g_k with v = argmin ‖Σ_k v_k g_k‖² subject to v ≥ 1/K. Cost: K backward passes and one K x K quadratic
    program.

    It is the projection of GEM, which projects the gradient of the current task off those of the past ones. Long
    gradients dominate the mean and so d, more than in `upgrad`, which projects each gradient by itself. The scale is
    that of the mean. There is nothing to set. GEM's official code adds a margin of 0.5 to the weights and 1e-3
    to the diagonal of the Gramian, TorchJD 1e-4 to the diagonal, which lets d conflict by a little; here nothing is
    added.

    A task with a zero gradient is left out, of the mean too; if all are zero, d = 0. Where 0 is a combination of the
    gradients with positive weights only, d = 0.

    >>> import jax.numpy as jnp, mtljax as mtl
    >>> jacobian = jnp.array([[4.0, 0.0], [-1.0, 1.0]])
    >>> tx = mtl.dualproj()
    >>> gradient, _ = tx.update(jacobian, tx.init(jnp.zeros(2)))
    >>> [round(float(x), 4) for x in gradient]
    [1.0, 1.0]

    Args:
      num_tasks: K; needed to read the weights from the state and for `update_every`.
      update_every: solve every n updates and reuse the weights in between; None solves at every update.

    Returns:
      A transformation from K task gradients to one gradient; a task's own parameters get their own gradient unscaled.

    References:
      Lopez-Paz and Ranzato, `Gradient Episodic Memory for Continual Learning <https://arxiv.org/abs/1706.08840>`_,
      NeurIPS 2017

      Quinton and Rey, `Jacobian Descent for Multi-Objective Optimization <https://arxiv.org/abs/2406.16232>`_, 2024
    """

    def weigh(memory: Any, signals: Signals) -> Any:
        mean = jnp.full_like(signals.gramian.norms, 1 / len(signals.gramian.norms))
        weights = dual_cone_weights(signals.gramian.cosines, signals.gramian.norms, mean)
        return mean_of_present(weights, signals.gramian.norms > 0), memory

    return weighting("dualproj", weigh, needs="gramian", num_tasks=num_tasks, update_every=update_every)
