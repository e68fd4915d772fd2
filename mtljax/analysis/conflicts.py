"""How far tasks pull the shared parameters apart, and how far single examples of one task do."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mtljax.gradients import Mode, PyTree, TaskGradients, task_gradients


class Similarity(NamedTuple):
    """How alike gradients are, in pairs: symmetric matrices (..., N, N) for N gradients.

    Attributes:
      cosine: g·h / (‖g‖ ‖h‖), negative where they conflict; 0 for a zero gradient.
      magnitude: 2 ‖g‖ ‖h‖ / (‖g‖² + ‖h‖²), 1 for equal lengths; 0 for a zero gradient.
      sign_conflict: the share of the coordinates in which the signs are opposite.
      present: whether neither gradient is zero; other pairs say nothing and are left out of `spread`.
    """

    cosine: jax.Array
    magnitude: jax.Array
    sign_conflict: jax.Array
    present: jax.Array


class Similarities(NamedTuple):
    """Over all shared parameters, and layer by layer.

    Attributes:
      whole: over all of them.
      layers: by layer, the path of its parameters without the last key.
    """

    whole: Similarity
    layers: dict[str, Similarity]


class SampleConflicts(NamedTuple):
    """Conflicts of the gradients of single examples; N examples, K tasks.

    Attributes:
      between_tasks: (N, K, K), the tasks on the same example.
      between_samples: (K, N, N), the examples of the same task.
    """

    between_tasks: Similarities
    between_samples: Similarities


class Spread(NamedTuple):
    """A distribution in four numbers, NaN when `pairs` is 0.

    Attributes:
      mean: its mean.
      std: its standard deviation.
      low: its 2.5 percentile.
      high: its 97.5 percentile.
      pairs: how many values there are.
    """

    mean: float
    std: float
    low: float
    high: float
    pairs: int


class _Products(NamedTuple):
    """What similarities are made of, for M by N gradients; products are of rows divided by their peaks."""

    dots: jax.Array
    clashes: jax.Array
    left: tuple[jax.Array, jax.Array]  # squared lengths and peaks, (M,) each
    right: tuple[jax.Array, jax.Array]
    size: int


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


def similarities(grads: TaskGradients | PyTree) -> Similarities:
    """Cosine, magnitude similarity and sign conflicts of each pair of gradients (as in arXiv:2311.04698, Sec. 4.2).

    >>> import jax.numpy as jnp, mtljax as mtl
    >>> pair = mtl.analysis.similarities({"layer": {"bias": jnp.array([[3.0, 4.0], [-30.0, 40.0]])}})
    >>> [round(float(values[0, 1]), 4) for values in pair.whole[:3]]
    [0.28, 0.198, 0.5]
    >>> list(pair.layers)
    ['layer']

    Args:
      grads: what `mtl.task_gradients` returns second, of which the shared parameters count; or any pytree of gradients
        whose leaves have one leading axis, (N, *shape), of which all count.

    Returns:
      (N, N) matrices, N being K for task gradients.
    """
    if isinstance(grads, TaskGradients):
        jacobian, keep = grads.jacobian(), jax.tree.leaves(grads.shared)
    else:
        jacobian, keep = grads, [True] * len(jax.tree.leaves(grads))
    names = _layer_names(jacobian, keep)
    leaves = [leaf for leaf, kept in zip(jax.tree.leaves(jacobian), keep, strict=True) if kept]
    return _similarities(leaves, leaves, names)


def sample_gradients(
    losses_fn: Callable[..., Any],
    params: PyTree,
    *args: Any,
    indices: Any = None,
    argnums: tuple[int, ...] = (-1,),
) -> PyTree:
    """The gradients of the losses on single examples, one backward pass an example and task.

    Where losses are means over examples, the mean over the examples is the gradient on the batch. Batch statistics are
    those of each example alone: pass losses that use running averages.

    Args:
      losses_fn: `losses_fn(params, *args)` returns a dict of scalar losses; it is called on batches of one.
      params: where.
      *args: further arguments of `losses_fn`.
      indices: (N,) which examples, None for all.
      argnums: which of `args` hold a batch, on the leading axis of all their leaves; by default the last.

    Returns:
      A pytree like params, each leaf (N, K, *shape), the tasks in sorted order of their names.

    Raises:
      ValueError: if the arguments hold no batch, or leading axes differ.
    """
    chosen = _all(args, argnums) if indices is None else jnp.asarray(indices)
    return jax.jit(_per_sample(losses_fn, args, argnums))(params, chosen)


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
    one batch for the same task, over the shared parameters. `spread` sums the result up. Put it into `jax.jit`
    to call it often: alone it compiles at every call.

    Gradients are made by vmap, as many at once as `memory` holds; if not all fit, blocks of examples are compared pair
    by pair and one of each is computed again, so that less memory costs more time and gives the same numbers.

    Args:
      losses_fn: as for `sample_gradients`.
      params: where.
      *args: further arguments of `losses_fn`.
      key: draws the examples, and the tasks if there are more than `tasks`; None draws with seed 0.
      samples: how many examples of the batch.
      tasks: how many tasks at most.
      shared: as for `mtl.task_gradients`.
      argnums: which of `args` hold a batch.
      memory: bytes that gradients may take together; one example's, twice, are needed at least.

    Returns:
      Similarities of both kinds.

    Raises:
      ValueError: if the arguments hold no batch, or `samples`, `tasks` or `memory` is not positive.
    """
    for name, value in {"samples": samples, "tasks": tasks, "memory": memory}.items():
        if value < 1:
            raise ValueError(f"sample_conflicts: {name} must be at least 1, got {value}")
    found: list[TaskGradients] = []
    jax.eval_shape(lambda p, a: found.append(task_gradients(losses_fn, p, *a, shared=shared)[1]), params, args)
    keep, num_tasks = jax.tree.leaves(found[0].shared), found[0].num_tasks
    sample_key, task_key = jax.random.split(jax.random.PRNGKey(0) if key is None else key)
    chosen, which = _all(args, argnums), jnp.arange(num_tasks)
    if samples < len(chosen):
        chosen = jax.random.choice(sample_key, chosen, (samples,), replace=False)
    if tasks < num_tasks:
        which = jnp.sort(jax.random.choice(task_key, which, (tasks,), replace=False))

    leaves, treedef = jax.tree.flatten(params)
    bytes_each = len(which) * sum(leaf.nbytes for leaf, kept in zip(leaves, keep, strict=True) if kept)
    size = len(chosen) if len(chosen) * bytes_each <= memory else max(1, int(memory // (2 * max(bytes_each, 1))))
    blocks = [chosen[start : start + size] for start in range(0, len(chosen), size)]
    free = [leaf for leaf, kept in zip(leaves, keep, strict=True) if kept]

    def losses_of_shared(free: list[jax.Array], *args: Any) -> Any:
        rest = iter(free)
        return losses_fn(
            treedef.unflatten([next(rest) if kept else leaf for leaf, kept in zip(leaves, keep, strict=True)]), *args
        )

    gradients = _per_sample(losses_of_shared, args, argnums, which)
    names = _layer_names(params, keep)

    @jax.jit
    def within(block: jax.Array) -> tuple[Similarities, Similarities]:
        rows = gradients(free, block)
        tasks = jax.vmap(lambda rows: _similarities(rows, rows, names))(rows)
        return tasks, jax.vmap(lambda rows: _similarities(rows, rows, names), in_axes=1)(rows)

    @jax.jit
    def across(left: jax.Array, right: jax.Array) -> Similarities:
        rows = gradients(free, left), gradients(free, right)
        return jax.vmap(lambda left, right: _similarities(left, right, names, same=False), in_axes=1)(*rows)

    # Upper triangle of blocks; the lower one is its mirror.
    alone = [within(block) for block in blocks]
    grid: list[list[Any]] = [[None] * len(blocks) for _ in blocks]
    for i, left in enumerate(blocks):
        grid[i][i] = alone[i][1]
        for j in range(i + 1, len(blocks)):
            grid[i][j] = across(left, blocks[j])
            grid[j][i] = jax.tree.map(lambda matrix: jnp.swapaxes(matrix, -1, -2), grid[i][j])
    rows = [jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=-1), *row) for row in grid]
    return SampleConflicts(
        between_tasks=jax.tree.map(lambda *parts: jnp.concatenate(parts), *[tasks for tasks, _ in alone]),
        between_samples=jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=-2), *rows),
    )


def spread(found: Similarity | Sequence[Similarity]) -> dict[str, Spread]:
    """Mean, standard deviation, 2.5 and 97.5 percentile of each measure over all pairs of different gradients.

    Args:
      found: one similarity, or those of several steps, which are put together.

    Returns:
      By measure: "cosine", "magnitude", "sign_conflict".
    """
    several = [found] if isinstance(found, Similarity) else list(found)

    def of(measure: str) -> Spread:
        parts = [np.zeros(0)]
        for each in several:
            values, present = np.asarray(getattr(each, measure), np.float64), np.asarray(each.present)
            upper = np.triu(np.ones(values.shape[-2:], bool), 1)
            parts.append(values[present & upper])
        values = np.concatenate(parts)
        if not len(values):
            nan = float("nan")
            return Spread(nan, nan, nan, nan, 0)
        low, high = np.percentile(values, (2.5, 97.5))
        return Spread(float(values.mean()), float(values.std()), float(low), float(high), len(values))

    return {measure: of(measure) for measure in ("cosine", "magnitude", "sign_conflict")}


def _all(args: tuple[Any, ...], argnums: tuple[int, ...]) -> jax.Array:
    """The indices of all examples."""
    if not args or not all(-len(args) <= index < len(args) for index in argnums):
        raise ValueError(
            f"no batch: argnums={argnums} must name some of the {len(args)} arguments after the parameters"
        )
    lengths = {jnp.shape(leaf)[:1] for index in argnums for leaf in jax.tree.leaves(args[index])}
    if len(lengths) != 1 or () in lengths or (0,) in lengths:
        raise ValueError(f"a batch needs the same leading axis on every leaf, got {sorted(lengths)}; see argnums")
    return jnp.arange(lengths.pop()[0])


def _per_sample(
    losses_fn: Callable[..., Any], args: tuple[Any, ...], argnums: tuple[int, ...], which: jax.Array | None = None
) -> Callable[[PyTree, jax.Array], PyTree]:
    """The function of parameters and (N,) indices that gives gradients, each leaf (N, K, *shape)."""
    batched = {index % len(args) for index in argnums} if args else set()

    def losses(params: PyTree, index: jax.Array) -> jax.Array:
        one = [
            jax.tree.map(lambda leaf: jnp.asarray(leaf)[index][None], arg) if i in batched else arg
            for i, arg in enumerate(args)
        ]
        found = losses_fn(params, *one)
        vector = jnp.stack([jnp.asarray(found[task]) for task in sorted(found)])
        return vector if which is None else vector[which]

    return jax.vmap(jax.jacrev(losses), in_axes=(None, 0))


def _layer_names(tree: PyTree, keep: list[bool]) -> tuple[str, ...]:
    """For each leaf that is kept, the layer it belongs to."""
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]

    def name(path: Any) -> str:
        return jax.tree_util.keystr(path[:-1] if len(path) > 1 else path, simple=True, separator="/") or "parameters"

    return tuple(name(path) for path, kept in zip(paths, keep, strict=True) if kept)


@partial(jax.jit, static_argnames=("names", "same"))
def _similarities(
    left: list[jax.Array], right: list[jax.Array], names: tuple[str, ...], same: bool = True
) -> Similarities:
    """Pairs of M and N gradients in leaves (M, *shape) and (N, *shape); `same` when they are the same ones."""
    products = [_products(a, b) for a, b in zip(left, right, strict=True)]
    layers = {
        name: _similarity([each for each, of in zip(products, names, strict=True) if of == name], same)
        for name in dict.fromkeys(names)
    }
    return Similarities(_similarity(products, same), layers)


def _products(left: jax.Array, right: jax.Array) -> _Products:
    dtype = jnp.promote_types(left.dtype, jnp.float32)
    rows = [leaf.reshape(len(leaf), -1).astype(dtype) for leaf in (left, right)]
    peaks = [jnp.max(jnp.abs(each), axis=1, initial=0) for each in rows]
    units = [each / jnp.where(peak > 0, peak, 1)[:, None] for each, peak in zip(rows, peaks, strict=True)]
    signs = [jnp.sign(each) for each in rows]
    both, agreed = _dot(*map(jnp.abs, signs)), _dot(*signs)
    squares = [jnp.sum(jnp.square(unit), axis=1) for unit in units]
    pairs = list(zip(squares, peaks, strict=True))
    return _Products(_dot(*units), (both - agreed) / 2, pairs[0], pairs[1], rows[0].shape[1])


def _similarity(products: list[_Products], same: bool) -> Similarity:
    """Sums the products of some leaves, in units of each gradient's largest entry, so that nothing overflows."""

    def added(sides: list[tuple[jax.Array, jax.Array]]) -> tuple[jax.Array, jax.Array, list[jax.Array]]:
        peak = jnp.stack([each for _, each in sides]).max(axis=0)
        shares = [each / jnp.where(peak > 0, peak, 1) for _, each in sides]
        squares = sum(square * share**2 for (square, _), share in zip(sides, shares, strict=True))
        return jnp.sqrt(squares), peak, shares

    a_length, a_peak, a_shares = added([each.left for each in products])
    b_length, b_peak, b_shares = added([each.right for each in products])
    shares = zip(products, a_shares, b_shares, strict=True)
    dots = sum(each.dots * a[:, None] * b[None, :] for each, a, b in shares)
    present = (a_length > 0)[:, None] & (b_length > 0)[None, :]
    lengths = jnp.where(present, a_length[:, None] * b_length[None, :], 1)
    cosine = jnp.where(present, jnp.clip(dots / lengths, -1, 1), 0)
    # The ratio of the lengths, at most 1 either way round.
    peak = jnp.maximum(a_peak[:, None], b_peak[None, :])
    scale = jnp.where(peak > 0, peak, 1)
    a, b = (a_peak[:, None] / scale) * a_length[:, None], (b_peak[None, :] / scale) * b_length[None, :]
    longest = jnp.maximum(a, b)
    ratio = jnp.where(present, jnp.minimum(a, b) / jnp.where(longest > 0, longest, 1), 0)
    size = sum(each.size for each in products)
    clashes = sum(each.clashes for each in products) / max(size, 1)
    if same:
        itself = jnp.eye(len(a_length), dtype=bool) & present
        cosine, ratio = jnp.where(itself, 1, cosine), jnp.where(itself, 1, ratio)
        cosine = (cosine + cosine.T) / 2
    return Similarity(cosine, 2 * ratio / (1 + ratio**2), jnp.asarray(clashes), present)


def _dot(left: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.matmul(left, right.T, precision=lax.Precision.HIGHEST)
