"""SLAW: every loss divided by its own running standard deviation."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtljax.gradients import PyTree
from mtljax.methods._base import weighting
from mtljax.methods._checks import Scalar, check_range
from mtljax.methods._signals import Signals
from mtljax.methods._state import state_dtype
from mtljax.methods.registry import COMMON, register
from mtljax.solvers import finite


class LossMoments(NamedTuple):
    """What SLAW remembers.

    Attributes:
      mean: (K,) running means of the losses.
      std: (K,) their running standard deviations.
    """

    mean: jax.Array
    std: jax.Array


@register(needs="losses", paper="2109.08218", properties=(*COMMON, "linear"))
def slaw(decay: Scalar = 0.99, *, num_tasks: int | None = None) -> optax.GradientTransformationExtraArgs:
    """Scaled loss approximate weighting (Crawshaw and Košecká, arXiv:2109.08218).

    w_k = K (1 / s_k) / Σ_j (1 / s_j), where s_k² = E[L_k²] - E[L_k]² is the running variance of the loss of task k: a
    stand-in for weights inverse to the gradient norms. Cost: one backward pass. E is the arithmetic mean up to
    update 1 / (1 - decay), and from there an exponential moving average; the current loss is in it. The weights are
    ones at the first update and sum to K. The unit of one loss changes the length of d, not its direction.

    s² follows the recurrence (1 - a) (s² + a (L - E[L])²), a the share of the new loss L: the same number as the
    difference above, which float32 loses to rounding once a mean is some thousand times its deviation.

    A loss that has not changed at all (s_k = 0, so every loss at the first update) keeps the weight 1, and the others
    share what is left of K by the rule. The default decay is the official code's, which puts 1e-5 in place of smaller
    deviations: such a task there takes nearly all the weight, and the unit of the losses matters. A task without a
    label is left out, K counting the others; its moments wait, and count the updates in which it has one.

    >>> import jax.numpy as jnp, mtljax as mtl
    >>> tx = mtl.slaw(num_tasks=2)
    >>> state = tx.init(jnp.zeros(2))
    >>> for losses in ([1.0, 10.0], [2.0, 40.0]):
    ...     gradient, state = tx.update(jnp.eye(2), state, losses=jnp.array(losses))
    >>> [round(float(x), 4) for x in gradient]
    [1.9355, 0.0645]

    Args:
      decay: of the moving average, in [0, 1]; the official 0.99. 1 keeps the arithmetic mean. May be a tracer.
      num_tasks: K, required: the moments are in the state.

    Returns:
      A transformation from K task gradients and their losses to one gradient; a task's own parameters are scaled by its
      weight too.

    Raises:
      ValueError: if `num_tasks` is missing or `decay` is outside [0, 1].

    References:
      Crawshaw and Košecká, `SLAW: Scaled Loss Approximate Weighting for Efficient Multi-Task Learning
      <https://arxiv.org/abs/2109.08218>`_, 2021
    """
    check_range("slaw", "[0, 1]", decay=decay)

    def init_memory(num_tasks: int, params: PyTree) -> LossMoments:
        zeros = jnp.zeros(num_tasks, state_dtype(params))
        return LossMoments(mean=zeros, std=zeros)

    def weigh(memory: LossMoments, signals: Signals) -> Any:
        share = jnp.maximum(1 / (signals.seen + 1).astype(signals.losses.dtype), 1 - decay)
        deviation = finite(signals.losses - memory.mean)
        mean = memory.mean + share * deviation
        # hypot, as the square of a deviation may leave the dtype's range.
        std = jnp.hypot(jnp.sqrt(1 - share) * memory.std, jnp.sqrt(share * (1 - share)) * deviation)
        return _inverse_shares(jnp.where(signals.present, std, 0)), LossMoments(mean, std)

    return weighting("slaw", weigh, needs="losses", num_tasks=num_tasks, init_memory=init_memory)


def _inverse_shares(std: jax.Array) -> jax.Array:
    """Weights inverse to the deviations; 1 for a deviation of 0, so that all sum to K."""
    live = std > 0
    smallest = jnp.min(std, where=live, initial=jnp.inf)
    inverse = jnp.where(live, smallest / jnp.where(live, std, 1), 0)  # relative to the smallest: in [0, 1]
    return jnp.where(live, live.sum() * inverse / jnp.maximum(inverse.sum(), 1), 1)
