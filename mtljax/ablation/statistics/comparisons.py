"""Rows compared in pairs over common seeds, and the null hypothesis: no method beats tuned scalarization."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from mtljax.ablation.statistics.candidates import SCALARIZATION, SINGLE, Candidate, frozen
from mtljax.ablation.statistics.intervals import Difference, Interval, holm, paired_difference, t_interval
from mtljax.ablation.statistics.rows import Row, nearest
from mtljax.ablation.statistics.summary import Summary

SIGNIFICANT = 0.05


class Comparison(NamedTuple):
    """A row against a reference.

    Attributes:
      row: the row.
      reference: what it is compared with.
      difference: of Δm over common seeds, row minus reference, in percentage points; negative is better.
      p_corrected: Holm's p-value over all comparisons made together; NaN where the difference has none.
      outcome: "better" or "worse" when the corrected p-value is below 5%, else "".
    """

    row: Row
    reference: Row
    difference: Difference
    p_corrected: float
    outcome: str

    @property
    def beats(self) -> bool:
        """Whether the 95% interval of the difference, taken by itself, lies wholly on the better side."""
        return math.isfinite(self.difference.p_value) and self.difference.interval.high < 0


class EqualBudget(NamedTuple):
    """A method against tuned scalarization with as many settings as the method had.

    Attributes:
      row: the method.
      settings: how many it tried, over all optimizers.
      tuned_settings: how many tuned scalarization tried.
      expected: Δm of what validation would choose of `settings` of those at random, in the mean over all choices.
      difference: of Δm over common seeds, the method minus `expected`, in percentage points; negative is better.
    """

    row: Row
    settings: int
    tuned_settings: int
    expected: Interval
    difference: Difference


def compare(pairs: Iterable[tuple[Row, Row]]) -> tuple[Comparison, ...]:
    """Compares rows with references by paired differences of Δm, corrected for as many comparisons as there are.

    Args:
      pairs: (row, reference).

    Returns:
      One comparison a pair, in their order.
    """
    pairs = list(pairs)
    differences = [paired_difference(row.delta_m_by_seed, other.delta_m_by_seed) for row, other in pairs]
    tested = [i for i, difference in enumerate(differences) if math.isfinite(difference.p_value)]
    corrected = dict(zip(tested, holm([differences[i].p_value for i in tested]), strict=True))
    comparisons = []
    for i, ((row, other), difference) in enumerate(zip(pairs, differences, strict=True)):
        certain = corrected.get(i, 1.0) < SIGNIFICANT
        word = ("better" if difference.interval.mean < 0 else "worse") if certain else ""
        comparisons.append(Comparison(row, other, difference, corrected.get(i, float("nan")), word))
    return tuple(comparisons)


def contestants(summary: Summary) -> list[Row]:
    """The multi-task rows that are compared: of each method the optimizer chosen on validation."""
    return [row for row in summary.rows if row.kind != SINGLE and row.selected]


def against(rows: Sequence[Row], references: Sequence[Row]) -> tuple[Comparison, ...]:
    """Every row that is not a reference itself against the reference nearest to its condition."""
    pairs = [(row, nearest(references, row)) for row in rows if all(row is not other for other in references)]
    return compare((row, other) for row, other in pairs if other is not None)


def against_scalarization(summary: Summary) -> tuple[Comparison, ...]:
    """Every method but equal weighting, itself a scalarization, against tuned scalarization.

    Args:
      summary: of the study.

    Returns:
      The comparisons; none without a finished row of role "scalarization".
    """
    rows = contestants(summary)
    tuned = [row for row in rows if row.role == SCALARIZATION]
    return against([row for row in rows if row.role != SCALARIZATION and row.method != "ew"], tuned)


def settings_tried(summary: Summary, row: Row) -> int:
    """How many settings the method of a row had under its condition, over all optimizers."""
    return sum(other.tried for other in _optimizers(summary, row))


def at_equal_budget(summary: Summary) -> tuple[EqualBudget, ...]:
    """The comparisons of `against_scalarization`, where scalarization had more settings, at the method's own number."""
    budgets = []
    for compared in against_scalarization(summary):
        row, tuned = compared.row, compared.reference
        settings, tuned_settings = settings_tried(summary, row), settings_tried(summary, tuned)
        if settings < tuned_settings:
            by_seed = expected_choice([c for r in _optimizers(summary, tuned) for c in r.candidates], settings)
            difference = paired_difference(row.delta_m_by_seed, by_seed)
            budgets.append(EqualBudget(row, settings, tuned_settings, t_interval(list(by_seed.values())), difference))
    return tuple(budgets)


def expected_choice(candidates: Sequence[Candidate], count: int) -> dict[int, float]:
    """Δm by seed of what validation would choose among `count` of the candidates, in the mean over all such subsets.

    Of N candidates, the best on validation first, the i-th (from 0) is chosen from C(N - 1 - i, count - 1) of the
    C(N, count) subsets. Candidates without a finished run are never chosen, and subsets of them alone do not count.

    Args:
      candidates: all settings that were tried.
      count: how many of them are drawn.

    Returns:
      Δm by seed; the mean of a seed is over the candidates whose Δm it has.
    """
    able = [candidate for candidate in candidates if math.isfinite(candidate.validation)]
    able.sort(key=lambda candidate: (-len(candidate.seeds), -candidate.validation))  # as `choose` does
    weighted: dict[int, list[tuple[int, float]]] = {}
    for i, candidate in enumerate(able):
        subsets = math.comb(len(candidates) - 1 - i, count - 1)
        for seed, change in candidate.delta_m_by_seed.items():
            if subsets and math.isfinite(change):
                weighted.setdefault(seed, []).append((subsets, change))
    return {
        seed: sum(subsets * change for subsets, change in pairs) / sum(subsets for subsets, _ in pairs)
        for seed, pairs in weighted.items()
    }


def _optimizers(summary: Summary, row: Row) -> list[Row]:
    """The rows of a method under its condition, one an optimizer."""
    own = row.kind, row.method, frozen(row.condition)
    return [other for other in summary.rows if (other.kind, other.method, frozen(other.condition)) == own]
