"""Starting a run from the command line: joining other processes, and saying how gradients are computed."""

import argparse
import contextlib
import logging
from collections.abc import Callable, Iterator

import jax

from mtljax import methods
from mtljax.training import processes


def distributed_flags(options: argparse.Namespace) -> list[str]:
    """The options with which every process of a run is started."""
    if options.distributed is None:
        return []
    flags = ["--distributed" + (f"={options.distributed}" if options.distributed else "")]
    if options.num_processes is not None:
        flags.append(f"--num_processes={options.num_processes}")
    if options.process_id is not None:
        flags.append(f"--process_id={options.process_id}")
    return flags


@contextlib.contextmanager
def several_processes(options: argparse.Namespace, message: str) -> Iterator[None]:
    """Joins the other processes, if there are any; when one is lost, this one ends with a sentence."""
    if options.distributed is None:
        if options.num_processes is not None or options.process_id is not None:
            raise ValueError("--num_processes and --process_id go with --distributed=HOST:PORT")
        yield
        return
    processes.join(options.distributed or None, options.num_processes, options.process_id)
    sentence = f"mtljax: process {processes.index()}: {message}"
    processes.say_before_abort(sentence)
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):  # memory, not a neighbour
            raise
        processes.leave(f"{sentence} ({str(error).splitlines()[0]})")


@contextlib.contextmanager
def engine_line(method: str, line: Callable[[str], None]) -> Iterator[None]:
    """Shows, once, how the step computes the gradients of a method that needs one a task."""
    shown: set[str] = set()

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = record.getMessage()
            if text not in shown:
                shown.add(text)
                line(text)

    log, handler = logging.getLogger("mtljax"), Lines()
    if methods.describe(method).needs not in ("gramian", "jacobian"):
        yield
        return
    level, propagate = log.level, log.propagate
    log.setLevel(logging.INFO)
    log.propagate = False
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        log.propagate = propagate
