"""The train step on several local devices: pmap over a batch that is split evenly."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
from flax import jax_utils

PyTree = Any
Device: TypeAlias = Any  # jax.Device, which the type checker does not see as a class
AXIS = "devices"


def local_devices(count: int, batch_size: int) -> list[Device]:
    """The devices of a run.

    Args:
      count: how many, 0 for all local ones.
      batch_size: examples a step over all devices.

    Returns:
      The devices.

    Raises:
      ValueError: if there are fewer, or the batch cannot be split evenly.
    """
    available = jax.local_devices()
    if count > len(available):
        raise ValueError(f"devices={count}, but there are {len(available)} local devices")
    devices = available[: count or None]
    if batch_size % len(devices):
        lower = batch_size // len(devices) * len(devices)
        raise ValueError(
            f"batch_size={batch_size} is not divisible by {len(devices)} devices: use {lower or len(devices)} or "
            f"{lower + len(devices)}, or devices=1"
        )
    return devices


def compile_advance(advance: Callable[..., Any], devices: list[Device]) -> Callable[..., Any]:
    """Compiles `advance(state, split, permutation) -> (state, metrics)`, donating the state.

    Args:
      advance: the function of one device; with several devices it runs inside an axis named `AXIS`.
      devices: where to run.

    Returns:
      The compiled function. With several devices all arguments and results have a leading device axis.
    """
    if len(devices) == 1:
        return jax.jit(advance, donate_argnums=0)
    return jax.pmap(advance, axis_name=AXIS, devices=devices, donate_argnums=0)


def place(tree: PyTree, devices: list[Device]) -> PyTree:
    """Puts host arrays on the devices, a copy on each."""
    if len(devices) == 1:
        return jax.device_put(tree, devices[0])
    return jax_utils.replicate(tree, devices)


def fetch(tree: PyTree, devices: list[Device]) -> PyTree:
    """One device's copy of a placed tree, as arrays of their own that outlive donation."""
    if len(devices) > 1:
        tree = jax_utils.unreplicate(tree)
    return jax.tree.map(lambda leaf: leaf.copy(), tree)
