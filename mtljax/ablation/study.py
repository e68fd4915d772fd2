"""A study from its config to its records: what is missing runs, everything finished is kept."""

import contextlib
import dataclasses
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mtljax import models
from mtljax.ablation.cell import Cell, Context, Record, StudyInterruptedError, StudyProgress
from mtljax.ablation.grid import MOST_CELLS, StudyConfig, cells
from mtljax.ablation.store import check_study, locked, read_finished, write_record, write_study
from mtljax.ablation.strategies import STRATEGIES, Strategy, default
from mtljax.errors import unknown
from mtljax.training.config import MethodConfig, OptimizerConfig
from mtljax.training.optimizers import by_task, transformation
from mtljax.training.probing import Probe
from mtljax.training.program import loss_scales


class Plan(NamedTuple):
    """What there is to do.

    Attributes:
      cells: all cells of the study.
      done: records of those that are finished, or failed and not tried again, by name.
      left: the others.
      context: their data and programs.
    """

    cells: list[Cell]
    done: dict[str, Record]
    left: list[Cell]
    context: Context


def plan(
    study: StudyConfig,
    directory: str | Path,
    *,
    progress: StudyProgress | None = None,
    jobs: int | None = None,
    yes: bool = False,
    retry_failed: bool = False,
    probe: Probe | None = None,
) -> Plan:
    """Finds what a study has left to run, and checks what can be checked before anything runs; writes nothing.

    Args:
      study: the grid.
      directory: where finished records are found.
      progress: how to report; None is silent.
      jobs: how many cells may run at once, in the strategies that run several; None for their default.
      yes: whether more than 10,000 cells are meant.
      retry_failed: whether failed cells run again.
      probe: what cells with `probe_every` measure.

    Returns:
      The plan.

    Raises:
      ValueError: if the directory holds another study, or on a bad config.
    """
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}")
    context = Context(progress or StudyProgress(), jobs, probe)
    check_study(Path(directory), study)
    grid = cells(study, context.tasks, most=None if yes else MOST_CELLS)
    _check(grid, context)
    return _planned(grid, Path(directory), context, retry_failed)


def _planned(grid: list[Cell], directory: Path, context: Context, retry_failed: bool) -> Plan:
    done = read_finished(directory, grid, retry_failed=retry_failed)
    return Plan(grid, done, [cell for cell in grid if cell.name not in done], context)


def _check(grid: Sequence[Cell], context: Context) -> None:
    """Names, options and values that no cell could run with, found before the first does."""
    seen = set()

    def new(*parts: Any) -> bool:
        before, key = len(seen), repr(parts)
        seen.add(key)
        return len(seen) > before

    for cell in grid:
        config = cell.config
        if new(config.model):
            models.encoder(config.model.encoder, **config.model.options)
        data = (config.data, config.tasks)
        if new(data, config.loss_scales):
            loss_scales(config, context.tasks(config))
        if new(data, config.method):
            _check_chain(config.method, OptimizerConfig(), context.tasks(config))
        if new(config.optimizer):
            _check_chain(MethodConfig("ew"), config.optimizer, ("task",))


def _check_chain(method: MethodConfig, optimizer: OptimizerConfig, tasks: Sequence[str]) -> None:
    method = dataclasses.replace(method, options=by_task(method.options, tasks, f"method {method.name}"))
    transformation(method, optimizer, num_tasks=len(tasks), steps_per_epoch=1, epochs=1, seed=0)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Raises StudyInterruptedError on SIGTERM, also where no run is under way that would ask."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_signal(number: int, frame: Any) -> None:
        del frame
        raise StudyInterruptedError(signal.Signals(number).name)

    before = signal.signal(signal.SIGTERM, on_signal)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@_interruptible()
def run_study(
    study: StudyConfig,
    directory: str | Path,
    *,
    command: str = "",
    progress: StudyProgress | None = None,
    strategy: str | None = None,
    jobs: int | None = None,
    yes: bool = False,
    retry_failed: bool = False,
    probe: Probe | None = None,
) -> list[Record]:
    """Runs what is missing of a study.

    Args:
      study: the grid.
      directory: where the records go and where finished ones are found; one process at a time may use it.
      command: the command line that runs this study, for the report.
      progress: how to report; None is silent.
      strategy: how the cells run, see `mtljax.ablation.strategies`; None for the default of this machine.
      jobs: how many cells may run at once, in the strategies that run several; None for their default.
      yes: whether more than 10,000 cells are meant.
      retry_failed: whether failed cells run again.
      probe: what cells with `probe_every` measure, such as `mtl.analysis.sample_probe`.

    Returns:
      All records, in the order of `cells`.

    Raises:
      ValueError: if the directory holds cells of another study or another process uses it, or on a bad config.
      StudyInterruptedError: on SIGTERM or Ctrl-C; finished cells are kept.
    """
    (strategy, run), directory = find_strategy(strategy), Path(directory)
    study_plan = plan(study, directory, progress=progress, jobs=jobs, yes=yes, retry_failed=retry_failed, probe=probe)
    progress = study_plan.context.progress
    with locked(directory):
        check_study(directory, study)  # another process may have written since
        _, records, left, context = _planned(study_plan.cells, directory, study_plan.context, retry_failed)
        write_study(directory, study, study_plan.cells, _describe(study, study_plan.cells, context, command))
        progress.start(len(study_plan.cells), list(records.values()))
        with contextlib.closing(run(left, context)) as finished:  # an interrupted strategy cleans up after itself
            for record in finished:
                records[record["cell"]] = record = record | {"strategy": strategy}
                write_record(directory, record)
                progress.finished(record)
    return [records[cell.name] for cell in study_plan.cells]


def find_strategy(name: str | None) -> tuple[str, Strategy]:
    """A strategy by name, None for the default of this machine; ValueError naming the nearest when there is none."""
    name = name or default()
    if name not in STRATEGIES:
        raise unknown("strategy", name, STRATEGIES)
    return name, STRATEGIES[name]


def _describe(study: StudyConfig, grid: Sequence[Cell], context: Context, command: str) -> dict[str, Any]:
    """What the report says of the setting."""
    base, data = study.base, context.data(grid[-1].config)
    sizes = ", ".join(f"{split.num_examples} {name}" for name, split in data.splits.items())
    options = ", ".join(f"{key}={value}" for key, value in sorted(base.model.options.items()))
    setting = {
        "data": f"{data.name} ({sizes})",
        "tasks": ", ".join(sorted(data.tasks)),
        "encoder": base.model.encoder + (f"({options})" if options else ""),
        "epochs": base.epochs,
        "batch size": base.batch_size,
        "seeds": ", ".join(map(str, study.seeds)),
        "selection": "best validation score of each run, evaluated once an epoch"
        if base.evaluate_every == 0
        else f"best validation score of each run, evaluated every {base.evaluate_every} steps",
    }
    if base.loss_scales:
        setting["loss scales"] = ", ".join(f"{task} {scale:g}" for task, scale in base.loss_scales.items())
    for axis in study.axes:
        for column, name in enumerate(axis.fields):
            usage = "chosen on validation" if name in study.chosen else "compared"
            setting[name] = f"{', '.join(str(point[column]) for point in axis.values)} ({usage})"
    if study.weight_grid and len(data.tasks) > 1:
        setting["tuned scalarization"] = f"{study.weight_grid} weightings of the losses (chosen on validation)"
    return {"name": study.name, "question": study.question, "command": command, "setting": setting}
