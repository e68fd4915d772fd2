"""An optax transformation that watches how much the tasks' gradients conflict, and changes nothing."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from mtljax.analysis.similarity import MEASURES, similarities
from mtljax.gradients import PyTree, TaskGradients
from mtljax.methods._state import all_finite, only_if, state_dtype
from mtljax.methods._updates import as_task_gradients


class ConflictState(NamedTuple):
    """Sums over the updates looked at; scalars over all pairs of tasks, or (K, K) matrices.

    Attributes:
      step: int32, updates so far.
      pairs: how many pairs were counted, those without a zero gradient.
      sums: by measure ("cosine", "magnitude", "sign_conflict"), their sum.
    """

    step: jax.Array
    pairs: jax.Array
    sums: dict[str, jax.Array]


def conflict_probe(num_tasks: int | None = None, *, every: int = 1) -> optax.GradientTransformationExtraArgs:
    """Keeps running sums of the similarities between the tasks' gradients; updates pass through as they are.

    A transformation sees the gradients of whole batches; for those of single examples see `sample_conflicts`.

    It goes before a method, which then finds what it would find without it; after `mtl.per_task` it watches what that
    makes of the gradients. Cost: K backward passes whenever it looks, which the compiler shares with a method that
    makes them anyway; before one that does not, such as `mtl.ew`, take `every=20` or more. `conflict_means` reads the
    sums. On a CPU, where a convolution inside `lax.cond` is slow, `every` above 1 saves less than it should.

    >>> import jax.numpy as jnp, optax, mtljax as mtl
    >>> tx = optax.chain(mtl.analysis.conflict_probe(), mtl.cagrad(), optax.adam(1e-3))
    >>> params = jnp.zeros(2)
    >>> _, state = tx.update(jnp.array([[3.0, 4.0], [-30.0, 40.0]]), tx.init(params), params)
    >>> {measure: round(mean, 4) for measure, mean in mtl.analysis.conflict_means(state).items()}
    {'cosine': 0.28, 'magnitude': 0.198, 'sign_conflict': 0.5}

    Args:
      num_tasks: K, to keep the sums for each pair of tasks; None sums over all pairs.
      every: look at every so many updates, the first included.

    Returns:
      A transformation from task gradients to task gradients. Where a method takes the gradients of several batches, it
      looks at those of the first.

    Raises:
      ValueError: if `num_tasks` or `every` is not positive; on update, if the gradients are of another number of tasks.
    """
    if num_tasks is not None and num_tasks < 1:
        raise ValueError(f"conflict_probe: num_tasks must be at least 1 or None, got {num_tasks}")
    if every < 1:
        raise ValueError(f"conflict_probe: every must be at least 1, got {every}")
    shape = () if num_tasks is None else (num_tasks, num_tasks)

    def init_fn(params: PyTree) -> ConflictState:
        sums = {measure: jnp.zeros(shape, state_dtype(params)) for measure in MEASURES}
        return ConflictState(jnp.zeros((), jnp.int32), jnp.zeros(shape, jnp.int32), sums)

    def update_fn(
        updates: Any, state: Any, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[Any, ConflictState]:
        del extra_args
        several = isinstance(updates, tuple) and bool(updates) and isinstance(updates[0], TaskGradients)
        grads = as_task_gradients("conflict_probe", updates[0] if several else updates, params)
        if num_tasks not in (None, grads.num_tasks):
            raise ValueError(
                f"conflict_probe: built with num_tasks={num_tasks}, but got the gradients of {grads.num_tasks}"
            )

        def looked(state: ConflictState) -> ConflictState:
            measured = similarities(grads).whole
            pairs = measured.present
            if num_tasks is None:
                pairs = jnp.triu(pairs, 1)

            def total(values: jax.Array, like: jax.Array) -> jax.Array:
                values = jnp.where(pairs, values, 0)
                return (jnp.sum(values) if num_tasks is None else values).astype(like.dtype)

            counted = total(jnp.ones_like(pairs, jnp.int32), state.pairs)
            sums = {measure: each + total(getattr(measured, measure), each) for measure, each in state.sums.items()}
            after = ConflictState(state.step, state.pairs + counted, sums)
            return only_if(all_finite((measured, sums)), after, state)  # a bad batch is no look

        state = looked(state) if every == 1 else lax.cond(state.step % every == 0, looked, lambda same: same, state)
        return updates, state._replace(step=state.step + 1)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def conflict_means(opt_state: PyTree) -> dict[str, Any]:
    """What a `conflict_probe` has found so far, however deep its state lies in a chain.

    The sums behind it are float32 and count pairs up to 2^31: start anew after some million updates.

    Args:
      opt_state: an optax state that contains the probe's.

    Returns:
      By measure ("cosine", "magnitude", "sign_conflict") the mean over the updates looked at: a float over all pairs
      of tasks, or with `num_tasks` a (K, K) array; NaN where there was no pair.

    Raises:
      ValueError: if there is no probe in it.
    """
    nodes = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, ConflictState))
    state = next((node for node in nodes if isinstance(node, ConflictState)), None)
    if state is None:
        raise ValueError(
            "conflict_means: this state holds no conflict_probe; put one before the method, as in "
            "optax.chain(mtl.analysis.conflict_probe(), mtl.cagrad(), optax.adam(1e-3))"
        )
    pairs = np.asarray(state.pairs)
    means = {
        measure: np.where(pairs > 0, np.asarray(total, np.float64) / np.maximum(pairs, 1), np.nan)
        for measure, total in state.sums.items()
    }
    return {measure: mean if mean.ndim else float(mean) for measure, mean in means.items()}
