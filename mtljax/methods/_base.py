"""How a weighting rule becomes an optax transformation, once for all methods."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.core import Tracer

from mtljax.gradients import PyTree, TaskGradients, loss_vector

Needs: TypeAlias = Literal["nothing", "losses", "gramian"]
Scalar: TypeAlias = float | jax.Array


class MethodState(NamedTuple):
    """The state of a method; everything it remembers, so that a checkpoint is complete.

    Attributes:
      step: int32 scalar, updates so far.
      weights: (K,) weights of the last update, None when the method was built without `num_tasks`.
      key: uint32 PRNG key, None for deterministic methods.
      memory: the method's own NamedTuple of moving averages and the like, or None.
    """

    step: jax.Array
    weights: jax.Array | None
    key: jax.Array | None
    memory: Any = None


# A weighting rule, `weigh(memory, *, gramian, losses, num_tasks, key) -> (weights, memory)`: a pure function that
# returns the (K,) weights and its new memory. What it did not declare to need is None; rules swallow it with **_.
Weigh: TypeAlias = Callable[..., tuple[jax.Array, Any]]


def weighting(
    name: str,
    weigh: Weigh,
    *,
    needs: Needs,
    num_tasks: int | None,
    scale_own: bool = False,
    seed: Scalar | None = None,
    task_names: tuple[str, ...] | None = None,
    update_every: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Lifts a weighting rule to an optax transformation of task gradients.

    Args:
      name: the method's name, for errors.
      weigh: the rule.
      needs: what the rule reads: "nothing" and "losses" cost one backward pass, "gramian" costs K.
      num_tasks: K, or None to take it from the gradients; then the state holds no weights.
      scale_own: whether a task's own parameters are scaled by its weight (loss weighting) or not (gradient methods).
      seed: seed of the PRNG key in the state, None for a deterministic rule.
      task_names: sorted names the rule's hyperparameters were given by, checked against the gradients.
      update_every: solve every n updates and reuse the weights in between, for one backward pass there.

    Returns:
      A transformation whose `update(grads, state, params, *, losses=None, solve=None)` takes `TaskGradients` or a plain
      Jacobian and returns one gradient. `solve` is explained in `mtljax.methods`.

    Raises:
      ValueError: if `update_every` is no positive int, or needs `num_tasks` and has none.
    """
    if num_tasks is not None and is_concrete(num_tasks) and int(num_tasks) < 1:
        raise ValueError(f"{name}: num_tasks must be at least 1, got {num_tasks}")
    if update_every is not None:
        if not isinstance(update_every, int) or update_every < 1:
            raise ValueError(
                f"{name}: update_every must be a positive Python int, got {update_every!r} "
                '(inside optax.inject_hyperparams, pass static_args=("update_every", "num_tasks"))'
            )
        if num_tasks is None:
            raise ValueError(f"{name}: update_every keeps the weights between solves; pass num_tasks=K")

    def init_fn(params: PyTree) -> Any:
        weights = None
        if num_tasks is not None:
            weights = jnp.ones(static_int(num_tasks, name, "num_tasks"), state_dtype(params))
        key = None if seed is None else jax.random.PRNGKey(seed)
        return MethodState(step=jnp.zeros((), jnp.int32), weights=weights, key=key)

    def solve_fn(grads: TaskGradients, state: MethodState) -> tuple[PyTree, MethodState]:
        key, subkey = (None, None) if state.key is None else jax.random.split(state.key)
        grads = grads.materialize() if needs == "gramian" else grads
        weights, memory = weigh(
            state.memory,
            gramian=grads.scaled_gramian() if needs == "gramian" else None,
            losses=None if grads.losses is None else lax.stop_gradient(grads.losses),
            num_tasks=grads.num_tasks,
            key=subkey,
        )
        gradient = grads.combine(weights, scale_own=scale_own)
        kept = None if state.weights is None else weights.astype(state.weights.dtype)
        return gradient, MethodState(state.step + 1, kept, key, memory)

    def reuse_fn(grads: TaskGradients, state: MethodState) -> tuple[PyTree, MethodState]:
        assert state.weights is not None
        gradient = grads.combine(state.weights, scale_own=scale_own)
        return gradient, state._replace(step=state.step + 1)

    def update_fn(
        updates: Any,
        state: Any,
        params: PyTree | None = None,
        *,
        losses: Any = None,
        solve: bool | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, Any]:
        del extra_args
        grads = as_task_gradients(updates, params, losses)
        if state.weights is not None and state.weights.shape != (grads.num_tasks,):
            raise ValueError(
                f"{name}: built with num_tasks={state.weights.shape[0]}, but got the gradients of {grads.num_tasks}"
            )
        if needs == "losses" and grads.losses is None:
            raise ValueError(
                f"{name} weighs by the losses: pass them, as in tx.update(grads, state, params, losses=losses)"
            )
        if task_names is not None and grads.tasks not in (None, task_names):
            raise ValueError(
                f"{name}: weights are named {list(task_names)}, but the tasks are {list(grads.tasks or ())}"
            )
        if update_every is None or solve is True:
            return solve_fn(grads, state)
        if solve is False:
            return reuse_fn(grads, state)
        return lax.cond(
            state.step % update_every == 0, lambda s: solve_fn(grads, s), lambda s: reuse_fn(grads, s), state
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def as_task_gradients(updates: Any, params: PyTree | None, losses: Any) -> TaskGradients:
    """What a method was given, as `TaskGradients`.

    Args:
      updates: `TaskGradients`; or a Jacobian pytree like params with leading task axes; or a dict of gradients by task.
      params: the parameters, used to tell the last two apart.
      losses: dict or (K,) array of losses, which take the place of those in `updates`, or None to keep them.

    Returns:
      The gradients, with the losses attached.
    """
    if isinstance(updates, TaskGradients):
        if losses is None:
            return updates
        return updates.with_losses(loss_vector(losses, updates.tasks, updates.num_tasks))
    if params is not None and jax.tree.structure(updates) != jax.tree.structure(params):
        structure = jax.tree.structure(params)
        if not (isinstance(updates, dict) and all(jax.tree.structure(g) == structure for g in updates.values())):
            raise ValueError(
                f"expected TaskGradients, or a Jacobian with the structure of params, {structure}; "
                f"got {jax.tree.structure(updates)}"
            )
        rows = [updates[name] for name in sorted(updates)]
        updates = jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)
    return TaskGradients.from_jacobian(updates, losses)


def is_concrete(value: Any) -> bool:
    """Whether a hyperparameter has a value now, so that it can be checked; tracers have none."""
    return not isinstance(value, Tracer)


def check(condition: Callable[[], bool], value: Any, message: str) -> None:
    """Raises ValueError with `message` and the value when a concrete value fails `condition`."""
    if is_concrete(value) and not condition():
        raise ValueError(f"{message}, got {value}")


def check_choice(name: str, argument: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises ValueError when a string hyperparameter is none of its choices."""
    if value not in choices:
        raise ValueError(f"{name}: {argument} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def static_int(value: Any, name: str, argument: str) -> int:
    """An int that shapes the state; inject_hyperparams under jit would turn it into a tracer."""
    if not is_concrete(value):
        raise ValueError(
            f'{name}: {argument} shapes the state: pass static_args="{argument}" to optax.inject_hyperparams'
        )
    return int(value)


def state_dtype(params: PyTree) -> Any:
    """The dtype of weights and averages: that of the parameters, float32 at least."""
    return jnp.result_type(jnp.float32, *(leaf.dtype for leaf in jax.tree.leaves(params)))


def task_weights(opt_state: PyTree) -> jax.Array | None:
    """The weights of the last update, however deep the method's state lies in a chain.

    >>> import jax.numpy as jnp, optax, mtljax as mtl
    >>> tx = optax.chain(mtl.ew(num_tasks=2), optax.adam(1e-3))
    >>> mtl.task_weights(tx.init(jnp.zeros(3))).tolist()
    [1.0, 1.0]

    Args:
      opt_state: any optax state that contains a method's state.

    Returns:
      (K,) weights in sorted order of the task names, or None when there is no method in the state or it was built
      without `num_tasks`.
    """
    leaves = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, MethodState))
    states = [leaf for leaf in leaves if isinstance(leaf, MethodState) and leaf.weights is not None]
    return states[0].weights if states else None
