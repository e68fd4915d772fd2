"""SDMGrad: the smallest vector in the hull, pulled towards the mean gradient, by a few gradient steps."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from mtljax.gradients import CrossGramian
from mtljax.methods._base import weighting
from mtljax.methods._checks import Scalar, check_range
from mtljax.methods._signals import Signals
from mtljax.methods._simplex import project_simplex
from mtljax.methods.registry import COMMON, register


@register(needs="gramian", paper="2305.18409", properties=COMMON, batches=3)
def sdmgrad(
    lam: Scalar = 0.3,
    *,
    iterations: int = 20,
    learning_rate: Scalar = 5.0,
    momentum: Scalar = 0.5,
    num_tasks: int | None = None,
    update_every: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Stochastic direction-oriented multi-objective descent (Xiao et al., arXiv:2305.18409).

    d = (g_w + λ g_0) / (1 + λ) with g_w = Σ_k w_k g_k, g_0 the mean gradient, and w on the simplex from `iterations`
    steps of projected gradient descent with momentum on ½ ‖g_w + λ g_0‖²: from w = 1/K and v = 0,

        v ← μ v + M (w + λ/K),   w ← Π(w - η v),   M = G_1 G_2ᵀ / s²,   s = mean_k √max(⟨g_k, g'_k⟩, 0).

    Rows of G_1 and G_2 are the task gradients g_k and g'_k on two independent batches, and d combines those on a third;
    dividing by s² takes the scale out. Cost: 3K backward passes and a K x K recursion.

    Pass `update` a tuple of three gradients. With two, the second is combined; with one it is used in all three places:
    K backward passes, and a biased estimate. λ = 0.3 is LibMTL's and that of the official NYUv2 runs (its class
    defaults to 0.6); η = 5 is LibMTL's, the official code has 10; μ and the 20 steps are those of both. With η this
    long the steps bounce between faces of the simplex instead of converging: the map expands, and a change of the
    gradients by one part in 1e12 was seen to move d by up to 3e7 times as much (2e3 at the median of conflicting
    gradients, K = 20). So float32, however computed, gives d to a few percent, at worst to 1.7 times its own length,
    and float64 to 1e-8; a shorter η with more steps approaches the minimiser, and keeps rounding small. Both codes
    start the steps from the weights of the update before, here they start from 1/K: nothing is remembered. Official
    code multiplies d by K.

    Tasks with a zero gradient on either of the first two batches, without a label there, say, get w_k = 0 instead of
    stopping the others, and K counts the others. s is kept above ε times the mean norm. If all gradients are zero,
    d = 0.

    >>> import jax.numpy as jnp, mtljax as mtl
    >>> jacobian = jnp.array([[2.0, 0.0], [0.0, 1.0]])
    >>> tx = mtl.sdmgrad(lam=0.5, learning_rate=0.2, iterations=50)
    >>> gradient, _ = tx.update((jacobian, jacobian, jacobian), tx.init(jnp.zeros(2)))
    >>> [round(float(x), 4) for x in gradient]
    [0.4, 0.8]

    Args:
      lam: λ, weight of the mean gradient, at least 0. May be a tracer.
      iterations: number of inner steps.
      learning_rate: η, inner step size in units of 1 / s². May be a tracer.
      momentum: μ, in [0, 1). May be a tracer.
      num_tasks: K; needed to read the weights from the state and for `update_every`.
      update_every: solve every n updates and reuse the weights in between; None solves at every update.

    Returns:
      A transformation from K task gradients, or a tuple of up to three on independent batches, to one gradient; a
      task's own parameters get their own gradient on the last batch unscaled.

    Raises:
      ValueError: if a hyperparameter is out of its range, or `update` gets more than three gradients.

    References:
      Xiao et al., `Direction-oriented Multi-objective Learning: Simple and Provable Stochastic Algorithms
      <https://arxiv.org/abs/2305.18409>`_, NeurIPS 2023
    """
    check_range("sdmgrad", ">= 0", lam=lam)
    check_range("sdmgrad", "whole >= 0", iterations=iterations)
    check_range("sdmgrad", ">= 0", learning_rate=learning_rate)
    check_range("sdmgrad", "[0, 1)", momentum=momentum)

    def weigh(memory: Any, signals: Signals) -> Any:
        matrix, live = _scaled(signals.cross)
        count = jnp.where(jnp.any(live), jnp.sum(live), signals.num_tasks)

        def step(_: Any, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            w, velocity = carry
            slope = jnp.matmul(matrix, w + lam / count, precision=lax.Precision.HIGHEST)
            velocity = momentum * velocity + slope
            return project_simplex(w - learning_rate * velocity, live), velocity

        start = project_simplex(jnp.zeros_like(signals.cross.left), live)
        w, _ = lax.fori_loop(0, jnp.asarray(iterations, jnp.int32), step, (start, jnp.zeros_like(start)))
        return (w + lam / count) / (1 + lam), memory

    return weighting("sdmgrad", weigh, needs="gramian", num_tasks=num_tasks, update_every=update_every, batches=True)


def _scaled(cross: CrossGramian) -> tuple[jax.Array, jax.Array]:
    """M, (K, K), and the (K,) mask of tasks with a gradient on both batches."""
    live = (cross.left > 0) & (cross.right > 0)
    left, right = (jnp.where(live, norms, 0) for norms in (cross.left, cross.right))
    left, right = (norms / jnp.maximum(jnp.max(norms), jnp.finfo(norms.dtype).tiny) for norms in (left, right))
    matrix = left[:, None] * cross.cosines * right
    lengths = jnp.sqrt(left * right)
    agreeing = jnp.sqrt(jnp.maximum(jnp.diagonal(matrix), 0))
    count = jnp.maximum(jnp.sum(live), 1)
    eps = jnp.finfo(matrix.dtype).eps
    scale = jnp.maximum(jnp.sum(agreeing), eps * jnp.sum(lengths)) / count
    scale = jnp.where(scale > 0, scale, 1)
    # Batches that disagree on the longest gradients may leave the range here; the steps end in a corner long before.
    return jnp.clip(matrix / scale / scale, -1 / eps**2, 1 / eps**2), live
