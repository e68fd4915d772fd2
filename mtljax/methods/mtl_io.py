"""MTL-IO: one SGD with momentum a task, and the sum of their steps."""

import optax

from mtljax.methods._checks import Scalar, check_range
from mtljax.methods._jacobian import sum_of_per_task
from mtljax.methods.registry import register


@register(needs="jacobian", paper="2311.04698", properties=("permutable", "rotatable", "homogeneous", "linear"))
def mtl_io(momentum: Scalar = 0.9, *, num_tasks: int | None = None) -> optax.GradientTransformationExtraArgs:
    """One SGD with momentum a task (MTL-IO in Elich et al., arXiv:2311.04698, after Pascal et al., arXiv:2109.11678).

    d = Σ_k t_k with the traces t_k ← g_k + μ t_k. It is `chain(per_task(optax.trace(μ), K), ew())` in one piece, with
    traces in float32 at least. Cost: K backward passes, and K copies of the parameters in the state.

    Pascal et al. take the tasks' steps one after the other, each from where the last one ended; here all gradients come
    from the same parameters, and the steps are summed. The trace is linear, so this equals `chain(ew(),
    optax.trace(μ))`, which costs one backward pass and one copy: what individual optimizers change lies in nonlinear
    ones such as `adatask`. It is the control that shows this. The default is the usual momentum. Elich et al. have
    published no code.

    d is a direction: follow it with `optax.sgd(learning_rate)`. A task's own parameters get that task's trace. A task
    without a label, its gradient zero, takes no step and its trace waits, so with missing labels the two differ; if all
    gradients have been zero, d = 0.

    >>> import jax.numpy as jnp, mtljax as mtl
    >>> tx = mtl.mtl_io(0.5, num_tasks=2)
    >>> _, state = tx.update(jnp.array([[4.0, 0.0], [0.0, 1.0]]), tx.init(jnp.zeros(2)))
    >>> gradient, _ = tx.update(jnp.array([[3.0, 0.0], [0.0, 1.0]]), state)
    >>> gradient.tolist()
    [5.0, 1.5]

    Args:
      momentum: μ, in [0, 1). May be a tracer.
      num_tasks: K.

    Returns:
      A transformation from K task gradients to one direction.

    Raises:
      ValueError: if the momentum is out of its range or `num_tasks` is missing.

    References:
      Elich et al., `Examining Common Paradigms in Multi-Task Learning <https://arxiv.org/abs/2311.04698>`_, GCPR 2024

      Pascal et al., `Improved optimization strategies for deep Multi-Task Networks
      <https://arxiv.org/abs/2109.11678>`_, 2021
    """
    check_range("mtl_io", "[0, 1)", momentum=momentum)
    return sum_of_per_task("mtl_io", optax.trace(momentum), num_tasks)
