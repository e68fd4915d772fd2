"""Equal weighting: the plain sum of the losses, also called linear or unitary scalarization."""

from typing import Any

import jax.numpy as jnp
import optax

from mtljax.methods._base import weighting
from mtljax.methods._signals import Signals
from mtljax.methods.registry import COMMON, register


@register(needs="nothing", paper="2201.04122", properties=(*COMMON, "linear", "sum"))
def ew(*, num_tasks: int | None = None) -> optax.GradientTransformationExtraArgs:
    """Equal weighting: d = Σ_k g_k.

    The baseline that every other method has to beat, once its optimizer and its regularisation are tuned (Kurin et al.,
    arXiv:2201.04122). There is nothing to set, no default and no official code. Where a paper takes the mean instead, a
    learning rate K times as large makes up for it. Cost: one backward pass.

    >>> import jax.numpy as jnp, mtljax as mtl
    >>> jacobian = jnp.array([[1.0, 0.0], [-0.5, 2.0]])
    >>> tx = mtl.ew()
    >>> gradient, _ = tx.update(jacobian, tx.init(jnp.zeros(2)))
    >>> gradient.tolist()
    [0.5, 2.0]

    Args:
      num_tasks: K; only needed to read the weights from the state.

    Returns:
      A transformation from K task gradients to one gradient.

    References:
      Kurin et al., `In Defense of the Unitary Scalarization for Deep Multi-Task Learning
      <https://arxiv.org/abs/2201.04122>`_, NeurIPS 2022
    """

    def weigh(memory: Any, signals: Signals) -> Any:
        return jnp.ones(signals.num_tasks), memory

    return weighting("ew", weigh, needs="nothing", num_tasks=num_tasks)
