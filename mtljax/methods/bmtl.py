"""BMTL: an exponential of every loss, so that the largest gets most of the attention."""

from typing import Any

import jax.numpy as jnp
import optax

from mtljax.methods._base import weighting
from mtljax.methods._checks import Scalar, check_range
from mtljax.methods._losses import loss_weights
from mtljax.methods._signals import Signals
from mtljax.methods.registry import COMMON, register


@register(needs="losses", paper="2002.04792", properties=(*COMMON, "linear"))
def bmtl(temperature: Scalar = 50.0, *, num_tasks: int | None = None) -> optax.GradientTransformationExtraArgs:
    """Balanced multi-task learning (Liang and Zhang, arXiv:2002.04792).

    d = ∇ Σ_k exp(L_k / T), so w_k = exp(L_k / T) / T: of two losses the larger has the larger weight, the more so the
    smaller T is against their difference. Cost: one backward pass. T = 50 is the default of three
    implementations that cite the paper; others tune T to 0.2 to 0.8.

    The weights depend on the unit of the losses, and for losses far below T all are about 1/T: lower T, or make up for
    it in the learning rate of an optimizer that feels the length of d. Losses of any sign are fine. Weights above the
    square root of the dtype's largest number (1.8e19 in float32, reached near L_k = 48 T for T = 50) are cut to it, so
    that d stays finite.

    >>> import jax.numpy as jnp, mtljax as mtl
    >>> tx = mtl.bmtl(temperature=0.5)
    >>> gradient, _ = tx.update(jnp.eye(2), tx.init(jnp.zeros(2)), losses=jnp.array([0.0, 1.0]))
    >>> [round(float(x), 3) for x in gradient]
    [2.0, 14.778]

    Args:
      temperature: T, in the unit of the losses; 50 in the implementations that cite the paper. May be a tracer.
      num_tasks: K; only needed to read the weights from the state.

    Returns:
      A transformation from K task gradients and their losses to one gradient; a task's own parameters are scaled by its
      weight too.

    Raises:
      ValueError: if `temperature` is not positive.

    References:
      Liang and Zhang, `A Simple General Approach to Balance Task Difficulty in Multi-Task Learning
      <https://arxiv.org/abs/2002.04792>`_, 2020
    """
    check_range("bmtl", "> 0", temperature=temperature)

    def weigh(memory: Any, signals: Signals) -> Any:
        return loss_weights(jnp.exp(signals.losses / temperature) / temperature), memory

    return weighting("bmtl", weigh, needs="losses", num_tasks=num_tasks)
