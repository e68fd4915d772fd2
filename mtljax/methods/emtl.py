"""EMTL, a stand-in: weights that make every loss equally large next to its gradient."""

from typing import Any

import jax.numpy as jnp
import optax

from mtljax.methods._base import weighting
from mtljax.methods._losses import positive
from mtljax.methods._signals import Signals
from mtljax.methods.registry import COMMON, register


@register(needs="gramian", paper="2306.09373", properties=COMMON)
def emtl(*, num_tasks: int | None = None, update_every: int | None = None) -> optax.GradientTransformationExtraArgs:
    """A stand-in for EMTL (Yuan & Zhang, arXiv:2306.09373), whose exact update and code are not public.

    What is public: a task's contribution is its loss over the norm of its gradient, and the contributions should be
    equal. Here they are made equal by the weights, L_k / (w_k ‖g_k‖) = const, so that

        w_k = K (L_k / ‖g_k‖) / Σ_j (L_j / ‖g_j‖)   and   d = Σ_k w_k g_k,

    in which every task's weighted gradient is as long as its loss is large. The weights sum to K. No result of the
    paper may be expected of it. Cost: K backward passes.

    There is nothing to set. Tasks with a zero gradient, or a loss that is not positive, get weight 0; if none is left,
    d = 0.

    >>> import jax.numpy as jnp, mtljax as mtl
    >>> jacobian = jnp.array([[2.0, 0.0], [0.0, 1.0]])
    >>> tx = mtl.emtl()
    >>> gradient, _ = tx.update(jacobian, tx.init(jnp.zeros(2)), losses=jnp.array([2.0, 3.0]))
    >>> [round(float(x), 4) for x in gradient]
    [1.0, 1.5]

    Args:
      num_tasks: K; needed to read the weights from the state and for `update_every`.
      update_every: solve every n updates and reuse the weights in between; None solves at every update.

    Returns:
      A transformation from K task gradients to one gradient that needs `losses=` at every update; a task's own
      parameters get their own gradient unscaled.

    References:
      Yuan and Zhang, `Equitable Multi-task Learning <https://arxiv.org/abs/2306.09373>`_, 2023
    """

    def weigh(memory: Any, signals: Signals) -> Any:
        losses = signals.losses
        losses, live = positive(losses)
        live &= signals.gramian.norms > 0
        # The ratios normalised, through their logarithms: a loss or a norm may be anywhere in the dtype's range.
        ratios = jnp.log(losses) - jnp.log(jnp.where(live, signals.gramian.norms, 1))
        ratios = jnp.where(live, jnp.exp(ratios - jnp.max(jnp.where(live, ratios, -jnp.inf))), 0)
        return jnp.sum(live) * ratios / jnp.maximum(jnp.sum(ratios), 1), memory

    return weighting("emtl", weigh, needs="gramian", num_tasks=num_tasks, reads_losses=True, update_every=update_every)
