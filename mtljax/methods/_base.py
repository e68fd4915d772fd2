"""How a rule becomes an optax transformation, once for all methods."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias, cast, get_args

import jax
import jax.numpy as jnp
import optax
from jax import lax

from mtljax.gradients import PyTree, TaskGradients, loss_vector
from mtljax.methods._checks import Scalar
from mtljax.methods._losses import present_tasks
from mtljax.methods._signals import Signals, check_tasks, check_update_every, losses_of, of_present, signals_of
from mtljax.methods._state import InitMemory, MethodState, advanced, all_finite, initializer, only_if
from mtljax.methods._updates import as_task_gradients, is_several, row_peaks

Needs: TypeAlias = Literal["nothing", "losses", "gramian"]


# A weighting rule, `weigh(memory, signals) -> (weights, memory)`: pure, to the (K,) weights and its new memory.
Weigh: TypeAlias = Callable[[Any, Signals], tuple[jax.Array, Any]]
# A rule on the Jacobian itself, `rule(memory, signals) -> (gradient, weights, memory)`.
JacobianRule: TypeAlias = Callable[[Any, Signals], tuple[PyTree, jax.Array, Any]]


def weighting(
    name: str,
    weigh: Weigh,
    *,
    needs: Needs,
    num_tasks: int | None = None,
    reads_losses: bool = False,
    scale_own: bool | Callable[[Any], jax.Array] | None = None,
    seed: Scalar | None = None,
    task_names: tuple[str, ...] | None = None,
    update_every: int | None = None,
    init_memory: InitMemory | None = None,
    waits: bool = True,
    batches: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Lifts a weighting rule to an optax transformation of task gradients.

    >>> import jax, jax.numpy as jnp, mtljax as mtl
    >>> def weigh(memory, signals):
    ...     return signals.num_tasks * jax.nn.softmax(signals.losses), memory
    >>> tx = mtl.methods.weighting("softmax_weights", weigh, needs="losses")
    >>> gradient, _ = tx.update(jnp.eye(2), tx.init(jnp.zeros(2)), losses=jnp.array([1.0, 1.0]))
    >>> gradient.tolist()
    [1.0, 1.0]

    Args:
      name: the method's name, for errors.
      weigh: the rule, `(memory, signals) -> (weights, memory)`, pure; see `Signals`.
      needs: what the rule reads: "nothing" and "losses" cost one backward pass, "gramian" costs K.
      num_tasks: K, or None to take it from the gradients; then the state holds no weights.
      reads_losses: whether a Gramian rule needs the losses too ("losses" always does).
      scale_own: whether a task's own parameters are scaled by its weight (loss weighting, and None unless the rule
        reads the Gramian) or not (gradient methods); or a function of the memory before the update that gives their own
        (K,) weights.
      seed: seed of the PRNG key in the state, None for a deterministic rule.
      task_names: sorted names the rule's hyperparameters were given by, checked against the gradients.
      update_every: solve every n updates and reuse the weights in between, for one backward pass there.
      init_memory: `(num_tasks, params) -> memory` at the start, None for a rule without memory.
      waits: whether the rows of an absent task in the memory stay as they are whatever the rule returns.
      batches: whether `update` takes a tuple of gradients on independent batches: the rule then gets `cross`, the
        `CrossGramian` of the first two, and the last are combined. One or two are reused for what is missing.

    Returns:
      A transformation whose `update(grads, state, params, *, losses=None, present=None, shared=None, solve=None)` takes
      `TaskGradients` or a plain Jacobian and returns one gradient. The arguments are explained in `mtljax.methods`.

    Raises:
      ValueError: if `update_every` is no positive int, or what needs `num_tasks` has none.
    """
    if needs not in get_args(Needs):
        raise ValueError(f"{name}: needs must be one of {', '.join(map(repr, get_args(Needs)))}, got {needs!r}")
    check_update_every(name, update_every, num_tasks)
    init_fn = initializer(name, num_tasks, seed, init_memory)
    scale_own = needs != "gramian" if scale_own is None else scale_own
    remembers = init_memory is not None or seed is not None or update_every is not None

    def combined(grads: TaskGradients, weights: jax.Array, memory: Any, good: jax.Array) -> PyTree:
        """The weighted sum of the present tasks, NaN in a step that is not good."""
        own = scale_own(memory) if callable(scale_own) else scale_own
        weights = jnp.where(good, of_present(grads, weights), jnp.nan)
        if own is not True:
            own = jnp.where(good, of_present(grads, jnp.ones_like(weights) if own is False else own), jnp.nan)
        return grads.combine(weights, scale_own=own)

    def solve_fn(
        grads: Sequence[TaskGradients], state: MethodState, losses_after: jax.Array | None
    ) -> tuple[PyTree, MethodState]:
        key, subkey = (None, None) if state.key is None else jax.random.split(state.key)
        if needs == "gramian":
            grads = [each.materialize() if batches else each.with_gramian() for each in grads]
        last, losses = grads[-1], losses_of(grads[-1])
        gramian = of_present(grads[0], grads[0].scaled_gramian()) if needs == "gramian" and not batches else None
        second = grads[min(1, len(grads) - 1)]
        cross = of_present(second, of_present(grads[0], grads[0].cross_gramian(second))) if batches else None
        norms = gramian.norms if gramian else jnp.minimum(cross.left, cross.right) if cross else None
        present = present_tasks(last.num_tasks, last.present, losses, norms)
        signals = signals_of(
            num_tasks=last.num_tasks,
            gramian=gramian,
            cross=cross,
            losses=losses,
            losses_after=losses_after,
            key=subkey,
            step=state.step,
            seen=state.seen,
            present=present,
        )
        weights, memory = _checked_result(name, weigh(state.memory, signals), last.num_tasks)
        good = all_finite((losses, norms, weights, memory))
        gradient = combined(last, weights, state.memory, good)
        return gradient, only_if(good, advanced(state, weights, key, memory, present, waits), state)

    def reuse_fn(
        grads: Sequence[TaskGradients], state: MethodState, losses_after: jax.Array | None
    ) -> tuple[PyTree, MethodState]:
        del losses_after
        weights = cast(jax.Array, state.weights)
        good = all_finite([losses_of(each) for each in grads])
        gradients = [combined(each, weights, state.memory, good) for each in grads]
        mean = jax.tree.map(lambda *leaves: sum(leaves[1:], leaves[0]) / len(leaves), *gradients)
        after = state._replace(step=state.step + 1)
        return (mean if len(grads) > 1 else gradients[0]), only_if(good, after, state)

    def update_fn(
        updates: Any,
        state: Any,
        params: PyTree | None = None,
        *,
        losses: Any = None,
        losses_after: Any = None,
        present: Any = None,
        shared: Any = None,
        solve: bool | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, Any]:
        del extra_args
        several = updates if batches and is_several(updates, params) else (updates,)
        grads = [as_task_gradients(name, each, params, losses, present, shared) for each in several]
        if not 1 <= len(grads) <= 3:
            raise ValueError(f"{name}: takes the gradients of 1, 2 or 3 independent batches, got {len(grads)}")
        for each in grads:
            check_tasks(name, each, state, reads_losses or needs == "losses", task_names, init_memory is not None)
        if losses_after is not None:
            losses_after = loss_vector(losses_after, grads[-1].tasks, grads[-1].num_tasks, "losses_after")
        if update_every is None or solve is True:
            gradient, after = solve_fn(grads, state, losses_after)
        elif solve is False:
            gradient, after = reuse_fn(grads, state, losses_after)
        else:
            gradient, after = lax.cond(
                state.step % update_every == 0,
                lambda s: solve_fn(grads, s, losses_after),
                lambda s: reuse_fn(grads, s, losses_after),
                state,
            )
        # What is remembered must not come from a step that others skip. Reused weights leave nothing but a count.
        if remembers and solve is not False:
            after = only_if(all_finite(gradient), after, state)
        return gradient, after

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def jacobian_method(
    name: str,
    rule: JacobianRule,
    *,
    num_tasks: int | None = None,
    reads_losses: bool = False,
    seed: Scalar | None = None,
    task_names: tuple[str, ...] | None = None,
    init_memory: InitMemory | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Lifts a rule that reads the whole Jacobian to an optax transformation of task gradients.

    Args:
      name: the method's name, for errors.
      rule: the rule, `(memory, signals) -> (gradient, weights, memory)`, pure; `signals.grads` hold their Jacobian.
      num_tasks: K, or None to take it from the gradients; then the state holds no weights.
      reads_losses: whether the rule needs the losses.
      seed: seed of the PRNG key in the state, None for a deterministic rule.
      task_names: sorted names the rule's hyperparameters were given by, checked against the gradients.
      init_memory: `(num_tasks, params) -> memory` at the start, None for a rule without memory.

    Returns:
      A transformation whose `update(grads, state, params, *, losses=None, present=None, shared=None)` takes
      `TaskGradients` or a plain Jacobian and returns one gradient.

    Raises:
      ValueError: if the rule has a memory and `num_tasks` is missing.
    """
    init_fn = initializer(name, num_tasks, seed, init_memory)

    def update_fn(
        updates: Any,
        state: Any,
        params: PyTree | None = None,
        *,
        losses: Any = None,
        present: Any = None,
        shared: Any = None,
        **extra_args: Any,
    ) -> tuple[PyTree, Any]:
        del extra_args
        grads = as_task_gradients(name, updates, params, losses, present, shared)
        check_tasks(name, grads, state, reads_losses, task_names, init_memory is not None)
        key, subkey = (None, None) if state.key is None else jax.random.split(state.key)
        grads = grads.materialize(whole=True)
        if grads.present is not None:
            grads = grads.map(lambda rows: of_present(grads, rows))
        vector = losses_of(grads)
        peaks = row_peaks(grads.jacobian())
        labelled = present_tasks(grads.num_tasks, grads.present, vector, peaks)
        signals = signals_of(
            num_tasks=grads.num_tasks,
            grads=grads,
            losses=vector,
            key=subkey,
            step=state.step,
            seen=state.seen,
            present=labelled,
        )
        gradient, weights, memory = rule(state.memory, signals)
        good = all_finite((vector, peaks, weights, memory, gradient))
        gradient = jax.tree.map(lambda leaf: jnp.where(good, leaf, jnp.nan), gradient)
        return gradient, only_if(good, advanced(state, weights, key, memory, labelled), state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _checked_result(name: str, result: Any, num_tasks: int) -> tuple[jax.Array, Any]:
    """What a rule returned, or a ValueError where it is no (weights, memory)."""
    if isinstance(result, tuple) and len(result) == 2 and jnp.shape(result[0]) == (num_tasks,):
        return result
    raise ValueError(
        f"{name}: the rule must return (weights, memory) with weights of shape ({num_tasks},), got {result!r}"
    )
