"""The table of a study for a terminal, and how numbers are shown."""

import math
from typing import TYPE_CHECKING

from mtljax.ablation.statistics.candidates import SINGLE
from mtljax.ablation.statistics.files import csv_text as csv_text
from mtljax.ablation.statistics.intervals import Interval
from mtljax.ablation.statistics.labels import method_text, optimizer_text
from mtljax.ablation.statistics.pareto import counts_by_method, pareto
from mtljax.ablation.statistics.rows import Row
from mtljax.ablation.statistics.summary import Summary

if TYPE_CHECKING:
    from rich.table import Table

# A terminal of 100 columns has room for the primary metric of so many tasks.
_MOST_TASKS = 3
_MOST_ROWS = 30  # with more, the terminal shows the selected ones only
AT_ONCE = "a dash where several runs shared the machine (vmap, processes, ray); sequential runs measure it"
_FRACTIONS = ("accuracy", "auc", "f1", "iou", "precision", "recall")


def unit(metric: str) -> tuple[float, str]:
    """Factor and unit to show a metric in: percent for fractions such as accuracy, and 1 for anything else."""
    return (100.0, "%") if metric.lower().endswith(_FRACTIONS) else (1.0, "")


def shown(interval: Interval, metric: str | None = None) -> str:
    """An interval as `93.1 ± 0.4`; a dash where there is no value, and no `±` where there is one value only.

    Args:
      interval: over seeds.
      metric: its name; fractions are shown in percent. None for numbers already in percent, such as Δm.
    """
    if math.isnan(interval.mean):
        return "–"
    factor, sign = (1.0, "%") if metric is None else unit(metric)
    mean, half_width = factor * interval.mean, factor * interval.half_width
    if metric is None:
        text, width = signed(mean), f"{half_width:.2f}"
    elif sign:
        text, width = f"{mean:.1f}", f"{half_width:.1f}"
    else:
        text, width = f"{mean:.4g}", f"{half_width:.2g}"
    return text if math.isnan(half_width) else f"{text} ± {width}"


def signed(value: float) -> str:
    """Two decimals with a sign, a true minus; what rounds to zero has none."""
    text = f"{value:+.2f}"
    return text[1:] if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")


def seeds_shown(row: Row) -> str:
    """Finished seeds, and failed cells if any: `2, 1 failed`."""
    failed = len(row.failures)
    return f"{len(row.seeds)}, {failed} failed" if failed else str(len(row.seeds))


def milliseconds(row: Row) -> str:
    """Time of a step in milliseconds, a dash where it was not measured or several runs were at once."""
    value = 1000 * row.seconds_per_step
    return "–" if math.isnan(value) else f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def pareto_table(summary: Summary) -> "Table | None":
    """Pareto-optimal settings by method and optimizer, for a terminal; None with one optimizer or one method.

    Args:
      summary: of the study.

    Returns:
      The table: of all settings of a method, and in brackets of those that no run of another optimizer dominates.
    """
    from rich import box
    from rich.table import Table

    if not any(c.seeds for row in summary.rows if row.kind != SINGLE for c in row.candidates):
        return None
    front = pareto(summary, "optimizer")
    methods = counts_by_method(front)
    if len(front.counts) < 2 or len(methods) < 2:
        return None
    table = Table(
        box=box.SIMPLE_HEAD,
        caption="Pareto-optimal over the test metrics, of so many settings; in brackets: not dominated by a run of "
        "another optimizer",
        caption_justify="left",
        pad_edge=False,
    )
    table.add_column("method", overflow="fold")
    for count in front.counts:
        table.add_column(count.value, justify="right", overflow="fold")
    for name, counts in [*methods.items(), ("all", front.counts)]:
        own = {count.value: f"{count.full} of {count.runs} ({count.other})" for count in counts}
        table.add_row(
            name, *(own.get(count.value, "") for count in front.counts), style="bold" if name == "all" else None
        )
    return table


def text_table(summary: Summary) -> "Table":
    """A table for a terminal of 100 columns: single-task training first, then by Δm; selected rows are bold.

    Args:
      summary: of the study.

    Returns:
      The table, to be printed by a `rich.console.Console`.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    rows = summary.rows if len(summary.rows) <= _MOST_ROWS else tuple(row for row in summary.rows if row.selected)
    tasks = summary.tasks[:_MOST_TASKS]
    chosen = not all(row.selected for row in rows)  # with one optimizer there is nothing to mark
    notes = ["bold: optimizer chosen on validation"] if chosen else []
    if any(row.setting for row in rows):
        notes.append("settings chosen on validation")
    if len(rows) < len(summary.rows):
        notes = ["only optimizers chosen on validation"]
    notes += [
        "± half of the 95% interval over seeds",
        "Δm: mean relative change against single-task training, negative is better",
    ]
    if hidden := len(summary.tasks) - len(tasks):
        notes.append(f"{hidden} more task{'s' * (hidden > 1)} in the report")
    if any(row.at_once for row in rows):
        notes.append(f"ms/step: {AT_ONCE}")
    table = Table(
        box=box.SIMPLE_HEAD, caption="; ".join(notes), caption_justify="left", pad_edge=False, padding=(0, 1, 0, 0)
    )
    table.add_column("method", overflow="fold", min_width=11, max_width=22)
    table.add_column("optimizer", overflow="fold", min_width=8, max_width=18)
    for task in tasks:
        metric = summary.primary[task]
        table.add_column(
            Text(f"{task} {metric} {unit(metric)[1]}".strip()),
            justify="right",
            overflow="fold",
            min_width=11,
            max_width=15,
        )
    for name in ("Δm %", "ms/step", "seeds"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        metrics = [shown(row.test[task, summary.primary[task]], summary.primary[task]) for task in tasks]
        fields = [
            method_text(row),
            optimizer_text(row),
            *metrics,
            shown(row.delta_m),
            milliseconds(row),
            seeds_shown(row),
        ]
        table.add_row(*map(Text, fields), style="bold" if chosen and row.selected else None)
    return table
