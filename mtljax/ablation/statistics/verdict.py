"""The verdict of a study in plain words: what the numbers support, and what they do not."""

import itertools
import math
from collections.abc import Sequence
from typing import TypeGuard

import numpy as np

from mtljax.ablation.statistics.candidates import SCALARIZATION, SINGLE, Failure, frozen
from mtljax.ablation.statistics.comparisons import (
    SIGNIFICANT,
    Comparison,
    against,
    against_scalarization,
    at_equal_budget,
    contestants,
    settings_tried,
)
from mtljax.ablation.statistics.intervals import Difference
from mtljax.ablation.statistics.labels import (
    RATE,
    joined,
    optimizer_text,
    row_name,
    seeds_text,
    setting_text,
    value_text,
)
from mtljax.ablation.statistics.pareto import pareto
from mtljax.ablation.statistics.rows import Row
from mtljax.ablation.statistics.summary import Summary
from mtljax.ablation.statistics.tables import signed

# One kind of choice matters more than another, or than seed noise, when it moves Δm half as much again.
CLEARLY = 1.5
_AXIS = 3  # values of an axis that has ends
_MOST = 12  # names in one sentence; the report's table has all


def verdict(summary: Summary) -> str:
    """Says what a study shows, one paragraph a line.

    Every method, with its setting and optimizer chosen on validation, is compared with equal weighting, single-task
    training and tuned scalarization by paired differences of Δm over common seeds. "Better" and "worse" need the paired
    t-test to survive Holm's correction over the methods compared; what survives only uncorrected is called a hint.

    Args:
      summary: of the study.

    Returns:
      Paragraphs separated by newlines.
    """
    rows = contestants(summary)
    paragraphs = [summary.problem] if summary.problem else []
    if not rows:
        paragraphs.append("No multi-task run has finished, so there is nothing to compare.")
    elif any(math.isfinite(row.delta_m.mean) for row in rows) or not summary.problem:
        equal = [row for row in rows if row.method == "ew"]
        if not equal:
            paragraphs.append("Equal weighting (`ew`) has no finished run, so the methods are not compared with it.")
        elif len(rows) > len(equal):
            paragraphs.append(_comparison(against(rows, equal), "equal weighting"))
        single = [row for row in summary.rows if row.role == SINGLE and row.selected]
        paragraphs.append(_comparison(against(rows, single), "single-task training"))
        paragraphs += _scalarization(summary, rows)
        paragraphs.append(_reading(rows))
        paragraphs += _ends_of_axes([*single, *rows])
        paragraphs += _methods_or_optimizers(summary)
    return "\n".join(paragraphs + _pareto(summary) + _left_out(summary))


def _comparison(comparisons: Sequence[Comparison], name: str) -> str:
    """Which methods differ from a reference, every one with its difference and interval."""
    counts = sorted({c.difference.interval.n for c in comparisons if c.difference.interval.n > 1})
    if not counts:
        text = f"Against {name} no difference is shown: an interval needs two or more seeds in common; run at least 3."
        known = [_difference(c) for c in comparisons if c.difference.interval.n]
        return f"{text} Single runs differ by: {joined(known, _MOST)}." if known else text
    groups = {
        outcome: [_difference(c) for c in comparisons if c.outcome == outcome] for outcome in ("better", "worse", "")
    }
    seeds = " to ".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))
    if not groups["better"] and not groups["worse"]:
        text = f"No method is shown to be better or worse than {name} over {seeds} seeds: {joined(groups[''], _MOST)}."
    else:
        starts = {
            "better": f"Better than {name} over {seeds} seeds",
            "worse": f"Worse than {name} over {seeds} seeds",
            "": "No difference shown",
        }
        text = " ".join(
            f"{start}: {joined(groups[outcome], _MOST)}." for outcome, start in starts.items() if groups[outcome]
        )
    if hints := [row_name(c.row) for c in comparisons if c.difference.p_value < SIGNIFICANT <= c.p_corrected]:
        tested = _tested(comparisons)
        text += (
            f" Without correction for {tested} comparisons {joined(hints, _MOST)} would differ: a hint to be tested."
        )
    return text


def _scalarization(summary: Summary, rows: Sequence[Row]) -> list[str]:
    """Whether any method beats tuned scalarization: the null hypothesis of a study."""
    tuned = [row for row in rows if row.role == SCALARIZATION]
    others = [row for row in rows if row.role != SCALARIZATION and row.method != "ew"]
    if not others:
        return []
    if not tuned:
        there = any(row.role == SCALARIZATION for row in summary.rows)
        why = "has no finished run" if there else "is not part of this study"
        advice = "its failures are listed below" if there else "weight_grid=9 in the StudyConfig adds it"
        return [f"Tuned scalarization {why}, so whether a method beats the best fixed weights is open: {advice}."]
    comparisons = against_scalarization(summary)
    if not _tested(comparisons):
        return ["Against tuned scalarization nothing is shown: an interval needs two or more seeds that differ."]
    first = sorted(rows, key=lambda row: row.role != SCALARIZATION)
    budget = joined([f"{row_name(row)} {settings_tried(summary, row)}" for row in first], _MOST)
    budget = f"Settings tried, over all optimizers: {budget}."
    above = [c for c in comparisons if c.beats]
    weights = f" ({setting_text(tuned[0].setting)})" if len(tuned) == 1 and tuned[0].setting else ""
    question = f"Does any method beat tuned scalarization{weights}?"
    at_equal = _equal_budget(summary)
    if not above:
        return [f"{question} No: no method's 95% interval lies wholly on the better side. {budget}", *at_equal]
    certain = [row_name(c.row) for c in above if c.outcome == "better"]
    holm = f"After correction for {_tested(comparisons)} comparisons " + (
        f"it holds for {joined(certain, _MOST)}." if certain else "it holds for none: a hint to be tested."
    )
    better = f"The 95% interval lies wholly on the better side for {joined(map(_difference, above), _MOST)}."
    return [f"{question} {better} {holm} {budget}", *at_equal]


def _equal_budget(summary: Summary) -> list[str]:
    """Where scalarization would be expected with as many settings as each method had."""
    groups: dict[tuple[int, int, str], list[str]] = {}
    for budget in at_equal_budget(summary):
        where = signed(budget.expected.mean)
        difference = _in_words(row_name(budget.row), budget.difference)
        groups.setdefault((budget.settings, budget.tuned_settings, where), []).append(difference)
    sentences = [
        f"With {n} setting{'s' * (n > 1)}, drawn at random from its {total}, scalarization would be expected at Δm "
        f"{where}; against that: {joined(differences, _MOST)}."
        for (n, total, where), differences in groups.items()
    ]
    return [f"At equal budget, not corrected for the number of comparisons: {' '.join(sentences)}"] if groups else []


def _ends_of_axes(rows: Sequence[Row]) -> list[str]:
    """Numbers chosen at the end of the values tried, where one beyond might be better."""
    names: dict[str, list[str]] = {}
    for row in rows:
        for chosen in (candidate for candidate in row.candidates if candidate.chosen):
            tried = [candidate.setting for candidate in row.candidates if candidate.tasks == chosen.tasks]
            for field, value in chosen.setting.items():
                values = {v for setting in tried if _is_number(v := setting.get(field))}
                if _is_number(value) and len(values) >= _AXIS and value in (min(values), max(values)):
                    what = f"{row.optimizer} {value_text(value)}" if field == RATE else setting_text({field: value})
                    who = f"{row_name(row)} {' '.join(chosen.tasks)}" if row.kind == SINGLE else row_name(row)
                    names.setdefault(what, []).append(who)
    if not names:
        return []
    ends = joined([f"{what} for {joined(who, _MOST)}" for what, who in names.items()], _MOST)
    return [f"Chosen at the end of the grid: {ends}. A value beyond it may be better; a wider grid would tell."]


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _tested(comparisons: Sequence[Comparison]) -> int:
    """How many comparisons Holm's correction is over."""
    return sum(math.isfinite(comparison.difference.p_value) for comparison in comparisons)


def _reading(rows: Sequence[Row]) -> str:
    what = "its settings and its optimizer" if any(len(row.candidates) > 1 for row in rows) else "its optimizer"
    optimizers = {optimizer_text(row) for row in rows}
    if len(optimizers) == 1:
        which = f" ({optimizers.pop()} for all)"
    else:
        which = f" ({joined(f'{row_name(r)}: {optimizer_text(r)}' for r in rows)})" if len(rows) <= _MOST else ""
    choice = f"Each method has {what} chosen on validation{which}."
    text = f"{choice} Numbers are differences of Δm in percentage points"
    if max(len(row.seeds) for row in rows) < 2:
        return f"{text}; negative is better."
    return (
        f"{text}, paired by seed, each with its 95% interval; negative is better. An interval stands for itself; the "
        "words better and worse are corrected for the number of comparisons (Holm, 5%). No difference shown does not "
        "mean that there is none."
    )


def _methods_or_optimizers(summary: Summary) -> list[str]:
    """How much the choice of the method moves Δm, and how much that of the optimizer."""
    rows = [row for row in summary.rows if row.kind != SINGLE and math.isfinite(row.delta_m.mean)]
    pairs = [(a, b) for a, b in itertools.combinations(rows, 2) if frozen(a.condition) == frozen(b.condition)]
    methods = [abs(a.delta_m.mean - b.delta_m.mean) for a, b in pairs if a.optimizer == b.optimizer]
    optimizers = [abs(a.delta_m.mean - b.delta_m.mean) for a, b in pairs if a.method == b.method]
    if not methods or not optimizers:
        return []
    by_method, by_optimizer = float(np.mean(methods)), float(np.mean(optimizers))
    text = (
        f"Method or optimizer: two methods with the same optimizer differ by {by_method:.2f} points of Δm on average, "
        f"two optimizers with the same method by {by_optimizer:.2f}."
    )
    variances = [
        np.var(list(row.delta_m_by_seed.values()), ddof=1) / row.delta_m.n for row in rows if row.delta_m.n > 1
    ]
    variances = [variance for variance in variances if math.isfinite(variance)]
    noise = 0.0
    if variances:  # the mean distance of two means that differ by chance alone: E|N(0, 2σ²)| = 2 σ / √π
        noise = 2 * math.sqrt(float(np.mean(variances)) / math.pi)
        text += f" Seeds alone would make about {noise:.2f}."
    if max(by_method, by_optimizer) < CLEARLY * noise:
        text += " Neither stands out from the seeds."
    elif by_optimizer > CLEARLY * by_method:
        text += " In this study the optimizer matters more than the method."
    elif by_method > CLEARLY * by_optimizer:
        text += " In this study the method matters more than the optimizer."
    else:
        text += " In this study they matter about as much."
    return [text]


def _pareto(summary: Summary) -> list[str]:
    """How many settings of each optimizer are Pareto-optimal."""
    if sum(bool(c.seeds) for row in summary.rows if row.kind != SINGLE for c in row.candidates) < 2:
        return []
    front = pareto(summary, "optimizer")
    metrics = len({key for point in front.points for key in point.values})
    if metrics < 2:
        return []
    several = len(front.counts) > 1
    counts = [
        f"{count.value} {count.full} of {count.runs}" + (f" ({count.other})" if several else "")
        for count in front.counts
    ]
    meaning = " (in brackets: those that no run of another optimizer dominates)" if several else ""
    return [f"Pareto-optimal over {metrics} test metrics{meaning}: {joined(counts, _MOST)}."]


def _left_out(summary: Summary) -> list[str]:
    paragraphs = []
    undefined = [
        f"{row_name(row)} with {optimizer_text(row)} ({row.delta_m.left_out})"
        for row in summary.rows
        if row.delta_m.left_out
    ]
    if undefined and not summary.problem:
        paragraphs.append(f"Seeds without a finite Δm, left out of its mean: {joined(undefined, _MOST)}.")
    if broken := _not_finite(summary):
        runs = "1 run has a test metric that is" if broken == 1 else f"{broken} runs have test metrics that are"
        paragraphs.append(f"{runs} not a finite number: shown, and left out of means and Pareto sets.")
    if summary.failures:
        groups: dict[tuple[str, str], list[Failure]] = {}
        for failure in summary.failures:
            groups.setdefault((failure.method, failure.optimizer), []).append(failure)
        named = [
            f"{method} with {optimizer}, {_failed(failures)} ({failures[0].reason.rstrip('.')})"
            for (method, optimizer), failures in groups.items()
        ]
        runs = "1 run failed and is" if len(summary.failures) == 1 else f"{len(summary.failures)} runs failed and are"
        several = "; ".join(named[:_MOST]) + (f"; and {len(named) - _MOST} more" if len(named) > _MOST else "")
        paragraphs.append(f"{runs} left out of every number: {several}.")
    return paragraphs


def _not_finite(summary: Summary) -> int:
    """How many finished runs, over all settings, have a test metric that is not a finite number."""
    return sum(
        any(not math.isfinite(value) for key, value in test.items() if key[0] in candidate.tasks)
        for row in summary.rows
        for candidate in row.candidates
        for test in candidate.test_by_seed.values()
    )


def _failed(failures: Sequence[Failure]) -> str:
    """The seeds, or how many runs where a seed failed with several settings."""
    seeds = [failure.seed for failure in failures]
    return seeds_text(seeds) if len(set(seeds)) == len(seeds) else f"{len(seeds)} runs"


def _difference(comparison: Comparison) -> str:
    return _in_words(row_name(comparison.row), comparison.difference)


def _in_words(name: str, difference: Difference) -> str:
    interval = difference.interval
    if interval.n == 0:
        return f"{name} (no seed in common)"
    if interval.n == 1:
        return f"{name} {signed(interval.mean)}"
    if math.isnan(difference.p_value):
        return f"{name} {signed(interval.mean)} (no spread over the seeds)"
    return f"{name} {signed(interval.mean)} [{signed(interval.low)}, {signed(interval.high)}]"
