"""ConFIG: the direction of equal cosines with every gradient, as long as the gradients reach along it."""

from typing import Any

import jax.numpy as jnp
import optax

from mtljax.methods._base import weighting
from mtljax.methods._signals import Signals
from mtljax.methods.imtl_g import equal_projections
from mtljax.methods.registry import COMMON, register
from mtljax.solvers import finite


@register(
    needs="gramian", paper="2408.11104", properties=(*COMMON, "non-conflicting if independent", "linear", "scale-free")
)
def conflict_free(
    *, num_tasks: int | None = None, update_every: int | None = None
) -> optax.GradientTransformationExtraArgs:
    """Conflict-free inverse gradients, ConFIG (Liu et al., arXiv:2408.11104).

    d = (Σ_k ⟨g_k, v⟩) v, where the unit vector v has the same positive cosine with every gradient: with U the unit
    gradients as rows, v = U⁺ 1 / ‖U⁺ 1‖. Hence ⟨d, g_k⟩ > 0 for every task, v does not depend on the scales of the
    losses, and d is linear in them. IMTL-G has the same direction and another length. Cost: K backward passes and one
    K x K eigendecomposition.

    The official code takes the pseudo-inverse of the K x P matrix U; here U⁺ 1 = Uᵀ C⁺ 1 with the cosines C = U Uᵀ.
    Where gradients are dependent up to rounding the cosines are as equal as least squares can make them, and conflicts
    are possible; if the unit gradients sum to 0, d = 0. A Gramian resolves no more: where unit gradients are 1e-6
    apart, float64 leaves d an error of up to 2e-3, and nearer than 10 √ε they count as one. Tasks with a zero gradient
    are left out; if all are, d = 0. There is nothing to set.

    >>> import jax.numpy as jnp, mtljax as mtl
    >>> jacobian = jnp.array([[2.0, 0.0], [0.0, 1.0]])
    >>> tx = mtl.conflict_free()
    >>> gradient, _ = tx.update(jacobian, tx.init(jnp.zeros(2)))
    >>> [round(float(x), 4) for x in gradient]
    [1.5, 1.5]

    Args:
      num_tasks: K; needed to read the weights from the state and for `update_every`.
      update_every: solve every n updates and reuse the weights in between; None solves at every update.

    Returns:
      A transformation from K task gradients to one gradient; a task's own parameters get their own gradient unscaled.

    References:
      Liu et al., `ConFIG: Towards Conflict-free Training of Physics Informed Neural Networks
      <https://arxiv.org/abs/2408.11104>`_, ICLR 2025
    """

    def weigh(memory: Any, signals: Signals) -> Any:
        cosines, norms = signals.gramian
        live = norms > 0
        largest = jnp.max(norms)
        y, projections = equal_projections(cosines)
        # ‖U⁺ 1‖² = 1ᵀ C⁺ 1. In units of the longest gradient, d = length Σ_k y_k u_k:
        squared = jnp.sum(y)
        length = jnp.sum(norms / jnp.where(largest > 0, largest, 1) * projections) / jnp.where(squared > 0, squared, 1)
        cap = jnp.finfo(norms.dtype).max / len(norms) ** 2
        ratios = jnp.minimum(largest / jnp.where(live, norms, 1), cap)
        return finite(jnp.where(live & (squared > 0), length * y * ratios, 0)), memory

    return weighting("conflict_free", weigh, needs="gramian", num_tasks=num_tasks, update_every=update_every)
