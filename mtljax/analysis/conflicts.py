"""How far tasks pull the shared parameters apart, and how far single examples of one task do."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtljax.analysis.samples import examples, gradients_of
from mtljax.analysis.similarity import Similarities, pairwise
from mtljax.gradients import Mode, PyTree, mask, task_gradients


class SampleConflicts(NamedTuple):
    """Conflicts of the gradients of single examples; N examples, K tasks.

    Attributes:
      between_tasks: (N, K, K), the tasks on the same example.
      between_samples: (K, N, N), the examples of the same task.
    """

    between_tasks: Similarities
    between_samples: Similarities


def cosines(losses_fn: Callable[..., Any], params: PyTree, *args: Any, mode: Mode = "auto") -> jax.Array:
    """Cosines between the gradients of the tasks over the shared parameters, on one batch.

    >>> import jax.numpy as jnp, mtljax as mtl
    >>> losses_fn = lambda p: {"left": p[0], "right": p[1] - p[0]}
    >>> round(float(mtl.analysis.cosines(losses_fn, jnp.zeros(2))[0, 1]), 4)
    -0.7071

    Args:
      losses_fn: as for `mtl.task_gradients`, without auxiliary outputs.
      params: where.
      *args: further arguments of `losses_fn`.
      mode: as for `mtl.task_gradients`.

    Returns:
      (K, K) in sorted order of the task names; 0 in the rows and columns of a zero gradient, its diagonal included.
    """
    return task_gradients(losses_fn, params, *args, mode=mode)[1].scaled_gramian().cosines


def conflict_share(cosines: Any) -> jax.Array:
    """The share of mini-batches on which two tasks conflict, that is, the cosine of their gradients is negative.

    Args:
      cosines: (N, K, K), the results of `cosines` on N mini-batches.

    Returns:
      (K, K) shares in [0, 1]; a batch on which a task has no gradient counts as one without conflict.

    Raises:
      ValueError: on another shape.
    """
    cosines = jnp.asarray(cosines)
    if cosines.ndim != 3 or cosines.shape[1] != cosines.shape[2] or not len(cosines):
        raise ValueError(f"conflict_share takes the cosines of N mini-batches, (N, K, K), got shape {cosines.shape}")
    return jnp.mean(cosines < 0, axis=0)


def sample_conflicts(
    losses_fn: Callable[..., Any],
    params: PyTree,
    *args: Any,
    key: jax.Array | None = None,
    samples: int = 8,
    tasks: int = 8,
    shared: Any = None,
    argnums: tuple[int, ...] = (-1,),
    memory: int = 2**28,
) -> SampleConflicts:
    """Do tasks disagree more than the examples of one task? Both, on gradients of single examples.

    As in Elich et al., arXiv:2311.04698, Sec. 4.2: between the tasks on the same example, and between the examples of
    one batch for the same task, over the shared parameters. `spread` sums the result up. What is compiled is kept for
    the next call with the same function, so name it once outside a loop.

    Gradients are made as by `sample_gradients`, as many at once as `memory` holds; if not all fit, blocks of examples
    are compared pair by pair and one of each is computed again, so that less memory costs more time and gives the same
    numbers.

    Args:
      losses_fn: as for `sample_gradients`.
      params: where.
      *args: further arguments of `losses_fn`.
      key: draws the examples, and the tasks if there are more than `tasks`; None draws with seed 0.
      samples: how many examples of the batch.
      tasks: how many tasks at most.
      shared: as for `mtl.task_gradients`.
      argnums: which of `args` hold a batch.
      memory: bytes that gradients may take together; one example's, twice, are needed at least. Comparing them takes
        about three times as much again, except on a CPU, where it is done in blocks.

    Returns:
      Similarities of both kinds.

    Raises:
      ValueError: if the arguments hold no batch, or `samples`, `tasks` or `memory` is not positive.
    """
    return drawn_conflicts(
        losses_fn,
        params,
        *args,
        key=key,
        samples=samples,
        tasks=tasks,
        shared=shared,
        argnums=argnums,
        memory=memory,
    )[0]


def drawn_conflicts(
    losses_fn: Callable[..., Any],
    params: PyTree,
    *args: Any,
    key: jax.Array | None,
    samples: int,
    tasks: int,
    shared: Any,
    argnums: tuple[int, ...],
    memory: int,
) -> tuple[SampleConflicts, jax.Array]:
    """`sample_conflicts`, and which of the sorted tasks it is about."""
    for name, value in {"samples": samples, "tasks": tasks, "memory": memory}.items():
        if value < 1:
            raise ValueError(f"sample_conflicts: {name} must be at least 1, got {value}")
    chosen = examples(args, argnums)
    params, args = jax.tree.map(jnp.asarray, (params, args))
    keep = None if shared is None else tuple(jax.tree.leaves(mask("shared", shared, params)))
    gradients = gradients_of(losses_fn, params, args, argnums, keep)
    if not any(gradients.keep):
        raise ValueError("sample_conflicts compares gradients over shared parameters, but the losses share none")
    sample_key: Any = None
    task_key: Any = None
    if samples < len(chosen) or tasks < len(gradients.tasks):
        sample_key, task_key = jax.random.split(jax.random.PRNGKey(0) if key is None else key)
    which, drawn = jnp.arange(len(gradients.tasks)), None
    if samples < len(chosen):
        chosen = jax.random.choice(sample_key, chosen, (samples,), replace=False)
    if tasks < len(gradients.tasks):
        which = drawn = jnp.sort(jax.random.choice(task_key, which, (tasks,), replace=False))

    kept = [leaf for leaf, is_kept in zip(jax.tree.leaves(params), gradients.keep, strict=True) if is_kept]
    bytes_each = len(which) * sum(leaf.nbytes for leaf in kept)
    size = len(chosen) if len(chosen) * bytes_each <= memory else max(1, int(memory // (2 * max(bytes_each, 1))))
    blocks = [chosen[start : start + size] for start in range(0, len(chosen), size)]

    # Upper triangle of blocks; the lower one is its mirror.
    alone: list[Similarities] = []
    grid: list[list[Any]] = [[None] * len(blocks) for _ in blocks]
    for i, block in enumerate(blocks):
        left = gradients.rows(params, args, block, drawn)
        between_tasks, grid[i][i] = _within(left, gradients.layers)
        alone.append(between_tasks)
        for j in range(i + 1, len(blocks)):
            grid[i][j] = _across(left, gradients.rows(params, args, blocks[j], drawn), gradients.layers)
            grid[j][i] = jax.tree.map(lambda matrix: jnp.swapaxes(matrix, -1, -2), grid[i][j])
    if len(blocks) == 1:
        return SampleConflicts(alone[0], grid[0][0]), which
    rows = [jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=-1), *row) for row in grid]
    conflicts = SampleConflicts(
        between_tasks=jax.tree.map(lambda *parts: jnp.concatenate(parts), *alone),
        between_samples=jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=-2), *rows),
    )
    return conflicts, which


@functools.partial(jax.jit, static_argnames="layers")
def _within(rows: list[jax.Array], layers: tuple[str, ...]) -> tuple[Similarities, Similarities]:
    """Both kinds among the gradients of one block, leaves (N, K, *shape).

    They are cut out of one product of all with all: many small products are slower.
    """
    size = rows[0].shape[:2]
    flat = [leaf.reshape(-1, *leaf.shape[2:]) for leaf in rows]
    every = jax.tree.map(lambda matrix: matrix.reshape(*size, *size), pairwise(flat, flat, layers))
    samples, tasks = map(jnp.arange, size)
    return (
        jax.tree.map(lambda matrix: matrix[samples, :, samples, :], every),
        jax.tree.map(lambda matrix: matrix[:, tasks, :, tasks], every),
    )


@functools.partial(jax.jit, static_argnames="layers")
def _across(left: list[jax.Array], right: list[jax.Array], layers: tuple[str, ...]) -> Similarities:
    """The examples of one block against those of another, task by task."""
    return jax.vmap(lambda a, b: pairwise(a, b, layers, same=False), in_axes=1)(left, right)
