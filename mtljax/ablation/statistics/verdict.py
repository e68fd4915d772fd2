"""The verdict of a study in plain words: what the numbers support, and what they do not."""

import itertools
import math
from collections.abc import Iterable, Sequence

import numpy as np

from mtljax.ablation.statistics.intervals import Difference, holm, paired_difference
from mtljax.ablation.statistics.summary import SINGLE, Failure, Row, Summary
from mtljax.ablation.statistics.tables import signed

SIGNIFICANT = 0.05
# One kind of choice matters more than another, or than seed noise, when it moves Δm half as much again.
CLEARLY = 1.5


def verdict(summary: Summary) -> str:
    """Says what a study shows, one paragraph a line.

    Every method, with its optimizer chosen on validation, is compared with equal weighting and with single-task
    training by paired differences of Δm over common seeds. "Better" and "worse" need the paired t-test to survive
    Holm's correction over the methods compared; what survives only uncorrected is called a hint.

    Args:
      summary: of the study.

    Returns:
      Paragraphs separated by newlines.
    """
    rows = [row for row in summary.rows if row.kind != SINGLE and row.selected]
    paragraphs = [summary.problem] if summary.problem else []
    if not rows:
        paragraphs.append("No multi-task run has finished, so there is nothing to compare.")
    elif not summary.problem:
        single = next(row for row in summary.rows if row.kind == SINGLE and row.optimizer == summary.baseline)
        equal = next((row for row in rows if row.method == "ew"), None)
        if equal is None:
            paragraphs.append("Equal weighting (`ew`) has no finished run, so the methods are not compared with it.")
        elif len(rows) > 1:
            paragraphs.append(_comparison([row for row in rows if row is not equal], equal, "equal weighting"))
        paragraphs.append(_comparison(rows, single, "single-task training"))
        paragraphs.append(_reading(rows))
        paragraphs += _methods_or_optimizers(summary)
    return "\n".join(paragraphs + _left_out(summary))


def _comparison(rows: Sequence[Row], reference: Row, name: str) -> str:
    """Which methods differ from a reference, every one with its difference and interval."""
    differences = {row.method: paired_difference(row.delta_m_by_seed, reference.delta_m_by_seed) for row in rows}
    tested = {method: difference for method, difference in differences.items() if difference.interval.n > 1}
    counts = sorted({difference.interval.n for difference in tested.values()})
    if not tested:
        text = f"Against {name} no difference is shown: an interval needs two or more seeds in common; run at least 3."
        known = [_difference(method, difference) for method, difference in differences.items() if difference.interval.n]
        return f"{text} Single runs differ by: {_and(known)}." if known else text
    corrected = dict(zip(tested, holm([difference.p_value for difference in tested.values()]), strict=True))
    groups: dict[str, list[str]] = {"better": [], "worse": [], "": []}
    for method, difference in differences.items():
        certain = corrected.get(method, 1.0) < SIGNIFICANT
        found = ("better" if difference.interval.mean < 0 else "worse") if certain else ""
        groups[found].append(_difference(method, difference))
    seeds = " to ".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))
    if not groups["better"] and not groups["worse"]:
        text = f"No method is shown to be better or worse than {name} over {seeds} seeds: {_and(groups[''])}."
    else:
        sentences = (
            f"Better than {name} over {seeds} seeds: {_and(groups['better'])}." if groups["better"] else "",
            f"Worse than {name} over {seeds} seeds: {_and(groups['worse'])}." if groups["worse"] else "",
            f"No difference shown: {_and(groups[''])}." if groups[""] else "",
        )
        text = " ".join(filter(None, sentences))
    if hints := [method for method, d in tested.items() if d.p_value < SIGNIFICANT <= corrected[method]]:
        text += f" Without correction for {len(tested)} comparisons {_and(hints)} would differ: a hint to be tested."
    return text


def _reading(rows: Sequence[Row]) -> str:
    optimizers = {row.optimizer for row in rows}
    which = f"{optimizers.pop()} for all" if len(optimizers) == 1 else _and(f"{r.method}: {r.optimizer}" for r in rows)
    choice = f"Each method has its optimizer chosen on validation ({which})."
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
    pairs = list(itertools.combinations(rows, 2))
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


def _left_out(summary: Summary) -> list[str]:
    paragraphs = []
    undefined = [
        f"{row.method} with {row.optimizer} ({row.delta_m.left_out})" for row in summary.rows if row.delta_m.left_out
    ]
    if undefined and not summary.problem:
        paragraphs.append(f"Seeds without a finite Δm, left out of its mean: {_and(undefined)}.")
    if summary.failures:
        groups: dict[tuple[str, str], list[Failure]] = {}
        for failure in summary.failures:
            groups.setdefault((failure.method, failure.optimizer), []).append(failure)
        named = [
            f"{method} with {optimizer}, {_seeds(failures)} ({failures[0].reason.rstrip('.')})"
            for (method, optimizer), failures in groups.items()
        ]
        runs = "1 run failed and is" if len(summary.failures) == 1 else f"{len(summary.failures)} runs failed and are"
        paragraphs.append(f"{runs} left out of every number: {'; '.join(named)}.")
    return paragraphs


def _difference(method: str, difference: Difference) -> str:
    mean, half_width, n, _ = difference.interval
    if n == 0:
        return f"{method} (no seed in common)"
    if n == 1:
        return f"{method} {signed(mean)}"
    return f"{method} {signed(mean)} [{signed(mean - half_width)}, {signed(mean + half_width)}]"


def _and(names: Iterable[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _seeds(failures: Sequence[Failure]) -> str:
    seeds = sorted({failure.seed for failure in failures})
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {_and(map(str, seeds))}"
