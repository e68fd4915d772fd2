"""The parts of a study that are compared within: one for each condition that methods share."""

import dataclasses

from mtljax.ablation.statistics import SINGLE, Row, Summary
from mtljax.ablation.statistics.candidates import frozen, in_order
from mtljax.ablation.statistics.labels import setting_text
from mtljax.ablation.statistics.summary import surroundings


def by_condition(summary: Summary) -> dict[str, Summary]:
    """The study by condition, in words and in natural order; the whole under "" where all rows share one.

    Args:
      summary: of the study.

    Returns:
      Summaries with the rows of their condition and with the single-task rows that go with them.
    """
    multi = [row for row in summary.rows if row.kind != SINGLE] or list(summary.rows)
    shared = {frozen(surroundings(row.condition)): surroundings(row.condition) for row in multi}
    if len(shared) < 2:
        return {"": summary}
    summaries: dict[str, Summary] = {}
    placed: set[int] = set()
    for around in sorted(shared.values(), key=in_order):
        rows = [
            row
            for row in summary.rows
            if (own := surroundings(row.condition)) == around or (row.kind == SINGLE and own.items() <= around.items())
        ]
        placed |= set(map(id, rows))
        summaries[setting_text(around)] = dataclasses.replace(summary, rows=tuple(rows))
    if left := tuple(row for row in summary.rows if id(row) not in placed):
        summaries["other conditions"] = dataclasses.replace(summary, rows=left)
    return summaries


def name(row: Row) -> str:
    """A method within its part of the study: with the values of its own options, where they are compared."""
    own = {field: value for field, value in row.condition.items() if field not in surroundings(row.condition)}
    return f"{row.method} ({setting_text(own)})" if own else row.method
