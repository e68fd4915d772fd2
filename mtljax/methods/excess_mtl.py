"""ExcessMTL: weight the tasks by how far each still is from its own optimum."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtljax.gradients import PyTree
from mtljax.gradients.gramian import trailing
from mtljax.methods._base import jacobian_method
from mtljax.methods._checks import Scalar, check_range
from mtljax.methods._jacobian import wide, zeros_per_task
from mtljax.methods._signals import Signals
from mtljax.methods._state import state_dtype
from mtljax.methods.registry import register
from mtljax.solvers import finite


class ExcessMTLMemory(NamedTuple):
    """What ExcessMTL remembers.

    Attributes:
      lengths: root of the sum of all squared gradients so far, pytree like params with a leading task axis.
      initial: (K,) first excess risks, 0 for a task without a gradient so far.
      log_weights: (K,) logarithms of the weights.
    """

    lengths: PyTree
    initial: jax.Array
    log_weights: jax.Array


@register(needs="jacobian", paper="2402.02009", properties=("row span", "permutable", "homogeneous", "linear"))
def excess_mtl(learning_rate: Scalar = 0.01, *, num_tasks: int | None = None) -> optax.GradientTransformationExtraArgs:
    """Task balancing by excess risks (He et al., arXiv:2402.02009).

    Not a large loss but a large distance to the task's optimum makes it heavy, so that noisy labels, which no model
    can fit, do not. The excess risk is estimated by E_k = Σ g_k² / √(Σ_τ g_k(τ)²), summed over the shared parameters,
    the root being AdaGrad's. Then w_k ← w_k exp(η E_k / E_k(0)), normalised to Σ w_k = K, and d = Σ_k w_k g_k. The
    first update only records E(0), which there is ‖g_k‖₁, and leaves the weights at 1.
    Cost: K backward passes, and K copies of the parameters in the state.

    The default η, the weights' sum and the idle first update are those of the official code and of LibMTL; TorchJD
    normalises to 1 and moves the weights at once. They add 1e-7 under the root; here the root of the sum is
    accumulated itself, nothing is squared, 0/0 counts as 0, and gradients of 1e-30 weigh as those of 1.
    The weights are kept as logarithms and cannot overflow.

    A task's E(0) is taken where its gradient is first nonzero; until then the exponent is 0. A task without a label
    keeps its weight and lengths, and the others share what is left of K. If all gradients are zero,
    d = 0 and the weights stay. Sums E_k and lengths beyond the dtype's range are cut to its largest number, so that the
    state stays finite for gradients of any size.

    >>> import jax.numpy as jnp, mtljax as mtl
    >>> tx = mtl.excess_mtl(1.0, num_tasks=2)
    >>> _, state = tx.update(jnp.array([[4.0, 0.0], [0.0, 1.0]]), tx.init(jnp.zeros(2)))
    >>> gradient, state = tx.update(jnp.array([[3.0, 0.0], [0.0, 0.5]]), state)
    >>> [round(float(w), 4) for w in state.weights]
    [1.1127, 0.8873]

    Args:
      learning_rate: η, at least 0. May be a tracer.
      num_tasks: K.

    Returns:
      A transformation from K task gradients to one gradient. It weighs losses: a task's own parameters are scaled by
      its weight too, as in the official code.

    Raises:
      ValueError: if η is negative or `num_tasks` is missing.

    References:
      He et al., `Robust Multi-Task Learning with Excess Risks <https://arxiv.org/abs/2402.02009>`_, ICML 2024
    """
    check_range("excess_mtl", ">= 0", learning_rate=learning_rate)

    def init_memory(num_tasks: int, params: PyTree) -> ExcessMTLMemory:
        zeros = jnp.zeros(num_tasks, state_dtype(params))
        return ExcessMTLMemory(zeros_per_task(num_tasks, params), zeros, zeros)

    def rule(memory: ExcessMTLMemory, signals: Signals) -> Any:
        grads = signals.grads
        rows = wide(grads)
        lengths = jax.tree.map(lambda h, g: finite(jnp.hypot(h, g)), memory.lengths, rows)
        excess = sum(
            (jnp.abs(g) * jnp.where(h > 0, jnp.abs(g) / jnp.where(h > 0, h, 1), 0)).sum(trailing(g))
            for g, h, shared in zip(*map(jax.tree.leaves, (rows, lengths, grads.shared)), strict=True)
            if shared
        ) + jnp.zeros_like(memory.initial)
        excess = finite(excess)
        started = memory.initial > 0
        ratio = jnp.where(started, excess / jnp.where(started, memory.initial, 1), 0)
        log_weights = _normalised(memory.log_weights, learning_rate, ratio, signals.present)
        initial = jnp.where(started, memory.initial, excess)
        weights = jnp.exp(log_weights)
        return grads.combine(weights, scale_own=True), weights, ExcessMTLMemory(lengths, initial, log_weights)

    return jacobian_method("excess_mtl", rule, num_tasks=num_tasks, init_memory=init_memory)


def _normalised(log_weights: jax.Array, rate: Scalar, ratio: jax.Array, present: jax.Array) -> jax.Array:
    """Logarithm of w exp(rate ratio) scaled to sum K, cut off far beyond where exp is 0 or infinite.

    The sum over the present tasks stays what it is where some are not.
    """
    limit = jnp.finfo(ratio.dtype).max / 8
    moved = log_weights + jnp.minimum(rate * jnp.minimum(ratio, limit), limit)
    total = jnp.where(jnp.all(present), jnp.log(len(moved)), jax.nn.logsumexp(log_weights, where=present))
    scaled = moved - jax.nn.logsumexp(moved, where=present) + total
    return jnp.where(present, jnp.maximum(scaled, -limit), log_weights)
