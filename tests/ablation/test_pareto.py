"""Claims about Pareto-optimal sets: equal to a plain loop over all pairs, and the properties that define them."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mtljax.ablation.statistics import pareto, pareto_optimal, summarize, undominated_by_others, verdict


def loop(values, up, groups=None):
    """The definition, one pair at a time."""

    def dominates(a, b):
        signs = [1 if higher else -1 for higher in up]
        pairs = [(s * x, s * y) for s, x, y in zip(signs, a, b, strict=True)]
        return all(x >= y for x, y in pairs) and any(x > y for x, y in pairs)

    found = []
    for i, own in enumerate(values):
        rivals = [
            other
            for j, other in enumerate(values)
            if all(map(math.isfinite, other)) and (groups is None or groups[j] != groups[i])
        ]
        found.append(all(map(math.isfinite, own)) and not any(dominates(other, own) for other in rivals))
    return found


# few distinct values, so that ties are common; now and then a value that is no number
NUMBERS = st.sampled_from([0.0, 1.0, 2.0, 3.0, -1.5, math.nan, math.inf])
POINTS = st.tuples(st.integers(1, 12), st.integers(1, 4)).flatmap(
    lambda shape: st.tuples(
        hnp.arrays(float, shape, elements=NUMBERS),
        st.lists(st.booleans(), min_size=shape[1], max_size=shape[1]),
        st.lists(st.sampled_from("abc"), min_size=shape[0], max_size=shape[0]),
    )
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(POINTS)
def test_pareto_sets_are_what_a_loop_finds(drawn):
    values, up, groups = drawn
    assert pareto_optimal(values, up).tolist() == loop(values.tolist(), up)
    assert undominated_by_others(values, up, groups).tolist() == loop(values.tolist(), up, groups)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(POINTS)
def test_pareto_sets_have_their_properties(drawn):
    values, up, groups = drawn
    full, other = pareto_optimal(values, up), undominated_by_others(values, up, groups)
    finite = np.isfinite(values).all(1)
    assert full.any() == finite.any()  # never empty
    assert not (full & ~other).any()  # what nothing dominates, no other group dominates
    assert undominated_by_others(values, up, range(len(values))).tolist() == full.tolist()  # every run its own group
    assert undominated_by_others(values, up, [0] * len(values)).tolist() == finite.tolist()  # no other group
    assert pareto_optimal(-values, [not higher for higher in up]).tolist() == full.tolist()
    order = np.random.default_rng(0).permutation(len(values))
    assert pareto_optimal(values[order], up).tolist() == full[order].tolist()
    assert pareto_optimal(np.concatenate([values, values]), up).tolist() == [*full, *full]  # equal runs stay together
    assert pareto_optimal(values[full], up).all()


def test_large_studies_are_done_in_blocks_that_agree_with_a_sorted_front():
    values = np.random.default_rng(0).normal(size=(2000, 2))
    order, best, expected = np.argsort(-values[:, 0]), -np.inf, np.zeros(2000, bool)
    for i in order:  # in the plane: the best first metric first, a point stays when its second beats all before
        expected[i], best = values[i, 1] > best, max(best, values[i, 1])
    assert pareto_optimal(values, [True, True]).tolist() == expected.tolist()


RATE = "optimizer.learning_rate"


@pytest.fixture
def cells(synthetic):
    """By hand: (left, right) of (optimizer, rate), the better the higher."""
    points = {
        ("adam", 0.1): (0.9, 0.5),
        ("adam", 0.01): (0.8, 0.8),
        ("adam", 0.001): (0.7, 0.7),  # dominated by adam 0.01 and by nothing of sgd
        ("sgd", 0.1): (0.6, 0.9),
        ("sgd", 0.01): (0.6, 0.6),
    }
    cells = [cell for s in (0, 1) for cell in synthetic.baseline("adam", s, {"left": 0.8, "right": 0.8})]
    for (optimizer, rate), (left, right) in points.items():
        for s in (0, 1):
            cell = synthetic.cell("ew", optimizer, s, {"left": left + 0.001 * s, "right": right - 0.001 * s})
            cells.append(cell | {"cell": f"{cell['cell']}-{rate}", "setting": {RATE: rate}, "condition": {"m": 1}})
    return cells


def counts(found):
    return {count.value: count[1:] for count in found.counts}


def test_counts_by_hand(cells):
    found = pareto(summarize(cells), "optimizer")
    assert counts(found) == {"adam": (3, 2, 3, 0), "sgd": (2, 1, 1, 0)}
    assert {(p.candidate.optimizer, p.candidate.setting[RATE]) for p in found.points if p.full} == {
        ("adam", 0.1),
        ("adam", 0.01),
        ("sgd", 0.1),
    }
    assert counts(pareto(summarize(cells), RATE)) == {
        "0.001": (1, 0, 0, 0),
        "0.01": (2, 1, 1, 0),
        "0.1": (2, 2, 2, 0),
    }
    assert counts(pareto(summarize(cells), "method")) == {"ew": (5, 3, 5, 0)}
    seeds = pareto(summarize(cells), "optimizer", over="seeds")
    assert [count.runs for count in seeds.counts] == [6, 4]
    assert {point.seed for point in seeds.points} == {0, 1}
    line = "(in brackets: those that no run of another optimizer dominates): adam 2 of 3 (3) and sgd 1 of 2 (1)."
    assert line in verdict(summarize(cells))


def test_conditions_compete_only_along_the_axis(cells):
    worse = [
        c
        | {"cell": c["cell"] + "-2", "condition": {"m": 2}}
        | {"test": {t: {n: 0.5 * v for n, v in m.items()} for t, m in c["test"].items()}}
        for c in cells
        if c["kind"] == "multi"
    ]
    both = summarize([*cells, *worse])
    assert counts(pareto(both, "optimizer")) == {"adam": (6, 4, 6, 0), "sgd": (4, 2, 2, 0)}
    assert counts(pareto(both, "m")) == {"1": (5, 3, 5, 0), "2": (5, 0, 0, 0)}


def test_a_run_with_a_nan_metric_is_shown_left_out_and_counted(cells):
    broken = next(c for c in cells if c["optimizer"] == "sgd" and c["setting"] == {RATE: 0.1} and c["seed"] == 1)
    broken["test"]["left"]["accuracy"] = None
    summary = summarize(cells)
    found = pareto(summary, "optimizer")
    assert counts(found) == {"adam": (3, 2, 3, 0), "sgd": (2, 0, 0, 1)}
    (point,) = (point for point in found.points if point.left_out)
    assert math.isnan(point.values["left", "accuracy"])
    assert point.values["right", "accuracy"] == pytest.approx(0.8995)
    assert "1 run has a test metric that is not a finite number: shown, and left out of means and Pareto sets." in (
        verdict(summary)
    )


def test_an_unknown_axis_names_those_there_are(cells):
    with pytest.raises(ValueError, match=r"no run of this study has the axis 'lr'; there are m, method, opti"):
        pareto(summarize(cells), "lr")
    with pytest.raises(ValueError, match='over must be "settings" or "seeds", got'):
        pareto(summarize(cells), over="runs")
