"""Which engine computes the gradients, and why."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

from mtljax.gradients.backend import device_memory, platform

Passes: TypeAlias = Literal["unrolled", "mapped", "looped"]
Mode: TypeAlias = Literal["auto", "jacrev", "loop", "two_pass", "features"]

MODES = ("auto", "jacrev", "loop", "two_pass", "features")

# Up to so many tasks, or operations in all, "jacrev" writes its backward passes out. By the compilers' estimates
# (docs/accelerators.md) that is the fastest form wherever it was tried, 40 tasks of an MLP included; but the program
# grows with K, and minutes to compile it with its operations. Beyond, passes are mapped or looped over.
MOST_WRITTEN_OUT, MOST_OPERATIONS = 10, 2000


class Choice(NamedTuple):
    """An engine and the reason.

    Attributes:
      mode: one of `MODES` but "auto".
      reason: why, in words.
      jacobian_bytes: size of the K x P Jacobian over the shared parameters.
      passes: how K backward passes are made: "unrolled", written out one by one; "mapped" under vmap; "looped", one by
        one in lax.map.
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
    operations: int | None = None,
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
      operations: of all K backward passes written out, about; None when unknown.

    Returns:
      The mode: the fastest that was measured on a CPU (docs/performance.md) or estimated for an accelerator
      (docs/accelerators.md), unless the Jacobian would take more than a quarter of the memory and the losses can do
      without one.

    Raises:
      ValueError: for "two_pass" where the losses contain a jax.custom_vjp.
    """
    if mode == "two_pass" and custom_vjp:
        raise ValueError(
            'mode="two_pass" pushes gradients forward through the losses, which a jax.custom_vjp in them forbids: use '
            'mode="loop" or "jacrev", or give that function a jax.custom_jvp rule'
        )
    size, backend, memory = num_tasks * shared_bytes, platform(), device_memory()
    reason = "asked for"
    if mode == "auto" and not scatter and memory is not None and size > memory / 4:
        large = f"the Jacobian takes more than a quarter of the {_amount(memory)} of memory"
        mode, reason = "two_pass", large
        if custom_vjp:
            mode, reason = "loop", f'{large}, but a jax.custom_vjp in the losses rules out "two_pass"'
    few = num_tasks <= MOST_WRITTEN_OUT or (operations is not None and operations <= MOST_OPERATIONS)
    if mode == "auto" and backend != "cpu" and not few:
        mode, reason = "jacrev", f"{num_tasks} backward passes of this network written out would compile for long"
    elif mode == "auto":
        mode = "loop"
        reason = "on a CPU unrolled passes are fastest"
        if backend != "cpu":
            reason = f"backward passes written out take a {backend} the least time, estimated from its compiler"
        elif convolutions:
            reason = "convolutions under vmap are slow on a CPU"
    # Those of "features" are short, and mapped each would run all K heads. On a CPU convolutions are slow in loops.
    written_out = mode in ("loop", "features") or (mode == "jacrev" and few)
    if written_out or (backend == "cpu" and convolutions):
        passes: Passes = "unrolled"
    else:  # vmap would fold K in front of the batch of a convolution, which loses its sharding and its layout
        passes = "looped" if convolutions or mode == "two_pass" else "mapped"
    return Choice(mode, reason, size, passes, repeated)


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
