"""How alike gradients are, in pairs: cosine, magnitude similarity and the share of coordinates with opposite signs."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mtljax.gradients import PyTree, TaskGradients
from mtljax.gradients.backend import platform

MEASURES = ("cosine", "magnitude", "sign_conflict")
_COLUMNS = 2**14  # of gradients at once on a CPU, so that what is made of them stays in its cache


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
    left: tuple[jax.Array, ...]  # squared lengths and peaks, (M,) each
    right: tuple[jax.Array, ...]
    size: int


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
    names = layer_names(jacobian, keep)
    leaves = [leaf for leaf, kept in zip(jax.tree.leaves(jacobian), keep, strict=True) if kept]
    return pairwise(leaves, leaves, names)


def spread(similarity: Similarity | Sequence[Similarity]) -> dict[str, Spread]:
    """Mean, standard deviation, 2.5 and 97.5 percentile of each measure over all pairs of different gradients.

    Args:
      similarity: one similarity, or those of several steps, which are put together.

    Returns:
      By measure: "cosine", "magnitude", "sign_conflict".

    Raises:
      ValueError: if it is given something else, such as both kinds or all layers together.
    """
    several = [similarity] if isinstance(similarity, Similarity) else list(similarity)
    if not all(isinstance(each, Similarity) for each in several):
        raise ValueError("spread takes the similarities of whole gradients or of a layer: result.between_tasks.whole")

    def spread_of(measure: str) -> Spread:
        parts = [np.zeros(0)]
        for each in several:
            values, present = np.asarray(getattr(each, measure), np.float64), np.asarray(each.present)
            upper = np.triu(np.ones(values.shape[-2:], bool), 1)
            parts.append(values[present & upper])
        return summed_up(np.concatenate(parts))

    return {measure: spread_of(measure) for measure in MEASURES}


def summed_up(values: np.ndarray) -> Spread:
    """The distribution of some values."""
    if not len(values):
        nan = float("nan")
        return Spread(nan, nan, nan, nan, 0)
    low, high = np.percentile(values, (2.5, 97.5))
    return Spread(float(values.mean()), float(values.std()), float(low), float(high), len(values))


def layer_names(tree: PyTree, keep: Sequence[bool]) -> tuple[str, ...]:
    """For each leaf that is kept, the layer it belongs to: its path without the last key."""
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]

    def name(path: Any) -> str:
        return jax.tree_util.keystr(path[:-1] if len(path) > 1 else path, simple=True, separator="/") or "parameters"

    return tuple(name(path) for path, kept in zip(paths, keep, strict=True) if kept)


@partial(jax.jit, static_argnames=("names", "same"))
def pairwise(left: list[jax.Array], right: list[jax.Array], names: tuple[str, ...], same: bool = True) -> Similarities:
    """Pairs of M and N gradients in leaves (M, *shape) and (N, *shape); `same` when they are the same ones."""
    products = [_products(a, b, same) for a, b in zip(left, right, strict=True)]
    layers = {
        name: _similarity([each for each, layer in zip(products, names, strict=True) if layer == name], same)
        for name in dict.fromkeys(names)
    }
    return Similarities(_similarity(products, same), layers)


def _products(left: jax.Array, right: jax.Array, same: bool) -> _Products:
    dtype = jnp.promote_types(left.dtype, jnp.float32)
    sides = [leaf.reshape(len(leaf), -1).astype(dtype) for leaf in ((left,) if same else (left, right))]
    peaks = [jnp.max(jnp.abs(side), axis=1, initial=0) for side in sides]

    def summed(*sides: jax.Array) -> tuple[jax.Array, jax.Array, list[jax.Array]]:
        units = [side / jnp.where(peak > 0, peak, 1)[:, None] for side, peak in zip(sides, peaks, strict=True)]
        above, below = (
            [sign.astype(dtype) for sign in signs] for signs in zip(*((s > 0, s < 0) for s in sides), strict=True)
        )
        clashes = _dot(above[0], below[-1])
        clashes += clashes.T if same else _dot(below[0], above[-1])
        return _dot(units[0], units[-1]), clashes, [jnp.sum(jnp.square(unit), axis=1) for unit in units]

    size = sides[0].shape[1]
    blocks = size // _COLUMNS if platform() == "cpu" else 0
    total = summed(*(side[:, blocks * _COLUMNS :] for side in sides))
    if blocks:

        def add(block: Any, total: Any) -> Any:
            columns = (lax.dynamic_slice_in_dim(side, block * _COLUMNS, _COLUMNS, axis=1) for side in sides)
            return jax.tree.map(jnp.add, total, summed(*columns))

        total = lax.fori_loop(0, blocks, add, total)
    dots, clashes, squares = total
    return _Products(dots, clashes, (squares[0], peaks[0]), (squares[-1], peaks[-1]), size)


def _similarity(products: list[_Products], same: bool) -> Similarity:
    """Sums the products of some leaves, in units of each gradient's largest entry, so that nothing overflows."""

    def added(sides: list[tuple[jax.Array, ...]]) -> tuple[jax.Array, jax.Array, list[jax.Array]]:
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
