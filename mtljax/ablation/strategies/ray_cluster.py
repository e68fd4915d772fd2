"""Cells on a Ray cluster."""

import contextlib
import importlib
import logging
import os
import re
import socket
import warnings
from collections.abc import Generator, Iterator, Sequence
from typing import Any

from mtljax.ablation.cell import Cell, Context, Record, StudyInterruptedError, run_in
from mtljax.ablation.strategies.dispatch import WorkerLostError, Workers, dispatch, jax_options, use_jax_options
from mtljax.training.probing import Probe

_OBJECT_STORE_BYTES = 200_000_000  # records are small
_REACH_SECONDS = 5


class _Runner:
    """An actor: a process of the cluster that runs cells."""

    def __init__(self, options: dict[str, Any], probe: Probe | None) -> None:
        use_jax_options(options)
        self.context = Context(probe=probe)

    def run(self, cell: Cell) -> Record:
        return run_in(cell, self.context)


def ray_cluster(cells: Sequence[Cell], context: Context) -> Generator[Record, None, None]:
    """Runs cells on a Ray cluster, each on one CPU, and on one GPU where the cluster has some.

    The cluster is that of the environment variable RAY_ADDRESS ("auto" for one that runs on this machine), or that of a
    `ray.init` before; without either one is started on this machine, and stopped at the end. On a cluster of several
    machines each needs this package and the data.

    Args:
      cells: what to run.
      context: what to report to; `jobs` is the number of cells at once, by default as many as the cluster has GPUs, or
        CPUs.

    Yields:
      The record of each cell.

    Raises:
      ValueError: if Ray is not installed, or no cluster answers at RAY_ADDRESS.
      StudyInterruptedError: on SIGTERM or Ctrl-C.
    """
    ray = _import_ray()
    with _cluster(ray, context.jobs):
        resources = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0))
        jobs = min(context.jobs or gpus or int(resources.get("CPU", 1)), len(cells))
        actor = ray.remote(num_cpus=1, num_gpus=1 if gpus else 0)(_Runner)
        running: dict[Any, Any] = {}  # by actor, what it will return

        def send(worker: Any, cell: Cell) -> None:
            running[worker] = worker.run.remote(cell)

        def replies(workers: Sequence[Any], seconds: float) -> list[tuple[Any, Record | BaseException]]:
            by_reference = {running[worker]: worker for worker in workers}
            ready, _ = ray.wait(list(by_reference), timeout=seconds)
            return [(by_reference[reference], _reply(ray, reference)) for reference in ready]

        workers = Workers(lambda: actor.remote(jax_options(), context.probe), send, replies, ray.kill)
        yield from dispatch(cells, jobs, workers, context)


def _reply(ray: Any, reference: Any) -> Record | BaseException:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:  # raised by the cell itself
        cause = getattr(error, "cause", None)
        if isinstance(cause, StudyInterruptedError):
            return WorkerLostError(f"its Ray worker was ended by {cause}")
        return cause if isinstance(cause, Exception) else error
    except ray.exceptions.RayError as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        return WorkerLostError(f"its Ray worker died ({first}), as it does when memory runs out")


def _import_ray() -> Any:
    address = os.environ.get("RAY_ADDRESS")
    if address is None:
        # On any system this makes a cluster that is started here listen on the loopback interface alone. Ray reads it
        # when it is imported, so a dead address must be told before.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    elif match := re.fullmatch(r"(?:ray://)?([^:/]+):(\d+)", address):
        try:  # where nothing listens Ray itself would try for minutes
            socket.create_connection((match[1], int(match[2])), _REACH_SECONDS).close()
        except OSError as error:
            raise _unreachable(address) from error
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else Ray sends statistics
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise ValueError('strategy "ray" needs Ray: install it with pip install "mtljax[ray]"') from error


def _unreachable(address: str | None) -> ValueError:
    return ValueError(
        f"RAY_ADDRESS={address}: no Ray cluster answers there; start one with ray start --head, or unset it to "
        "start one for this study"
    )


@contextlib.contextmanager
def _cluster(ray: Any, jobs: int | None) -> Iterator[None]:
    """Connects to a cluster, or starts one; what was connected or started here ends here."""
    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    start = {"num_cpus": jobs, "include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES}
    try:
        with warnings.catch_warnings():
            # Ray forks only to execute its own programs at once.
            warnings.filterwarnings("ignore", "os.fork|.*fork\\(\\) may lead to deadlocks")
            ray.init(
                address=address or "local",
                log_to_driver=False,
                logging_level=logging.ERROR,
                **({} if address else start),
            )
    except OSError as error:
        raise _unreachable(address) from error
    try:
        yield
    finally:
        ray.shutdown()
