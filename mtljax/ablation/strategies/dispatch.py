"""Handing cells to workers, which may die."""

import time
from collections.abc import Callable, Generator, Hashable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax

from mtljax.ablation.cell import Cell, Context, Record, StudyInterruptedError, failed, head
from mtljax.ablation.strategies.grouping import by_structure
from mtljax.training.signals import stop_requests

Worker: TypeAlias = Any
_POLL_SECONDS = 0.2  # how soon a signal is seen
# What workers take over from the process that starts them.
_OPTIONS = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
    "jax_enable_x64",
    "jax_default_matmul_precision",
)


class WorkerLostError(RuntimeError):
    """A worker died; the message says how, and is the reason its cell failed."""


class Workers(NamedTuple):
    """Where cells can be sent: processes of this machine, or actors of a cluster.

    Attributes:
      start: makes a worker.
      send: `(worker, cell)`, gives a worker that has none a cell, without waiting.
      replies: `(workers, seconds) -> [(worker, reply)]` waits so long for one to be done; a reply is a record, or an
        error: WorkerLostError when the worker died.
      stop: ends a worker, busy or not.
    """

    start: Callable[[], Worker]
    send: Callable[[Worker, Cell], None]
    replies: Callable[[Sequence[Worker], float], list[tuple[Worker, Record | BaseException]]]
    stop: Callable[[Worker], None]


class _Task(NamedTuple):
    cell: Cell
    key: Hashable
    since: float


def dispatch(cells: Sequence[Cell], jobs: int, workers: Workers, context: Context) -> Generator[Record, None, None]:
    """Runs cells on workers; each stays with one structure as long as there are cells of it.

    Args:
      cells: what to run.
      jobs: how many workers, at least 1.
      workers: how to reach them.
      context: what to report to, and the data of cells whose worker died.

    Yields:
      The record of each cell.

    Raises:
      StudyInterruptedError: on SIGTERM or Ctrl-C, after all workers were stopped.
    """
    queues = by_structure(cells)
    busy: dict[Worker, _Task] = {}
    idle: list[tuple[Worker, Hashable]] = []
    with stop_requests() as request:
        try:
            while queues or busy:
                while queues and len(busy) < jobs and not request:
                    worker, own = idle.pop() if idle else (workers.start(), None)
                    key = _choose(queues, own, {task.key for task in busy.values()})
                    cell = queues[key].pop(0)
                    if not queues[key]:
                        del queues[key]
                    busy[worker] = _Task(cell, key, time.perf_counter())
                    context.progress.cell(cell.name)
                    workers.send(worker, cell)
                for worker, reply in workers.replies(list(busy), _POLL_SECONDS):
                    task = busy.pop(worker)
                    if isinstance(reply, WorkerLostError):
                        workers.stop(worker)
                        if not request:  # else it died of the signal that ends the study
                            seconds = time.perf_counter() - task.since
                            yield failed(head(task.cell, context.data(task.cell.config)), reply, seconds)
                    elif isinstance(reply, BaseException):
                        workers.stop(worker)
                        raise reply
                    else:
                        idle.append((worker, task.key))
                        yield reply
                if request and (queues or busy):
                    raise StudyInterruptedError(request[0])
        finally:
            for worker in [*busy, *(worker for worker, _ in idle)]:
                workers.stop(worker)


def jax_options() -> dict[str, Any]:
    """The settings of jax that a worker takes over: the compilation cache is shared."""
    return {name: getattr(jax.config, name) for name in _OPTIONS}


def use_jax_options(options: dict[str, Any]) -> None:
    """Applies `jax_options` in a worker."""
    for name, value in options.items():
        jax.config.update(name, value)


def _choose(queues: dict[Hashable, list[Cell]], own: Hashable, others: set[Hashable]) -> Hashable:
    """A structure to take the next cell of: the worker's own, one that nobody has begun, or the longest queue."""
    return own if own in queues else max(queues, key=lambda key: (key not in others, len(queues[key])))
