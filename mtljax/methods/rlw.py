"""RLW: loss weights drawn anew at every update."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from mtljax.methods._base import weighting
from mtljax.methods._checks import Scalar, check_choice
from mtljax.methods._signals import Signals
from mtljax.methods.registry import register

DISTRIBUTIONS = ("normal", "dirichlet")


@register(needs="nothing", paper="2111.10603", properties=("row span", "rotatable", "homogeneous", "linear"))
def rlw(
    distribution: str = "normal", *, seed: Scalar = 0, num_tasks: int | None = None
) -> optax.GradientTransformationExtraArgs:
    """Random loss weighting (Lin et al., arXiv:2111.10603).

    d = Σ_k w_k g_k with w the softmax of K standard normal numbers, or a uniformly distributed point of the simplex
    (Dirichlet with all parameters 1), independent from update to update. Every task has the mean weight 1/K. Cost: one
    backward pass, and the losses are not needed.

    The weights are positive and sum to 1, as in the paper and in its authors' code, LibMTL; so the expected update is
    the mean of the gradients, and K times smaller than that of `ew`. With one task the weight is 1. They are drawn in
    float32, so that a seed gives the same in 64-bit mode.

    >>> import jax.numpy as jnp, mtljax as mtl
    >>> tx = mtl.rlw(num_tasks=3)
    >>> gradient, state = tx.update(jnp.eye(3), tx.init(jnp.zeros(3)))
    >>> bool((gradient > 0).all()), round(float(gradient.sum()), 4)
    (True, 1.0)

    Args:
      distribution: "normal", the default of the paper and its code, or "dirichlet".
      seed: seed of the PRNG key kept in the state.
      num_tasks: K; only needed to read the weights from the state.

    Returns:
      A transformation from K task gradients to one gradient; a task's own parameters are scaled by its weight too.

    Raises:
      ValueError: if `distribution` is unknown.

    References:
      Lin et al., `Reasonable Effectiveness of Random Weighting: A Litmus Test for Multi-Task Learning
      <https://arxiv.org/abs/2111.10603>`_, TMLR 2022
    """
    check_choice("rlw", "distribution", distribution, DISTRIBUTIONS)

    def weigh(memory: Any, signals: Signals) -> Any:
        if distribution == "normal":
            logits = jax.random.normal(signals.key, (signals.num_tasks,), jnp.float32)
        else:
            # Normalised exponential numbers are uniform on the simplex, and their logarithms are Gumbel, negated.
            logits = -jax.random.gumbel(signals.key, (signals.num_tasks,), jnp.float32)
        return jax.nn.softmax(logits, where=signals.present), memory

    return weighting("rlw", weigh, needs="nothing", num_tasks=num_tasks, seed=seed)
