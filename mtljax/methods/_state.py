"""What a method remembers, from the start and from update to update."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from mtljax.gradients import PyTree
from mtljax.methods._checks import Scalar, check_num_tasks, check_seed, static_int
from mtljax.methods._losses import waiting

# `init_memory(num_tasks, params) -> memory`, a NamedTuple of arrays whose shapes and dtypes never change: scalars, or
# with a leading task axis. The rows of a task without a label stay as they are.
InitMemory: TypeAlias = Callable[[int, PyTree], Any]


class MethodState(NamedTuple):
    """The state of a method; everything it remembers, so that a checkpoint is complete.

    Attributes:
      step: int32 scalar, updates so far.
      weights: (K,) weights of the last update, None when the method was built without `num_tasks`.
      key: uint32 PRNG key, None for deterministic methods.
      memory: the method's own NamedTuple of moving averages and the like, or None.
      seen: (K,) int32, updates of that memory in which the task had a label; None where there is no memory.
    """

    step: jax.Array
    weights: jax.Array | None
    key: jax.Array | None
    memory: Any = None
    seen: jax.Array | None = None


def initializer(
    name: str, num_tasks: int | None, seed: Scalar | None, init_memory: InitMemory | None
) -> Callable[..., Any]:
    """The `init` of a method's transformation; its arguments are those of `weighting`."""
    check_num_tasks(name, num_tasks)
    check_seed(name, seed)
    if init_memory is not None and num_tasks is None:
        raise ValueError(f"{name} remembers something of every task; pass num_tasks=K")

    def init_fn(params: PyTree) -> Any:
        weights, memory, seen = None, None, None
        if num_tasks is not None:
            count = static_int(num_tasks, name, "num_tasks")
            weights = jnp.ones(count, state_dtype(params))
            if init_memory is not None:
                memory, seen = init_memory(count, params), jnp.zeros(count, jnp.int32)
        key = None if seed is None else jax.random.PRNGKey(seed)
        return MethodState(step=jnp.zeros((), jnp.int32), weights=weights, key=key, memory=memory, seen=seen)

    return init_fn


def advanced(
    state: MethodState, weights: jax.Array, key: jax.Array | None, memory: Any, present: jax.Array, waits: bool = True
) -> MethodState:
    """The state after an update, in the dtypes it had."""
    kept = None if state.weights is None else weights.astype(state.weights.dtype)
    memory = jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), memory, state.memory)
    memory = waiting(present, memory, state.memory) if waits else memory
    seen = None if state.seen is None else state.seen + present
    return MethodState(state.step + 1, kept, key, memory, seen)


def all_finite(tree: PyTree) -> jax.Array:
    """Whether no floating point number in the tree is NaN or infinite, a scalar bool."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(jnp.result_type(leaf), jnp.floating)]
    return jnp.stack([jnp.bool_(True), *(jnp.all(jnp.isfinite(leaf)) for leaf in leaves)]).all()


def only_if(good: jax.Array, new: PyTree, old: PyTree) -> PyTree:
    """The new tree where the step was good, else the old one."""
    return jax.tree.map(lambda after, before: jnp.where(good, after, before), new, old)


def state_dtype(params: PyTree) -> Any:
    """The dtype of weights and averages: that of the parameters, float32 at least."""
    return jnp.result_type(jnp.float32, *jax.tree.leaves(params))


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
