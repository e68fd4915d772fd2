"""GLS: the geometric mean of the losses."""

from typing import Any

import jax.numpy as jnp
import optax

from mtljax.methods._base import weighting
from mtljax.methods._losses import loss_weights, positive
from mtljax.methods._signals import Signals
from mtljax.methods.registry import COMMON, register


@register(needs="losses", paper="1904.08492", properties=(*COMMON, "linear", "scale-free"))
def gls(*, num_tasks: int | None = None) -> optax.GradientTransformationExtraArgs:
    """Geometric loss strategy (Chennupati et al., arXiv:1904.08492).

    d = ∇ (Π_k L_k)^(1/K), so w_k = m / (K L_k) with m the geometric mean of the losses, computed in logarithms, where
    the product of many losses cannot over- or underflow. The direction is that of `si`, the length m / K times its.
    Cost: one backward pass. There is nothing to set. There is no official code; LibMTL takes the root of the product
    itself, whose range bounds the number of tasks.

    The losses must be positive. A task whose loss is zero or negative gets the weight 0 and is left out of the mean too
    (m and K are those of the others); with no task left, d = 0. Weights above the square root of the dtype's largest
    number (1.8e19 in float32) are cut to it, so that d stays finite.

    >>> import jax.numpy as jnp, mtljax as mtl
    >>> jacobian = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    >>> tx = mtl.gls()
    >>> gradient, _ = tx.update(jacobian, tx.init(jnp.zeros(2)), losses=jnp.array([0.5, 2.0]))
    >>> [round(float(x), 4) for x in gradient]
    [1.0, 0.25]

    Args:
      num_tasks: K; only needed to read the weights from the state.

    Returns:
      A transformation from K task gradients and their losses to one gradient; a task's own parameters are scaled by its
      weight too.

    References:
      Chennupati et al., `MultiNet++: Multi-Stream Feature Aggregation and Geometric Loss Strategy for Multi-Task
      Learning <https://arxiv.org/abs/1904.08492>`_, CVPR Workshops 2019
    """

    def weigh(memory: Any, signals: Signals) -> Any:
        losses = signals.losses
        losses, live = positive(losses)
        logs = jnp.log(losses)  # 0 for a task that is left out
        count = jnp.maximum(live.sum(), 1)
        return loss_weights(jnp.exp(logs.sum() / count - logs) / count, live), memory

    return weighting("gls", weigh, needs="losses", num_tasks=num_tasks)
