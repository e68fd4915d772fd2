"""The figure of all settings at once: parallel coordinates, an axis each for the learning rate, every metric and Δm."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mtljax.ablation.report.drawing import COLORS, INK, LINES, WIDTH, Plot, add_legend, frame, named, rounded, wrapped
from mtljax.ablation.statistics import SINGLE, Record, Row, Summary, pareto, unit
from mtljax.ablation.statistics.candidates import Candidate
from mtljax.ablation.statistics.labels import RATE

_MOST_METRICS = 6
_TICKS = 5


class _Axis(NamedTuple):
    """One vertical axis: its label, a value for every setting, and how it is scaled."""

    label: str
    values: np.ndarray
    higher: bool = True
    log: bool = False

    def heights(self) -> tuple[np.ndarray, list[tuple[float, str]]]:
        """Where the values lie from 0 to 1, up is better, and the ticks; far off values lie outside."""
        if self.log:
            shown, values = sorted(set(self.values)), np.log(self.values)
            low, high = float(values.min()), float(values.max())
            marks = [(math.log(v), f"{v:g}") for v in (shown if len(shown) <= 2 * _TICKS else (shown[0], shown[-1]))]
        else:
            values = self.values
            low, high = frame(values.tolist(), [0.0] * len(values))
            marks = [(v, f"{v:.3g}".replace("-", "\N{MINUS SIGN}")) for v in np.linspace(low, high, _TICKS)]
        span = (high - low) or 1.0
        turned = (lambda v: (v - low) / span) if self.higher else (lambda v: (high - v) / span)
        return turned(values), [(turned(value), text) for value, text in marks]


def parallel_coordinates(summary: Summary, records: Sequence[Record]) -> Iterator[Plot]:
    """All settings tried with several optimizers, as in fig. 2 of arXiv:2311.04698: which one's lines end on top."""
    del records
    tried = [(row, c) for row in summary.rows if row.kind != SINGLE for c in row.candidates if _is_shown(c)]
    optimizers = sorted({row.optimizer for row, _ in tried})
    if len(optimizers) < 2 or all(row.tried < 2 for row, _ in tried):
        return
    axes = _axes(summary, [c for _, c in tried])
    best = {frozenset(p.candidate.cells) for p in pareto(summary, "optimizer").points if p.full}
    optimal = np.array([frozenset(c.cells) in best for _, c in tried])
    figure = Figure(figsize=(max(WIDTH, 1.1 * len(axes)), 3.9), layout="constrained")
    panel = figure.add_subplot(xlim=(-0.35, len(axes) - 0.65), ylim=(-0.03, 1.03))
    panel.set_xticks(range(len(axes)), [wrapped(axis.label, 14) for axis in axes])
    panel.set_yticks([])
    panel.grid(visible=False)
    panel.spines[["left", "right", "top"]].set_visible(False)
    columns = []
    for x, axis in enumerate(axes):
        heights, ticks = axis.heights()
        columns.append(heights)
        panel.axvline(x, color=INK, linewidth=0.8)
        for height, text in ticks:
            panel.text(x - 0.03, height, text, ha="right", va="center", fontsize="x-small")
    for (row, _), line, is_best in sorted(
        zip(tried, np.transpose(columns), optimal, strict=True), key=lambda item: bool(item[2])
    ):
        index = optimizers.index(row.optimizer)
        style: dict[str, Any] = {"linewidth": 1.8, "alpha": 1.0} if is_best else {"linewidth": 0.6, "alpha": 0.45}
        panel.plot(line, color=COLORS[index % len(COLORS)], linestyle=LINES[index % len(LINES)], **style)
    entries = [
        Line2D([], [], color=COLORS[i % len(COLORS)], linestyle=LINES[i % len(LINES)], label=optimizer)
        for i, optimizer in enumerate(optimizers)
    ]
    add_legend(figure, entries)
    data = [
        named(row, c)
        | rounded({axis.label.replace("\n", " "): float(axis.values[i]) for axis in axes})
        | {"pareto_optimal": bool(optimal[i])}
        for i, (row, c) in enumerate(tried)
    ]
    caption = (
        "A line is a setting, the mean over its seeds on test; up is better except for the learning rate. Colour "
        "stands for the optimizer; bold: Pareto-optimal over all test metrics. Settings far off leave the frame."
    )
    if (metrics := len(_metrics(summary))) > _MOST_METRICS:
        caption += f" The first {_MOST_METRICS} of {metrics} metrics are drawn."
    yield Plot("parallel", "trade-offs", "All settings, by optimizer", caption, figure, data)


def _is_shown(candidate: Candidate) -> bool:
    """Whether a run of it finished with finite metrics; others have no line."""
    own = [v for test in candidate.test_by_seed.values() for key, v in test.items() if key[0] in candidate.tasks]
    return bool(own) and bool(np.isfinite(own).all())


def _metrics(summary: Summary) -> list[tuple[str, str]]:
    return [key for key in summary.directions if key[1] != "loss"]


def _axes(summary: Summary, tried: Sequence[Candidate | Row]) -> list[_Axis]:
    axes = []
    rates = np.array([c.setting.get(RATE, math.nan) for c in tried], float)
    if np.isfinite(rates).all() and (rates > 0).all():
        axes.append(_Axis("learning rate", rates, log=True))
    for task, metric in _metrics(summary)[:_MOST_METRICS]:
        factor, sign = unit(metric)
        values = np.array([factor * c.test[task, metric].mean for c in tried])
        axes.append(_Axis(f"{task} {metric} {sign}".strip(), values, summary.directions[task, metric]))
    changes = np.array([c.delta_m.mean for c in tried])
    if np.isfinite(changes).all():
        axes.append(_Axis("Δm %", changes, higher=False))
    return axes
