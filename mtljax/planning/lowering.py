"""A program traced and lowered for devices that are not there, without their compiler."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax import export
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from mtljax.planning.targets import Target

PyTree = Any


def abstract_mesh(mesh: Mapping[str, int]) -> AbstractMesh:
    """The mesh of a program that is compiled for devices that are not there."""
    return AbstractMesh(tuple(mesh.values()), tuple(mesh), axis_types=(AxisType.Auto,) * len(mesh))


def mesh_sides(target: Target, mesh: Mapping[str, int] | None, laid_out: bool) -> dict[str, int]:
    """The sides of the mesh, none for a program of one device.

    Raises:
      ValueError: if it has not as many places as the target devices.
    """
    if mesh is None:
        return {"devices": target.devices} if laid_out else {}
    count = 1
    for size in mesh.values():
        count *= size
    if count != target.devices:
        written = " x ".join(f"{name}={size}" for name, size in mesh.items())
        raise ValueError(f"the mesh {written} has {count} places, but {target.name} has {target.devices} devices")
    return dict(mesh)


def export_flat(
    fn: Callable[..., PyTree],
    args: tuple[PyTree, ...],
    platform: str,
    sides: dict[str, int],
    specs: Sequence[PyTree] | None,
    out_specs: PyTree,
    donate: tuple[int, ...],
) -> tuple[export.Exported, tuple[int, ...]]:
    """The program, of flat arguments, and which of these are donated; see `compiler.compile_for`.

    Raises:
      ValueError: if there are not as many specs as arguments.
    """
    if specs is not None and len(specs) != len(args):
        raise ValueError(
            f"specs has {len(specs)} entries for {len(args)} arguments: one for each, None for a whole copy"
        )
    leaves, structure = jax.tree.flatten(jax.eval_shape(lambda *values: values, *args))
    owners = [i for i, arg in enumerate(args) for _ in jax.tree.leaves(arg)]
    donated = tuple(i for i, owner in enumerate(owners) if owner in donate)
    # Of one device, the program has no mesh at all.
    place = (lambda spec: NamedSharding(abstract_mesh(sides), spec)) if sides else (lambda spec: None)
    layout = spread(tuple(specs) if specs is not None else PartitionSpec(), args)
    shapes = [
        jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place(spec), weak_type=leaf.weak_type)
        for leaf, spec in zip(leaves, layout, strict=True)
    ]

    def flat(*values: jax.Array) -> list[jax.Array]:
        return jax.tree.leaves(fn(*jax.tree.unflatten(structure, values)))

    outputs = None
    if out_specs is not None:
        results = jax.eval_shape(fn, *jax.tree.unflatten(structure, shapes))
        outputs = [place(spec) for spec in spread(out_specs, results)]
    jitted = jax.jit(flat, donate_argnums=donated, out_shardings=outputs)
    return export.export(jitted, platforms=[platform])(*shapes), donated


def spread(specs: PyTree, tree: PyTree) -> list[PartitionSpec]:
    """A spec for each leaf, from a prefix of the tree; None is a whole copy."""

    def is_spec(node: Any) -> bool:
        return node is None or isinstance(node, PartitionSpec)

    spread = jax.tree.map(
        lambda spec, below: [spec or PartitionSpec()] * len(jax.tree.leaves(below)), specs, tree, is_leaf=is_spec
    )
    return jax.tree.leaves(spread, is_leaf=is_spec)
