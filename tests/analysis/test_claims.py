"""Claims held against numbers over seeds."""

import numpy as np
import pytest
from scipy import stats

from mtljax.analysis.claims import NOT_DECIDED, NOT_REPRODUCED, REPRODUCED, claim, claims_table, mean_by_seed

A = {0: 87.7, 1: 87.9, 2: 87.8, 3: 88.2}
B = {0: 86.5, 1: 86.4, 2: 86.9, 3: 86.6}


def test_the_interval_is_that_of_the_paired_t_test():
    found = claim("a beats b", A, B).ours
    oracle = stats.ttest_rel(list(A.values()), list(B.values()))
    low, high = oracle.confidence_interval(0.95)
    np.testing.assert_allclose((found.interval.low, found.interval.high), (low, high), rtol=1e-12)
    np.testing.assert_allclose(found.p_value, oracle.pvalue, rtol=1e-9)


@pytest.mark.parametrize(
    ("better", "worse", "expected"),
    [
        (A, B, REPRODUCED),
        (B, A, NOT_REPRODUCED),
        (A, {0: 90.0, 1: 80.0, 2: 88.0, 3: 88.0}, NOT_DECIDED),
        ({0: 1.0}, {0: 0.0}, NOT_DECIDED),
        ({}, B, NOT_DECIDED),
        ({0: 2.0, 1: 3.0, 2: 4.0}, {0: 1.0, 1: 2.0, 2: 3.0}, NOT_DECIDED),
    ],
    ids=["holds", "reversed", "covers 0", "one seed", "not run", "no spread"],
)
def test_the_verdict_follows_the_stated_rule(better, worse, expected):
    assert claim("", better, worse).verdict == expected


def test_the_rule_is_decided_by_a_t_test_at_5_percent():
    """Over random samples: decided exactly where scipy's paired test has p < 0.05."""
    random = np.random.default_rng(0)
    decided = []
    for shift in random.uniform(-2, 2, 200):
        a, b = random.normal(size=(2, 3))
        found = claim("", dict(enumerate(a + shift)), dict(enumerate(b)))
        oracle = stats.ttest_rel(a + shift, b)
        expected = NOT_DECIDED if oracle.pvalue >= 0.05 else REPRODUCED if oracle.statistic > 0 else NOT_REPRODUCED
        assert found.verdict == expected
        decided.append(found.verdict)
    assert set(decided) == {NOT_DECIDED, REPRODUCED, NOT_REPRODUCED}


def test_lower_numbers_can_be_the_better_ones():
    assert claim("", A, B, lower=True) == claim("", B, A)


def test_only_common_seeds_count():
    assert claim("", A | {9: 1e9}, B | {8: -1e9}) == claim("", A, B)
    assert mean_by_seed([A, {0: 0.0, 1: 0.0, 7: 0.0}]) == {0: 87.7 / 2, 1: 87.9 / 2}
    assert mean_by_seed([]) == {}


def test_the_table_has_a_line_a_claim():
    forms = (claim("a > b", A, B, paper="+1.32"), claim("a > b", {}, B))
    lines = claims_table([forms], ("first", "second")).splitlines()
    assert lines[0] == "| claim | paper | ours, first | verdict | ours, second | verdict |"
    assert lines[2] == "| a > b | +1.32 | +1.30 ± 0.50 | reproduced | not run | not decided |"


def test_a_row_without_a_number_of_the_paper_is_a_question_of_ours():
    forms = [(claim("a > b", A, B),), (claim("b > a", B, A),), (claim("a > a", A, A),)]
    answers = [line.split(" | ")[-1] for line in claims_table(forms, ("first",)).splitlines()[2:]]
    assert answers == ["yes |", "no |", "open |"]
