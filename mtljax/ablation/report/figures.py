"""The figures of a report that show what came out: Δm, tasks against each other, tuned settings, and time.

Each is a function of a study's summary and records that yields the plots it has something to show in. `BUILDERS` lists
all figures in the order of the page; those over training are in `curves.py`, and `drawing.draw` saves them.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mtljax.ablation.report.conditions import name
from mtljax.ablation.report.conflicts import conflicts
from mtljax.ablation.report.curves import task_weights, training_curves
from mtljax.ablation.report.drawing import (
    INK,
    WIDTH,
    Plot,
    Styles,
    axis_label,
    file_name,
    frame,
    named,
    rounded,
    wrapped,
)
from mtljax.ablation.report.parallel import parallel_coordinates
from mtljax.ablation.report.sweeps import sweeps
from mtljax.ablation.statistics import SINGLE, Interval, Record, Row, Summary, unit
from mtljax.ablation.statistics.candidates import Candidate
from mtljax.ablation.statistics.pareto import pareto, pareto_optimal
from mtljax.ablation.statistics.tables import milliseconds
from mtljax.ablation.statistics.walltime import equal_time

_MOST_ROWS = 16  # with more, a figure shows the selected ones only
_MOST_PAIRS = 6


def delta_m(summary: Summary, records: Sequence[Record]) -> Iterator[Plot]:
    """Δm with its confidence interval, one line per method and optimizer."""
    del records
    rows, note = _drawn_rows([row for row in summary.rows if math.isfinite(row.delta_m.mean)])
    if not rows:
        return
    rows = sorted(rows, key=lambda row: row.delta_m.mean, reverse=True)
    low, high = frame([row.delta_m.mean for row in rows], [row.delta_m.half_width for row in rows])
    figure, axes = _listed(rows, summary)
    axes.set_xlim(low, high)
    axes.axvline(0, color=INK, linewidth=0.8)
    styles = Styles(summary)
    for y, row in enumerate(rows):
        _whisker(axes, row.delta_m, y, styles.marker(row), low, high)
    figure.supxlabel("Δm on test, % (further left is better)", fontsize="medium")
    data = [named(row) | {"selected": row.selected} | rounded(row.delta_m._asdict()) for row in rows]
    caption = f"Mean over seeds and 95% interval{_filled(rows)}; 0 is single-task training."
    yield Plot("delta_m", "results", "Δm against single-task training", caption + note, figure, data)


def scatter(summary: Summary, records: Sequence[Record]) -> Iterator[Plot]:
    """Primary test metrics of pairs of tasks against each other, for every setting tried."""
    del records
    pairs = list(itertools.combinations(summary.tasks, 2))
    rows, note = _drawn_rows([row for row in summary.rows if row.seeds])
    if not rows:
        return
    candidates = [(row, c) for row in rows if row.kind != SINGLE for c in row.candidates if c.seeds]
    optimal = _optimal(summary)
    for i, pair in enumerate(pairs[:_MOST_PAIRS]):
        left = f" The first {_MOST_PAIRS} of {len(pairs)} pairs of tasks are drawn." if len(pairs) > _MOST_PAIRS else ""
        yield _scatter(pair, rows, candidates, optimal, summary, note + (left if i == 0 else ""))


def _scatter(
    pair: tuple[str, str],
    rows: Sequence[Row],
    candidates: Sequence[tuple[Row, Candidate]],
    optimal: set[frozenset[str]],
    summary: Summary,
    note: str,
) -> Plot:
    figure = Figure(figsize=(WIDTH, 4.1), layout="constrained")
    axes, styles = figure.add_subplot(), Styles(summary)
    keys = [(task, summary.primary[task]) for task in pair]
    factors = [unit(metric)[0] for _, metric in keys]

    def scaled(point: Candidate) -> list[tuple[float, float]]:
        return [
            (f * point.test[key].mean, f * point.test[key].half_width) for f, key in zip(factors, keys, strict=True)
        ]

    points = [[mean for mean, _ in scaled(candidate)] for _, candidate in candidates]
    front = _front(points, [summary.directions[key] for key in keys])
    frames = []
    for side, task in enumerate(pair):
        chosen = [scaled(row)[side] for row in rows] + [(point[side], 0.0) for point in front]
        frames.append(frame([mean for mean, _ in chosen], [width for _, width in chosen]))
        axes.set(**{"xy"[side] + "lim": frames[-1], "xy"[side] + "label": axis_label(task, summary)})
    if len(front) > 1:
        axes.plot(*zip(*front, strict=True), color=INK, linewidth=0.8, linestyle=":", zorder=1)
    for (row, candidate), point in zip(candidates, points, strict=True):
        if not candidate.chosen and np.isfinite(point).all():
            full = frozenset(candidate.cells) in optimal
            axes.plot(*point, linestyle="", **styles.marker(row) | {"markersize": 3, "alpha": 1.0 if full else 0.5})
    for row in rows:
        (x, x_width), (y, y_width) = scaled(row)
        xerr, yerr = (width if math.isfinite(width) else None for width in (x_width, y_width))
        style: dict[str, Any] = {"markersize": 6.5} | styles.marker(row)
        axes.errorbar(x, y, xerr=xerr, yerr=yerr, linestyle="", elinewidth=0.7, **style)
    styles.legend(figure, rows, lines=False)
    several = any(not candidate.chosen for _, candidate in candidates)
    caption = f"Mean over seeds and 95% intervals on test{_filled(rows)}."
    if several:
        caption += " Large: the setting chosen on validation; small: the other settings tried."
    if len(front) > 1:
        caption += " Dotted: the Pareto front of these two metrics."
    everything = points + [[mean for mean, _ in scaled(row)] for row in rows if row.kind == SINGLE]
    hidden = sum(
        not all(low <= value <= high for (low, high), value in zip(frames, point, strict=True))
        for point in everything
        if np.isfinite(point).all()
    )
    if hidden:
        caption += f" {hidden} far off {'lies' if hidden == 1 else 'lie'} outside the frame."
    data = [
        named(row, c) | {"task": task, "metric": metric} | rounded(c.test[task, metric]._asdict())
        | {"chosen": c.chosen, "pareto_optimal": frozenset(c.cells) in optimal}
        for row, c in [*candidates, *((row, row) for row in rows if row.kind == SINGLE)]
        for task, metric in keys
    ]  # fmt: skip
    x, y = pair
    return Plot(file_name(f"scatter-{x}-{y}"), "trade-offs", f"{x} against {y}", caption + note, figure, data)


def _optimal(summary: Summary) -> set[frozenset[str]]:
    """The Pareto-optimal settings over all metrics, by their cells."""
    if not any(row.kind != SINGLE and row.seeds for row in summary.rows):
        return set()
    return {frozenset(point.candidate.cells) for point in pareto(summary, "method").points if point.full}


def _front(points: Sequence[Sequence[float]], higher: Sequence[bool]) -> list[list[float]]:
    """The points of the plane that no other dominates, from left to right."""
    if not points:
        return []
    best = pareto_optimal(np.array(points, float), higher)
    return sorted([*point] for point, is_best in zip(points, best, strict=True) if is_best)


def step_time(summary: Summary, records: Sequence[Record]) -> Iterator[Plot]:
    """Time of a training step."""
    del records
    rows, note = _drawn_rows([row for row in summary.rows if math.isfinite(row.seconds_per_step)])
    if not rows:
        return
    rows = sorted(rows, key=lambda row: row.seconds_per_step, reverse=True)
    figure, axes = _listed(rows, summary)
    styles = Styles(summary)
    colors = [styles.color(row) for row in rows]
    bars = axes.barh(range(len(rows)), [1000 * row.seconds_per_step for row in rows], height=0.6, color=colors)
    axes.bar_label(bars, [milliseconds(row) for row in rows], padding=3)
    axes.margins(x=0.12)
    figure.supxlabel("ms per training step", fontsize="medium")
    data = [named(row) | {"seconds_per_step": row.seconds_per_step} for row in rows]
    caption = "Median over runs, compilation and evaluation left out; single-task training: the sum over its networks."
    if any(row.at_once for row in summary.rows):
        caption += " Left out: rows whose runs shared the machine (vmap, processes, ray)."
    yield Plot("step_time", "time", "Time per step", caption + note, figure, data)


def equal_budgets(summary: Summary, records: Sequence[Record]) -> Iterator[Plot]:
    """Δm on validation at equal steps, and at equal time."""
    for entry in equal_time(summary, records):
        timed = [t for t in entry.rows if math.isfinite(t.at_seconds.mean) and math.isfinite(t.at_steps.mean)]
        timed = timed[:_MOST_ROWS][::-1]
        if not timed:
            continue
        means = [interval.mean for t in timed for interval in (t.at_seconds, t.at_steps)]
        low, high = frame(means, [0.0] * len(means))
        figure, axes = _listed([t.row for t in timed], summary)
        styles = Styles(summary)
        for y, t in enumerate(timed):
            color = styles.color(t.row)
            axes.plot([t.at_steps.mean, t.at_seconds.mean], [y, y], color=color, linewidth=1)
            axes.plot(t.at_steps.mean, y, "o", color=color, markerfacecolor="none")
            axes.plot(t.at_seconds.mean, y, "o", color=color)
        axes.set_xlim(low, high)
        figure.supxlabel("Δm on validation, % (further left is better)", fontsize="medium")
        data = [
            named(t.row)
            | {"budget": budget, "steps": entry.steps if budget == "steps" else t.steps_at_seconds}
            | rounded(interval._asdict())
            for t in timed
            for budget, interval in (("steps", t.at_steps), ("seconds", t.at_seconds))
        ]
        caption = (
            f"Hollow: after {entry.steps} steps; filled: after {entry.seconds:.3g} s of training steps. "
            "Mean over seeds."
        )
        yield Plot("equal_time", "time", "Equal steps and equal time", caption, figure, data)


BUILDERS = (
    delta_m,
    scatter,
    parallel_coordinates,
    sweeps,
    training_curves,
    task_weights,
    conflicts,
    step_time,
    equal_budgets,
)


def _whisker(axes: Axes, interval: Interval, y: float, style: dict[str, Any], low: float, high: float) -> None:
    """A mean with its interval; an arrow at the edge of the frame for one outside."""
    mean, half_width = interval.mean, interval.half_width
    if low <= mean <= high:
        xerr = half_width if math.isfinite(half_width) else None
        axes.errorbar(mean, y, xerr=xerr, capsize=2.5, linestyle="", **style)
        return
    side, text = ("right", f"{mean:+.1f} →") if mean > high else ("left", f"← {mean:+.1f}")
    axes.text(high if mean > high else low, y, text, ha=side, va="center", color=style["color"])


def _drawn_rows(rows: list[Row]) -> tuple[list[Row], str]:
    """All rows, or with too many only the selected ones and a note that says so."""
    if len(rows) <= _MOST_ROWS:
        return rows, ""
    selected = [row for row in rows if row.selected]
    note = " Only the optimizers chosen on validation; the table has all." if len(selected) < len(rows) else ""
    if len(selected) > 2 * _MOST_ROWS:
        note = f" The {2 * _MOST_ROWS} best of {len(selected)} methods; the table has all."
    return selected[: 2 * _MOST_ROWS], note


def _filled(rows: Sequence[Row]) -> str:
    return "" if all(row.selected for row in rows) else "; filled: the optimizer chosen on validation"


def _listed(rows: Sequence[Row], summary: Summary) -> tuple[Figure, Axes]:
    """A figure with one line per row, from the bottom up."""
    labels = [_label(row, summary) for row in rows]
    height = 0.9 + sum(0.13 + 0.14 * (1 + label.count("\n")) for label in labels)
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.add_subplot(ylim=(-0.7, len(rows) - 0.3))
    axes.set_yticks(range(len(rows)), labels)
    axes.grid(visible=False, axis="y")
    return figure, axes


def _label(row: Row, summary: Summary) -> str:
    """The method, with its optimizer where the study has several."""
    several = len({other.optimizer for other in summary.rows}) > 1
    return wrapped(f"{name(row)}, {row.optimizer}" if several else name(row))
