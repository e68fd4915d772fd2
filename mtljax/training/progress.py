"""Progress on a terminal: a rich bar with steps/s and time left, or plain lines where there is no terminal."""

import contextlib
import sys
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from mtljax.training.loop import Progress as RunProgress


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        """Steps per second."""
        return Text("" if task.speed is None else f"{task.speed:.0f} steps/s", style="cyan")


@contextlib.contextmanager
def bar(description: str, console: Console | None = None) -> Iterator[RunProgress]:
    """Shows a run on a terminal, or as plain lines on anything else.

    Args:
      description: what runs, shown before the bar.
      console: where; None is standard error.

    Yields:
      The progress to pass to `train`.
    """
    console = console or Console(stderr=True)
    if not console.is_terminal:

        def plain(text: str) -> None:
            print(text, file=sys.stderr, flush=True)

        yield RunProgress(line=plain)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Speed(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as shown:
        task = shown.add_task(description, total=None)

        def start(first: int, last: int) -> None:
            shown.reset(task, total=last, completed=first)

        def line(text: str) -> None:
            shown.console.print(text, highlight=False, markup=False)

        yield RunProgress(start=start, step=lambda step: shown.update(task, completed=step), line=line)
