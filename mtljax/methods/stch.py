"""STCH: a smooth maximum of the losses relative to where they started from."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtljax.gradients import PyTree
from mtljax.methods._base import weighting
from mtljax.methods._checks import Scalar, check_range
from mtljax.methods._losses import loss_weights, positive, running_mean
from mtljax.methods._signals import Signals
from mtljax.methods._state import state_dtype
from mtljax.methods.registry import COMMON, register
from mtljax.solvers import finite


class Nadir(NamedTuple):
    """What STCH remembers.

    Attributes:
      losses: (K,) mean losses of the window after the warm-up; ones before it.
    """

    losses: jax.Array


@register(needs="losses", paper="2402.19078", properties=(*COMMON, "linear", "scale-free"))
def stch(
    mu: Scalar = 1.0, warmup: Scalar = 4, *, window: Scalar = 25, num_tasks: int | None = None
) -> optax.GradientTransformationExtraArgs:
    """Smooth Tchebycheff scalarization (Lin et al., arXiv:2402.19078), in the logarithmic form of its code.

    d = ∇ K μ log Σ_k exp(log(L_k / z_k) / μ), so w_k = K softmax(log(L / z) / μ)_k / L_k. The nadir z is the mean loss
    of each task over one window of updates; until the end of that window d = ∇ Σ_k log L_k, the rule of `si`. Small μ
    attends to the largest ratio L_k / z_k alone, and large μ tends to `si`. As there, the unit of a loss does not
    matter. Cost: one backward pass.

    In the official code and in LibMTL a window is an epoch: set `window` to the updates of one. With the defaults here
    the nadir is the mean of updates 100 to 124, counted from 0. Both add 1e-20 inside the logarithms; this does not.

    The losses must be positive. A task whose loss is zero or negative gets the weight 0 and is left out of the sum, K
    counting the others; in the nadir that loss counts as the mean so far (1 at the start). A task without a label does
    not count there either: its windows count the updates in which it has one, and until it has a nadir its rule is that
    of `si` beside the others. With no task left, d = 0. Weights above the square root of the dtype's largest number
    (1.8e19 in float32) are cut to it, so that d stays finite.

    >>> import jax.numpy as jnp, mtljax as mtl
    >>> tx = mtl.stch(warmup=0, window=1, num_tasks=2)
    >>> state = tx.init(jnp.zeros(2))
    >>> for losses in ([1.0, 2.0], [0.5, 0.5]):
    ...     gradient, state = tx.update(jnp.eye(2), state, losses=jnp.array(losses))
    >>> [round(float(x), 4) for x in gradient]
    [2.6667, 1.3333]

    Args:
      mu: μ > 0, how smooth the maximum is, without a unit; 1 in the official code. May be a tracer.
      warmup: windows before that of the nadir, a whole number of at least 0; 4 in the official code. May be a tracer.
      window: updates a window, a whole number of at least 1. May be a tracer.
      num_tasks: K, required: the nadir is in the state.

    Returns:
      A transformation from K task gradients and their losses to one gradient; a task's own parameters are scaled by its
      weight too.

    Raises:
      ValueError: if `num_tasks` is missing, or `mu`, `warmup` or `window` are out of range.

    References:
      Lin et al., `Smooth Tchebycheff Scalarization for Multi-Objective Optimization
      <https://arxiv.org/abs/2402.19078>`_, ICML 2024
    """
    check_range("stch", "> 0", mu=mu)
    check_range("stch", "whole >= 0", warmup=warmup)
    check_range("stch", "whole >= 1", window=window)

    def init_memory(num_tasks: int, params: PyTree) -> Nadir:
        return Nadir(jnp.ones(num_tasks, state_dtype(params)))

    def weigh(memory: Nadir, signals: Signals) -> Any:
        losses = signals.losses
        losses, live = positive(losses)
        since = signals.seen - warmup * window  # updates since the warm-up
        ready = live & (since >= window)
        ratios = finite((jnp.log(losses) - jnp.log(memory.losses)) / mu)
        shares = jnp.where(ready, jnp.sum(ready) * jax.nn.softmax(ratios, where=ready), 1)
        mean = running_mean(memory.losses, jnp.where(live, losses, memory.losses), jnp.maximum(since, 0))
        nadir = jnp.where((since >= 0) & (since < window), mean, memory.losses)
        return loss_weights(shares / losses, live), Nadir(nadir)

    return weighting("stch", weigh, needs="losses", num_tasks=num_tasks, init_memory=init_memory)
