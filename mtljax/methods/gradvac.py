"""Gradient Vaccine: bend each gradient until its cosines reach what they used to be, and sum."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from mtljax.gradients import PyTree
from mtljax.methods._base import weighting
from mtljax.methods._checks import Scalar, check_range
from mtljax.methods._signals import Signals
from mtljax.methods._state import state_dtype
from mtljax.methods.registry import register


class Cosines(NamedTuple):
    """What GradVac remembers.

    Attributes:
      target: (K, K), moving average of the cosines of p_i (row) with g_j (column); the diagonal stays 0.
    """

    target: jax.Array


@register(needs="gramian", paper="2010.05874", properties=("row span", "rotatable", "homogeneous", "linear"))
def gradvac(
    beta: Scalar = 0.5,
    *,
    shuffle: bool = True,
    seed: Scalar = 0,
    num_tasks: int | None = None,
    update_every: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Gradient Vaccine (Wang et al., arXiv:2010.05874).

    For each task i, over the other tasks j in random order: with c = cos(p_i, g_j) and the target ρ_ij, if c < ρ_ij

        p_i ← p_i + ‖p_i‖ (ρ_ij √(1 - c²) - c √(1 - ρ_ij²)) / (‖g_j‖ √(1 - ρ_ij²)) g_j,

    which makes their cosine ρ_ij; then ρ_ij ← (1 - β) ρ_ij + β c. p_i starts as g_i, ρ at 0, and d = Σ_i p_i. Where the
    targets are 0 this is PCGrad (β = 0 keeps them there), and without conflict the first update is the sum. Cost: K
    backward passes and a K x K recursion on the Gramian.

    β = 0.5 is LibMTL's default, the paper takes 0.01. As in the paper, targets follow every pair at every update and
    each task draws its own order; LibMTL moves a target only where it bends a gradient. All shared parameters form one
    group, as in the paper's whole-model variant.

    Zero gradients, and p_i that cancelled to rounding, take no part and leave their targets alone. A target of 1 cannot
    be reached: one bend adds at most ‖g_i‖ / ε along g_j / ‖g_j‖, with ε the machine epsilon.

    >>> import jax.numpy as jnp, mtljax as mtl
    >>> jacobian = jnp.array([[1.0, 0.0], [-1.0, 1.0]])
    >>> tx = mtl.gradvac(num_tasks=2)
    >>> gradient, state = tx.update(jacobian, tx.init(jnp.zeros(2)))
    >>> gradient.tolist(), round(float(state.memory.target[0, 1]), 4)
    ([0.5, 1.5], -0.3536)

    Args:
      beta: share of the new cosine in the moving average, in [0, 1]. May be a tracer.
      shuffle: whether the order of the other tasks is drawn anew at every update; otherwise it is the task order.
      seed: seed of the PRNG key kept in the state.
      num_tasks: K; required, for the K x K targets.
      update_every: solve every n updates and reuse the weights in between; None solves at every update.

    Returns:
      A transformation from K task gradients to one gradient; a task's own parameters get their own gradient unscaled.

    Raises:
      ValueError: if beta is outside [0, 1] or `num_tasks` is missing.

    References:
      Wang et al., `Gradient Vaccine: Investigating and Improving Multi-task Optimization in Massively Multilingual
      Models <https://arxiv.org/abs/2010.05874>`_, ICLR 2021
    """
    check_range("gradvac", "[0, 1]", beta=beta)

    def weigh(memory: Cosines, signals: Signals) -> Any:
        order = jnp.tile(jnp.arange(signals.num_tasks), (signals.num_tasks, 1))
        if shuffle:
            assert signals.key is not None
            order = jax.random.permutation(signals.key, order, axis=1, independent=True)
        weights, target = _vaccine(signals.gramian.cosines, signals.gramian.norms, order, memory.target, beta)
        return weights, Cosines(target)

    def init_memory(num_tasks: int, params: PyTree) -> Cosines:
        return Cosines(jnp.zeros((num_tasks, num_tasks), state_dtype(params)))

    return weighting(
        "gradvac",
        weigh,
        needs="gramian",
        num_tasks=num_tasks,
        seed=seed if shuffle else None,
        update_every=update_every,
        init_memory=init_memory,
    )


@jax.jit
def _vaccine(
    cosines: jax.Array, norms: jax.Array, order: jax.Array, target: jax.Array, beta: Scalar
) -> tuple[jax.Array, jax.Array]:
    """The (K,) weights when task i meets the others in the order of row i of `order`, and the new (K, K) targets."""
    num_tasks = len(norms)
    tasks = jnp.arange(num_tasks)
    eps = jnp.finfo(cosines.dtype).eps
    target = target.astype(cosines.dtype)

    # Row i holds p_i / ‖g_i‖: its coefficients in the normalised gradients, and its products with them.
    def bend(carry: tuple[jax.Array, jax.Array, jax.Array], others: jax.Array) -> Any:
        coefficients, products, target = carry
        squared = jnp.sum(coefficients * products, axis=1)
        # Below this the length of p_i is rounding, and its direction means nothing.
        live = squared > 4 * num_tasks * eps * jnp.sum(coefficients**2, axis=1)
        live &= (others != tasks) & (norms[others] > 0)
        length = jnp.sqrt(jnp.where(live, squared, 1))
        cosine = jnp.clip(products[tasks, others] / length, -1, 1)
        wanted = target[tasks, others]
        sine = jnp.sqrt((1 - cosine) * (1 + cosine))
        wanted_sine = jnp.sqrt(jnp.maximum((1 - wanted) * (1 + wanted), eps))
        step = jnp.minimum(length * (wanted * sine - cosine * wanted_sine) / wanted_sine, 1 / eps)
        step = jnp.where(live & (cosine < wanted), step, 0)
        remembered = jnp.where(live, (1 - beta) * wanted + beta * cosine, wanted)
        carry = (
            coefficients.at[tasks, others].add(step),
            products + step[:, None] * cosines[others],
            target.at[tasks, others].set(remembered),
        )
        return carry, None

    identity = jnp.eye(num_tasks, dtype=cosines.dtype)
    (coefficients, _, target), _ = lax.scan(bend, (identity, cosines, target), order.T)
    # A product beyond the dtype's range (norms of 1e15 and 1e-30, say) is capped: the weight stays finite.
    cap = jnp.finfo(norms.dtype).max / num_tasks**2
    ratios = jnp.minimum(norms[:, None] / jnp.where(norms > 0, norms, 1), cap)
    added = jnp.where(norms > 0, jnp.minimum((coefficients - identity) * ratios, cap), 0)
    return 1 + added.sum(axis=0), target
