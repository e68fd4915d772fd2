"""One run of a study: what it is, how it is run, and the record of what it found."""

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias, TypeVar

import jax
import numpy as np

from mtljax import data as data_sets
from mtljax.data import MultiTaskData
from mtljax.training.config import DataConfig, TrainConfig, to_dict
from mtljax.training.loop import Progress, Result, train
from mtljax.training.probing import Probe
from mtljax.training.program import Program, build_program, structure
from mtljax.training.records import NonFiniteLossError
from mtljax.training.workdir import environment

Record: TypeAlias = dict[str, Any]
Shared = TypeVar("Shared")
_DATA_SETS_KEPT = 3  # in memory at once
_NETWORKS_KEPT = 16  # as drawn, before training
_PROGRAMS_KEPT = 8  # cells come sorted by their program, so few are enough
OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"


class Cell(NamedTuple):
    """One run of a study.

    Attributes:
      name: unique, and a valid file name.
      kind: "multi", or "single" for one network of one task.
      method: label of the method, without the values that are chosen on validation.
      optimizer: label of the optimizer, likewise.
      config: the run.
      role: "method", "scalarization" for a point of the weight grid, or "single" for a single-task baseline.
      setting: `{field: value}` of what is chosen on validation.
      condition: `{field: value}` of the other axes.
    """

    name: str
    kind: str
    method: str
    optimizer: str
    config: TrainConfig
    role: str = "method"
    setting: Mapping[str, Any] = {}
    condition: Mapping[str, Any] = {}


class StudyInterruptedError(RuntimeError):
    """A signal ended a study; the message is the signal's name."""


class StudyProgress(NamedTuple):
    """What a study tells while it runs.

    Attributes:
      start: called once with (cells, records of those already finished).
      cell: called with the name of each cell that starts.
      finished: called with each new record.
      run: the progress of the runs themselves.
    """

    start: Callable[[int, list[Record]], None] = lambda total, done: None
    cell: Callable[[str], None] = lambda name: None
    finished: Callable[[Record], None] = lambda record: None
    run: Progress = Progress()


@dataclass(frozen=True)
class Context:
    """What the cells run by one process share: data, compiled programs, progress.

    Attributes:
      progress: how to report.
      jobs: how many cells may run at once, in the strategies that run several; None for the strategy's default.
      probe: what cells with `probe_every` measure.
    """

    progress: StudyProgress = field(default_factory=StudyProgress)
    jobs: int | None = None
    probe: Probe | None = None
    _data: dict[str, MultiTaskData] = field(default_factory=dict, repr=False)
    _tasks: dict[tuple[str, tuple[str, ...]], tuple[str, ...]] = field(default_factory=dict, repr=False)
    _networks: dict[str, Any] = field(default_factory=dict, repr=False)
    _programs: dict[str, Program] = field(default_factory=dict, repr=False)

    def data(self, config: TrainConfig) -> MultiTaskData:
        """The data of a run, restricted to its tasks."""
        source = config.data
        data = _shared(self._data, _DATA_SETS_KEPT, _key(source), lambda: data_sets.load(source.name, **source.options))
        return data.select(config.tasks) if config.tasks else data

    def tasks(self, config: TrainConfig) -> tuple[str, ...]:
        """The names of its tasks, sorted."""
        key = _key(config.data), config.tasks
        if key not in self._tasks:
            self._tasks[key] = tuple(sorted(self.data(config).tasks))
        return self._tasks[key]

    def program(self, config: TrainConfig) -> Program:
        """The compiled functions of a run, shared by all runs of one `structure`."""
        return _shared(self._programs, _PROGRAMS_KEPT, structure(config), lambda: self._build(config))

    def _build(self, config: TrainConfig) -> Program:
        """A program that starts runs of one seed with copies of one network, since drawing it takes its time."""
        program = build_program(config, self.data(config))
        network = repr((config.data, config.tasks, config.model))

        def draw(seed: int) -> Any:
            key = f"{network} {seed}"
            return jax.tree.map(np.copy, _shared(self._networks, _NETWORKS_KEPT, key, lambda: program.draw(seed)))

        return program._replace(draw=draw)


def _key(source: DataConfig) -> str:
    return json.dumps([source.name, source.options], sort_keys=True)


def _shared(kept: dict[str, Shared], most: int, key: str, make: Callable[[], Shared]) -> Shared:
    """What is kept under a key, made if it is not there; the oldest goes where there is too much."""
    if key not in kept:
        made = make()
        while len(kept) >= most:
            kept.pop(next(iter(kept)))
        kept[key] = made
    return kept[key]


def run_in(cell: Cell, context: Context) -> Record:
    """Runs a cell with what its context shares; a program that cannot be built is a failure like any other."""
    data = context.data(cell.config)
    try:
        program = context.program(cell.config)
    except ValueError as error:
        return failed(head(cell, data), error, 0.0)
    return run_cell(cell, data, program, context.progress, context.probe)


def run_cell(
    cell: Cell, data: MultiTaskData, program: Program, progress: StudyProgress, probe: Probe | None = None
) -> Record:
    """Runs one cell.

    Args:
      cell: the cell.
      data: its data, restricted to its tasks.
      program: the compiled functions of its structure.
      progress: how to report.
      probe: what it measures, if its config says so.

    Returns:
      Its record, with `status` "finished", or "failed" and a `reason` when a loss became NaN, memory ran out or a
      value was refused.

    Raises:
      StudyInterruptedError: on SIGTERM or Ctrl-C.
    """
    progress.cell(cell.name)
    start = time.perf_counter()
    try:
        result = train(cell.config, data=data, program=program, progress=progress.run, probe=probe)
    except FAILURES as error:
        if not is_failure(error):
            raise
        return failed(head(cell, data), error, time.perf_counter() - start)
    if result.interrupted:
        raise StudyInterruptedError(result.interrupted)
    return finished(head(cell, data), result, program.steps_per_epoch, time.perf_counter() - start)


FAILURES = (NonFiniteLossError, ValueError, MemoryError, jax.errors.JaxRuntimeError)


def is_failure(error: BaseException) -> bool:
    """Whether an error is one cell's own, so that the grid goes on; of the runtime's only lack of memory is."""
    return is_memory(error) or (isinstance(error, FAILURES) and not isinstance(error, jax.errors.JaxRuntimeError))


def is_memory(error: BaseException) -> bool:
    """Whether memory ran out, of the host or of the device."""
    return isinstance(error, MemoryError) or (
        isinstance(error, jax.errors.JaxRuntimeError) and OUT_OF_MEMORY in str(error)
    )


def head(cell: Cell, data: MultiTaskData) -> Record:
    """What is known of a cell before it runs: the part of its record that does not depend on the outcome."""
    return {
        "cell": cell.name,
        "kind": cell.kind,
        "role": cell.role,
        "method": cell.method,
        "optimizer": cell.optimizer,
        "setting": json.loads(json.dumps(cell.setting)),
        "condition": json.loads(json.dumps(cell.condition)),
        "seed": cell.config.seed,
        "tasks": sorted(data.tasks),
        "config": to_dict(cell.config),
        "metric_directions": {
            name: {metric.name: metric.higher_is_better for metric in task.metrics} for name, task in data.tasks.items()
        },
        "environment": environment(),
    }


def finished(head: Record, result: Result, steps_per_epoch: int, seconds: float) -> Record:
    """The record of a run that ended well.

    Args:
      head: see `head`.
      result: what the run found.
      steps_per_epoch: its updates an epoch.
      seconds: wall time of the cell.
    """
    per_step = result.seconds_per_step
    return head | {
        "status": "finished",
        "reason": None,
        "validation": result.validation,
        "test": result.test,
        "best_step": result.best_step,
        "steps": result.steps,
        "epochs": result.steps / steps_per_epoch,
        "seconds_per_step": None if math.isnan(per_step) else per_step,
        "seconds": seconds,
        "history": result.records,
    }


def failed(head: Record, error: BaseException, seconds: float) -> Record:
    """The record of a run that failed; its reason is one sentence."""
    reason = str(error) or type(error).__name__
    if is_memory(error):
        first = reason.splitlines()[0]
        reason = f"out of memory ({first}): a smaller batch_size, or accumulate=2, needs less"
    return head | {"status": "failed", "reason": reason, "seconds": seconds}
