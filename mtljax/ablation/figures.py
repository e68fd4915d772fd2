"""The figures of a report.

Each is a function of a study's summary and records that returns a `Plot`, or None with nothing to show. `BUILDERS`
lists them in the order of the page; `drawing.draw` saves them.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mtljax.ablation.drawing import COLORS, INK, WIDTH, Plot, Styles, add_legend, wrapped
from mtljax.ablation.statistics import SINGLE, Record, Row, Summary, unit
from mtljax.ablation.statistics.tables import milliseconds

_MOST_ROWS = 16  # with more, a figure shows the selected ones only
_MOST_PANELS = 6
_MOST_PAIRS = 3
Series = dict[float, list[float]]  # values of all seeds by epoch


def delta_m(summary: Summary, records: Sequence[Record]) -> Plot | None:
    """Δm with its confidence interval, one line per method and optimizer."""
    del records
    rows, note = _few([row for row in summary.rows if math.isfinite(row.delta_m.mean)])
    if not rows:
        return None
    rows = sorted(rows, key=lambda row: row.delta_m.mean, reverse=True)
    low, high = _frame([row.delta_m.mean for row in rows], [row.delta_m.half_width for row in rows])
    figure, axes = _listed(rows, summary)
    axes.set_xlim(low, high)
    axes.axvline(0, color=INK, linewidth=0.8)
    styles = Styles(summary)
    for y, row in enumerate(rows):
        mean, half_width, style = row.delta_m.mean, row.delta_m.half_width, styles.marker(row)
        if low <= mean <= high:
            axes.errorbar(
                mean, y, xerr=half_width if math.isfinite(half_width) else None, capsize=2.5, linestyle="", **style
            )
        else:
            side, text = ("right", f"{mean:+.1f} →") if mean > high else ("left", f"← {mean:+.1f}")
            axes.text(high if mean > high else low, y, text, ha=side, va="center", color=style["color"])
    axes.set_xlabel("Δm on test, % (further left is better)")
    data = [_named(row) | {"selected": row.selected} | row.delta_m._asdict() for row in rows]
    caption = f"Mean over seeds and 95% interval{_filled(rows)}; 0 is single-task training."
    return Plot("delta_m", "Δm against single-task training", caption + note, figure, data)


def scatter(summary: Summary, records: Sequence[Record]) -> Plot | None:
    """Primary test metrics of pairs of tasks against each other."""
    del records
    pairs = list(itertools.combinations(summary.tasks, 2))
    rows, note = _few([row for row in summary.rows if row.seeds])
    if not pairs or not rows:
        return None
    if len(pairs) > _MOST_PAIRS:
        note += f" The first {_MOST_PAIRS} of {len(pairs)} pairs of tasks."
        pairs = pairs[:_MOST_PAIRS]
    figure = Figure(figsize=(WIDTH, 3.6 * len(pairs) + 0.3), layout="constrained")
    styles, data = Styles(summary), []
    hidden = 0
    for axes, pair in zip(figure.subplots(len(pairs), squeeze=False)[:, 0], pairs, strict=True):
        points = [[row.test[task, summary.primary[task]] for task in pair] for row in rows]
        factors = [unit(summary.primary[task])[0] for task in pair]
        frames = []
        for side, task in enumerate(pair):
            intervals = [point[side] for point in points]
            frame = _frame(
                [i.mean * factors[side] for i in intervals], [i.half_width * factors[side] for i in intervals]
            )
            axes.set(**{"xy"[side] + "lim": frame, "xy"[side] + "label": _axis(task, summary)})
            frames.append(frame)
        for row, point in zip(rows, points, strict=True):
            (x, x_width), (y, y_width) = ((f * i.mean, f * i.half_width) for f, i in zip(factors, point, strict=True))
            errors = {"xerr": x_width, "yerr": y_width} if math.isfinite(x_width) and math.isfinite(y_width) else {}
            axes.errorbar(x, y, **errors, linestyle="", elinewidth=0.7, **styles.marker(row))
            hidden += not all(low <= value <= high for (low, high), value in zip(frames, (x, y), strict=True))
            for task, interval in zip(pair, point, strict=True):
                data.append(_named(row) | {"task": task, "metric": summary.primary[task]} | interval._asdict())
    styles.legend(figure, rows, lines=False)
    caption = f"Mean over seeds and 95% intervals on test{_filled(rows)}."
    if hidden:
        caption += f" {hidden} far off {'lies' if hidden == 1 else 'lie'} outside the frame."
    data = list({tuple(row.values()): row for row in data}.values())  # a task is in several pairs
    return Plot("scatter", "Task against task", caption + note, figure, data)


def validation_curves(summary: Summary, records: Sequence[Record]) -> Plot | None:
    """Primary validation metric of every task over the epochs."""
    rows, note = _few([row for row in summary.rows if row.seeds])
    curves = {
        (task, i): _series(row, records, "validation", ("metrics", task, summary.primary[task]))
        for task in summary.tasks[:_MOST_PANELS]
        for i, row in enumerate(rows)
    }
    if not any(curves.values()):
        return None
    tasks = list(dict.fromkeys(task for task, _ in curves))
    if len(tasks) < len(summary.tasks):
        note += f" The first {len(tasks)} of {len(summary.tasks)} tasks."
    figure = Figure(figsize=(WIDTH, 2.4 * len(tasks) + 0.5), layout="constrained")
    styles, data = Styles(summary), []
    for axes, task in zip(figure.subplots(len(tasks), sharex=True, squeeze=False)[:, 0], tasks, strict=True):
        factor = unit(summary.primary[task])[0]
        settled = []
        for i, row in enumerate(rows):
            curve = {epoch: [factor * value for value in values] for epoch, values in curves[task, i].items()}
            marker = {**styles.marker(row), **styles.line(row), "markersize": 3.5, "markevery": max(1, len(curve) // 5)}
            _band(axes, curve, marker)
            settled += [np.mean(values) for epoch, values in curve.items() if epoch >= 0.35 * max(curve)]
            for epoch, values in curves[task, i].items():
                data.append(
                    _named(row) | {"task": task, "metric": summary.primary[task], "epoch": epoch} | _spread(values)
                )
        low, high = np.nanmin(settled or [0.0]), np.nanmax(settled or [1.0])
        if low < high:
            axes.set_ylim(low - 0.08 * (high - low), high + 0.08 * (high - low))
        axes.set_ylabel(_axis(task, summary, direction=False))
    figure.axes[-1].set_xlabel("epoch")
    styles.legend(figure, rows, lines=True)
    caption = "Validation, mean over seeds; band: lowest to highest seed; the first epochs may lie outside the frame."
    return Plot("validation", "Training curves", caption + note, figure, data)


def task_weights(summary: Summary, records: Sequence[Record]) -> Plot | None:
    """The weights that methods gave to the tasks over training, for methods that change them."""
    rows = [row for row in summary.rows if row.kind != SINGLE and row.selected]
    curves = {}
    for row in rows:
        by_task = {task: _series(row, records, "train", ("weights", task)) for task in summary.tasks}
        if any(len({value for values in series.values() for value in values}) > 1 for series in by_task.values()):
            curves[row.method] = (row, by_task)
    if not curves:
        return None
    note = f" The first {_MOST_PANELS} of {len(curves)} methods." if len(curves) > _MOST_PANELS else ""
    shown = list(curves.values())[:_MOST_PANELS]
    figure = Figure(figsize=(WIDTH, 1.9 * len(shown) + 0.6), layout="constrained")
    data = []
    few = len(summary.tasks) <= len(COLORS)
    for axes, (row, by_task) in zip(figure.subplots(len(shown), sharex=True, squeeze=False)[:, 0], shown, strict=True):
        for k, (task, series) in enumerate(by_task.items()):
            style = {"linestyle": ("-", "--", ":", "-.")[k % 4], "label": task} if few else {"linewidth": 0.7}
            _band(axes, series, {"color": COLORS[k % len(COLORS)], **style})
            data += [_named(row) | {"task": task, "epoch": epoch} | _spread(values) for epoch, values in series.items()]
        axes.set_title(_label(row, summary))
        axes.set_ylabel("weight")
    figure.axes[-1].set_xlabel("epoch")
    if few:
        add_legend(figure, figure.axes[-1].get_lines())
    caption = (
        "Weights of the tasks, mean over seeds; band: lowest to highest seed. Methods with fixed weights are left out."
    )
    return Plot("weights", "Task weights over training", caption + note, figure, data)


def step_time(summary: Summary, records: Sequence[Record]) -> Plot | None:
    """Time of a training step."""
    del records
    rows, note = _few([row for row in summary.rows if math.isfinite(row.seconds_per_step)])
    if not rows:
        return None
    rows = sorted(rows, key=lambda row: row.seconds_per_step, reverse=True)
    figure, axes = _listed(rows, summary)
    styles = Styles(summary)
    colors = [styles.color(row) for row in rows]
    bars = axes.barh(range(len(rows)), [1000 * row.seconds_per_step for row in rows], height=0.6, color=colors)
    axes.bar_label(bars, [milliseconds(row) for row in rows], padding=3)
    axes.set_yticks(range(len(rows)), [_label(row, summary) for row in rows])
    axes.margins(x=0.12)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("ms per training step")
    data = [_named(row) | {"seconds_per_step": row.seconds_per_step} for row in rows]
    caption = "Median over runs, compilation and evaluation left out; single-task training: the sum over its networks."
    return Plot("step_time", "Time per step", caption + note, figure, data)


BUILDERS = (delta_m, scatter, validation_curves, task_weights, step_time)


def _few(rows: list[Row]) -> tuple[list[Row], str]:
    """All rows, or with too many only the selected ones and a note that says so."""
    if len(rows) <= _MOST_ROWS:
        return rows, ""
    return [row for row in rows if row.selected], " Only the optimizers chosen on validation; the table has all."


def _filled(rows: Sequence[Row]) -> str:
    return "" if all(row.selected for row in rows) else "; filled: the optimizer chosen on validation"


def _series(row: Row, records: Sequence[Record], split: str, path: Sequence[str]) -> Series:
    """What a row's runs logged under `path`, at the epochs that every run reached."""
    runs: dict[int, dict[float, float]] = {}
    for record in records:
        if (record["kind"], record["method"], record["optimizer"]) != (row.kind, row.method, row.optimizer):
            continue
        if record["seed"] not in row.seeds:
            continue
        logged = [entry for entry in record.get("history") or [] if entry["split"] == split]
        found = {entry["epoch"]: functools.reduce(_inside, path, entry) for entry in logged}
        runs.setdefault(record["seed"], {}).update({epoch: v for epoch, v in found.items() if v is not None})
    common = set.intersection(*map(set, runs.values())) if runs else set()
    return {epoch: [run[epoch] for _, run in sorted(runs.items())] for epoch in sorted(common)}


def _inside(value: Any, key: str) -> Any:
    return None if value is None else value.get(key)


def _band(axes: Axes, series: Series, style: dict[str, Any]) -> None:
    if not series:
        return
    epochs, values = list(series), list(series.values())
    axes.plot(epochs, np.mean(values, axis=1), **style)
    axes.fill_between(
        epochs, np.min(values, axis=1), np.max(values, axis=1), color=style["color"], alpha=0.15, linewidth=0
    )


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"mean": float(np.mean(values)), "lowest": min(values), "highest": max(values), "seeds": len(values)}


def _frame(means: Sequence[float], half_widths: Sequence[float]) -> tuple[float, float]:
    """Limits that hold the bulk of the means with their intervals, so that one far off does not squash the rest."""
    values, widths = np.asarray(means), np.nan_to_num(np.asarray(half_widths))
    known = np.isfinite(values)
    if not known.any():
        return 0.0, 1.0
    values, widths = values[known], widths[known]
    center = float(np.median(values))
    distances = np.abs(values - center)
    near = distances <= max(6 * float(np.quantile(distances, 0.6)), 1e-12)
    kept = values[near]
    span = float(np.ptp(kept)) or abs(center) * 0.01 or 1.0
    reach = np.minimum(widths[near], 1.5 * span)  # with two seeds an interval may be a hundred times wider
    return float(np.min(kept - reach)) - 0.06 * span, float(np.max(kept + reach)) + 0.06 * span


def _listed(rows: Sequence[Row], summary: Summary) -> tuple[Figure, Axes]:
    """A figure with one line per row, from the bottom up."""
    labels = [_label(row, summary) for row in rows]
    lines = max(label.count("\n") for label in labels)
    figure = Figure(figsize=(WIDTH, 0.9 + (0.26 + 0.14 * lines) * len(rows)), layout="constrained")
    axes = figure.add_subplot(ylim=(-0.7, len(rows) - 0.3))
    axes.set_yticks(range(len(rows)), labels)
    axes.grid(visible=False, axis="y")
    return figure, axes


def _label(row: Row, summary: Summary) -> str:
    """The method, with its optimizer where the study has several."""
    several = len({other.optimizer for other in summary.rows}) > 1
    return wrapped(f"{row.method}, {row.optimizer}" if several else row.method)


def _axis(task: str, summary: Summary, *, direction: bool = True) -> str:
    metric = summary.primary[task]
    sign = unit(metric)[1]
    better = f" ({'higher' if summary.directions[task, metric] else 'lower'} is better)" if direction else ""
    return f"{task} {metric}{', ' + sign if sign else ''}{better}"


def _named(row: Row) -> dict[str, Any]:
    return {"method": row.method, "optimizer": row.optimizer}
