"""`mtljax analyze conflicts`."""

import argparse
import dataclasses
import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from mtljax.ablation import StudyConfig, StudyInterruptedError, run_study
from mtljax.ablation.progress import study_bar
from mtljax.ablation.report.conflicts import by_epoch, overview
from mtljax.analysis import sample_probe
from mtljax.analysis.conflict_runs import (
    ANGLE_RULE,
    MAGNITUDE_RULE,
    SIGN_RULE,
    EpochConflicts,
    Histories,
    angle_verdict,
    magnitude_verdict,
    over_epochs,
    read_runs,
    sign_verdict,
)
from mtljax.analysis.epoch_probe import default_every
from mtljax.commands.output import INTERRUPTED, console, save_figure
from mtljax.training.compilation import kept_programs
from mtljax.training.config import TrainConfig, load_config
from mtljax.training.loop import load_data
from mtljax.training.overrides import override

_SEEDS = (0, 1, 2)  # of a config of one run
_MEASURES = {"magnitude": "magnitude", "cosine": "cosine", "sign_conflict": "opposite signs"}


def conflicts(options: argparse.Namespace, overrides: list[str]) -> int:
    """Prints what the probes of some runs saw, an epoch a row; trains those given as configs."""
    start = time.perf_counter()
    directories = []
    if overrides and not any(Path(given).suffix == ".py" for given in options.runs):
        raise ValueError(f"{' '.join(overrides)}: fields are overridden in configs, and these are finished runs")
    try:
        for given in options.runs:
            directories.append(_trained(given, overrides) if Path(given).suffix == ".py" else Path(given))
    except (StudyInterruptedError, KeyboardInterrupt) as interrupted:
        signal_name = str(interrupted) or "SIGINT"
        command = shlex.join(["mtljax", "analyze", "conflicts", *options.runs, *overrides])
        print(f"{signal_name}: finished runs are kept; continue with: {command}", file=sys.stderr)
        return INTERRUPTED[signal_name]
    groups = read_runs(directories)
    show(groups, options.figure)
    console(120).print(f"{time.perf_counter() - start:.0f} s", highlight=False)
    return 0


def show(groups: Mapping[str, Histories], figure: str | None = None) -> None:
    """Prints the table and the verdicts, and draws if asked to.

    Args:
      groups: log records by seed, by what was trained.
      figure: the file to draw into.
    """
    by_name = {name: over_epochs(histories) for name, histories in groups.items()}
    out = console(190)
    out.print(_table(by_name, {name: len(histories) for name, histories in groups.items()}))
    out.print(
        "Means over seeds ± half of their 95% intervals, between tasks on one example and between examples for one "
        "task; difference: the first minus the second, paired by seed.",
        highlight=False,
    )
    out.print("Claim: magnitudes are less alike between tasks than between examples, in every epoch.", highlight=False)
    for name, epochs in by_name.items():
        out.print(f"  {name}: {magnitude_verdict(epochs)}", highlight=False)
    out.print("Claim: angles show no such order. In the last epoch 95% of the cosines lie", highlight=False)
    for name, epochs in by_name.items():
        tasks, samples = (f"from {low:.2f} to {high:.2f}" for low, high in epochs[-1].cosines.values())
        out.print(f"  {name}: {tasks} between tasks, {samples} between examples", highlight=False)
    out.print(f"  all together: {angle_verdict(by_name.values())}", highlight=False)
    out.print("Claim: the share of coordinates with opposite signs is similar.", highlight=False)
    out.print(f"  all together: {sign_verdict(by_name.values())}", highlight=False)
    out.print(f"{MAGNITUDE_RULE}\n{ANGLE_RULE}\n{SIGN_RULE}", highlight=False, style="dim")
    if figure is not None:
        epochs = {name: by_epoch(list(histories.values())) for name, histories in groups.items()}
        save_figure(lambda: overview(epochs), figure, dpi=110)


def _trained(path: str, overrides: list[str]) -> Path:
    """Runs what is missing of a config, a run of which becomes a study of three seeds; the directory of the study."""
    study: Any = load_config(path)
    if isinstance(study, TrainConfig):
        study = StudyConfig(
            name=study.name,
            base=study,
            methods=(study.method,),
            optimizers=(study.optimizer,),
            seeds=_SEEDS,
            baselines=False,
            weight_grid=0,
        )
    if not isinstance(study, StudyConfig):
        raise ValueError(
            f"{path} returns a {type(study).__name__}; mtljax analyze conflicts needs a TrainConfig or a StudyConfig"
        )
    study = override(study, overrides)
    if not study.base.probe_every:
        tasks = study.base.tasks or load_data(study.base).tasks
        every = default_every(study.base.model.encoder, len(tasks))
        study = dataclasses.replace(study, base=dataclasses.replace(study.base, probe_every=every))
    directory = Path("runs") / f"{study.name}-conflicts"
    command = shlex.join(["mtljax", "analyze", "conflicts", path, *overrides])
    with kept_programs(), study_bar() as progress:
        run_study(study, directory, command=command, progress=progress, probe=sample_probe)
    return directory


def _table(by_name: Mapping[str, list[EpochConflicts]], seeds: Mapping[str, int]) -> Table:
    table = Table(title="how alike gradients of single examples are, over the shared parameters")
    for column in ("trained", "seeds", "epoch"):
        table.add_column(column)
    for measure in _MEASURES.values():
        for column in (f"{measure}:\ntasks", "\nexamples", "\ndifference"):
            table.add_column(column, justify="right", no_wrap=True)
    for name, epochs in by_name.items():
        for epoch in epochs:
            row = [name, str(seeds[name]), f"{epoch.epoch:g}"]
            for measure in _MEASURES:
                row += [epoch.between_tasks[measure].text(".3f"), epoch.between_samples[measure].text(".3f")]
                row.append(epoch.difference[measure].interval.text("+.3f"))
            table.add_row(*row)
        table.add_section()
    return table
