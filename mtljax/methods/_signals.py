"""What a rule reads at one update, and the checks that it gets it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mtljax.gradients import CrossGramian, Gramian, TaskGradients
from mtljax.methods._state import MethodState


class Signals(NamedTuple):
    """What a rule reads at one update; a field that it did not ask for is None.

    Attributes:
      num_tasks: K.
      losses: (K,), float32 at least.
      gramian: of the K gradients.
      cross: inner products of the gradients on two independent batches.
      grads: the K gradients, held in one Jacobian.
      losses_after: (K,) losses of the batch before at the current parameters.
      present: (K,) bools, the tasks with a label in this batch.
      seen: (K,) int32, earlier updates in which the task had a label; for rules with a memory.
      step: int32 scalar, earlier updates.
      key: PRNG key of this update, for rules with a seed.
    """

    num_tasks: int
    losses: jax.Array
    gramian: Gramian
    cross: CrossGramian
    grads: TaskGradients
    losses_after: jax.Array | None
    present: jax.Array
    seen: jax.Array
    step: jax.Array
    key: jax.Array


def signals_of(**fields: Any) -> Signals:
    """The signals with these fields; the others are None."""
    return Signals(**{**dict.fromkeys(Signals._fields), **fields})  # pyright: ignore[reportArgumentType]


def of_present(grads: TaskGradients, tree: Any) -> Any:
    """Arrays with leading axes of tasks, with zeros for those that are told to be absent."""
    present = grads.present
    if present is None:
        return tree

    def masked(leaf: jax.Array) -> jax.Array:
        between_tasks = isinstance(tree, (Gramian, CrossGramian)) and leaf.ndim == 2
        mask = present[:, None] & present if between_tasks else present.reshape(-1, *(1,) * (leaf.ndim - 1))
        return jnp.where(mask, leaf, jnp.zeros_like(leaf))

    return jax.tree.map(masked, tree)


def losses_of(grads: TaskGradients) -> jax.Array | None:
    """The (K,) losses as constants, in float32 at least; 0 for tasks that are told to be absent."""
    if grads.losses is None:
        return None
    losses = grads.losses.astype(jnp.promote_types(grads.losses.dtype, jnp.float32))
    return lax.stop_gradient(of_present(grads, losses))


def check_update_every(name: str, update_every: int | None, num_tasks: int | None) -> None:
    """Raises ValueError when `update_every` is no positive int, or goes with no `num_tasks`."""
    if update_every is None:
        return
    if isinstance(update_every, bool) or not isinstance(update_every, int) or update_every < 1:
        raise ValueError(
            f"{name}: update_every must be a positive Python int, got {update_every!r} "
            '(inside optax.inject_hyperparams, pass static_args=("update_every", "num_tasks"))'
        )
    if num_tasks is None:
        raise ValueError(f"{name}: update_every keeps the weights between solves; pass num_tasks=K")


def check_tasks(
    name: str,
    grads: TaskGradients,
    state: MethodState,
    reads_losses: bool,
    task_names: tuple[str, ...] | None,
    remembers: bool,
) -> None:
    """Raises ValueError when gradients, state and hyperparameters are not of the same tasks."""
    if not isinstance(state, MethodState):
        got = type(state).__name__
        raise ValueError(f"{name}: the state must be that of init(params) or of the last update, got {got}")
    if (state.memory is not None) != remembers:
        raise ValueError(f"{name}: the state is that of another method: take that of init(params)")
    if state.weights is not None and state.weights.shape != (grads.num_tasks,):
        raise ValueError(
            f"{name}: built with num_tasks={state.weights.shape[0]}, but got the gradients of {grads.num_tasks}: a "
            "task without labels must stay in the dict of losses, with a pair (sum, 0)"
        )
    if reads_losses and grads.losses is None:
        raise ValueError(
            f"{name} weighs by the losses: pass them, as in tx.update(grads, state, params, losses=losses)"
        )
    if task_names is not None and grads.tasks not in (None, task_names):
        raise ValueError(f"{name}: got values for {list(task_names)}, but the tasks are {list(grads.tasks or ())}")
