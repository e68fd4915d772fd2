"""Several processes that train one network: joining, what only the first does, and what all agree on.

Everything here is nothing at all when one process trains alone.
"""

import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from mtljax.training.config import TrainConfig, differences, to_dict

PyTree = Any
Result = TypeVar("Result")
HEARTBEAT_SECONDS = 30  # after this silence a process counts as dead, and the others stop
SHUTDOWN_SECONDS = 20  # how long a process that ends waits for the others
_handlers: list[Any] = []  # C holds a pointer to them


class StoppedElsewhereError(RuntimeError):
    """The first process met an error, which it reports; this one stops too."""


def join(address: str | None = None, count: int | None = None, index: int | None = None) -> None:
    """Joins the other processes of a run; called before anything is computed.

    Args:
      address: host and port of the first process, "10.0.0.1:1234"; None finds all three from the environment, on a TPU
        pod or under SLURM.
      count: number of processes.
      index: which of them this is, from 0.

    Raises:
      ValueError: if the arguments do not fit together, or the environment does not tell.
      RuntimeError: if the others cannot be reached.
    """
    given = [argument is not None for argument in (address, count, index)]
    if any(given) and not all(given):
        raise ValueError(
            "several processes need all of --distributed=HOST:PORT, --num_processes=N and --process_id=I, or "
            "--distributed alone, where a TPU pod or SLURM tells"
        )
    if address is not None and not address.rpartition(":")[2].isdigit():
        raise ValueError(f"--distributed={address}: expected HOST:PORT of the first process, such as 10.0.0.1:1234")
    if count is not None and index is not None and not 0 <= index < count:
        raise ValueError(f"--process_id={index} is not one of 0 to {count - 1}, as --num_processes={count} says")
    jax.config.update("jax_enable_preemption_service", False)  # it takes SIGTERM, which the loop listens to itself
    try:
        jax.distributed.initialize(
            address,
            count,
            index,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
        )
    except ValueError as error:
        raise ValueError(
            f"--distributed finds neither a TPU pod nor SLURM here ({error}): start every process with "
            "--distributed=HOST:PORT --num_processes=N --process_id=I"
        ) from error


def say_before_abort(sentence: str) -> None:
    """Ends an abort of this process with a sentence on standard error and exit status 1.

    When a process dies, the runtime of the others notices first and aborts them in a thread of its own, where neither
    an exception nor a Python signal handler gets to run: this one is called by abort() itself.
    """

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def on_abort(number: int) -> None:
        del number
        leave(sentence)

    _handlers.append(on_abort)
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = [ctypes.c_int, type(on_abort)], ctypes.c_void_p
    libc.signal(signal.SIGABRT, on_abort)


def leave(sentence: str, status: int = 1) -> NoReturn:
    """Ends this process at once: an ordinary exit would wait for the others, of whom one is dead."""
    os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"\n{sentence}\n".encode())
    os._exit(status)


def joined() -> bool:
    """Whether this process is one of several."""
    return jax.distributed.is_initialized()


def index() -> int:
    """Which process this is, from 0."""
    return jax.process_index()


def alone() -> bool:
    """Whether one process trains by itself."""
    return jax.process_count() == 1


def is_main() -> bool:
    """Whether this process writes the log and the checkpoints."""
    return jax.process_index() == 0


def from_main(tree: PyTree) -> PyTree:
    """The first process's values of a tree of arrays or numbers, on every process, bit for bit.

    Args:
      tree: of the same structure, shapes and dtypes everywhere.

    Returns:
      A tree of host arrays; the tree itself when one process is alone.
    """
    if alone():
        return tree
    leaves, treedef = jax.tree.flatten(jax.tree.map(np.asarray, tree))
    # As integers: adding zeros, which is how a broadcast is made, would turn -0.0 into 0.0.
    data = b"".join(leaf.tobytes() for leaf in leaves)
    received = _broadcast(data).tobytes()
    arrays, start = [], 0
    for leaf in leaves:
        stop = start + leaf.nbytes
        arrays.append(np.frombuffer(received[start:stop], leaf.dtype).reshape(leaf.shape).copy())
        start = stop
    return jax.tree.unflatten(treedef, arrays)


def text_from_main(text: str) -> str:
    """The first process's text, on every process."""
    if alone():
        return text
    data = text.encode() if is_main() else b""
    size = int(from_main(np.asarray(len(data))))
    return _broadcast(data.ljust(size, b"\0")).tobytes()[:size].decode()


def first(action: Callable[[], Result]) -> Result | None:
    """Runs an action in the first process alone; when it fails there, all processes stop.

    Args:
      action: what to do.

    Returns:
      Its result in the first process, None in the others.

    Raises:
      Exception: what the action raises, in the first process.
      StoppedElsewhereError: in the others.
    """
    if alone():
        return action()
    result, failure = None, None
    if is_main():
        try:
            result = action()
        except Exception as error:
            failure = error
    if largest(failure is not None):
        raise failure or StoppedElsewhereError("the first process cannot go on, and says why")
    return result


def largest(value: int) -> int:
    """The largest of the values of all processes, which must ask together."""
    return int(value) if alone() else int(np.max(multihost_utils.process_allgather(np.asarray(value, np.int32))))


def _broadcast(data: bytes) -> np.ndarray:
    words = np.frombuffer(data.ljust(-(-len(data) // 4) * 4, b"\0"), np.uint32)
    return np.asarray(multihost_utils.broadcast_one_to_all(words))


def require_equal(config: TrainConfig) -> None:
    """Processes that were started with different configs would train nonsense together, or wait for ever.

    Raises:
      ValueError: on a process whose config is not that of the first, with what differs.
      StoppedElsewhereError: on the others.
    """
    if alone():
        return
    own = json.loads(json.dumps(to_dict(config)))
    changed = differences(json.loads(text_from_main(json.dumps(own))), own)
    if largest(bool(changed)):
        if changed:
            raise ValueError(f"the first process runs another config: it differs in {', '.join(changed)}")
        raise StoppedElsewhereError("another process runs another config, and says what differs")


def agreed(request: list[str], together: bool) -> str | None:
    """The signal that asks the run to stop; of several processes any, between the steps at which all look."""
    if alone():
        return request[0] if request else None
    number = largest(signal.Signals[request[0]] if request else 0) if together else 0
    return signal.Signals(number).name if number else None
