"""Cells in several processes of one machine."""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import pickle
import signal
import sys
from collections.abc import Generator, Sequence
from typing import Any

from mtljax.ablation.cell import Cell, Context, Record, StudyInterruptedError, run_in
from mtljax.ablation.strategies.dispatch import WorkerLostError, Workers, dispatch, jax_options, use_jax_options
from mtljax.training.probing import Probe

_PATIENCE_SECONDS = 10  # how long a worker that is asked to end may take


class _Worker:
    """A process that runs the cells sent to it until its pipe is closed."""

    def __init__(self, probe: Probe | None) -> None:
        spawn = multiprocessing.get_context("spawn")  # a fork of a process that has used jax hangs
        self.connection, theirs = spawn.Pipe()
        self.process = spawn.Process(target=_work, args=(theirs, jax_options(), probe), daemon=True)
        self.process.start()
        theirs.close()  # so that the pipe ends when the process does
        self.ready = False


def processes(cells: Sequence[Cell], context: Context) -> Generator[Record, None, None]:
    """Runs cells in several processes of this machine, which share the compilation cache on disk if there is one.

    A process that dies fails its cell, and another takes its place.

    Args:
      cells: what to run.
      context: what to report to; `jobs` is the number of processes, by default that of the cores.

    Yields:
      The record of each cell.

    Raises:
      StudyInterruptedError: on SIGTERM or Ctrl-C, after all processes were stopped.
      ChildProcessError: if the processes cannot start.
    """
    jobs = min(context.jobs or cores(), len(cells))
    workers = Workers(lambda: _Worker(context.probe), _send, _replies, _stop)
    yield from dispatch(cells, jobs, workers, context)


def cores() -> int:
    """How many cores this process may use; all of the machine where the system does not tell."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _send(worker: _Worker, cell: Cell) -> None:
    with contextlib.suppress(OSError):  # it died while it was idle: the end of its pipe is its reply
        worker.connection.send(cell)


def _replies(workers: Sequence[_Worker], seconds: float) -> list[tuple[_Worker, Record | BaseException]]:
    connections: list[Any] = [worker.connection for worker in workers]
    ready = multiprocessing.connection.wait(connections, seconds)
    replies = []
    for worker in workers:
        if worker.connection not in ready:
            continue
        try:
            reply = worker.connection.recv()
        except (EOFError, OSError):
            worker.process.join(_PATIENCE_SECONDS)
            reply = _exit_error(worker)
        if reply is None:
            worker.ready = True
        else:
            replies.append((worker, reply))
    return replies


def _exit_error(worker: _Worker) -> Exception:
    code = worker.process.exitcode or 0
    if not worker.ready:
        return ChildProcessError(
            f"a worker process could not start (exit status {code}; its own error is above): a script that runs a "
            'study must do so under if __name__ == "__main__"'
        )
    if code == -signal.SIGKILL:
        return WorkerLostError(
            "its process was killed (SIGKILL), which the system does when memory runs out: fewer --jobs or a smaller "
            "batch_size need less"
        )
    cause = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit status {code}"
    return WorkerLostError(f"its process was ended {cause}")


def _stop(worker: _Worker) -> None:
    worker.process.terminate()
    worker.process.join(_PATIENCE_SECONDS)
    if worker.process.exitcode is None:
        worker.process.kill()
        worker.process.join()
    worker.connection.close()
    worker.process.close()


def _work(connection: Any, options: dict[str, Any], probe: Probe | None) -> None:
    """What a process does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to all; the parent decides
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # several may share a GPU
    use_jax_options(options)
    context = Context(probe=probe)
    try:
        connection.send(None)
        while True:
            connection.send(_reply(connection.recv(), context))
    except (EOFError, OSError):
        return  # the parent is gone, or done


def _reply(cell: Cell, context: Context) -> Record | Exception:
    try:
        return run_in(cell, context)
    except StudyInterruptedError as interrupted:
        sys.exit(128 + signal.Signals[str(interrupted)])
    except Exception as error:
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            return RuntimeError(f"{type(error).__name__}: {error}")
        return error
