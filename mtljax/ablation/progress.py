"""Progress of a study: runs done, time left, and the run under way."""

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mtljax.ablation.study import StudyProgress
from mtljax.training.loop import Progress as RunProgress


@contextlib.contextmanager
def study_bar(console: Console | None = None) -> Iterator[StudyProgress]:
    """Shows a study on a terminal as two bars, or as one plain line a run on anything else.

    Args:
      console: where; None is standard error.

    Yields:
      The progress to pass to `run_study`.
    """
    console = console or Console(stderr=True)
    if console.is_terminal:
        with _bars(console) as progress:
            yield progress
        return
    done = {"count": 0, "new": 0, "total": 0, "start": time.perf_counter()}

    def start(total: int, finished: int) -> None:
        done.update(total=total, count=finished)
        kept = f", {finished} of them finished before" if finished else ""
        print(f"{total} runs{kept}", file=sys.stderr, flush=True)

    def finish(record: dict[str, Any]) -> None:
        done.update(count=done["count"] + 1, new=done["new"] + 1)
        left = (time.perf_counter() - done["start"]) / done["new"] * (done["total"] - done["count"])
        print(f"[{done['count']}/{done['total']}] {_line(record)}, {left:.0f} s left", file=sys.stderr, flush=True)

    yield StudyProgress(start=start, finished=finish, run=RunProgress())


@contextlib.contextmanager
def _bars(console: Console) -> Iterator[StudyProgress]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as shown:
        runs, steps = shown.add_task("runs", total=None), shown.add_task("", total=None)

        def start(total: int, finished: int) -> None:
            shown.reset(runs, total=total, completed=finished)

        def finish(record: dict[str, Any]) -> None:
            shown.advance(runs)
            shown.console.print(_line(record), highlight=False, markup=False)

        run = RunProgress(
            start=lambda first, last: shown.reset(steps, total=last, completed=first),
            step=lambda step: shown.update(steps, completed=step),
        )
        yield StudyProgress(
            start=start, cell=lambda name: shown.update(steps, description=name), finished=finish, run=run
        )


def _line(record: dict[str, Any]) -> str:
    if record["status"] != "finished":
        return f"{record['cell']}: failed, {record['reason']}"
    values = ", ".join(
        f"{task} {next(iter(metrics))} {next(iter(metrics.values())):.4f}" for task, metrics in record["test"].items()
    )
    return f"{record['cell']}: test {values}, {record['seconds']:.1f} s"
