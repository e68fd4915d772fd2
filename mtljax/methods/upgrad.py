"""UPGrad: the mean of the gradients, each made to conflict with none."""

from typing import Any

import optax

from mtljax.methods._base import weighting
from mtljax.methods._losses import mean_of_present
from mtljax.methods._signals import Signals
from mtljax.methods.registry import COMMON, NEVER_CONFLICTS, register
from mtljax.solvers import upgrad_weights


@register(needs="gramian", paper="2406.16232", properties=(*COMMON, *NEVER_CONFLICTS, "linear", "sum"))
def upgrad(*, num_tasks: int | None = None, update_every: int | None = None) -> optax.GradientTransformationExtraArgs:
    """Unconflicting projection of gradients (Quinton & Rey, arXiv:2406.16232).

    Each gradient is projected onto the dual cone, the d with ⟨g_k, d⟩ ≥ 0 for all k, and d is the mean of the K
    projections: d = 1/K Σ_i Σ_k v_ik g_k, where v_i = argmin ‖Σ_k v_k g_k‖² subject to v ≥ e_i. So d conflicts with no
    task, is the mean gradient when none conflict, and is linear in the length of each gradient. With two tasks it is
    half of PCGrad's. Cost: K backward passes and K problems of size K x K, pivoted side by side.

    The scale is the paper's, that of the mean. Its authors' code adds 1e-4 to the diagonal of the Gramian, which lets d
    conflict by a little, and returns the mean itself for gradients below an absolute threshold. Here the projections
    are exact at any scale.

    A task with a zero gradient is left out, and K counts the others; if all are zero, d = 0. Where 0 is a combination
    of the gradients with positive weights only, d = 0: the dual cone is orthogonal to them all.

    >>> import jax.numpy as jnp, mtljax as mtl
    >>> jacobian = jnp.array([[1.0, 0.0], [-1.0, 1.0]])
    >>> tx = mtl.upgrad()
    >>> gradient, _ = tx.update(jacobian, tx.init(jnp.zeros(2)))
    >>> [round(float(x), 4) for x in gradient]
    [0.25, 0.75]

    Args:
      num_tasks: K; needed to read the weights from the state and for `update_every`.
      update_every: solve every n updates and reuse the weights in between; None solves at every update.

    Returns:
      A transformation from K task gradients to one gradient; a task's own parameters get their own gradient unscaled.

    References:
      Quinton and Rey, `Jacobian Descent for Multi-Objective Optimization <https://arxiv.org/abs/2406.16232>`_, 2024
    """

    def weigh(memory: Any, signals: Signals) -> Any:
        return mean_of_present(
            upgrad_weights(signals.gramian.cosines, signals.gramian.norms), signals.gramian.norms > 0
        ), memory

    return weighting("upgrad", weigh, needs="gramian", num_tasks=num_tasks, update_every=update_every)
