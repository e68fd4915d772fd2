"""The figures of tuned settings: Δm against a learning rate, or any other number that was chosen on validation."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from mtljax.ablation.report.drawing import WIDTH, Plot, Styles, file_name, frame, named, rounded, thinned
from mtljax.ablation.statistics import SINGLE, Record, Row, Summary
from mtljax.ablation.statistics.candidates import Candidate, choose
from mtljax.ablation.statistics.labels import field_name

_MOST_FIELDS = 4
_MOST_LINES = 14
_MOST_TICKS = 6
Line = dict[float, list[Candidate]]  # settings by the value of one field


def sweeps(summary: Summary, records: Sequence[Record]) -> Iterator[Plot]:
    """Δm against each numeric field that was tuned, one panel an optimizer."""
    del records
    rows = [row for row in summary.rows if row.kind != SINGLE]
    lines = {field: [(row, line) for row in rows if len(line := _line(row, field)) > 1] for field in _fields(rows)}
    drawn = [field for field, pairs in lines.items() if any(_known(line) for _, line in pairs)]
    for field in drawn[:_MOST_FIELDS]:
        yield _sweep(field, lines[field], summary)


def _fields(rows: Sequence[Row]) -> list[str]:
    """The fields with numbers among the settings tried."""
    return list(
        dict.fromkeys(f for row in rows for c in row.candidates for f in c.setting if _number(c, f) is not None)
    )


def _number(candidate: Candidate, field: str) -> float | None:
    value = candidate.setting.get(field)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _line(row: Row, field: str) -> Line:
    by_value: Line = {}
    for candidate in row.candidates:
        if (value := _number(candidate, field)) is not None:
            by_value.setdefault(value, []).append(candidate)
    return dict(sorted(by_value.items()))


def _best(candidates: Sequence[Candidate]) -> Candidate | None:
    """The one that validation chose or would choose, among those with a Δm."""
    known = [candidate for candidate in candidates if math.isfinite(candidate.delta_m.mean)]
    return next((candidate for candidate in known if candidate.chosen), choose(known))


def _known(line: Line) -> bool:
    return any(_best(candidates) for candidates in line.values())


def _sweep(field: str, lines: Sequence[tuple[Row, Line]], summary: Summary) -> Plot:
    left = len(lines) - _MOST_LINES
    lines = lines[:_MOST_LINES]
    optimizers = sorted({row.optimizer for row, _ in lines})
    figure = Figure(figsize=(WIDTH, 2.6 * len(optimizers) + 0.7), layout="constrained")
    panels = figure.subplots(len(optimizers), sharex=True, squeeze=False)[:, 0]
    styles, data, failed = Styles(summary), [], False
    bests = [best for _, line in lines for candidates in line.values() if (best := _best(candidates))]
    chosen = [best for best in bests if best.chosen]
    low, high = frame([c.delta_m.mean for c in chosen or bests], [0.0] * len(chosen or bests))
    others = sorted(c.delta_m.mean for c in bests)
    high = max(high, others[len(others) // 2])  # a good part of every curve, not of what diverged
    high += 0.1 * (high - low)
    for axes, optimizer in zip(panels, optimizers, strict=True):
        axes.set_title(optimizer)
        axes.set_ylim(low, high)
        axes.axhline(0, color="0.5", linewidth=0.8)
        for row, line in lines:
            if row.optimizer == optimizer:
                failed |= _draw(axes, line, styles.color(row), styles.marker(row)["marker"], high)
                data += _data(row, line, field)
    values = [value for _, line in lines for value in line]
    if min(values) > 0 and max(values) >= 8 * min(values):
        panels[-1].set_xscale("log")
    ticks = thinned(sorted(set(values)), _MOST_TICKS)
    panels[-1].set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    panels[-1].xaxis.set_minor_locator(NullLocator())
    panels[-1].set_xlabel(field_name(field))
    figure.supylabel("Δm on test, % (lower is better)", fontsize="medium")
    styles.legend(figure, [row for row, _ in lines], lines=False)
    tuned = any(len(candidates) > 1 for _, line in lines for candidates in line.values())
    caption = "Mean over seeds, bars: 95% interval; large and filled: chosen on validation."
    if tuned:
        caption += " At each value the other settings are those that validation chooses."
    if failed:
        caption += " A cross at the upper edge: outside the frame, or no run finished."
    if left > 0:
        caption += f" The first {_MOST_LINES} of {_MOST_LINES + left} lines."
    words = field_name(field)
    return Plot(f"sweep-{file_name(field)}", "settings", f"Δm against {words}", caption, figure, data)


def _draw(axes: Axes, line: Line, color: str, symbol: str, high: float) -> bool:
    """Draws a line; whether some of its points could not be shown."""
    best = {value: _best(candidates) for value, candidates in line.items()}
    known = {value: c for value, c in best.items() if c is not None}
    means = [c.delta_m.mean for c in known.values()]
    widths = np.nan_to_num([c.delta_m.half_width for c in known.values()])
    axes.errorbar(list(known), means, yerr=widths, color=color, linewidth=1.1, elinewidth=0.6)
    for value, candidate in known.items():
        axes.plot(
            value,
            candidate.delta_m.mean,
            symbol,
            color=color,
            markersize=6.5 if candidate.chosen else 4,
            markerfacecolor=color if candidate.chosen else "none",
        )
    missing = [value for value, c in best.items() if c is None or c.delta_m.mean > high]
    if missing:
        (crosses,) = axes.plot(missing, [high] * len(missing), "x", color=color, clip_on=False, markersize=4)
        crosses.set_in_layout(False)
    return bool(missing)


def _data(row: Row, line: Line, field: str) -> list[dict[str, object]]:
    return [
        named(row, candidate)
        | {field: value, "validation": candidate.validation, "chosen": candidate.chosen}
        | rounded(candidate.delta_m._asdict())
        for value, candidates in line.items()
        for candidate in candidates
    ]
