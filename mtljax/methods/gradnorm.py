"""GradNorm: loss weights learned so that slow tasks get long gradients."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtljax.gradients import PyTree
from mtljax.methods._base import weighting
from mtljax.methods._checks import Scalar, check_range
from mtljax.methods._losses import positive, waiting
from mtljax.methods._signals import Signals
from mtljax.methods._state import state_dtype
from mtljax.methods.registry import COMMON, register
from mtljax.solvers import finite, normalised


class LearnedWeights(NamedTuple):
    """What GradNorm remembers.

    Attributes:
      weights: (K,), of the losses; nonnegative with sum K.
      initial: (K,), every task's first positive loss; 0 before it.
      opt_state: state of the optimizer of the weights.
    """

    weights: jax.Array
    initial: jax.Array
    opt_state: Any


@register(needs="gramian", paper="1711.02257", properties=COMMON)
def gradnorm(
    alpha: Scalar = 1.5,
    *,
    learning_rate: Scalar = 0.025,
    optimizer: optax.GradientTransformation | None = None,
    num_tasks: int | None = None,
    update_every: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Gradient normalization (Chen et al., arXiv:1711.02257).

    d = Σ_k w_k g_k with w starting at 1. After the update the optimizer takes one step on

        Σ_k | w_k n_k - t_k |,   t_k = mean_j(w_j n_j) r_k^α,   r_k = (L_k / L_k(0)) / mean_j(L_j / L_j(0)),

    with t_k held constant and n_k = ‖g_k‖ / mean_j ‖g_j‖, and w is divided by its mean. The heads, like the shared
    parameters, get the gradient of Σ_k w_k L_k. Cost: K backward passes.

    α = 1.5 and Adam with learning rate 0.025 are the paper's, in its NYUv2 runs. Norms are taken over all shared
    parameters, not over the last shared layer, and relative to their mean, so that no scale matters. One step takes at
    most half of a weight: it stays positive, which the paper leaves open. LibMTL learns w = K softmax(s) instead,
    leaves w = 1 in the first epoch and takes that epoch's mean loss for L_k(0), which here is the first positive loss
    the task has shown.

    A task with a zero gradient, or a loss that is not positive, counts in no mean. Its weight and what Adam keeps of it
    wait, but for Adam's count of steps, and the others share what is left of K.

    >>> import jax.numpy as jnp, mtljax as mtl
    >>> jacobian = jnp.array([[2.0, 0.0], [0.0, 1.0]])
    >>> tx = mtl.gradnorm(num_tasks=2)
    >>> gradient, state = tx.update(jacobian, tx.init(jnp.zeros(2)), losses=jnp.array([1.0, 1.0]))
    >>> gradient.tolist(), [round(float(w), 4) for w in state.memory.weights]
    ([2.0, 1.0], [0.975, 1.025])

    Args:
      alpha: strength of the pull towards equal training rates, at least 0; 0 equalises the norms. May be a tracer.
      learning_rate: of Adam. May be a tracer.
      optimizer: any optax optimizer of the (K,) weights in place of Adam; `learning_rate` is then unused.
      num_tasks: K; required, for the weights.
      update_every: learn every n updates and reuse the weights in between; None learns at every update.

    Returns:
      A transformation from K task gradients to one gradient that needs `losses=` at every update; a task's own
      parameters get their own gradient times its weight.

    Raises:
      ValueError: if alpha is negative or `num_tasks` is missing.

    References:
      Chen et al., `GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep Multitask Networks
      <https://arxiv.org/abs/1711.02257>`_, ICML 2018
    """
    check_range("gradnorm", ">= 0", alpha=alpha, learning_rate=learning_rate)
    learner = optax.adam(learning_rate) if optimizer is None else optimizer

    def weigh(memory: LearnedWeights, signals: Signals) -> Any:
        losses = signals.losses
        weights, norms = memory.weights, signals.gramian.norms
        losses, usable = positive(losses)
        initial = jnp.where((memory.initial > 0) | ~usable, memory.initial, losses)
        live = usable & (norms > 0)
        count = jnp.maximum(jnp.sum(live), 1)

        # Ratios to the mean of the live tasks, through quotients that no dtype's range cuts.
        rates = jnp.where(live, jnp.log(losses) - jnp.log(jnp.where(initial > 0, initial, 1)), -jnp.inf)
        rates = count * jnp.exp(rates - jax.nn.logsumexp(jnp.where(jnp.any(live), rates, 0)))
        lengths = normalised(jnp.where(live, norms, 0))[0]
        lengths = lengths * count / jnp.where(jnp.any(live), jnp.sum(lengths), 1)

        weighted = weights * lengths
        targets = jnp.sum(weighted) / count * finite(rates**alpha)
        slope = jnp.where(live, jnp.sign(weighted - targets) * lengths, 0).astype(weights.dtype)
        step, opt_state = waiting(
            live, learner.update(slope, memory.opt_state, weights), (jnp.zeros_like(weights), memory.opt_state)
        )
        moved: Any = optax.apply_updates(weights, step)
        learned = jnp.maximum(moved, weights / 2)
        # The weights sum to K; those that are not learned keep theirs.
        total = jnp.where(jnp.all(live), signals.num_tasks, jnp.sum(weights, where=live))
        learned = jnp.where(live, learned * (total / jnp.sum(learned, where=live, initial=0)), weights)
        return weights, LearnedWeights(learned, initial, opt_state)

    def init_memory(num_tasks: int, params: PyTree) -> LearnedWeights:
        weights = jnp.ones(num_tasks, state_dtype(params))
        return LearnedWeights(weights, jnp.zeros_like(weights), learner.init(weights))

    return weighting(
        "gradnorm",
        weigh,
        needs="gramian",
        num_tasks=num_tasks,
        reads_losses=True,
        scale_own=True,
        update_every=update_every,
        init_memory=init_memory,
    )
