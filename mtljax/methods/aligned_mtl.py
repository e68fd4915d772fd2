"""Aligned-MTL: the sum of the gradients after their singular values are made equal."""

from typing import Any

import optax

from mtljax.methods._base import weighting
from mtljax.methods._checks import check_choice
from mtljax.methods._signals import Signals
from mtljax.methods.registry import COMMON, register
from mtljax.solvers import aligned_weights

SCALES = ("min", "median", "rmse")


@register(needs="gramian", paper="2305.19000", properties=COMMON)
def aligned_mtl(
    *, scale: str = "min", num_tasks: int | None = None, update_every: int | None = None
) -> optax.GradientTransformationExtraArgs:
    """Independent component alignment (Senushkin et al., arXiv:2305.19000).

    With the singular value decomposition J = V S Q' of the gradients, the aligned gradients are the rows of σ V Q', the
    nearest matrix to J, up to scale, whose nonzero singular values are all equal; d is their sum. In weights,
    w = σ V S^-1 V' 1. Cost: K backward passes and one K x K problem.

    σ is the smallest nonzero singular value by default, as in the paper and the official code; "median" is the median
    (of an even number the lower one) and "rmse" the root of the mean square, the code's other choices. d is the sum, as
    there; some reimplementations return the mean. Official code takes the eigenvalues of the Gramian, squares that lose
    the small singular values where gradients differ by more than three decades in float32; here they are found to as
    many digits as the large ones, and only rows that depend on others up to rounding reduce the rank.

    d can conflict with tasks. Directions in which J vanishes up to the rounding of a Gramian (opposite or equal
    gradients, up to 0.3 % in float32 and 1e-7 in float64) are left out, and then σ jumps to the next singular value. A
    zero gradient stays zero; if all are zero, d = 0. Gradients shorter than the longest by the factor sqrt(tiny / eps)
    of the dtype (3e-16 in float32) count as zero.

    >>> import jax.numpy as jnp, mtljax as mtl
    >>> jacobian = jnp.array([[10.0, 0.0], [0.0, 0.1]])
    >>> tx = mtl.aligned_mtl()
    >>> gradient, _ = tx.update(jacobian, tx.init(jnp.zeros(2)))
    >>> [round(float(x), 4) for x in gradient]
    [0.1, 0.1]

    Args:
      scale: which singular value the aligned gradients have: "min", "median" or "rmse".
      num_tasks: K; needed to read the weights from the state and for `update_every`.
      update_every: solve every n updates and reuse the weights in between; None solves at every update.

    Returns:
      A transformation from K task gradients to one gradient; a task's own parameters get their own gradient unscaled.

    Raises:
      ValueError: if `scale` is unknown.

    References:
      Senushkin et al., `Independent Component Alignment for Multi-Task Learning <https://arxiv.org/abs/2305.19000>`_,
      CVPR 2023
    """
    check_choice("aligned_mtl", "scale", scale, SCALES)

    def weigh(memory: Any, signals: Signals) -> Any:
        return aligned_weights(signals.gramian.cosines, signals.gramian.norms, scale=scale), memory

    return weighting("aligned_mtl", weigh, needs="gramian", num_tasks=num_tasks, update_every=update_every)
