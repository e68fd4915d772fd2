"""Any optax transformation applied to each task's gradient, with its own state, before they are combined."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from mtljax.gradients import PyTree, TaskGradients
from mtljax.methods._checks import check_num_tasks
from mtljax.methods._losses import present_tasks, waiting
from mtljax.methods._state import all_finite, only_if
from mtljax.methods._updates import as_task_gradients, row_peaks


def per_task(transformation: optax.GradientTransformation, num_tasks: int) -> optax.GradientTransformationExtraArgs:
    """Applies an optax transformation to every task's gradient separately.

    It goes before a method: `optax.chain(per_task(optax.scale_by_adam(), K), ew(), optax.scale(-lr))` keeps one Adam a
    task and sums the steps (AdaTask; Elich et al., arXiv:2311.04698, Sec. 4.1), and
    `per_task(optax.clip_by_global_norm(1.0), K)` clips each task's gradient before any method weighs it. Cost: K
    backward passes and K states. A task without a label in the batch takes no step, and its state waits.

    >>> import jax.numpy as jnp, optax, mtljax as mtl
    >>> tx = optax.chain(mtl.per_task(optax.scale_by_sign(), num_tasks=2), mtl.ew())
    >>> gradient, _ = tx.update(jnp.array([[5.0, -1.0], [0.1, -3.0]]), tx.init(jnp.zeros(2)))
    >>> gradient.tolist()
    [2.0, -2.0]

    Args:
      transformation: what each task's gradient goes through; it sees a tree like params, the task's own parameters
        included and those of other tasks as zeros.
      num_tasks: K.

    Returns:
      A transformation from task gradients to task gradients. Its state is that of `transformation` with a leading task
      axis on every leaf.

    Raises:
      ValueError: if `num_tasks` is not positive; on update, if the gradients are of another number of tasks.

    References:
      Yang et al., `AdaTask: A Task-aware Adaptive Learning Rate Approach to Multi-task Learning
      <https://arxiv.org/abs/2211.15055>`_, AAAI 2023

      Elich et al., `Examining Common Paradigms in Multi-Task Learning <https://arxiv.org/abs/2311.04698>`_, GCPR 2024
    """
    check_num_tasks("per_task", num_tasks)
    inner = optax.with_extra_args_support(transformation)

    def init_fn(params: PyTree) -> Any:
        return jax.vmap(lambda _: inner.init(params))(jnp.arange(num_tasks))

    def update_fn(
        updates: Any,
        state: Any,
        params: PyTree | None = None,
        *,
        losses: Any = None,
        present: Any = None,
        shared: Any = None,
        **extra_args: Any,
    ) -> tuple[Any, Any]:
        grads = as_task_gradients("per_task", updates, params, losses, present, shared).materialize()
        if grads.num_tasks != num_tasks:
            raise ValueError(f"per_task: built with num_tasks={num_tasks}, but got the gradients of {grads.num_tasks}")
        rows = grads.jacobian()
        labelled = present_tasks(num_tasks, grads.present, grads.losses, row_peaks(rows))
        changed, new_state = jax.vmap(lambda g, s: inner.update(g, s, params, **extra_args))(rows, state)
        changed, new_state = waiting(labelled, (changed, new_state), (jax.tree.map(jnp.zeros_like, changed), state))
        good = all_finite((rows, changed, new_state, grads.losses))
        changed = jax.tree.map(lambda leaf: jnp.where(good, leaf, jnp.nan), changed)
        state = only_if(good, new_state, state)
        return (grads.map(lambda _: changed) if isinstance(updates, TaskGradients) else changed), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
