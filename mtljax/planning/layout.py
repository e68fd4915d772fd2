"""How the arguments of a step lie on several devices, which of them hold the batch, and how large they are."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import PartitionSpec

from mtljax.planning.lowering import spread

PyTree = Any


def find_batch(args: Sequence[PyTree], batch_argnums: Sequence[int], first: int) -> tuple[tuple[int, ...], int | None]:
    """Which arguments hold the batch, and its size; without a word all from `first` on, of a step none.

    Raises:
      ValueError: if an argument is not there, or those named differ in their first axes.
    """
    if any(not 0 <= i < len(args) for i in batch_argnums):
        raise ValueError(f"batch_argnums={tuple(batch_argnums)} for {len(args)} arguments, counted from 0")
    batched = tuple(batch_argnums) or (tuple(range(first, len(args))) if first else ())
    lengths = Counter(leaf.shape[0] for i in batched for leaf in jax.tree.leaves(args[i]) if leaf.ndim)
    if not lengths:
        return (), None
    if batch_argnums and len(lengths) > 1:
        raise ValueError(f"the arguments of batch_argnums have first axes {sorted(lengths)}: name those of one batch")
    return batched, max(lengths, key=lambda length: (lengths[length], length))


def lay_out(
    args: Sequence[PyTree],
    specs: Sequence[PyTree] | None,
    sides: Mapping[str, int],
    batched: Sequence[int],
    size: int | None,
) -> list[PyTree]:
    """How the arguments lie on several devices: as told, or the batch cut along the first side and all else whole.

    Raises:
      ValueError: if the specs do not fit the arguments or the mesh, or the batch cannot be cut.
    """
    if specs is not None:
        if len(specs) != len(args):
            raise ValueError(f"specs has {len(specs)} entries for {len(args)} arguments: one for each, None for whole")
        for spec in jax.tree.leaves(list(specs), is_leaf=_is_spec):
            unknown = [axis for axis in _axes(spec) if axis not in sides]
            if unknown:
                raise ValueError(f"specs name an axis {unknown[0]!r}, but the mesh has {', '.join(sides)}")
        return list(specs)
    first = next(iter(sides))
    if size is not None and size % sides[first]:
        count = sides[first]
        raise ValueError(f"a batch of {size} cannot be cut for {count} devices: use a multiple of {count}")

    def place(leaf: Any) -> PartitionSpec:
        return PartitionSpec(first) if leaf.ndim and leaf.shape[0] == size else PartitionSpec()

    return [jax.tree.map(place, arg) if i in batched else None for i, arg in enumerate(args)]


def resized(args: Sequence[PyTree], batched: Sequence[int], size: int | None, batch: int | None) -> tuple[PyTree, ...]:
    """The shapes of the arguments with another batch in the place of `size`."""

    def resize(leaf: Any) -> Any:
        holds = batch is not None and leaf.ndim and leaf.shape[0] == size
        return jax.ShapeDtypeStruct((batch, *leaf.shape[1:]), leaf.dtype) if holds else leaf

    return tuple(jax.tree.map(resize, arg) if i in batched else arg for i, arg in enumerate(args))


def device_bytes(tree: PyTree, spec: PyTree, sides: Mapping[str, int]) -> int:
    """Bytes that one device holds of a tree of shapes that lies on a mesh as its specs say."""
    total = 0
    for leaf, where in zip(jax.tree.leaves(tree), spread(spec, tree), strict=True):
        pieces = math.prod(sides[axis] for axis in _axes(where))
        total += math.prod(leaf.shape) * leaf.dtype.itemsize // pieces
    return total


def _is_spec(node: Any) -> bool:
    return node is None or isinstance(node, PartitionSpec)


def _axes(spec: PartitionSpec | None) -> list[str]:
    return [axis for entry in spec or () for axis in (entry if isinstance(entry, tuple) else (entry,)) if axis]


def like_params(states: PyTree, params: PyTree, spec: PyTree) -> PyTree:
    """Layouts of states: what is like params lies as they do, a gradient a task too; all else is whole."""
    if spec is None:
        return None
    structure, places = jax.tree.structure(params), spread(spec, params)
    shapes = [leaf.shape for leaf in jax.tree.leaves(params)]

    def layout(node: Any) -> Any:
        found = [leaf.shape for leaf in jax.tree.leaves(node)]
        if jax.tree.structure(node) != structure:
            return PartitionSpec()
        if found == shapes:
            return jax.tree.unflatten(structure, places)
        by_task = [shape[1:] for shape in found] == shapes
        rows = [PartitionSpec(None, *place) if by_task else PartitionSpec() for place in places]
        return jax.tree.unflatten(structure, rows)

    return jax.tree.map(layout, states, is_leaf=lambda node: jax.tree.structure(node) == structure)
