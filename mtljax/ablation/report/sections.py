"""What the page says besides figures: the tables of a study and how it was measured."""

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from mtljax.ablation.report.conditions import by_condition, name
from mtljax.ablation.report.page import Line, details, table
from mtljax.ablation.statistics import SINGLE, Interval, Record, Row, Summary, shown, unit
from mtljax.ablation.statistics.candidates import Candidate
from mtljax.ablation.statistics.comparisons import against_scalarization, settings_tried
from mtljax.ablation.statistics.labels import field_name, row_name, setting_text
from mtljax.ablation.statistics.pareto import Pareto, counts_by_method, pareto
from mtljax.ablation.statistics.tables import AT_ONCE, milliseconds, signed
from mtljax.ablation.statistics.walltime import EqualTime, equal_time

_MOST_AXES = 6
_MOST_LISTED = 500  # lines of the tables of settings and of failed runs


def results(summary: Summary, note: str) -> str:
    """The table of all rows, by condition."""
    choice = not all(row.selected for row in summary.rows)  # where all are selected, there is nothing to mark
    settings = any(row.setting for row in summary.rows)
    tried = any(row.tried > 1 for row in summary.rows)
    heads = ["method", "optimizer", "Δm % ↓"]
    heads += [
        f"{t} {m} {unit(m)[1]} {'↑' if up else '↓'}".replace("  ", " ") for (t, m), up in summary.directions.items()
    ]
    heads += ["validation score ↑", "ms/step", "seeds"]
    heads += [*(["settings tried"] if tried else []), *(["setting"] if settings else [])]

    def line(row: Row) -> Line:
        cells = [name(row), row.optimizer, _change(row.delta_m)]
        cells += [
            (with_nan(row.test[key], key[1]), row.test[key].mean, deviation(row.test[key], key[1]))
            for key in summary.directions
        ]
        cells += [_score(row.validation), (milliseconds(row), row.seconds_per_step)]
        cells += [(_seeds(row), len(row.seeds)), *([(str(row.tried), row.tried)] if tried else [])]
        return Line([*cells, *([setting_text(row.setting)] if settings else [])], choice and row.selected)

    marked = "Marked rows: the optimizer chosen on validation for that method. " if choice else ""
    chosen = "Setting: the one chosen on validation. " if settings else ""
    times = f"ms/step: {AT_ONCE}. " if any(row.at_once for row in summary.rows) else ""
    return table(
        heads,
        {condition: [line(row) for row in part.rows] for condition, part in by_condition(summary).items()},
        "Results on test",
        "Mean over seeds ± half of the 95% interval; the standard deviation over seeds appears where a number is "
        f"pointed at. {marked}{chosen}{times}Δm: mean relative change of the metrics against single-task training; "
        f"negative is better. Click a heading to sort. {note}",
    )


def scalarization(summary: Summary) -> str:
    """Every method against tuned scalarization; nothing without it."""

    def line(row: Row, difference: Interval, p_value: float, outcome: str) -> Line:
        ends = f"[{signed(difference.low)}, {signed(difference.high)}]" if math.isfinite(difference.half_width) else "–"
        tried = settings_tried(summary, row)
        cells = [row_name(row), row.optimizer, (signed(difference.mean) if difference.n else "–", difference.mean)]
        cells += [(ends, difference.low), ("–" if math.isnan(p_value) else f"{p_value:.2g}", p_value)]
        none = "no spread over the seeds" if difference.n > 1 and math.isnan(p_value) else "no difference shown"
        return Line([*cells, outcome or none, (str(tried), tried)])

    compared = [c for c in against_scalarization(summary) if c.difference.interval.n]
    lines = [line(c.row, c.difference.interval, c.p_corrected, c.outcome) for c in compared]
    if not lines:
        return ""
    budgets = {row_name(c.reference): settings_tried(summary, c.reference) for c in compared}
    tried = "; ".join(f"{reference}: {count}" for reference, count in budgets.items())
    return "<h3>Against tuned scalarization</h3>\n" + table(
        ["method", "optimizer", "difference of Δm ↓", "95% interval", "p (Holm)", "found", "settings tried"],
        {"": lines},
        "Methods against tuned scalarization",
        "Fixed weights of the losses, chosen on validation like every method's own setting. Differences in percentage "
        f"points of Δm, paired by seed; negative is better than tuned scalarization. Settings it had: {escape(tried)}.",
    )


def trade_offs(summary: Summary) -> str:
    """Mean ranks, and Pareto-optimal settings counted by method, optimizer and every other field."""
    parts = []
    ranks = {
        condition: sorted((row for row in part.rows if math.isfinite(row.mean_rank)), key=lambda row: row.mean_rank)
        for condition, part in by_condition(summary).items()
    }
    if any(len(rows) > 1 for rows in ranks.values()):
        lines = {
            condition: [Line([name(row), row.optimizer, (f"{row.mean_rank:.2f}", row.mean_rank)]) for row in rows]
            for condition, rows in ranks.items()
            if rows
        }
        note = "The mean over tasks and metrics of a method's rank on test; 1 is the best, ties share their rank."
        parts.append("<h3>Mean rank</h3>\n" + table(["method", "optimizer", "mean rank ↓"], lines, "Mean rank", note))
    fronts = [pareto(summary, axis) for axis in _axes(summary)]
    if fronts and len(fronts[0].points) > 1:
        parts.append("<h3>Pareto-optimal settings</h3>\n<p>" + escape(_meaning(fronts[0])) + "</p>")
        parts.append('<div class="beside">' + "\n".join(map(_counts, fronts)) + "</div>")
        parts += [_by_method(each) for each in fronts if each.axis == "optimizer"]
    return "\n".join(parts)


def _axes(summary: Summary) -> list[str]:
    """What Pareto-optimal settings are counted by: everything that has two values or more."""
    candidates = [c for row in summary.rows if row.kind != SINGLE for c in row.candidates if c.seeds]
    if not candidates:
        return []
    values: dict[str, set[str]] = {"method": set(), "optimizer": set()}
    for c in candidates:
        fields = {**c.setting, **c.condition, "method": c.method, "optimizer": c.optimizer}
        for field, value in fields.items():
            if not isinstance(value, Mapping):
                values.setdefault(field, set()).add(str(value))
    return [field for field, several in values.items() if len(several) > 1 or field == "method"][:_MOST_AXES]


def _meaning(front: Pareto) -> str:
    left_out = sum(point.left_out for point in front.points)
    text = (
        "A setting is Pareto-optimal when no other is at least as good in every test metric and better in one; each is "
        "the mean over its seeds."
    )
    if left_out:
        text += f" {left_out} of {len(front.points)} settings have a NaN metric: they neither count nor dominate."
    return text


def _counts(front: Pareto) -> str:
    axis = field_name(front.axis)
    heads = [axis, "settings", "Pareto-optimal", f"not dominated by another {axis}"]
    nan = any(count.left_out for count in front.counts)
    several = len(front.counts) > 1
    lines = []
    for count in front.counts:
        numbers = [count.runs, count.full, *([count.other] if several else []), *([count.left_out] if nan else [])]
        lines.append(Line([count.value, *((str(number), number) for number in numbers)]))
    heads = [*heads[: 4 if several else 3], *(["left out (NaN)"] if nan else [])]
    return table(heads, {"": lines}, f"Pareto-optimal settings by {axis}")


def _by_method(front: Pareto) -> str:
    """Pareto-optimal settings by method and optimizer; the page has the counts of either already."""
    methods = counts_by_method(front)
    if len(methods) < 2:
        return ""
    lines = [
        Line([method, c.value, *((str(number), number) for number in (c.runs, c.full, c.other))])
        for method, counts in methods.items()
        for c in counts
    ]
    heads = ["method", "optimizer", "settings", "Pareto-optimal", "not dominated by another optimizer"]
    return table(heads, {"": lines}, "Pareto-optimal settings by method and optimizer")


def tried(summary: Summary) -> str:
    """Every setting that was tried, in a table that opens on a click."""
    all_of_them = [
        (condition, row, candidate)
        for condition, part in by_condition(summary).items()
        for row in part.rows
        for candidate in row.candidates
    ]
    if all(row.tried < 2 for row in summary.rows):
        return ""
    groups: dict[str, list[Line]] = {}
    for condition, row, candidate in all_of_them[:_MOST_LISTED]:
        who = f"{name(row)}, {' '.join(candidate.tasks)}" if candidate.kind == SINGLE else name(row)
        cells = [who, row.optimizer, setting_text(candidate.setting) or "–", _change(candidate.delta_m)]
        cells += [_score(candidate.validation), (_seeds(candidate), len(candidate.seeds))]
        groups.setdefault(condition, []).append(Line(cells, candidate.chosen))
    left = len(all_of_them) - _MOST_LISTED
    note = "Marked: chosen on validation." + (f" {left} more are in results.csv." if left > 0 else "")
    heads = ["method", "optimizer", "setting", "Δm % ↓", "validation score ↑", "seeds"]
    return details(f"All {len(all_of_them)} settings tried", table(heads, groups, "All settings tried", note))


def times(summary: Summary, records: Sequence[Record]) -> str:
    """Δm at equal steps beside Δm at equal time."""
    entries = equal_time(summary, records)
    groups = {setting_text(entry.condition) if len(entries) > 1 else "": _timed(entry) for entry in entries}
    notes = "".join(f"<p>{escape(_budget(entry, len(entries) > 1))}</p>" for entry in entries)
    if not entries:
        return ""
    heads = ["method", "optimizer", "Δm % at equal steps ↓", "Δm % at equal time ↓", "steps in that time"]
    body = table(heads, groups, "Equal steps and equal time") if any(groups.values()) else ""
    return f"<h3>Equal steps and equal time</h3>\n{notes}\n{body}"


def _timed(entry: EqualTime) -> list[Line]:
    return [
        Line([name(t.row), t.row.optimizer, _change(t.at_steps), _change(t.at_seconds), _steps(t.steps_at_seconds)])
        for t in entry.rows
    ]


def _steps(value: float) -> tuple[str, float]:
    return "–" if math.isnan(value) else f"{value:.0f}", value


def _budget(entry: EqualTime, named: bool) -> str:
    where = f"{setting_text(entry.condition)}: " if named and entry.condition else ""
    budget = f"{entry.steps} steps, or {entry.seconds:.3g} s of training steps. " if entry.rows else ""
    return where + budget + " ".join(entry.notes)


def failures(summary: Summary) -> str:
    """The cells that failed, and why."""
    lines = [Line([f.cell, f.reason]) for f in summary.failures[:_MOST_LISTED]]
    left = len(summary.failures) - _MOST_LISTED
    note = f"{left} more are in results.csv." if left > 0 else ""
    return table(["cell", "reason"], {"": lines}, "Failed runs", note)


def measured(summary: Summary) -> Iterable[str]:
    """How the numbers came about, a paragraph each."""
    tuned = any(row.setting for row in summary.rows)
    what = "its setting and its optimizer" if tuned else "the optimizer"
    yield (
        f"Δm is the mean over the test metrics ({len(summary.directions)} in this study) of the relative change "
        "(M − B) / |B| against single-task training, in percent, with its sign turned where higher is better: lower is "
        "better, and negative beats single-task training (arXiv:2311.04698). Losses are not counted."
    )
    if summary.baseline is None:
        yield summary.problem or ""
    else:
        yield (
            f"B is the mean over seeds of single-task training with {summary.baseline}: one network per task, same "
            "encoder and budget, the optimizer with the best validation score. All rows of a condition share this "
            "reference. Its own spread is part of the comparison with single-task training above, not of the intervals "
            "in the table."
        )
    yield (
        "The validation score is the mean over tasks of the primary metric, signed so that up is better. It chose the "
        f"step each run is measured at, and for each method {what}, among those with the most finished seeds. Test "
        "data chose nothing."
    )
    yield (
        "Intervals are 95% Student t-intervals over seeds; they assume roughly normal differences between seeds. They "
        "hold the data set fixed: they speak of other seeds, not of other data. Methods are compared by paired "
        "differences over the seeds they have in common."
    )
    yield (
        "A metric that is NaN is shown as such, is left out of means and intervals (which then say how many seeds), "
        "and takes its run out of the Pareto sets. A run that failed is listed with its reason and is in no number."
    )


def environment(records: Sequence[Record]) -> dict[str, str]:
    """Every distinct value that the cells were made with."""
    distinct: dict[str, list[str]] = {}
    for record in records:
        known = dict(record.get("environment") or {})
        versions = known.pop("versions", None) or {}
        for key, value in ({key.replace("_", " "): value for key, value in known.items()} | dict(versions)).items():
            values = distinct.setdefault(key, [])
            text = "unknown" if value is None else str(value)
            if text not in values:
                values.append(text)
    return {key: ", ".join(values) for key, values in distinct.items()}


def with_nan(interval: Interval, metric: str | None = None) -> str:
    """An interval as the tables show it, with the number of seeds whose value was NaN."""
    if interval.n == 0:
        return "NaN" if interval.left_out else "–"
    return shown(interval, metric) + (f" ({interval.left_out} NaN)" if interval.left_out else "")


def deviation(interval: Interval, metric: str | None = None) -> str:
    """The standard deviation over seeds in words, in the unit of the table; empty for fewer than two seeds."""
    if math.isnan(interval.std):
        return ""
    factor, sign = (1.0, "%") if metric is None else unit(metric)
    return f"standard deviation {factor * interval.std:.3g}{sign} over {interval.n} seeds"


def _change(interval: Interval) -> tuple[str, float, str]:
    text = shown(interval) + (f" ({interval.left_out} NaN)" if interval.left_out and interval.n else "")
    return text, interval.mean, deviation(interval)


def _score(value: float) -> tuple[str, float]:
    return ("–" if math.isnan(value) else f"{value:.4f}".replace("-", "−"), value)


def _seeds(candidate: Candidate) -> str:
    """Finished seeds, and failed cells if any."""
    failed = len(candidate.failures)
    return f"{len(candidate.seeds)}, {failed} failed" if failed else str(len(candidate.seeds))
