"""What a program will run on: the devices of this machine, or those it is being compiled for."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax


class Backend(NamedTuple):
    """A kind of device.

    Attributes:
      platform: "cpu", "gpu" or "tpu".
      memory: bytes of one device, None when unknown.
    """

    platform: str
    memory: int | None


_ASSUMED: ContextVar[Backend | None] = ContextVar("assumed_backend", default=None)


@contextmanager
def assumed(backend: Backend) -> Iterator[None]:
    """Inside, choices that depend on the device are made for this one; functions must be traced anew."""
    token = _ASSUMED.set(backend)
    try:
        yield
    finally:
        _ASSUMED.reset(token)


def is_assumed() -> bool:
    """Whether the program is for a machine that is not here, where no compiler takes calls back into Python."""
    return _ASSUMED.get() is not None


def platform() -> str:
    """The kind of device the traced program is for."""
    backend = _ASSUMED.get()
    return jax.default_backend() if backend is None else backend.platform


def device_memory() -> int | None:
    """Bytes of the first device's memory, of this machine's on CPU; None when unknown."""
    backend = _ASSUMED.get()
    if backend is not None:
        return backend.memory
    device: Any = jax.local_devices()[0]
    if device.platform == "cpu":
        try:
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        except (AttributeError, ValueError, OSError):
            return None
    stats = device.memory_stats() or {}
    return stats.get("bytes_limit")
