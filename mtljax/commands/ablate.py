"""`mtljax ablate` and `mtljax report`."""

import argparse
import os
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from mtljax.ablation import StudyConfig, StudyInterruptedError, run_study, write_report
from mtljax.ablation.estimate import cell_table, estimate
from mtljax.ablation.progress import study_bar
from mtljax.ablation.report import read_cells
from mtljax.ablation.statistics import pareto_table, summarize, text_table, verdict
from mtljax.ablation.strategies.grouping import by_structure
from mtljax.ablation.study import find_strategy, plan
from mtljax.analysis import sample_probe
from mtljax.commands.output import INTERRUPTED, console
from mtljax.training.compilation import kept_programs
from mtljax.training.config import load_config
from mtljax.training.overrides import override


def ablate(options: argparse.Namespace, overrides: list[str]) -> int:
    """Runs a study, or says what it would run."""
    study = load_config(options.config)
    if not isinstance(study, StudyConfig):
        raise ValueError(f"{options.config} returns a {type(study).__name__}; mtljax ablate needs a StudyConfig")
    study = override(study, overrides)
    directory = Path(options.workdir or f"runs/{study.name}")
    command = shlex.join(["mtljax", "ablate", options.config, *_flags(options), *overrides])
    start = time.perf_counter()
    with kept_programs():
        if options.dry_run:
            return _dry_run(study, directory, options)
        try:
            with study_bar() as progress:
                records = run_study(
                    study,
                    directory,
                    command=command,
                    progress=progress,
                    strategy=options.strategy,
                    jobs=options.jobs,
                    yes=options.yes,
                    retry_failed=options.retry_failed,
                    probe=sample_probe,
                )
        except (StudyInterruptedError, KeyboardInterrupt) as interrupted:
            signal_name = str(interrupted) or "SIGINT"
            print(f"{signal_name}: finished cells are kept in {directory}; continue with: {command}", file=sys.stderr)
            return INTERRUPTED[signal_name]
    return _report(directory, command, len(records), time.perf_counter() - start)


def _flags(options: argparse.Namespace) -> list[str]:
    """The options with which a study is continued."""
    flags = ["--workdir", options.workdir] if options.workdir else []
    if options.strategy:
        flags.append(f"--strategy={options.strategy}")
    if options.jobs is not None:
        flags.append(f"--jobs={options.jobs}")
    return flags + (["--yes"] if options.yes else [])


def _dry_run(study: Any, directory: Path, options: argparse.Namespace) -> int:
    """Says what a study would do, and how long it would take."""
    strategy, _ = find_strategy(options.strategy)
    planned = plan(study, directory, jobs=options.jobs, yes=options.yes, retry_failed=options.retry_failed)
    out = console(100)
    out.print(cell_table(planned))
    count = len(by_structure(planned.left))
    out.print(
        f"{len(planned.cells)} cells, {len(planned.left)} left to run; they share {count} programs, each compiled once",
        highlight=False,
        soft_wrap=True,
    )
    if not planned.done and planned.left:
        print("timing a few steps of each program; large networks take minutes to compile", file=sys.stderr)
    left = estimate(planned)
    several = (options.jobs or os.cpu_count() or 1) if strategy in ("processes", "ray") else 1
    text = f"time left: unknown ({left.source})"
    if left.seconds is not None:
        shared = f", divided by {several} jobs" if several > 1 else ""
        text = f"time left: about {_duration(left.seconds / several)} ({left.source}{shared})"
    out.print(text, highlight=False, soft_wrap=True)
    return 0


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _report(directory: Path, command: str, cells: int, seconds: float) -> int:
    """Writes the report of a study and prints what it says."""
    page = write_report(directory)
    records, _ = read_cells(directory)
    summary = summarize(records, command=command)
    out = console(100)
    out.print(text_table(summary))
    if (counts := pareto_table(summary)) is not None:
        out.print(counts)
    out.print(verdict(summary), highlight=False)
    failed = sum(record["status"] != "finished" for record in records)
    if failed:
        retry = f"to run them again: {command} --retry-failed"
        out.print(f"{failed} cells failed and are kept as such; {retry}", highlight=False, soft_wrap=True)
    out.print(f"{cells} cells, {seconds:.0f} s in this call", highlight=False)
    out.print(f"report:      {page}\nraw results: {directory / 'results.csv'}", highlight=False, soft_wrap=True)
    return 1 if failed else 0


def report(options: argparse.Namespace, overrides: list[str]) -> int:
    """Writes the report of a study anew."""
    del overrides
    print(write_report(options.directory))
    return 0
