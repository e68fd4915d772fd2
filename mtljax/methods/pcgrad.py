"""PCGrad: project each gradient off those it conflicts with, and sum."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from mtljax.methods._base import weighting
from mtljax.methods._checks import Scalar
from mtljax.methods._signals import Signals
from mtljax.methods.registry import register


@register(needs="gramian", paper="2001.06782", properties=("row span", "rotatable", "homogeneous", "linear", "sum"))
def pcgrad(
    *, shuffle: bool = True, seed: Scalar = 0, num_tasks: int | None = None, update_every: int | None = None
) -> optax.GradientTransformationExtraArgs:
    """Gradient surgery (Yu et al., arXiv:2001.06782).

    For each task i, over the other tasks j in random order: if ⟨p_i, g_j⟩ < 0, p_i loses its component along g_j, where
    p_i starts as g_i and g_j stays the original gradient; d = Σ_i p_i. With two tasks d never conflicts; with three or
    more it can. Cost: K backward passes and a K x K recursion on the Gramian.

    Shuffling, the default, is the paper's. Zero gradients neither project nor are projected. As in the paper each task
    draws its own order and skips itself; the official code and several others share one order and project a gradient on
    itself too, and some return the mean.

    >>> import jax.numpy as jnp, mtljax as mtl
    >>> jacobian = jnp.array([[1.0, 0.0], [-1.0, 1.0]])
    >>> tx = mtl.pcgrad()
    >>> gradient, _ = tx.update(jacobian, tx.init(jnp.zeros(2)))
    >>> gradient.tolist()
    [0.5, 1.5]

    Args:
      shuffle: whether the order of the other tasks is drawn anew at every update; otherwise it is the task order.
      seed: seed of the PRNG key kept in the state.
      num_tasks: K; needed to read the weights from the state and for `update_every`.
      update_every: solve every n updates and reuse the weights in between; None solves at every update.

    Returns:
      A transformation from K task gradients to one gradient; a task's own parameters get their own gradient unscaled.

    References:
      Yu et al., `Gradient Surgery for Multi-Task Learning <https://arxiv.org/abs/2001.06782>`_, NeurIPS 2020
    """

    def weigh(memory: Any, signals: Signals) -> Any:
        order = jnp.tile(jnp.arange(signals.num_tasks), (signals.num_tasks, 1))
        if shuffle and signals.num_tasks > 2:  # of two tasks, each has one other
            assert signals.key is not None
            order = jax.random.permutation(signals.key, order, axis=1, independent=True)
        return _surgery(signals.gramian.cosines, signals.gramian.norms, order), memory

    return weighting(
        "pcgrad",
        weigh,
        needs="gramian",
        num_tasks=num_tasks,
        seed=seed if shuffle else None,
        update_every=update_every,
    )


@jax.jit
def _surgery(cosines: jax.Array, norms: jax.Array, order: jax.Array) -> jax.Array:
    """The (K,) weights when task i meets the others in the order of row i of `order`, (K, K)."""
    num_tasks = len(norms)
    tasks = jnp.arange(num_tasks)

    # Row i holds p_i / ‖g_i‖ in terms of the normalised gradients; all tasks take their t-th projection at once.
    def project(coefficients: jax.Array, others: jax.Array) -> Any:
        component = jnp.einsum("ik,ki->i", coefficients, cosines[:, others], precision=lax.Precision.HIGHEST)
        component = jnp.where((component < 0) & (others != tasks), component, 0)
        return coefficients.at[tasks, others].add(-component), None

    identity = jnp.eye(num_tasks, dtype=cosines.dtype)
    coefficients, _ = lax.scan(project, identity, order.T)
    # A ratio beyond the dtype's range (1e15 to 1e-30, say) is capped: the weight stays finite.
    cap = jnp.finfo(norms.dtype).max / num_tasks**2
    ratios = jnp.minimum(norms[:, None] / jnp.where(norms > 0, norms, 1)[None, :], cap)
    added = jnp.where(norms[None, :] > 0, (coefficients - identity) * ratios, 0)
    return 1 + added.sum(axis=0)
