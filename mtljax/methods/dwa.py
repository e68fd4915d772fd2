"""DWA: more weight for the tasks whose losses fall least."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtljax.gradients import PyTree
from mtljax.methods._base import weighting
from mtljax.methods._checks import Scalar, check_range
from mtljax.methods._losses import running_mean
from mtljax.methods._signals import Signals
from mtljax.methods._state import state_dtype
from mtljax.methods.registry import COMMON, register
from mtljax.solvers import finite


class LossAverages(NamedTuple):
    """What DWA remembers, three mean losses.

    Attributes:
      current: (K,) of the window so far.
      last: (K,) of the last complete window.
      before: (K,) of the one before that.
    """

    current: jax.Array
    last: jax.Array
    before: jax.Array


@register(needs="losses", paper="1803.10704", properties=(*COMMON, "linear"))
def dwa(
    temperature: Scalar = 2.0, *, window: Scalar = 25, num_tasks: int | None = None
) -> optax.GradientTransformationExtraArgs:
    """Dynamic weight average (Liu et al., arXiv:1803.10704).

    w_k = K softmax(r / T)_k with r_k the mean loss of task k in the last complete window of updates over its mean in
    the one before; all ones in the first two windows. The weights are constant within a window and sum to K. Cost: one
    backward pass.

    In the paper and its code a window is an epoch: set `window` to the updates of one. The default of 25 is that of
    Nash-MTL's code, which slides its windows by one update, fills them with ones at the start and divides d by K.

    The losses should be positive: the ratio of a negative one grows as it falls. Where the earlier mean is exactly 0,
    r_k is taken as 1; ratios beyond the dtype's range are cut. A task without a label is left out, K counting the
    others; its windows count the updates in which it has one.

    >>> import jax.numpy as jnp, mtljax as mtl
    >>> tx = mtl.dwa(window=1, num_tasks=2)
    >>> state = tx.init(jnp.zeros(2))
    >>> for losses in ([1.0, 1.0], [0.9, 0.1], [0.8, 0.1]):
    ...     gradient, state = tx.update(jnp.eye(2), state, losses=jnp.array(losses))
    >>> [round(float(x), 4) for x in gradient]
    [1.1974, 0.8026]

    Args:
      temperature: T, without a unit; the paper's 2. Large values give equal weights. May be a tracer.
      window: updates averaged, a whole number of at least 1. May be a tracer.
      num_tasks: K, required: the averages are in the state.

    Returns:
      A transformation from K task gradients and their losses to one gradient; a task's own parameters are scaled by its
      weight too.

    Raises:
      ValueError: if `num_tasks` is missing, or `temperature` or `window` are out of range.

    References:
      Liu et al., `End-to-End Multi-Task Learning with Attention <https://arxiv.org/abs/1803.10704>`_, CVPR 2019
    """
    check_range("dwa", "> 0", temperature=temperature)
    check_range("dwa", "whole >= 1", window=window)

    def init_memory(num_tasks: int, params: PyTree) -> LossAverages:
        ones = jnp.ones(num_tasks, state_dtype(params))
        return LossAverages(current=ones, last=ones, before=ones)

    def weigh(memory: LossAverages, signals: Signals) -> Any:
        starts = signals.seen % window == 0
        last = jnp.where(starts, memory.current, memory.last)
        before = jnp.where(starts, memory.last, memory.before)
        known = (signals.seen >= 2 * window) & (before != 0)
        ratio = finite(jnp.where(known, last / jnp.where(known, before, 1), 1))
        balanced = jnp.sum(signals.present) * jax.nn.softmax(finite(ratio / temperature), where=signals.present)
        weights = jnp.where(jnp.any(known & signals.present), balanced, signals.present)
        return weights, LossAverages(running_mean(memory.current, signals.losses, signals.seen % window), last, before)

    return weighting("dwa", weigh, needs="losses", num_tasks=num_tasks, init_memory=init_memory)
