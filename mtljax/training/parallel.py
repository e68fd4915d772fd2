"""The train step on several devices: pmap, or jit with shardings, on one host or on many."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import numpy as np
from flax import jax_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

PyTree = Any
Device: TypeAlias = Any  # jax.Device, which the type checker does not see as a class
Style: TypeAlias = Literal["pmap", "jit"]
AXIS = "devices"


class Devices(NamedTuple):
    """Where a run trains.

    Attributes:
      every: the devices of all processes; of those that are only planned for, their numbers.
      local: those of this process, none where they are only planned for.
      style: "pmap", one program a device with collectives over the axis `AXIS`; or "jit", one program over all, whose
        batch is sharded and in which the compiler places the collectives.
    """

    every: tuple[Device, ...]
    local: tuple[Device, ...]
    style: Style = "pmap"

    @property
    def axis_name(self) -> str | None:
        """The axis inside the step, None where there is one device or the compiler handles them."""
        return AXIS if len(self.every) > 1 and self.style == "pmap" else None

    @property
    def sharding(self) -> NamedSharding | None:
        """How a batch lies on the devices, None unless the compiler handles several."""
        if len(self.every) == 1 or self.style == "pmap":
            return None
        return NamedSharding(_mesh(self), PartitionSpec(AXIS))


def choose_devices(count: int, batch_size: int, style: Style = "pmap") -> Devices:
    """The devices of a run.

    Args:
      count: how many, 0 for all; with several processes always all.
      batch_size: examples a step over all devices.
      style: see `Devices`.

    Returns:
      The devices.

    Raises:
      ValueError: if there are fewer, or the batch cannot be split evenly.
    """
    available = jax.devices()
    if jax.process_count() > 1 and count not in (0, len(available)):
        raise ValueError(
            f"devices={count}, but {jax.process_count()} processes train together on all their "
            f"{len(available)} devices: use devices=0"
        )
    if count > len(available):
        raise ValueError(f"devices={count}, but there are {len(available)} local devices")
    every = tuple(available[: count or None])
    local = tuple(device for device in every if device.process_index == jax.process_index())
    _check_divisible(batch_size, len(every), ", or devices=1" if jax.process_count() == 1 else "")
    return Devices(every, local, style)


def planned_devices(count: int, batch_size: int, style: Style = "pmap") -> Devices:
    """Devices that are not there, for a program that is compiled elsewhere; errors as of `choose_devices`."""
    _check_divisible(batch_size, count)
    return Devices(tuple(range(count)), (), style)


def _check_divisible(batch_size: int, devices: int, otherwise: str = "") -> None:
    if batch_size % devices:
        lower = batch_size // devices * devices
        raise ValueError(
            f"batch_size={batch_size} is not divisible by {devices} devices: use {lower or devices} or "
            f"{lower + devices}{otherwise}"
        )


def compile_advance(advance: Callable[..., Any], devices: Devices) -> Callable[..., Any]:
    """Compiles `advance(state, split, permutation, solve) -> (state, metrics)`, donating the state.

    Args:
      advance: the function of one device, in an axis named `AXIS` with style "pmap"; or of all.
      devices: where to run.

    Returns:
      The compiled function of placed arguments; `solve` is static. For devices that are only planned for, a function to
      be compiled, whose arguments and results are whole on each.
    """
    if not devices.local:
        if devices.axis_name is None:
            return advance
        mesh, whole = _mesh(devices), PartitionSpec()

        def mapped(state: PyTree, split: PyTree, permutation: jax.Array, solve: bool | None) -> Any:
            def one(*placed: Any) -> Any:
                return advance(*placed, solve)

            run = jax.shard_map(one, mesh=mesh, in_specs=whole, out_specs=whole, check_vma=False)
            return run(state, split, permutation)

        return mapped
    if devices.sharding is not None:
        # Every device holds the whole state: left alone, the compiler might spread it.
        return jax.jit(advance, donate_argnums=0, static_argnums=3, out_shardings=_replicated(devices))
    if devices.axis_name is None:
        return jax.jit(advance, donate_argnums=0, static_argnums=3)
    every = list(devices.every)
    return jax.pmap(advance, axis_name=AXIS, devices=every, donate_argnums=0, static_broadcasted_argnums=3)


def place(tree: PyTree, devices: Devices) -> PyTree:
    """Puts host arrays on the devices, a copy on each; every process must hold the same."""
    if len(devices.every) == 1:
        return jax.device_put(tree, devices.every[0])
    if devices.style == "pmap":
        return jax_utils.replicate(tree, list(devices.local))

    def put(leaf: Any) -> jax.Array:
        # Not one device_put to all: across processes that would compare what they hold, the whole data set.
        copies = [jax.device_put(leaf, device) for device in devices.local]
        return jax.make_array_from_single_device_arrays(np.shape(leaf), _replicated(devices), copies)

    return jax.tree.map(put, tree)


def fetch(tree: PyTree, devices: Devices) -> PyTree:
    """This process's first copy of a placed tree, as arrays of their own that outlive donation."""
    if len(devices.every) == 1:
        return jax.tree.map(lambda leaf: leaf.copy(), tree)
    stacked = devices.style == "pmap"

    def first(leaf: jax.Array) -> jax.Array:
        data = leaf.addressable_shards[0].data
        return (data[0] if stacked else data).copy()

    return jax.tree.map(first, tree)


def _replicated(devices: Devices) -> NamedSharding:
    return NamedSharding(_mesh(devices), PartitionSpec())


def _mesh(devices: Devices) -> Any:
    if not devices.local:
        return AbstractMesh((len(devices.every),), (AXIS,), axis_types=(AxisType.Auto,))
    return Mesh(np.asarray(devices.every), (AXIS,))
