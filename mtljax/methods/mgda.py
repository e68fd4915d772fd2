"""MGDA: the smallest vector in the convex hull of the task gradients."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from mtljax.methods._base import weighting
from mtljax.methods._checks import check_choice
from mtljax.methods._losses import positive
from mtljax.methods._signals import Signals
from mtljax.methods.registry import COMMON, NEVER_CONFLICTS, register
from mtljax.solvers import finite, min_norm_weights

NORMALIZERS = ("none", "l2", "loss", "loss+")


@register(needs="gramian", paper="1810.04650", properties=(*COMMON, *NEVER_CONFLICTS))
def mgda(
    normalize: str = "none", *, num_tasks: int | None = None, update_every: int | None = None
) -> optax.GradientTransformationExtraArgs:
    """Multiple-gradient descent (Désidéri 2012; Sener & Koltun, arXiv:1810.04650).

    d = Σ_k w_k g_k with w = argmin ‖Σ_k w_k g_k / c_k‖² over the simplex, and c_k = 1, the paper's rule. Then
    ⟨d, g_k⟩ ≥ ‖d‖² for every task, with equality where w_k > 0, and d = 0 exactly at Pareto-stationary points. The
    official code offers other c_k, which change the weights a lot: with them d can conflict with a task. As there, the
    weights combine the gradients themselves, not g_k / c_k. Cost: K backward passes and one K x K problem.

    The weights sum to one, so d is shorter than the gradients it combines. A task whose gradient is zero (no label in
    the batch, say) is left out instead of stopping all others, and so is one whose loss is not positive where c_k
    needs it; if none is left, the weights are uniform. Official code finds the weights by Frank-Wolfe iterations; here
    the quadratic program is solved exactly.

    >>> import jax.numpy as jnp, mtljax as mtl
    >>> jacobian = jnp.array([[2.0, 0.0], [0.0, 1.0]])
    >>> tx = mtl.mgda()
    >>> gradient, _ = tx.update(jacobian, tx.init(jnp.zeros(2)))
    >>> [round(float(x), 4) for x in gradient]
    [0.4, 0.8]

    Args:
      normalize: c_k: "none" for 1, "l2" for ‖g_k‖, "loss" for L_k, "loss+" for L_k ‖g_k‖. The last two need
        `losses=` at every update.
      num_tasks: K; needed to read the weights from the state and for `update_every`.
      update_every: solve every n updates and reuse the weights in between; None solves at every update.

    Returns:
      A transformation from K task gradients to one gradient; a task's own parameters get their own gradient unscaled.

    Raises:
      ValueError: if `normalize` is unknown.

    References:
      Désidéri, `Multiple-gradient descent algorithm (MGDA) for multiobjective optimization
      <https://doi.org/10.1016/j.crma.2012.03.014>`_, Comptes Rendus Mathématique 2012

      Sener and Koltun, `Multi-Task Learning as Multi-Objective Optimization <https://arxiv.org/abs/1810.04650>`_,
      NeurIPS 2018
    """
    check_choice("mgda", "normalize", normalize, NORMALIZERS)
    reads_losses = normalize in ("loss", "loss+")

    def weigh(memory: Any, signals: Signals) -> Any:
        losses = signals.losses
        cosines, norms = signals.gramian
        live = norms > 0
        if normalize in ("l2", "loss+"):
            norms = live.astype(norms.dtype)
        if reads_losses:
            assert losses is not None
            losses, usable = positive(losses)
            live &= usable
            # Only ratios matter; taken in this order they leave the range at the far ends alone.
            norms = finite(norms / _largest(norms, live) / (losses / _largest(losses, live)))
            cosines, norms = jnp.where(live[:, None] & live, cosines, 0), jnp.where(live, norms, 0)
        return min_norm_weights(cosines, norms), memory

    return weighting(
        "mgda", weigh, needs="gramian", num_tasks=num_tasks, reads_losses=reads_losses, update_every=update_every
    )


def _largest(values: jax.Array, live: jax.Array) -> jax.Array:
    return jnp.where(jnp.any(live), jnp.max(jnp.where(live, values, 0)), 1)
