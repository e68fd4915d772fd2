"""Progress of a study: cells done, time left, the runs under way, and the best cells so far."""

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from mtljax.ablation.cell import Record, StudyProgress
from mtljax.training.loop import Progress as RunProgress

_SHOWN = 8  # best cells in the running table
_PERIOD_SECONDS = 86_400  # over which the speed is measured: cells take minutes
_TABLES = 10  # times the running table is printed where it cannot be kept up to date


@contextlib.contextmanager
def study_bar(console: Console | None = None) -> Iterator[StudyProgress]:
    """Shows a study on a terminal as two bars above the best cells; elsewhere as one plain line a cell.

    Args:
      console: where; None is standard error.

    Yields:
      The progress to pass to `run_study`.
    """
    console = console or Console(stderr=True)
    if console.is_terminal:
        with _live(console) as progress:
            yield progress
        return
    records: list[Record] = []
    count = {"new": 0, "total": 0, "start": time.perf_counter()}

    def start(total: int, done: list[Record]) -> None:
        records.extend(done)
        count.update(total=total, start=time.perf_counter())
        kept = f", {len(done)} of them finished before" if done else ""
        print(f"{total} cells{kept}", file=sys.stderr, flush=True)

    def finish(record: Record) -> None:
        records.append(record)
        count["new"] += 1
        left = (time.perf_counter() - count["start"]) / count["new"] * (count["total"] - len(records))
        print(f"[{len(records)}/{count['total']}] {_line(record)}, {_time(left)} left", file=sys.stderr, flush=True)
        every = max(count["total"] // _TABLES, _SHOWN)
        if len(records) % every == 0 or len(records) == count["total"]:
            table = best_cells(records)
            if table.row_count:  # single-task cells come first
                Console(stderr=True, width=100).print(table)

    yield StudyProgress(start=start, finished=finish, run=RunProgress())


@contextlib.contextmanager
def _live(console: Console) -> Iterator[StudyProgress]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    bars = Progress(*columns, console=console, speed_estimate_period=_PERIOD_SECONDS)
    cells, steps = bars.add_task("cells", total=None), bars.add_task("", total=None)
    records: list[Record] = []
    with Live(bars, console=console, transient=True, refresh_per_second=4) as live:

        def start(total: int, done: list[Record]) -> None:
            records.extend(done)
            bars.reset(cells, total=total, completed=len(done))

        def finish(record: Record) -> None:
            records.append(record)
            bars.advance(cells)
            live.console.print(_line(record), highlight=False, markup=False)
            table = best_cells(records)
            live.update(Group(bars, table) if table.row_count else bars)

        run = RunProgress(
            start=lambda first, last: bars.reset(steps, total=last, completed=first),
            step=lambda step: bars.update(steps, completed=step),
        )
        yield StudyProgress(
            start=start, cell=lambda name: bars.update(steps, description=name), finished=finish, run=run
        )


def best_cells(records: Sequence[Record]) -> Table:
    """The multi-task cells with the best validation score so far, one row a cell, all conditions together.

    The score is the mean over tasks of the primary metric, signed so that up is better. One cell is one seed: which
    method is best is for the report to say.
    """
    multi = [r for r in records if r["status"] == "finished" and r["kind"] == "multi"]
    ranked = sorted(((validation_score(r), r) for r in multi), key=lambda pair: -pair[0])[:_SHOWN]
    table = Table(
        title=f"best on validation of {len(multi)} multi-task cells so far",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for name in ("method", "optimizer", "chosen and compared values", "seed"):
        table.add_column(name, overflow="fold")
    table.add_column("validation", justify="right")
    for score, record in ranked:
        values = {**record.get("setting", {}), **record.get("condition", {})}
        shown = ", ".join(f"{name.rpartition('.')[2]} {_shown(value)}" for name, value in values.items())
        cells = (record["method"], record["optimizer"], shown, str(record["seed"]), f"{score:.4f}")
        table.add_row(*map(Text, cells))
    return table


def validation_score(record: Record) -> float:
    """What cells are ranked by: the mean over tasks of the primary validation metric, signed so that up is better."""
    values = []
    for task, directions in record["metric_directions"].items():
        metric, higher = next(iter(directions.items()))
        values.append(record["validation"][task][metric] * (1 if higher else -1))
    return float(np.mean(values)) if np.isfinite(values).all() else -float("inf")


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "/".join(_shown(item) for item in value.values())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def _line(record: Record) -> str:
    if record["status"] != "finished":
        return f"{record['cell']}: failed, {record['reason']}"
    values = ", ".join(
        f"{task} {next(iter(metrics))} {next(iter(metrics.values())):.4f}"
        for task, metrics in record["validation"].items()
    )
    return f"{record['cell']}: validation {values}, {record['seconds']:.1f} s"
