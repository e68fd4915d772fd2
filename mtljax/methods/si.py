"""SI: the sum of the logarithms of the losses."""

from typing import Any

import optax

from mtljax.methods._base import weighting
from mtljax.methods._losses import loss_weights, positive
from mtljax.methods._signals import Signals
from mtljax.methods.registry import COMMON, register


@register(needs="losses", paper="2202.01017", properties=(*COMMON, "linear", "scale-free"))
def si(*, num_tasks: int | None = None) -> optax.GradientTransformationExtraArgs:
    """Scale-invariant scalarization, the baseline of Nash-MTL (Navon et al., arXiv:2202.01017).

    d = ∇ Σ_k log L_k, so w_k = 1 / L_k: multiplying a loss by a constant changes nothing. Cost: one backward pass.
    There is nothing to set. Nash-MTL's code has the same sum of logarithms. The weights are those of
    `uw_o`, which comes to them from uncertainty weighting: the two are one rule.

    The losses must be positive. A task whose loss is zero or negative gets the weight 0, which leaves it out of this
    update; weights above the square root of the dtype's largest number (1.8e19 in float32) are cut to it, so that d
    stays finite.

    >>> import jax.numpy as jnp, mtljax as mtl
    >>> jacobian = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    >>> tx = mtl.si()
    >>> gradient, _ = tx.update(jacobian, tx.init(jnp.zeros(2)), losses=jnp.array([0.5, 4.0]))
    >>> gradient.tolist()
    [2.0, 0.25]

    Args:
      num_tasks: K; only needed to read the weights from the state.

    Returns:
      A transformation from K task gradients and their losses to one gradient; a task's own parameters are scaled by its
      weight too.

    References:
      Navon et al., `Multi-Task Learning as a Bargaining Game <https://arxiv.org/abs/2202.01017>`_, ICML 2022
    """
    return weighting("si", inverse_loss_weights, needs="losses", num_tasks=num_tasks)


def inverse_loss_weights(memory: Any, signals: Signals) -> Any:
    """The weights 1 / L_k, 0 where a loss is not positive: the rule of `si` and `uw_o`."""
    losses, live = positive(signals.losses)
    return loss_weights(1 / losses, live), memory
