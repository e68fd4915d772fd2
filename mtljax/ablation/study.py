"""A study: methods x optimizers x seeds, and single-task baselines of the same budget, one run after another.

Every finished run is one JSON file in `cells/`, written in one step; a second call keeps those and runs the rest. Runs
of one structure share their compiled program, since hyperparameters and seeds are state.
"""

import dataclasses
import json
import math
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from mtljax.data import MultiTaskData
from mtljax.training.config import MethodConfig, OptimizerConfig, TrainConfig, differences, to_dict
from mtljax.training.logs import write_atomically
from mtljax.training.loop import Progress, load_data, train
from mtljax.training.program import Program, build_program, structure
from mtljax.training.records import NonFiniteLossError
from mtljax.training.workdir import environment

SINGLE_TASK = "single-task"


@dataclass(frozen=True)
class StudyConfig:
    """A grid of runs.

    Attributes:
      name: a short name, the directory under runs/.
      question: what the study asks, for the report.
      base: the run that all cells vary; its own method, optimizer and seed are what `mtljax train` uses.
      methods: the methods compared.
      optimizers: the optimizers each is trained with.
      seeds: the seeds of each.
      baselines: whether single-task runs, one network a task, are part of the study.
    """

    name: str
    question: str = ""
    base: TrainConfig = field(default_factory=TrainConfig)
    methods: tuple[MethodConfig, ...] = (MethodConfig("ew"),)
    optimizers: tuple[OptimizerConfig, ...] = (OptimizerConfig(),)
    seeds: tuple[int, ...] = (0, 1, 2)
    baselines: bool = True

    def __post_init__(self) -> None:
        """An empty axis would be an empty grid."""
        for axis in ("methods", "optimizers", "seeds"):
            if not getattr(self, axis):
                raise ValueError(f"the study {self.name!r} is empty: {axis} lists nothing")


class StudyInterruptedError(RuntimeError):
    """A signal ended a study; the message is the signal's name."""


class Cell(NamedTuple):
    """One run of a study.

    Attributes:
      name: unique, and a valid file name.
      kind: "multi", or "single" for one network of a single-task baseline.
      method: label of the method.
      optimizer: label of the optimizer.
      config: the run.
    """

    name: str
    kind: str
    method: str
    optimizer: str
    config: TrainConfig


def cells(study: StudyConfig, tasks: tuple[str, ...]) -> list[Cell]:
    """The runs of a study, seeds innermost, single-task baselines first.

    Args:
      study: the grid.
      tasks: names of the tasks, for the baselines.

    Returns:
      One cell a run.

    Raises:
      ValueError: if two cells would have one name.
    """
    found = []
    for optimizer in study.optimizers:
        if study.baselines:
            found += [
                _cell("single", SINGLE_TASK, optimizer, seed, study, MethodConfig("ew"), (task,))
                for task in sorted(tasks)
                for seed in study.seeds
            ]
    for method in study.methods:
        for optimizer in study.optimizers:
            found += [
                _cell("multi", _label(method.name, method.options), optimizer, seed, study, method, study.base.tasks)
                for seed in study.seeds
            ]
    names = [cell.name for cell in found]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"the study {study.name!r} lists the same run twice: {', '.join(repeated)}")
    return found


def run_study(
    study: StudyConfig, directory: str | Path, *, command: str = "", progress: "StudyProgress | None" = None
) -> list[dict[str, Any]]:
    """Runs what is missing of a study.

    Args:
      study: the grid.
      directory: where the records go and where finished ones are found.
      command: the command line that runs this study, for the report.
      progress: how to report; None is silent.

    Returns:
      All records, in the order of `cells`.

    Raises:
      ValueError: if the directory holds cells of another study, or on a bad config.
      StudyInterruptedError: on SIGTERM or Ctrl-C; finished cells are kept.
    """
    progress = progress or StudyProgress()
    directory = Path(directory)
    data = load_data(study.base)
    grid = cells(study, tuple(data.tasks))
    records = {cell.name: record for cell in grid if (record := _finished(directory, cell)) is not None}
    (directory / "cells").mkdir(parents=True, exist_ok=True)
    write_atomically(directory / "study.json", json.dumps(_describe(study, data, command), indent=2) + "\n")
    progress.start(len(grid), len(records))
    programs: dict[str, Program] = {}
    for cell in grid:
        if cell.name in records:
            continue
        records[cell.name] = record = _run(cell, data, programs, progress)
        write_atomically(_path(directory, cell), json.dumps(record) + "\n")
        progress.finished(record)
    return [records[cell.name] for cell in grid]


class StudyProgress(NamedTuple):
    """What a study tells while it runs.

    Attributes:
      start: called once with (cells, cells already finished).
      cell: called with the name of each cell that starts.
      finished: called with each new record.
      run: the progress of the runs themselves.
    """

    start: Callable[[int, int], None] = lambda total, done: None
    cell: Callable[[str], None] = lambda name: None
    finished: Callable[[dict[str, Any]], None] = lambda record: None
    run: Progress = Progress()


def read_records(directory: str | Path) -> Iterator[dict[str, Any]]:
    """The records of the cells finished so far, by name."""
    for path in sorted((Path(directory) / "cells").glob("*.json")):
        yield json.loads(path.read_text())


def _run(cell: Cell, data: MultiTaskData, programs: dict[str, Program], progress: StudyProgress) -> dict[str, Any]:
    config = cell.config
    selected = data.select(config.tasks) if config.tasks else data
    key = structure(config)
    if key not in programs:
        programs[key] = build_program(config, selected)
    progress.cell(cell.name)
    start = time.perf_counter()
    record: dict[str, Any] = {
        "cell": cell.name,
        "kind": cell.kind,
        "method": cell.method,
        "optimizer": cell.optimizer,
        "seed": config.seed,
        "tasks": sorted(selected.tasks),
        "config": to_dict(config),
        "metric_directions": {
            name: {metric.name: metric.higher_is_better for metric in task.metrics}
            for name, task in selected.tasks.items()
        },
        "environment": environment(),
    }
    try:
        result = train(config, data=selected, program=programs[key], progress=progress.run)
    except NonFiniteLossError as error:
        return record | {"status": "failed", "reason": str(error), "seconds": time.perf_counter() - start}
    if result.interrupted:
        raise StudyInterruptedError(result.interrupted)
    seconds = result.seconds_per_step
    return record | {
        "status": "finished",
        "reason": None,
        "validation": result.validation,
        "test": result.test,
        "best_step": result.best_step,
        "steps": result.steps,
        "epochs": result.steps / programs[key].steps_per_epoch,
        "seconds_per_step": None if math.isnan(seconds) else seconds,
        "seconds": time.perf_counter() - start,
        "history": result.records,
    }


def _finished(directory: Path, cell: Cell) -> dict[str, Any] | None:
    path = _path(directory, cell)
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text())
        changed = differences(record["config"], to_dict(cell.config))
    except (ValueError, KeyError, TypeError):
        return None  # damaged: run it again
    if changed:
        raise ValueError(
            f"{directory} holds another study: its cell {cell.name} differs in {', '.join(changed)}; "
            "choose another --workdir"
        )
    return record


def _path(directory: Path, cell: Cell) -> Path:
    return directory / "cells" / f"{cell.name}.json"


def _cell(
    kind: str,
    label: str,
    optimizer: OptimizerConfig,
    seed: int,
    study: StudyConfig,
    method: MethodConfig,
    tasks: tuple[str, ...],
) -> Cell:
    optimizer_label = _label(f"{optimizer.name} {optimizer.learning_rate:g}", optimizer.options)
    parts = [label, *(tasks if kind == "single" else ()), optimizer_label, f"seed{seed}"]
    name = re.sub(r"[^A-Za-z0-9._=-]+", "_", "-".join(parts))
    config = dataclasses.replace(
        study.base,
        name=name,
        method=method,
        optimizer=optimizer,
        tasks=tasks,
        seed=seed,
        checkpoints=False,
        tensorboard=False,
    )
    return Cell(name, kind, label, optimizer_label, config)


def _label(name: str, options: dict[str, Any]) -> str:
    inside = ", ".join(f"{key}={value}" for key, value in sorted(options.items()))
    return f"{name}({inside})" if inside else name


def _describe(study: StudyConfig, data: MultiTaskData, command: str) -> dict[str, Any]:
    base = study.base
    sizes = ", ".join(f"{split.num_examples} {name}" for name, split in data.splits.items())
    return {
        "name": study.name,
        "question": study.question,
        "command": command,
        "setting": {
            "data": f"{data.name} ({sizes})",
            "tasks": ", ".join(sorted(data.tasks)),
            "encoder": _label(base.model.encoder, base.model.options),
            "epochs": base.epochs,
            "batch size": base.batch_size,
            "seeds": ", ".join(map(str, study.seeds)),
            "selection": "best validation score of each run, evaluated once an epoch"
            if base.evaluate_every == 0
            else f"best validation score of each run, evaluated every {base.evaluate_every} steps",
        },
    }
