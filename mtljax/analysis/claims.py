"""Claims of papers beside our own numbers: a paired difference over seeds, and a verdict by a stated rule."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from mtljax.ablation.statistics.intervals import Difference, paired_difference
from mtljax.markdown import markdown_table

REPRODUCED, NOT_REPRODUCED, NOT_DECIDED = "reproduced", "not reproduced", "not decided"
RULE = (
    "reproduced: the 95% t-interval of the paired difference over seeds lies wholly on the claimed side of 0; not "
    "reproduced: wholly on the other; not decided: it covers 0, the difference is the same in every seed, or there are "
    "fewer than two. Where the paper has no number the row is a question of ours: yes, no or open"
)
QUESTIONS = {REPRODUCED: "yes", NOT_REPRODUCED: "no", NOT_DECIDED: "open"}


class Claim(NamedTuple):
    """What a paper says, what it measured, and what we did.

    Attributes:
      text: the claim, in which the first of two things is the better.
      paper: the paper's number, as text; "–" where it gives none.
      ours: the first minus the second over common seeds, positive on the claimed side.
      verdict: "reproduced", "not reproduced" or "not decided".
    """

    text: str
    paper: str
    ours: Difference
    verdict: str


def claim(
    text: str, better: Mapping[int, float], worse: Mapping[int, float], *, paper: str = "–", lower: bool = False
) -> Claim:
    """Compares two things of which one is claimed to be better, seed by seed.

    >>> found = claim("b beats a", {0: 3.0, 1: 3.2, 2: 3.1}, {0: 1.0, 1: 1.1, 2: 1.0}, paper="+1.5")
    >>> found.verdict, round(found.ours.interval.mean, 3)
    ('reproduced', 2.067)

    Args:
      text: the claim.
      better: by seed, the numbers of what is claimed to be better.
      worse: those of what it is compared with.
      paper: the paper's number.
      lower: whether lower numbers are better.

    Returns:
      The claim with our difference and the verdict.
    """
    ours = paired_difference(worse, better) if lower else paired_difference(better, worse)
    return Claim(text, paper, ours, verdict(ours))


def verdict(difference: Difference) -> str:
    """What follows from a difference that is claimed to be positive; see `RULE`.

    Differences without any spread over seeds say nothing about another seed, and decide nothing.
    """
    if not math.isfinite(difference.p_value):
        return NOT_DECIDED
    if difference.interval.low > 0:
        return REPRODUCED
    return NOT_REPRODUCED if difference.interval.high < 0 else NOT_DECIDED


def mean_by_seed(several: Iterable[Mapping[int, float]]) -> dict[int, float]:
    """The mean of several things by seed, over the seeds that all of them have: a claim about all of them together."""
    mappings = list(several)
    seeds = set.intersection(*(set(each) for each in mappings)) if mappings else set()
    return {seed: sum(each[seed] for each in mappings) / len(mappings) for seed in sorted(seeds)}


def claims_table(rows: Sequence[Sequence[Claim]], columns: Sequence[str], *, digits: int = 2) -> str:
    """Claims as a table in Markdown, one a row, with our number and verdict for each way of measuring.

    Where the paper has no number the row is a question of our own, answered "yes", "no" or "open" by the rule.

    Args:
      rows: for each claim its forms, one for each of `columns`.
      columns: how each was measured, such as "selected on validation".
      digits: after the point.

    Returns:
      The table, a line a row.
    """
    heads = ["claim", "paper", *(part for column in columns for part in (f"ours, {column}", "verdict"))]
    lines = []
    for forms in rows:
        words = {} if forms[0].paper != "–" else QUESTIONS
        own = [p for each in forms for p in (difference_text(each.ours, digits), words.get(each.verdict, each.verdict))]
        lines.append([forms[0].text, forms[0].paper, *own])
    return markdown_table(heads, lines)


def difference_text(difference: Difference, digits: int = 2) -> str:
    """A difference with half of its 95% interval and its seeds: "+1.20 ± 0.31"."""
    mean, half, n = difference.interval[:3]
    if not n:
        return "not run"
    width = f" ± {half:.{digits}f}" if math.isfinite(half) else f" (n = {n})"
    return f"{mean:+.{digits}f}{width}"
