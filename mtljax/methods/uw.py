"""UW: every loss divided by its learned uncertainty."""

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


class Uncertainties(NamedTuple):
    """What UW remembers.

    Attributes:
      log_variances: (K,) s, the learned logarithms of the variances.
      opt_state: state of the optimizer that learns s.
    """

    log_variances: jax.Array
    opt_state: Any


@register(needs="losses", paper="1705.07115", properties=(*COMMON, "linear"))
def uw(
    init: Scalar = 0.0,
    learning_rate: Scalar = 0.025,
    *,
    optimizer: optax.GradientTransformation | None = None,
    num_tasks: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Uncertainty weighting (Kendall et al., arXiv:1705.07115).

    d = ∇ ½ Σ_k (exp(-s_k) L_k + s_k), so w_k = exp(-s_k) / 2, where s, a log-variance for each task, takes one step of
    its own optimizer on the same sum after each update. Its minimum is at s_k = log L_k, where w_k = 1 / (2 L_k), the
    direction that `uw_o` has at once. Cost: one backward pass.

    init = 0 and Adam with learning rate 0.025 are those of Nash-MTL's code. LibMTL starts from -0.5 and learns s with
    the optimizer of the network. s moves by about the learning rate an update: to reach the log-variance of a loss of
    1e-4 takes some 400 updates.

    A loss of 0 or less has no best s: its weight grows by a factor of about exp(learning_rate) an update until cut at
    the square root of the dtype's largest number (1.8e19 in float32), so that d stays finite. A task without a label:
    s waits. Gradients of s are cut where their square would leave the dtype's range.

    >>> import jax.numpy as jnp, mtljax as mtl
    >>> tx = mtl.uw(num_tasks=2)
    >>> state = tx.init(jnp.zeros(2))
    >>> for _ in range(2):
    ...     gradient, state = tx.update(jnp.eye(2), state, losses=jnp.array([0.5, 4.0]))
    >>> [round(float(x), 4) for x in gradient]
    [0.5127, 0.4877]

    Args:
      init: s at the start. May be a tracer.
      learning_rate: of Adam on s. May be a tracer.
      optimizer: any optax transformation in place of Adam; `learning_rate` is then not used.
      num_tasks: K, required: s is in the state.

    Returns:
      A transformation from K task gradients and their losses to one gradient; a task's own parameters are scaled by its
      weight too.

    Raises:
      ValueError: if `num_tasks` is missing, or `init` or `learning_rate` are out of range.

    References:
      Kendall et al., `Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and Semantics
      <https://arxiv.org/abs/1705.07115>`_, CVPR 2018
    """
    check_range("uw", "any", init=init)
    check_range("uw", ">= 0", learning_rate=learning_rate)
    learner = optax.adam(learning_rate) if optimizer is None else optimizer

    def init_memory(num_tasks: int, params: PyTree) -> Uncertainties:
        log_variances = jnp.full(num_tasks, init, state_dtype(params))
        return Uncertainties(log_variances, learner.init(log_variances))

    def weigh(memory: Uncertainties, signals: Signals) -> Any:
        precisions = finite(jnp.exp(-memory.log_variances))
        gradient = safe_gradient((1 - precisions * signals.losses) / 2, memory.log_variances)
        updates, opt_state = learner.update(gradient, memory.opt_state, memory.log_variances)
        log_variances: Any = optax.apply_updates(memory.log_variances, updates)
        return loss_weights(precisions / 2), Uncertainties(log_variances, opt_state)

    return weighting("uw", weigh, needs="losses", num_tasks=num_tasks, init_memory=init_memory)
