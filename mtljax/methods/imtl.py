"""IMTL: losses scaled to the same size, and equal projections on their gradients."""

from typing import Any

import jax.numpy as jnp
import optax

from mtljax.gradients import PyTree
from mtljax.methods._base import weighting
from mtljax.methods._checks import Scalar, check_range
from mtljax.methods._losses import loss_weights
from mtljax.methods._signals import Signals
from mtljax.methods.imtl_g import impartial_weights
from mtljax.methods.imtl_l import LossScales, init_scales, scale_weights, step_scales
from mtljax.methods.registry import COMMON, register
from mtljax.solvers import normalised


@register(
    needs="gramian", paper="IMTL, ICLR 2021", properties=(*COMMON, "non-conflicting if independent", "scale-free")
)
def imtl(
    *,
    learning_rate: Scalar = 0.025,
    optimizer: optax.GradientTransformation | None = None,
    guard: bool = True,
    num_tasks: int | None = None,
    update_every: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Impartial multi-task learning, both balances (Liu et al., ICLR 2021, OpenReview IMPnRXEWpvr).

    The losses become exp(s_k) L_k - s_k with learned s, as in `imtl_l`; their gradients exp(s_k) g_k are combined as in
    `imtl_g`, with weights α that sum to 1: d = Σ_k α_k exp(s_k) g_k, and the same projection on every gradient. The
    heads get exp(s_k) g_k: the scales matter to them, while for the shared parameters they only set the length of d.
    After the update s takes one step of its own optimizer. Cost: K backward passes and one K x K eigendecomposition.

    s starts at 0, as in the paper and LibMTL, which learn it with the optimizer of the network; here it has its own
    Adam, with the learning rate that Nash-MTL's code gives to the parameters of methods. `guard` is that of `imtl_g`.

    Tasks with a zero gradient are left out. Dependent gradients and a vanishing sum of the weights are met as in
    `imtl_g`, a loss of 0 or less as in `imtl_l`, and so are weights beyond the range. If all gradients are zero, d = 0.

    >>> import jax.numpy as jnp, mtljax as mtl
    >>> jacobian = jnp.array([[2.0, 0.0], [0.0, 1.0]])
    >>> tx = mtl.imtl(num_tasks=2)
    >>> gradient, state = tx.update(jacobian, tx.init(jnp.zeros(2)), losses=jnp.array([4.0, 0.5]))
    >>> [round(float(x), 4) for x in gradient], [round(float(s), 4) for s in state.memory.log_scales]
    ([0.6667, 0.6667], [-0.025, 0.025])

    Args:
      learning_rate: of Adam on s. May be a tracer.
      optimizer: any optax transformation in place of Adam; `learning_rate` is then not used.
      guard: whether the update is turned around where it would ascend on every loss; False is the paper.
      num_tasks: K, required: the scales are in the state.
      update_every: solve and learn every n updates and reuse the weights in between; None does so at every update.

    Returns:
      A transformation from K task gradients to one gradient that needs `losses=` at every update; a task's own
      parameters get their own gradient times exp(s_k).

    Raises:
      ValueError: if `num_tasks` is missing or `learning_rate` is negative.

    References:
      Liu et al., `Towards Impartial Multi-task Learning <https://openreview.net/forum?id=IMPnRXEWpvr>`_, ICLR 2021
    """
    check_range("imtl", ">= 0", learning_rate=learning_rate)
    learner = optax.adam(learning_rate) if optimizer is None else optimizer

    def weigh(memory: LossScales, signals: Signals) -> Any:
        cosines, norms = signals.gramian
        scales = scale_weights(memory).astype(norms.dtype)
        live = (norms > 0) & (scales > 0)
        tiny = jnp.finfo(norms.dtype).tiny
        # Only ratios of the scaled norms matter; of the largest norm and scale, so that no product overflows.
        scaled = normalised(norms)[0] * normalised(scales)[0]
        scaled = jnp.where(live, jnp.maximum(scaled, tiny), 0)
        weights = impartial_weights(jnp.where(live[:, None] & live, cosines, 0), scaled, guard)
        return loss_weights(weights * scales, live), step_scales(memory, signals.losses, learner)

    def init_memory(num_tasks: int, params: PyTree) -> LossScales:
        return init_scales(num_tasks, params, 0, learner)

    return weighting(
        "imtl",
        weigh,
        needs="gramian",
        num_tasks=num_tasks,
        reads_losses=True,
        scale_own=scale_weights,
        update_every=update_every,
        init_memory=init_memory,
    )
