"""IMTL-L: every loss kept at the same scale by a factor that is learned."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtljax.gradients import PyTree
from mtljax.methods._base import weighting
from mtljax.methods._checks import Scalar, check_range
from mtljax.methods._losses import loss_weights, safe_gradient
from mtljax.methods._signals import Signals
from mtljax.methods._state import state_dtype
from mtljax.methods.registry import COMMON, register
from mtljax.solvers import finite


class LossScales(NamedTuple):
    """Learned scales of the losses.

    Attributes:
      log_scales: (K,) s, their logarithms.
      opt_state: state of the optimizer that learns s.
    """

    log_scales: jax.Array
    opt_state: Any


@register(needs="losses", paper="IMTL, ICLR 2021", properties=(*COMMON, "linear"))
def imtl_l(
    *,
    init: Scalar = 0.0,
    learning_rate: Scalar = 0.025,
    optimizer: optax.GradientTransformation | None = None,
    num_tasks: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """The loss balance of impartial multi-task learning (Liu et al., ICLR 2021, OpenReview IMPnRXEWpvr).

    d = ∇ Σ_k (exp(s_k) L_k - s_k), so w_k = exp(s_k), where s takes one step of its own optimizer on the same sum after
    each update. At its minimum exp(s_k) L_k = 1: every scaled loss is 1 and the weights are those of `si`. Cost: one
    backward pass.

    The paper and LibMTL learn s with the optimizer of the network; here it has its own Adam, with the learning rate
    that Nash-MTL's code gives to the parameters of methods. s moves by about that much an update: to balance losses of
    1e-4 takes some 400 updates. `uw` is the same idea with s of the opposite sign and half the sum.

    A loss of 0 or less has no best s: its weight grows by a factor of about exp(learning_rate) an update until cut at
    the square root of the dtype's largest number (1.8e19 in float32), so that d stays finite. A task without a label:
    s waits. Gradients of s are cut where their square would leave the dtype's range.

    >>> import jax.numpy as jnp, mtljax as mtl
    >>> tx = mtl.imtl_l(num_tasks=2)
    >>> state = tx.init(jnp.zeros(2))
    >>> for _ in range(2):
    ...     gradient, state = tx.update(jnp.eye(2), state, losses=jnp.array([0.5, 4.0]))
    >>> [round(float(x), 4) for x in gradient]
    [1.0253, 0.9753]

    Args:
      init: s at the start; the paper's 0, the plain sum. May be a tracer.
      learning_rate: of Adam on s. May be a tracer.
      optimizer: any optax transformation in place of Adam; `learning_rate` is then not used.
      num_tasks: K, required: the scales are in the state.

    Returns:
      A transformation from K task gradients and their losses to one gradient; a task's own parameters are scaled by its
      weight too.

    Raises:
      ValueError: if `num_tasks` is missing, or `init` or `learning_rate` are out of range.

    References:
      Liu et al., `Towards Impartial Multi-task Learning <https://openreview.net/forum?id=IMPnRXEWpvr>`_, ICLR 2021
    """
    check_range("imtl_l", "any", init=init)
    check_range("imtl_l", ">= 0", learning_rate=learning_rate)
    learner = optax.adam(learning_rate) if optimizer is None else optimizer

    def init_memory(num_tasks: int, params: PyTree) -> LossScales:
        return init_scales(num_tasks, params, init, learner)

    def weigh(memory: LossScales, signals: Signals) -> Any:
        return scale_weights(memory), step_scales(memory, signals.losses, learner)

    return weighting("imtl_l", weigh, needs="losses", num_tasks=num_tasks, init_memory=init_memory)


def init_scales(num_tasks: int, params: PyTree, init: Scalar, optimizer: optax.GradientTransformation) -> LossScales:
    """Scales exp(init) for all tasks, in the dtype of a method's state."""
    log_scales = jnp.full(num_tasks, init, state_dtype(params))
    return LossScales(log_scales, optimizer.init(log_scales))


def scale_weights(scales: LossScales) -> jax.Array:
    """The (K,) weights exp(s), cut to their range."""
    return loss_weights(jnp.exp(scales.log_scales))


def step_scales(scales: LossScales, losses: jax.Array, optimizer: optax.GradientTransformation) -> LossScales:
    """The scales after one step of the optimizer on Σ_k (exp(s_k) L_k - s_k)."""
    gradient = safe_gradient(finite(jnp.exp(scales.log_scales)) * losses - 1, scales.log_scales)
    updates, opt_state = optimizer.update(gradient, scales.opt_state, scales.log_scales)
    log_scales: Any = optax.apply_updates(scales.log_scales, updates)
    return LossScales(log_scales, opt_state)
