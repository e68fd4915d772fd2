"""Rows compared in pairs over common seeds, and the null hypothesis: no method beats tuned scalarization."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from mtljax.ablation.statistics.candidates import SCALARIZATION, SINGLE, frozen
from mtljax.ablation.statistics.intervals import Difference, holm, paired_difference
from mtljax.ablation.statistics.rows import Row, nearest
from mtljax.ablation.statistics.summary import Summary

SIGNIFICANT = 0.05


class Comparison(NamedTuple):
    """A row against a reference.

    Attributes:
      row: the row.
      reference: what it is compared with.
      difference: of Δm over common seeds, row minus reference, in percentage points; negative is better.
      p_corrected: Holm's p-value over all comparisons made together; NaN for fewer than two common seeds.
      found: "better" or "worse" when the corrected p-value is below 5%, else "".
    """

    row: Row
    reference: Row
    difference: Difference
    p_corrected: float
    found: str

    @property
    def beats(self) -> bool:
        """Whether the 95% interval of the difference, taken by itself, lies wholly on the better side."""
        return self.difference.interval.high < 0


def compare(pairs: Iterable[tuple[Row, Row]]) -> tuple[Comparison, ...]:
    """Compares rows with references by paired differences of Δm, corrected for as many comparisons as there are.

    Args:
      pairs: (row, reference).

    Returns:
      One comparison a pair, in their order.
    """
    pairs = list(pairs)
    differences = [paired_difference(row.delta_m_by_seed, other.delta_m_by_seed) for row, other in pairs]
    tested = [i for i, difference in enumerate(differences) if difference.interval.n > 1]
    corrected = dict(zip(tested, holm([differences[i].p_value for i in tested]), strict=True))
    found = []
    for i, ((row, other), difference) in enumerate(zip(pairs, differences, strict=True)):
        certain = corrected.get(i, 1.0) < SIGNIFICANT
        word = ("better" if difference.interval.mean < 0 else "worse") if certain else ""
        found.append(Comparison(row, other, difference, corrected.get(i, float("nan")), word))
    return tuple(found)


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
    return sum(
        other.tried
        for other in summary.rows
        if (other.kind, other.method, frozen(other.condition)) == (row.kind, row.method, frozen(row.condition))
    )
