"""Which engine computes the gradients, and why."""

import os
from collections.abc import Sequence
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
      repeated: paths of parameters that enter one alike product a task: of a trunk that is run anew for every task.
    """

    mode: str
    reason: str
    jacobian_bytes: int
    passes: Passes
    repeated: tuple[str, ...] = ()


def choose(
    mode: str,
    *,
    num_tasks: int,
    shared_bytes: int,
    convolutions: bool,
    custom_vjp: bool = False,
    scatter: bool = False,
    repeated: tuple[str, ...] = (),
) -> Choice:
    """Resolves "auto".

    Args:
      mode: as asked for.
      num_tasks: K.
      shared_bytes: size of the shared parameters.
      convolutions: whether the losses contain convolutions.
      custom_vjp: whether they contain a jax.custom_vjp, which "two_pass" cannot run.
      scatter: whether devices are to share the Jacobian; "auto" is then no mode without one.
      repeated: paths of parameters that enter one alike product a task.

    Returns:
      The mode: the fastest that was measured for this backend (docs/performance.md), unless the Jacobian would take
      more than a quarter of the memory and the losses can do without one.

    Raises:
      ValueError: for "two_pass" where the losses contain a jax.custom_vjp.
    """
    if mode == "two_pass" and custom_vjp:
        raise ValueError(
            'mode="two_pass" pushes gradients forward through the losses, which a jax.custom_vjp in them forbids: use '
            'mode="loop" or "jacrev", or give that function a jax.custom_jvp rule'
        )
    size, backend, memory = num_tasks * shared_bytes, jax.default_backend(), device_memory()
    reason = "asked for"
    if mode == "auto" and not scatter and memory is not None and size > memory / 4:
        large = f"the Jacobian takes more than a quarter of the {_amount(memory)} of memory"
        mode, reason = "two_pass", large
        if custom_vjp:
            mode, reason = "loop", f'{large}, but a jax.custom_vjp in the losses rules out "two_pass"'
    elif mode == "auto" and backend != "cpu":
        mode, reason = "jacrev", f"one vectorised backward pass keeps a {backend} busy"
    elif mode == "auto":
        mode = "loop"
        reason = "convolutions under vmap are slow on a CPU" if convolutions else "on a CPU unrolled passes are fastest"
    # A loop of "two_pass" keeps its gradients apart; written out, some compilers overlap them.
    in_loops = backend != "cpu" or (mode == "two_pass" and not convolutions)
    mapped = mode == "jacrev" or (mode != "loop" and in_loops)
    return Choice(mode, reason, size, "mapped" if mapped else "unrolled", repeated)


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


def sentence(choice: Choice, num_tasks: int) -> str:
    """The choice in one line."""
    size = _amount(choice.jacobian_bytes)
    line = f"mode {choice.mode}: {choice.reason}; {num_tasks} tasks, a Jacobian of {size}"
    if not choice.repeated:
        return line
    return (
        f"{line}; {listed(choice.repeated)} enter one alike product for each task: if the tasks read the same inputs, "
        "run the shared part once and hand its output to every head, which saves up to K times the work"
    )


def listed(paths: Sequence[str], most: int = 4) -> str:
    """The first few of many paths."""
    more = f" and {len(paths) - most} more" if len(paths) > most else ""
    return ", ".join(paths[:most]) + more


def _amount(size: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} GiB"
