"""AdaTask: one Adam a task, and the sum of their steps."""

import optax

from mtljax.methods._checks import Scalar, check_range
from mtljax.methods._jacobian import sum_of_per_task
from mtljax.methods.registry import register


@register(needs="jacobian", paper="2211.15055", properties=("permutable",))
def adatask(
    b1: Scalar = 0.9, b2: Scalar = 0.999, eps: Scalar = 1e-8, *, num_tasks: int | None = None
) -> optax.GradientTransformationExtraArgs:
    """One Adam a task (Yang et al., arXiv:2211.15055; Elich et al., arXiv:2311.04698, Sec. 4.1).

    d = Σ_k m̂_k / (√v̂_k + ε), where m̂_k and v̂_k are Adam's bias-corrected moments of g_k alone. A constant factor on
    a task's loss cancels (but for ε), which it does not in one Adam on the summed gradient. It is
    `chain(per_task(optax.scale_by_adam(b1, b2, eps), K), ew())` in one piece, with moments in float32 at least. Cost: K
    backward passes, and 2 K copies of the parameters in the state (one Adam: 2).

    d is a direction that replaces Adam's: follow it with `optax.sgd(learning_rate)`, not with another Adam. The
    defaults are Adam's. Written from the papers' formula; not compared with the official code. A task's own parameters
    get the step of that task's Adam, not their gradient.

    A task without a label, its whole gradient zero, takes no step, and its moments and their count wait. Where all
    gradients have been zero the step is zero, also in single coordinates. Gradients far below ε give steps near zero.
    Where the square of a coordinate leaves the dtype's range (above 1.8e19 in float32), d is NaN and the state waits.

    >>> import jax.numpy as jnp, mtljax as mtl
    >>> tx = mtl.adatask(num_tasks=2)
    >>> gradient, _ = tx.update(jnp.array([[5.0, -1.0], [0.1, -3.0]]), tx.init(jnp.zeros(2)))
    >>> [round(float(x), 4) for x in gradient]
    [2.0, -2.0]

    Args:
      b1: decay of the first moments, in [0, 1). This and all that follow may be tracers.
      b2: decay of the second moments, in [0, 1).
      eps: ε, positive, in units of the gradient.
      num_tasks: K.

    Returns:
      A transformation from K task gradients to one direction of the size of K Adam steps at learning rate 1.

    Raises:
      ValueError: if a value is out of its range or `num_tasks` is missing.

    References:
      Yang et al., `AdaTask: A Task-aware Adaptive Learning Rate Approach to Multi-task Learning
      <https://arxiv.org/abs/2211.15055>`_, AAAI 2023

      Elich et al., `Examining Common Paradigms in Multi-Task Learning <https://arxiv.org/abs/2311.04698>`_, GCPR 2024
    """
    check_range("adatask", "[0, 1)", b1=b1, b2=b2)
    check_range("adatask", "> 0", eps=eps)
    return sum_of_per_task("adatask", optax.scale_by_adam(b1, b2, eps), num_tasks)
