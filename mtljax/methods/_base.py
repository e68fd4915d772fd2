"""How a weighting rule becomes an optax transformation, once for all methods."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax import lax

from mtljax.gradients import PyTree, TaskGradients, loss_vector
from mtljax.methods._checks import Scalar
from mtljax.methods._losses import present_tasks
from mtljax.methods._state import InitMemory, MethodState, advanced, initializer

Needs: TypeAlias = Literal["nothing", "losses", "gramian"]


# A weighting rule, `weigh(memory, *, gramian, cross, losses, losses_after, num_tasks, key, step, seen, present) ->
# (weights, memory)`: a pure function that returns the (K,) weights and its new memory. What it did not declare to need
# is None; rules swallow the rest with **_.
Weigh: TypeAlias = Callable[..., tuple[jax.Array, Any]]

# A rule on the Jacobian itself,
# `rule(memory, *, grads, losses, params, key, step, seen, present) -> (gradient, weights, memory)`.
JacobianRule: TypeAlias = Callable[..., tuple[PyTree, jax.Array, Any]]


def weighting(
    name: str,
    weigh: Weigh,
    *,
    needs: Needs,
    num_tasks: int | None,
    reads_losses: bool = False,
    scale_own: bool | Callable[[Any], jax.Array] = False,
    seed: Scalar | None = None,
    task_names: tuple[str, ...] | None = None,
    update_every: int | None = None,
    init_memory: InitMemory | None = None,
    waits: bool = True,
    batches: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Lifts a weighting rule to an optax transformation of task gradients.

    Args:
      name: the method's name, for errors.
      weigh: the rule.
      needs: what the rule reads: "nothing" and "losses" cost one backward pass, "gramian" costs K.
      num_tasks: K, or None to take it from the gradients; then the state holds no weights.
      reads_losses: whether a Gramian rule needs the losses too ("losses" always does).
      scale_own: whether a task's own parameters are scaled by its weight (loss weighting) or not (gradient methods); or
        a function of the memory before the update that gives their own (K,) weights.
      seed: seed of the PRNG key in the state, None for a deterministic rule.
      task_names: sorted names the rule's hyperparameters were given by, checked against the gradients.
      update_every: solve every n updates and reuse the weights in between, for one backward pass there.
      init_memory: what the rule remembers at the start, None for a rule without memory.
      waits: whether the rows of an absent task in the memory stay as they are whatever the rule returns.
      batches: whether `update` takes a tuple of gradients on independent batches: the rule then gets `cross`, the
        `CrossGramian` of the first two, and the last are combined. One or two are reused for what is missing.

    Returns:
      A transformation whose `update(grads, state, params, *, losses=None, solve=None)` takes `TaskGradients` or a plain
      Jacobian and returns one gradient. `solve` is explained in `mtljax.methods`.

    Raises:
      ValueError: if `update_every` is no positive int, or what needs `num_tasks` has none.
    """
    if update_every is not None:
        if not isinstance(update_every, int) or update_every < 1:
            raise ValueError(
                f"{name}: update_every must be a positive Python int, got {update_every!r} "
                '(inside optax.inject_hyperparams, pass static_args=("update_every", "num_tasks"))'
            )
        if num_tasks is None:
            raise ValueError(f"{name}: update_every keeps the weights between solves; pass num_tasks=K")
    init_fn = initializer(name, num_tasks, seed, init_memory)

    def own_scale(memory: Any) -> bool | jax.Array:
        return scale_own(memory) if callable(scale_own) else scale_own

    def solve_fn(
        grads: Sequence[TaskGradients], state: MethodState, losses_after: jax.Array | None
    ) -> tuple[PyTree, MethodState]:
        key, subkey = (None, None) if state.key is None else jax.random.split(state.key)
        if needs == "gramian":
            grads = [each.materialize() if batches else each.with_gramian() for each in grads]
        last, losses = grads[-1], _losses(grads[-1])
        gramian = grads[0].scaled_gramian() if needs == "gramian" and not batches else None
        cross = grads[0].cross_gramian(grads[min(1, len(grads) - 1)]) if batches else None
        norms = gramian.norms if gramian else jnp.minimum(cross.left, cross.right) if cross else None
        present = present_tasks(last.num_tasks, losses, norms)
        weights, memory = weigh(
            state.memory,
            gramian=gramian,
            cross=cross,
            losses=losses,
            losses_after=losses_after,
            num_tasks=last.num_tasks,
            key=subkey,
            step=state.step,
            seen=state.seen,
            present=present,
        )
        gradient = last.combine(weights, scale_own=own_scale(state.memory))
        return gradient, advanced(state, weights, key, memory, present, waits)

    def reuse_fn(
        grads: Sequence[TaskGradients], state: MethodState, losses_after: jax.Array | None
    ) -> tuple[PyTree, MethodState]:
        del losses_after
        weights = state.weights
        assert weights is not None
        gradients = [each.combine(weights, scale_own=own_scale(state.memory)) for each in grads]
        mean = jax.tree.map(lambda *leaves: sum(leaves[1:], leaves[0]) / len(leaves), *gradients)
        return (mean if len(grads) > 1 else gradients[0]), state._replace(step=state.step + 1)

    def update_fn(
        updates: Any,
        state: Any,
        params: PyTree | None = None,
        *,
        losses: Any = None,
        losses_after: Any = None,
        solve: bool | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, Any]:
        del extra_args
        split = batches and isinstance(updates, tuple) and not _is_jacobian_of(updates, params)
        grads = [as_task_gradients(each, params, losses) for each in (updates if split else (updates,))]
        if not 1 <= len(grads) <= 3:
            raise ValueError(f"{name}: takes the gradients of 1, 2 or 3 independent batches, got {len(grads)}")
        for each in grads:
            _check_tasks(name, each, state, reads_losses or needs == "losses", task_names)
        if losses_after is not None:
            losses_after = loss_vector(losses_after, grads[-1].tasks, grads[-1].num_tasks, "losses_after")
        if update_every is None or solve is True:
            return solve_fn(grads, state, losses_after)
        if solve is False:
            return reuse_fn(grads, state, losses_after)
        return lax.cond(
            state.step % update_every == 0,
            lambda s: solve_fn(grads, s, losses_after),
            lambda s: reuse_fn(grads, s, losses_after),
            state,
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def jacobian_method(
    name: str,
    rule: JacobianRule,
    *,
    num_tasks: int | None,
    reads_losses: bool = False,
    seed: Scalar | None = None,
    task_names: tuple[str, ...] | None = None,
    init_memory: InitMemory | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Lifts a rule that reads the whole Jacobian to an optax transformation of task gradients.

    Args:
      name: the method's name, for errors.
      rule: the rule; its `grads` hold their Jacobian.
      num_tasks: K, or None to take it from the gradients; then the state holds no weights.
      reads_losses: whether the rule needs the losses.
      seed: seed of the PRNG key in the state, None for a deterministic rule.
      task_names: sorted names the rule's hyperparameters were given by, checked against the gradients.
      init_memory: what the rule remembers at the start, None for a rule without memory.

    Returns:
      A transformation whose `update(grads, state, params, *, losses=None)` takes `TaskGradients` or a plain Jacobian
      and returns one gradient.

    Raises:
      ValueError: if the rule has a memory and `num_tasks` is missing.
    """
    init_fn = initializer(name, num_tasks, seed, init_memory)

    def update_fn(
        updates: Any, state: Any, params: PyTree | None = None, *, losses: Any = None, **extra_args: Any
    ) -> tuple[PyTree, Any]:
        del extra_args
        grads = as_task_gradients(updates, params, losses)
        _check_tasks(name, grads, state, reads_losses, task_names)
        key, subkey = (None, None) if state.key is None else jax.random.split(state.key)
        grads = grads.materialize(whole=True)
        losses = _losses(grads)
        present = present_tasks(grads.num_tasks, losses, row_peaks(grads.jacobian(), grads.num_tasks))
        gradient, weights, memory = rule(
            state.memory,
            grads=grads,
            losses=losses,
            params=params,
            key=subkey,
            step=state.step,
            seen=state.seen,
            present=present,
        )
        return gradient, advanced(state, weights, key, memory, present)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _check_tasks(
    name: str,
    grads: TaskGradients,
    state: MethodState,
    reads_losses: bool,
    task_names: tuple[str, ...] | None,
) -> None:
    if state.weights is not None and state.weights.shape != (grads.num_tasks,):
        raise ValueError(
            f"{name}: built with num_tasks={state.weights.shape[0]}, but got the gradients of {grads.num_tasks}"
        )
    if reads_losses and grads.losses is None:
        raise ValueError(
            f"{name} weighs by the losses: pass them, as in tx.update(grads, state, params, losses=losses)"
        )
    if task_names is not None and grads.tasks not in (None, task_names):
        raise ValueError(f"{name}: got values for {list(task_names)}, but the tasks are {list(grads.tasks or ())}")


def _losses(grads: TaskGradients) -> jax.Array | None:
    """The (K,) losses as constants, in float32 at least."""
    if grads.losses is None:
        return None
    return lax.stop_gradient(grads.losses.astype(jnp.promote_types(grads.losses.dtype, jnp.float32)))


def row_peaks(jacobian: PyTree, num_tasks: int) -> jax.Array:
    """The largest entry, in size, of each of the K gradients."""
    leaves = [leaf.reshape(num_tasks, -1) for leaf in jax.tree.leaves(jacobian) if leaf.size]
    return jnp.stack([jnp.max(jnp.abs(leaf), axis=1) for leaf in leaves]).max(axis=0)


def _is_jacobian_of(updates: tuple[Any, ...], params: PyTree | None) -> bool:
    """Whether a tuple is one Jacobian of parameters that are a tuple, and not several Jacobians."""
    if params is None or any(isinstance(each, TaskGradients) for each in updates):
        return False
    return jax.tree.structure(updates) == jax.tree.structure(params)


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
