"""Claims about Δm, intervals, selection, the verdict and the tables."""

import math
import random
import shlex
import statistics as stdlib

import numpy as np
import pytest
from scipy import stats

from mtljax.ablation.grid import StudyConfig
from mtljax.ablation.grid import cells as grid_cells
from mtljax.ablation.statistics import (
    compare,
    delta_m,
    holm,
    paired_difference,
    summarize,
    t_interval,
    verdict,
)
from mtljax.commands.parser import parser
from mtljax.training.overrides import override

LEFT, RIGHT = ("left", "accuracy"), ("right", "accuracy")


def keys(names):
    return [("task", name) for name in names.split()]


# Rows of arXiv:2211.13723, from published tables: equal weighting on Cityscapes, Nash-MTL and equal weighting on NYUv2.
# Metrics are printed with few digits: .0125 alone leaves Δm on Cityscapes 0.1 open.
CITYSCAPES = keys("miou pixacc abs rel")
NYU = keys("miou pixacc abs rel mean median w11 w22 w30")
PUBLISHED = [
    (CITYSCAPES, "++--", (74.01, 93.16, 0.0125, 27.77), (75.18, 93.49, 0.0155, 46.77), 22.60, 0.15),
    (
        NYU,
        "++----+++",
        (38.30, 63.76, 0.6754, 0.2780, 25.01, 19.21, 30.14, 57.20, 69.15),
        (40.13, 65.93, 0.5261, 0.2171, 25.26, 20.08, 28.4, 55.47, 68.15),
        -4.04,
        0.02,
    ),
    (
        NYU,
        "++----+++",
        (38.30, 63.76, 0.6754, 0.2780, 25.01, 19.21, 30.14, 57.20, 69.15),
        (39.29, 65.33, 0.5493, 0.2263, 28.15, 23.96, 22.09, 47.50, 61.08),
        5.59,
        0.02,
    ),
]


@pytest.mark.parametrize(("names", "signs", "baseline", "values", "printed", "tolerance"), PUBLISHED)
def test_delta_m_reproduces_published_rows(names, signs, baseline, values, printed, tolerance):
    directions = {name: sign == "+" for name, sign in zip(names, signs, strict=True)}
    found = delta_m(dict(zip(names, values, strict=True)), dict(zip(names, baseline, strict=True)), directions)
    assert found == pytest.approx(printed, abs=tolerance)


def test_delta_m_by_hand():
    # accuracy 0.8 -> 0.9 is 12.5% better, error 2 -> 3 is 50% worse: (-12.5 + 50) / 2
    values = {("a", "accuracy"): 0.9, ("b", "mae"): 3.0}
    baseline = {("a", "accuracy"): 0.8, ("b", "mae"): 2.0}
    directions = {("a", "accuracy"): True, ("b", "mae"): False}
    assert delta_m(values, baseline, directions) == pytest.approx(18.75)
    assert delta_m(baseline, baseline, directions) == 0


def test_delta_m_does_not_count_losses():
    with_loss = {LEFT: 0.9, ("left", "loss"): 7.0}
    assert delta_m(with_loss, {LEFT: 0.8, ("left", "loss"): 1.0}, {LEFT: True}) == pytest.approx(-12.5)
    assert delta_m(with_loss, {LEFT: 0.8}, {LEFT: True}) == pytest.approx(-12.5)


def test_delta_m_of_a_negative_baseline_keeps_its_sign():
    assert delta_m({("a", "r2"): 0.5}, {("a", "r2"): -0.5}, {("a", "r2"): True}) == pytest.approx(-200)


def test_delta_m_is_nan_where_it_is_undefined():
    assert math.isnan(delta_m({LEFT: 0.9}, {LEFT: 0.0}, {LEFT: True}))
    assert math.isnan(delta_m({LEFT: math.nan, RIGHT: 0.9}, {LEFT: 0.8, RIGHT: 0.8}, {LEFT: True, RIGHT: True}))


def test_delta_m_of_different_metrics_names_them():
    with pytest.raises(ValueError, match="only one of values and baseline has right accuracy"):
        delta_m({LEFT: 0.9}, {LEFT: 0.8, RIGHT: 0.8}, {LEFT: True, RIGHT: True})
    with pytest.raises(ValueError, match="higher_is_better says nothing of left accuracy"):
        delta_m({LEFT: 0.9}, {LEFT: 0.8}, {})
    with pytest.raises(ValueError, match="no metric"):
        delta_m({("left", "loss"): 1.0}, {("left", "loss"): 1.0}, {})


@pytest.mark.parametrize(("n", "quantile"), [(2, 12.706), (3, 4.303), (5, 2.776), (11, 2.228)])
def test_t_interval_has_the_quantiles_of_the_table(n, quantile):
    values = list(np.random.default_rng(n).normal(5, 2, n))
    found = t_interval(values)
    assert found.mean == pytest.approx(stdlib.fmean(values))
    assert found.std == pytest.approx(stdlib.stdev(values))
    # the table has three decimals
    assert found.half_width == pytest.approx(quantile * stdlib.stdev(values) / math.sqrt(n), rel=3e-4)


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.99])
def test_t_interval_agrees_with_scipy(level):
    values = np.random.default_rng(0).normal(size=7)
    found = t_interval(list(values), level)
    low, high = stats.t.interval(level, 6, loc=values.mean(), scale=stats.sem(values))
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-9)


def test_t_interval_holds_the_mean_as_often_as_it_says():
    draws = np.random.default_rng(1).normal(size=(2000, 3))
    hits = np.mean([abs(found.mean) <= found.half_width for found in map(t_interval, draws)])
    assert hits == pytest.approx(0.95, abs=0.015)  # three standard errors of 2000 draws


def test_one_value_has_no_interval_and_nan_is_counted():
    one = t_interval([3.0])
    assert (one.mean, one.n) == (3.0, 1)
    assert math.isnan(one.half_width)
    assert math.isnan(one.std)
    with_nan = t_interval([1.0, math.nan, 3.0, math.inf])
    assert (with_nan.n, with_nan.left_out, with_nan.mean) == (2, 2, 2.0)
    assert math.isnan(t_interval([]).mean)
    with pytest.raises(ValueError, match="level must be between 0 and 1, got 95"):
        t_interval([1.0], 95)


def test_paired_difference_agrees_with_scipy_over_common_seeds():
    generator = np.random.default_rng(2)
    a, b = generator.normal(1, 1, 6), generator.normal(0, 1, 6)
    found = paired_difference(dict(enumerate(a)), {**dict(enumerate(b)), 99: 1e9})
    expected = stats.ttest_rel(a, b)
    assert found.p_value == pytest.approx(expected.pvalue, rel=1e-9)
    assert found.interval[:3:2] == (pytest.approx(np.mean(a - b)), 6)


@pytest.mark.parametrize("values", [(1.0, 2.0), (2.0, 3.0), (1.1 + 0.1, 2.1 + 0.1)])
def test_differences_without_spread_claim_nothing(values):
    found = paired_difference(dict(enumerate(values)), {0: 1.0, 1: 2.0})
    assert math.isnan(found.p_value)
    assert found.interval.mean == pytest.approx(values[0] - 1)


def test_runs_that_do_not_depend_on_the_seed_are_neither_better_nor_worse(synthetic):
    cells = []
    for s in range(3):
        cells += synthetic.baseline("adam", s, {"left": 0.5})
        levels = {"ew": 0.5 + 0.01 * s, "fixed": 0.6 + 0.01 * s, "noisy": 0.7 + 0.01 * s + 0.001 * s**2}
        cells += [synthetic.cell(name, "adam", s, {"left": level}) for name, level in levels.items()]
    summary = summarize(cells)
    rows = {row.method: row for row in summary.rows}
    fixed, noisy = compare([(rows["fixed"], rows["ew"]), (rows["noisy"], rows["ew"])])
    assert math.isnan(fixed.p_corrected)
    assert (fixed.outcome, fixed.beats, noisy.outcome, noisy.beats) == ("", False, "better", True)
    assert noisy.p_corrected == noisy.difference.p_value  # one comparison is tested, not two
    first = verdict(summary).split("\n")[0]
    assert "No difference shown: fixed \N{MINUS SIGN}20.00 (no spread over the seeds)." in first


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_summary_by_hand(synthetic):
    cells = [
        *synthetic.baseline("adam 0.001", 0, {"left": 0.80, "right": 0.50}, seconds_per_step=0.002),
        *synthetic.baseline("adam 0.001", 1, {"left": 0.90, "right": 0.70}, seconds_per_step=0.004),
        synthetic.cell("ew", "adam 0.001", 0, {"left": 0.85, "right": 0.66}, seconds_per_step=0.003),
        synthetic.cell("ew", "adam 0.001", 1, {"left": 0.68, "right": 0.60}, seconds_per_step=None),
    ]
    single, ew = summarize(cells).rows
    # reference: left 0.85, right 0.60. ew seed 0: (0 - 10%) / 2, seed 1: (20% + 0) / 2
    assert ew.delta_m_by_seed == pytest.approx({0: -5.0, 1: 10.0})
    assert ew.delta_m[:3] == pytest.approx((2.5, 12.706 * 7.5, 2), rel=1e-4)
    assert ew.test[LEFT].mean == pytest.approx(0.765)
    assert ew.validation == pytest.approx((0.85 + 0.66 + 0.68 + 0.60) / 4)
    assert (ew.seeds, ew.seconds_per_step) == ((0, 1), 0.003)
    assert single.delta_m.mean == pytest.approx(0, abs=1e-12)
    assert single.delta_m_by_seed[0] == pytest.approx(100 * (0.05 / 0.85 + 0.10 / 0.60) / 2)
    assert single.seconds_per_step == pytest.approx((0.004 + 0.008) / 2)  # K networks are as many steps


def test_the_order_of_the_cells_does_not_matter(synthetic):
    cells = synthetic.study({"ew": 0.0, "cagrad": 0.01}, optimizers={"adam 0.001": 0.0, "sgd 0.1": -0.02})
    expected = repr(summarize(cells))  # by text, since NaN does not equal itself
    for seed in range(5):
        random.Random(seed).shuffle(cells)
        assert repr(summarize(cells)) == expected


def test_selection_looks_at_validation_only(synthetic):
    def run(optimizer, seed, test, validation):
        return synthetic.cell("ew", optimizer, seed, {"left": test}, validation={"left": validation})

    cells = [run("good on test", s, 0.99, 0.80) for s in (0, 1)] + [
        run("good on validation", s, 0.70, 0.90) for s in (0, 1)
    ]
    assert [row.optimizer for row in summarize(cells).rows if row.selected] == ["good on validation"]


def test_the_baseline_is_chosen_on_validation_and_shared(synthetic):
    cells = [
        *synthetic.baseline("a", 0, {"left": 0.5}, validation={"left": 0.9}),
        *synthetic.baseline("b", 0, {"left": 0.9}, validation={"left": 0.5}),
        synthetic.cell("ew", "a", 0, {"left": 0.6}),
        synthetic.cell("ew", "b", 0, {"left": 0.75}),
    ]
    summary = summarize(cells)
    assert summary.baseline == "a"
    found = {(row.kind, row.optimizer): row.delta_m.mean for row in summary.rows}
    expected = {("single", "a"): 0, ("single", "b"): -80, ("multi", "a"): -20, ("multi", "b"): -50}
    assert found == pytest.approx(expected)


def test_an_optimizer_that_failed_on_a_seed_is_not_chosen_for_its_lucky_ones(synthetic):
    cells = [synthetic.cell("ew", "steady", s, {"left": 0.8}) for s in range(3)]
    cells += [synthetic.cell("ew", "lucky", s, {"left": 0.9}, failed="NaN" if s else None) for s in range(3)]
    lucky, steady = sorted(summarize(cells).rows, key=lambda row: row.optimizer)
    assert steady.selected
    assert not lucky.selected
    assert [failure.seed for failure in lucky.failures] == [1, 2]


def test_a_metric_where_lower_is_better_selects_the_lower(synthetic):
    cells = [synthetic.cell("ew", name, 0, {"left": value}) for name, value in (("low", 0.1), ("high", 0.9))]
    for cell in cells:
        cell["metric_directions"] = {"left": {"accuracy": False}}
    assert [row.optimizer for row in summarize(cells).rows if row.selected] == ["low"]


def test_half_a_baseline_is_no_baseline(synthetic):
    cells = [synthetic.cell("ew", "adam", s, {"left": 0.9, "right": 0.9}) for s in (0, 1)]
    half = synthetic.baseline("adam", 0, {"left": 0.9})
    failed = synthetic.baseline("adam", 0, {"left": 0.9, "right": 0.9}, failed="the loss became NaN")
    for baseline, option in (([], " --baselines=true"), (half, ""), (failed, " --retry-failed")):
        summary = summarize([*cells, *baseline], command="mtljax ablate configs/digits.py")
        assert all(math.isnan(row.delta_m.mean) for row in summary.rows)
        assert summary.problem is not None
        assert f"run `mtljax ablate configs/digits.py{option}` to make it" in summary.problem
        assert summary.problem in verdict(summary)


def test_the_command_printed_for_a_missing_baseline_makes_it(synthetic):
    def asked(records):
        problem = summarize(records, command="mtljax ablate a.py --baselines=false").problem or ""
        options, overrides = parser().parse_known_args(shlex.split(problem.split("`")[1])[1:])
        study = override(StudyConfig("a"), overrides)
        return options.retry_failed, {cell.kind for cell in grid_cells(study, ["left", "right"])}

    multi = [synthetic.cell("ew", "adam", 0, {"left": 0.9, "right": 0.9})]
    assert asked(multi) == (False, {"single", "multi"})
    failed = synthetic.baseline("adam", 0, {"left": 0.9, "right": 0.9}, failed="the loss became NaN")
    assert asked(multi + failed)[0]
    again = summarize(multi, command="mtljax ablate a.py --baselines=true").problem or ""
    assert "`mtljax ablate a.py --baselines=true`" in again  # not twice


def test_a_seed_with_a_nan_metric_is_left_out_and_named(synthetic):
    cells = synthetic.study({"ew": 0.0, "cagrad": 0.02})
    broken = next(cell for cell in cells if cell["method"] == "cagrad" and cell["seed"] == 1)
    broken["test"]["left"]["accuracy"] = None
    summary = summarize(cells)
    row = next(row for row in summary.rows if row.method == "cagrad")
    assert (row.delta_m.n, row.delta_m.left_out, row.test[LEFT].left_out, row.test[RIGHT].left_out) == (2, 1, 1, 0)
    assert "left out of its mean: cagrad with adam 0.001 (1)" in verdict(summary)


def test_contradicting_cells_are_refused(synthetic):
    cell = synthetic.cell("ew", "adam", 0, {"left": 0.9})
    with pytest.raises(ValueError, match="ew-left-copy hold the same run"):
        summarize([cell, cell | {"cell": "ew-left-copy"}])
    other = synthetic.cell("ew", "adam", 1, {"left": 0.9}) | {"metric_directions": {"left": {"accuracy": False}}}
    with pytest.raises(ValueError, match="whether higher left accuracy is better"):
        summarize([cell, other])


def test_a_single_task_method_is_measured_against_the_single_task_baseline(synthetic):
    cells = [
        *synthetic.baseline("adam", 0, {"left": 0.8, "right": 0.6}, role="single"),
        *synthetic.baseline("adam", 0, {"left": 0.88, "right": 0.66}, role="method"),
        synthetic.cell("ew", "adam", 0, {"left": 0.4, "right": 0.3}, role="method"),
    ]
    for cell in cells[2:4]:
        cell.update(method="another", cell=cell["cell"].replace("single-task", "another"))
    for order in (cells, cells[::-1]):
        found = {row.method: row.delta_m.mean for row in summarize(order).rows}
        assert found == {
            "single-task": pytest.approx(0, abs=1e-9),
            "another": pytest.approx(-10),
            "ew": pytest.approx(50),
        }
