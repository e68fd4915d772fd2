"""The figures over training: losses and validation metrics of every task, and the weights that methods gave them."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mtljax.ablation.report.conditions import name
from mtljax.ablation.report.drawing import (
    COLORS,
    WIDTH,
    Plot,
    Styles,
    add_legend,
    file_name,
    named,
    rounded,
    thinned,
    wrapped,
)
from mtljax.ablation.statistics import SINGLE, Record, Row, Summary, unit

_MOST_LINES = 9  # with more rows, the curves of the selected ones only
_MOST_TASKS = 4
_MOST_PANELS = 6
_MOST_POINTS = 80  # of a curve; more are not seen
_DASHES = ("-", "--", ":", "-.")
Series = dict[float, list[float]]  # values of all seeds by epoch


def training_curves(summary: Summary, records: Sequence[Record]) -> Iterator[Plot]:
    """Loss on training data and primary metric on validation data over the epochs, one figure a task."""
    rows = [row for row in summary.rows if row.seeds]
    note = ""
    if len(rows) > _MOST_LINES:
        rows, note = [row for row in rows if row.selected], " Only the optimizers chosen on validation."
        if len(rows) > 2 * _MOST_LINES:
            note = f" The {2 * _MOST_LINES} best of {len(rows)} methods."
            rows = rows[: 2 * _MOST_LINES]
    if len(summary.tasks) > _MOST_TASKS:
        note += f" The first {_MOST_TASKS} of {len(summary.tasks)} tasks are drawn."
    by_name = {record["cell"]: record for record in records}
    for task in summary.tasks[:_MOST_TASKS]:
        metric = summary.primary[task]
        losses = [_series(row, by_name, "train", ("losses", task)) for row in rows]
        metrics = [_series(row, by_name, "validation", ("metrics", task, metric)) for row in rows]
        if any(losses) or any(metrics):
            yield _curves(task, rows, losses, metrics, summary, note)


def _curves(
    task: str, rows: Sequence[Row], losses: list[Series], metrics: list[Series], summary: Summary, note: str
) -> Plot:
    metric = summary.primary[task]
    factor = unit(metric)[0]
    shown = [{epoch: [factor * v for v in values] for epoch, values in series.items()} for series in metrics]
    panels = [(losses, "training loss"), (shown, ", ".join(filter(None, (f"validation {metric}", unit(metric)[1]))))]
    panels = [(series, label) for series, label in panels if any(series)]
    figure = Figure(figsize=(WIDTH, 2.4 * len(panels) + 0.6), layout="constrained")
    styles = Styles(summary)
    for axes, (curves, label) in zip(
        figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0], panels, strict=True
    ):
        for row, series in zip(rows, curves, strict=True):
            every = max(1, len(thinned(list(series), _MOST_POINTS)) // 5)
            _band(axes, series, {**styles.marker(row), **styles.line(row), "markersize": 3.5, "markevery": every})
        _settle(axes, curves)
        axes.set_ylabel(wrapped(label))
    figure.axes[-1].set_xlabel("epoch")
    styles.legend(figure, rows, lines=True)
    data = [
        named(row) | {"task": task, "quantity": quantity, "epoch": epoch} | _spread(values)
        for quantity, curves in (("training loss", losses), (f"validation {metric}", metrics))
        for row, series in zip(rows, curves, strict=True)
        for epoch, values in series.items()
    ]
    caption = "Mean over seeds; band: lowest to highest seed; the first epochs may lie outside the frame."
    return Plot(file_name(f"curves-{task}"), "training", f"Training curves: {task}", caption + note, figure, data)


def task_weights(summary: Summary, records: Sequence[Record]) -> Iterator[Plot]:
    """The weights that methods gave to the tasks over training, for methods that change them."""
    by_name = {record["cell"]: record for record in records}
    curves, fixed = [], []
    for row in summary.rows:
        if row.kind == SINGLE or not row.selected or not row.seeds:
            continue
        by_task = {task: _series(row, by_name, "train", ("weights", task)) for task in summary.tasks}
        if any(_changes(row, by_name, task) for task in summary.tasks):
            curves.append((row, by_task))
        else:
            fixed.append(name(row))
    if not curves:
        return
    note = f" Left out, since their weights are fixed or they have none: {', '.join(fixed)}." if fixed else ""
    if len(curves) > _MOST_PANELS:
        note += f" The first {_MOST_PANELS} of {len(curves)} methods."
    shown = curves[:_MOST_PANELS]
    figure = Figure(figsize=(WIDTH, 1.9 * len(shown) + 0.6), layout="constrained")
    data = []
    has_legend = len(summary.tasks) <= len(COLORS) * len(_DASHES)
    for axes, (row, by_task) in zip(figure.subplots(len(shown), sharex=True, squeeze=False)[:, 0], shown, strict=True):
        for k, (task, series) in enumerate(by_task.items()):
            dash = _DASHES[(k % len(COLORS) if len(summary.tasks) <= len(COLORS) else k // len(COLORS)) % len(_DASHES)]
            _band(axes, series, {"color": COLORS[k % len(COLORS)], "linestyle": dash, "label": task})
            data += [named(row) | {"task": task, "epoch": epoch} | _spread(values) for epoch, values in series.items()]
        axes.set_title(wrapped(f"{name(row)}, {row.optimizer}"))
        axes.set_ylabel("weight")
    figure.axes[-1].set_xlabel("epoch")
    if has_legend:
        add_legend(figure, figure.axes[-1].get_lines())
    else:
        note += " One line a task; the data names them."
    caption = "Weights of the tasks in the chosen runs, mean over seeds; band: lowest to highest seed."
    yield Plot("weights", "training", "Task weights over training", caption + note, figure, data)


def _changes(row: Row, by_name: Mapping[str, Record], task: str) -> bool:
    """Whether the weight of a task changed within a run."""
    for cell in row.cells:
        weights = _logged(by_name[cell], "train", ("weights", task)).values()
        if max(weights, default=0.0) - min(weights, default=0.0) > 1e-6 * max(map(abs, weights), default=0.0):
            return True
    return False


def _series(row: Row, by_name: Mapping[str, Record], split: str, path: Sequence[str]) -> Series:
    """What the runs of a row's chosen setting logged under `path`, at the epochs that every run reached."""
    runs = [run for cell in row.cells if (run := _logged(by_name[cell], split, path))]
    common = set.intersection(*map(set, runs)) if runs else set()
    return {epoch: [run[epoch] for run in runs] for epoch in sorted(common)}


def _logged(record: Record, split: str, path: Sequence[str]) -> dict[float, float]:
    entries = [entry for entry in record.get("history") or () if entry["split"] == split]
    values = {entry["epoch"]: functools.reduce(_inside, path, entry) for entry in entries}
    return {epoch: value for epoch, value in values.items() if value is not None and np.isfinite(value)}


def _inside(value: Any, key: str) -> Any:
    return None if value is None else value.get(key)


def _band(axes: Axes, series: Series, style: dict[str, Any]) -> None:
    if not series:
        return
    epochs = thinned(list(series), _MOST_POINTS)
    values = [series[epoch] for epoch in epochs]
    axes.plot(epochs, np.mean(values, axis=1), **style)
    if len(values[0]) > 1:
        low, high = np.min(values, axis=1), np.max(values, axis=1)
        axes.fill_between(epochs, low, high, color=style["color"], alpha=0.15, linewidth=0)


def _settle(axes: Axes, curves: Sequence[Series]) -> None:
    """A frame for what comes after the first epochs, and without a curve that is far from all others."""
    late = [
        [float(np.mean(values)) for epoch, values in series.items() if epoch >= 0.35 * max(series)]
        for series in curves
        if series
    ]
    ends = np.array([values[-1] for values in late])
    distances = np.abs(ends - np.median(ends))
    near = distances <= max(6 * float(np.quantile(distances, 0.6)), 1e-12)
    kept = [value for values, is_near in zip(late, near, strict=True) if is_near for value in values]
    low, high = min(kept), max(kept)
    if low < high:
        axes.set_ylim(low - 0.08 * (high - low), high + 0.08 * (high - low))


def _spread(values: Sequence[float]) -> dict[str, Any]:
    spread = {"mean": float(np.mean(values)), "lowest": min(values), "highest": max(values)}
    return rounded(spread) | {"seeds": len(values)}
