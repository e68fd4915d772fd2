"""MGDA: the smallest vector in the convex hull of the task gradients."""

from typing import Any

import optax

from mtljax.gradients import Gramian
from mtljax.methods._base import weighting
from mtljax.solvers import min_norm_weights


def mgda(*, num_tasks: int | None = None, update_every: int | None = None) -> optax.GradientTransformationExtraArgs:
    """Multiple-gradient descent (Désidéri 2012; Sener & Koltun, arXiv:1810.04650).

    d = Σ_k w_k g_k with w = argmin ‖Σ_k w_k g_k‖² over the simplex. Then ⟨d, g_k⟩ ≥ ‖d‖² for every task, with equality
    where w_k > 0, and d = 0 exactly at Pareto-stationary points. Cost: K backward passes and one K x K problem.

    The weights sum to one, so d is shorter than the gradients it combines. A task whose gradient is zero (no label in
    the batch, say) is left out instead of stopping all others; if all are zero, d = 0 and the weights are uniform.
    Official code finds the weights by Frank-Wolfe iterations; here the quadratic program is solved exactly.

    >>> import jax.numpy as jnp, mtljax as mtl
    >>> jacobian = jnp.array([[2.0, 0.0], [0.0, 1.0]])
    >>> tx = mtl.mgda()
    >>> gradient, _ = tx.update(jacobian, tx.init(jnp.zeros(2)))
    >>> [round(float(x), 4) for x in gradient]
    [0.4, 0.8]

    Args:
      num_tasks: K; needed to read the weights from the state and for `update_every`.
      update_every: solve every n updates and reuse the weights in between; None solves at every update.

    Returns:
      A transformation from K task gradients to one gradient; a task's own parameters get their own gradient unscaled.
    """

    def weigh(memory: Any, *, gramian: Gramian, **_: Any) -> Any:
        return min_norm_weights(gramian.cosines, gramian.norms), memory

    return weighting("mgda", weigh, needs="gramian", num_tasks=num_tasks, update_every=update_every)
