"""What the commands print, and the exit status of one that a signal ended."""

import argparse
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

INTERRUPTED = {"SIGINT": 128 + signal.SIGINT, "SIGTERM": 128 + signal.SIGTERM}


def console(width: int) -> Console:
    """Standard output; where it is no terminal, it has this width."""
    return Console() if sys.stdout.isatty() else Console(width=width)


def metrics_table(splits: dict[str, dict[str, dict[str, float]]]) -> Table:
    """Metrics by split, task and name, a row a task."""
    table = Table()
    table.add_column("task")
    pairs = ((split, m) for split, tasks in splits.items() for values in tasks.values() for m in values)
    columns = list(dict.fromkeys(pairs))
    for split, metric in columns:
        table.add_column(f"{split} {metric}", justify="right")
    for task in next(iter(splits.values())):
        values = (splits[split][task].get(metric) for split, metric in columns)
        table.add_row(task, *("–" if value is None else f"{value:.4f}" for value in values))
    return table


def add_figure(parser: argparse.ArgumentParser) -> None:
    """Adds `--figure`; what cannot be drawn is refused before the work."""

    def path(text: str) -> str:
        if not text.lower().endswith((".png", ".pdf", ".svg")):
            raise argparse.ArgumentTypeError(f"{text!r} must end in .png, .pdf or .svg")
        return text

    parser.add_argument("--figure", type=path, metavar="FILE", help="also draw it: a file in .png, .pdf or .svg")


def save_figure(draw: Callable[[], Any], path: str, dpi: int = 150) -> None:
    """Draws into a file, whose directory is made if need be, and says where it is."""
    place = Path(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    draw().savefig(place, dpi=dpi)
    console(120).print(f"figure: {place}", highlight=False, soft_wrap=True)
