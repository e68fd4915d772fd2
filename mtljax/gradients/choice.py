"""Which engine computes the gradients, and why."""

import os
from typing import Any, Literal, NamedTuple, TypeAlias

import jax

Passes: TypeAlias = Literal["mapped", "unrolled"]
Mode: TypeAlias = Literal["auto", "jacrev", "loop", "two_pass", "features"]

MODES = ("auto", "jacrev", "loop", "two_pass", "features")


class Choice(NamedTuple):
    """An engine and the reason.

    Attributes:
      mode: one of `MODES` but "auto".
      reason: why, in words.
      jacobian_bytes: size of the K x P Jacobian over the shared parameters.
      passes: how K backward passes are made, "mapped" under vmap or "unrolled".
    """

    mode: str
    reason: str
    jacobian_bytes: int
    passes: Passes


def choose(mode: str, *, num_tasks: int, shared_bytes: int, convolutions: bool, scatter: bool = False) -> Choice:
    """Resolves "auto".

    Args:
      mode: as asked for.
      num_tasks: K.
      shared_bytes: size of the shared parameters.
      convolutions: whether the losses contain convolutions.
      scatter: whether devices are to share the Jacobian; "auto" is then no mode without one.

    Returns:
      The mode: the fastest that was measured for this backend (docs/performance.md), unless the Jacobian would take
      more than a quarter of the memory.
    """
    size, backend, memory = num_tasks * shared_bytes, jax.default_backend(), device_memory()
    reason = "asked for"
    if mode == "auto" and not scatter and memory is not None and size > memory / 4:
        mode = "two_pass"
        reason = f"the Jacobian takes more than a quarter of the {_amount(memory)} of memory"
    elif mode == "auto" and backend != "cpu":
        mode, reason = "jacrev", f"one vectorised backward pass keeps a {backend} busy"
    elif mode == "auto":
        mode = "loop"
        reason = "convolutions under vmap are slow on a CPU" if convolutions else "on a CPU unrolled passes are fastest"
    # A loop of "two_pass" keeps its gradients apart; written out, some compilers overlap them.
    in_loops = backend != "cpu" or (mode == "two_pass" and not convolutions)
    mapped = mode == "jacrev" or (mode != "loop" and in_loops)
    return Choice(mode, reason, size, "mapped" if mapped else "unrolled")


def device_memory() -> int | None:
    """Bytes of the first device's memory, of this machine's on CPU; None when unknown."""
    device: Any = jax.local_devices()[0]
    if device.platform == "cpu":
        try:
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        except (AttributeError, ValueError, OSError):
            return None
    stats = device.memory_stats() or {}
    return stats.get("bytes_limit")


def contains_convolution(jaxpr: Any) -> bool:
    """Whether a jaxpr, or one inside it, convolves."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            return True
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns") and contains_convolution(inner):
                    return True
    return False


def sentence(choice: Choice, num_tasks: int) -> str:
    """The choice in one line."""
    size = _amount(choice.jacobian_bytes)
    return f"mode {choice.mode}: {choice.reason}; {num_tasks} tasks, a Jacobian of {size}"


def _amount(size: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} GiB"
