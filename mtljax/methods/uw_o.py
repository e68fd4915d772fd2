"""UW-O: uncertainty weighting at its optimum, with nothing to learn."""

import optax

from mtljax.methods._base import weighting
from mtljax.methods.registry import COMMON, register
from mtljax.methods.si import inverse_loss_weights


@register(needs="losses", paper="2311.04698", properties=(*COMMON, "linear", "scale-free"))
def uw_o(*, num_tasks: int | None = None) -> optax.GradientTransformationExtraArgs:
    """Optimal uncertainty weighting (as in Elich et al., arXiv:2311.04698).

    Uncertainty weighting minimises L_k / σ_k + log σ_k over the scale σ_k as well; its minimum is at σ_k = L_k. With
    that value put in as a constant, d = Σ_k ∇L_k / L_k, so w_k = 1 / L_k. Cost: one backward pass. The weights are
    those of `si`, which comes to them from the logarithms of the losses: the two are one rule. Unlike `uw` it has no
    learning rate, no delay and no factor 1/2. There is nothing to set, and no code of the paper to differ from.

    The losses must be positive. A task whose loss is zero or negative gets the weight 0, which leaves it out of this
    update; weights above the square root of the dtype's largest number (1.8e19 in float32) are cut to it, so that d
    stays finite.

    >>> import jax.numpy as jnp, mtljax as mtl
    >>> jacobian = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    >>> tx = mtl.uw_o()
    >>> gradient, _ = tx.update(jacobian, tx.init(jnp.zeros(2)), losses=jnp.array([0.5, 4.0]))
    >>> gradient.tolist()
    [2.0, 0.25]

    Args:
      num_tasks: K; only needed to read the weights from the state.

    Returns:
      A transformation from K task gradients and their losses to one gradient; a task's own parameters are scaled by its
      weight too.

    References:
      Elich et al., `Examining Common Paradigms in Multi-Task Learning <https://arxiv.org/abs/2311.04698>`_, GCPR 2024
    """
    return weighting("uw_o", inverse_loss_weights, needs="losses", num_tasks=num_tasks)
