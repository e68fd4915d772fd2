"""Claims about the choice of settings and optimizers on validation, conditions, and comparison with scalarization."""

import dataclasses
import itertools
import math
import random

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mtljax.ablation.statistics import (
    SCALARIZATION,
    SINGLE,
    against_scalarization,
    at_equal_budget,
    expected_choice,
    mean_ranks,
    method_text,
    optimizer_text,
    reference,
    row_name,
    setting_text,
    settings_tried,
    summarize,
    tidy,
    verdict,
)

LEFT, RIGHT = ("left", "accuracy"), ("right", "accuracy")
RATE, FEATURES, WEIGHTS = "optimizer.learning_rate", "model.options.features", "method.options.weights"


@pytest.fixture
def point(synthetic):
    """Makes a cell with a setting and a condition."""

    def make(method, optimizer, seed, test, setting=None, condition=None, role="method", **options):
        kind = SINGLE if role == SINGLE else "multi"
        cell = synthetic.cell(method, optimizer, seed, test, kind=kind, **options)
        name = f"{cell['cell']}-{setting_text(setting or {})}-{setting_text(condition or {})}"
        return cell | {"cell": name, "setting": setting or {}, "condition": condition or {}, "role": role}

    return make


@pytest.fixture
def grid(point):
    """A study of random numbers: 2 conditions, 2 methods, 2 optimizers, 3 rates, 3 seeds, some of them failed."""
    draw, cells = random.Random(0), []
    for features, optimizer, rate, seed in itertools.product((32, 64), ("adam", "sgd"), (0.1, 0.01, 0.001), range(3)):
        for method, tasks in (("single-task", ("left",)), ("single-task", ("right",)), ("ew", ()), ("cagrad", ())):
            names = tasks or ("left", "right")
            test, validation = ({task: draw.uniform(0.5, 0.9) for task in names} for _ in range(2))
            failed = "NaN" if draw.random() < 0.1 else None
            role = SINGLE if tasks else "method"
            where = {"setting": {RATE: rate}, "condition": {FEATURES: features}, "role": role}
            cells.append(point(method, optimizer, seed, test, validation=validation, failed=failed, **where))
    return cells


def chosen_by_pandas(frame, by, over):
    """The best mean validation score among those with the most seeds, for each group: an independent account."""
    scores = frame.groupby([*by, *over]).score.agg(["count", "mean"]).reset_index()
    scores = scores[scores["count"] == scores.groupby(by)["count"].transform("max")]
    return scores.loc[scores.groupby(by)["mean"].idxmax()]


def test_choice_and_delta_m_agree_with_pandas(grid):
    summary = summarize(grid)
    random.Random(1).shuffle(grid)
    assert repr(summarize(grid)) == repr(summary)  # by text, since NaN does not equal itself
    frame = pd.DataFrame(tidy(grid)).query("metric == 'accuracy' and status == 'finished'")
    frame.columns = [name.replace("condition.", "").replace("setting.", "") for name in frame.columns]
    condition, rate = FEATURES, RATE
    keys = ["kind", condition, "method", "optimizer", rate, "seed"]
    score = frame.query("split == 'validation'").groupby([*keys, "task"]).value.mean().rename("score").reset_index()

    # single-task: the rate of each task, then the optimizer that all rows of the condition are measured against
    own = score[score.kind == SINGLE]
    best = chosen_by_pandas(own, [condition, "optimizer", "task"], [rate])[[condition, "optimizer", "task", rate]]
    own = own.merge(best)
    whole = own.groupby([condition, "optimizer", "seed"]).score.agg(["count", "mean"]).query("count == 2").reset_index()
    whole = whole.rename(columns={"mean": "score"})[[condition, "optimizer", "seed", "score"]]
    shared = chosen_by_pandas(whole, [condition], ["optimizer"])[[condition, "optimizer"]]
    test = frame.query("split == 'test'")
    references = whole.merge(shared).merge(test[test.kind == SINGLE].merge(best), on=[condition, "optimizer", "seed"])
    baseline = references.groupby([condition, "task"]).value.mean()

    # methods: the rate, then the optimizer
    runs = score[score.kind == "multi"].groupby(keys[1:]).score.mean().reset_index()
    rates = chosen_by_pandas(runs, [condition, "method", "optimizer"], [rate])
    optimizers = chosen_by_pandas(
        runs.merge(rates[[condition, "method", "optimizer", rate]]), [condition, "method"], ["optimizer"]
    )
    picked = {(r[condition], r.method, r.optimizer): r[rate] for _, r in rates.iterrows()}
    selected = {(r[condition], r.method, r.optimizer) for _, r in optimizers.iterrows()}
    rows = [row for row in summary.rows if row.kind == "multi"]
    assert {(row.condition[condition], row.method, row.optimizer): row.setting[rate] for row in rows} == picked
    assert {(r.condition[condition], r.method, r.optimizer) for r in rows if r.selected} == selected
    assert {(r[condition], r.optimizer) for _, r in shared.iterrows()} == {
        (r.condition[condition], r.optimizer) for r in summary.rows if r.kind == SINGLE and r.selected
    }

    # Δm of every setting that was tried
    for row in rows:
        for candidate in row.candidates:
            own = test[
                (test[condition] == row.condition[condition])
                & (test.method == row.method)
                & (test.optimizer == row.optimizer)
                & (test[rate] == candidate.setting[rate])
            ]
            change = own.value.to_numpy() / baseline[row.condition[condition]].loc[own.task].to_numpy() - 1
            by_seed = pd.Series(-100 * change).groupby(own.seed.to_numpy()).mean()
            assert candidate.delta_m_by_seed == pytest.approx(by_seed.to_dict())
            assert candidate.delta_m.mean == pytest.approx(by_seed.mean())
            if len(by_seed) > 1:
                assert candidate.delta_m.std == pytest.approx(by_seed.std())
                low, high = stats.t.interval(0.95, len(by_seed) - 1, by_seed.mean(), stats.sem(by_seed))
                assert (candidate.delta_m.low, candidate.delta_m.high) == pytest.approx((low, high))
        (picked,) = (candidate for candidate in row.candidates if candidate.chosen)
        assert (picked.setting, picked.cells, picked.delta_m.mean) == (row.setting, row.cells, row.delta_m.mean)
        assert [c.setting[rate] for c in row.candidates] == [0.001, 0.01, 0.1]
        assert row.tried == 3


def test_mean_ranks_agree_with_scipy(grid):
    generator = np.random.default_rng(0)
    values = generator.integers(0, 4, (6, 5)).astype(float)
    up = [True, False, True, True, False]
    expected = np.mean(stats.rankdata(np.where(up, -values, values), axis=0), axis=1)
    assert mean_ranks(values, up) == pytest.approx(expected)
    broken = values.copy()
    broken[2, 1] = math.nan
    assert mean_ranks(broken, up)[2] == pytest.approx(mean_ranks(np.where(np.isnan(broken), 9.0, broken), up)[2])

    rows = summarize(grid).rows
    for features in (32, 64):
        ranked = [r for r in rows if r.selected and r.kind == "multi" and r.condition == {FEATURES: features}]
        assert sum(row.mean_rank for row in ranked) == pytest.approx(3)  # of two methods
    assert all(math.isnan(row.mean_rank) for row in rows if row.kind == SINGLE or not row.selected)


def test_single_task_settings_are_chosen_for_every_task(point):
    cells = []
    for rate, left, right in ((0.1, 0.9, 0.5), (0.01, 0.6, 0.8)):
        for seed in (0, 1):
            for task, value in (("left", left), ("right", right)):
                cells.append(point("single-task", "adam", seed, {task: value}, {RATE: rate}, role=SINGLE))
            cells.append(point("ew", "adam", seed, {"left": 0.81, "right": 0.8}, {RATE: rate}))
    single, ew = summarize(cells).rows
    assert single.setting == {"left: " + RATE: 0.1, "right: " + RATE: 0.01}
    assert (single.test[LEFT].mean, single.test[RIGHT].mean, single.tried) == (0.9, 0.8, 2)
    assert ew.delta_m.mean == pytest.approx(5.0)  # left 10% worse, right equal
    assert len(single.candidates) == 4
    worse = next(c for c in single.candidates if c.tasks == ("right",) and not c.chosen)
    assert worse.delta_m.mean == pytest.approx(37.5)  # 0.5 instead of 0.8, in its own metric
    assert optimizer_text(single) == "adam (left: learning rate 0.1, right: learning rate 0.01)"


def test_a_setting_that_lost_seeds_is_not_chosen_and_its_failures_are_named(point):
    cells = [
        point("ew", "adam", s, {"left": level}, {RATE: rate}, failed="NaN" if s and rate == 0.1 else None)
        for rate, level in ((0.1, 0.9), (0.01, 0.7))
        for s in range(3)
    ]
    (row,) = summarize(cells).rows
    assert row.setting == {RATE: 0.01}
    assert row.failures == ()
    assert len(summarize(cells).failures) == 2
    everything_failed = [cell | {"status": "failed", "reason": "NaN"} for cell in cells]
    (row,) = summarize(everything_failed).rows
    assert (row.setting, row.seeds, row.selected, row.chosen, len(row.failures)) == ({}, (), False, False, 6)
    assert "ew with adam, 6 runs (NaN)" in verdict(summarize(everything_failed))


def test_every_condition_has_its_own_baseline(point):
    cells = []
    for features, level in ((32, 0.5), (64, 0.8)):
        cells.append(point("single-task", "adam", 0, {"left": level}, condition={FEATURES: features}, role=SINGLE))
        cells.append(point("ew", "adam", 0, {"left": 0.6}, condition={FEATURES: features}))
    summary = summarize(cells)
    found = {row.condition[FEATURES]: row.delta_m.mean for row in summary.rows if row.kind == "multi"}
    assert found == pytest.approx({32: -20, 64: 25})
    failing = {"status": "failed"}
    broken = [c | failing if c["kind"] == SINGLE and c["condition"] == {FEATURES: 64} else c for c in cells]
    problem = summarize(broken).problem or ""
    assert "features 64: run `mtljax ablate CONFIG --retry-failed` to make it" in problem
    lacking = summarize([cell for cell in cells if cell["kind"] == "multi" or cell["condition"] == {FEATURES: 32}])
    assert lacking.problem is not None
    assert "under the condition features 64: run `mtljax ablate CONFIG` to make it" in lacking.problem
    assert {r.condition[FEATURES]: math.isnan(r.delta_m.mean) for r in lacking.rows if r.kind == "multi"} == {
        32: False,
        64: True,
    }


def test_an_option_of_one_method_is_compared_with_methods_that_do_not_have_it(point):
    option = "method.options.c"
    cells = [point("single-task", "adam", s, {"left": 0.8}, role=SINGLE) for s in range(3)]
    cells += [point("ew", "adam", s, {"left": 0.7 + 0.01 * s}) for s in range(3)]
    for c, level in ((0.1, 0.7), (0.9, 0.79)):
        cells += [point("cagrad", "adam", s, {"left": level + 0.011 * s}, condition={option: c}) for s in range(3)]
    summary = summarize(cells)
    row = next(row for row in summary.rows if row.condition == {option: 0.9})
    assert reference(summary, row) is summary.rows[0]
    assert row_name(row) == "cagrad (c 0.9)"
    assert "Better than equal weighting over 3 seeds: cagrad (c 0.9)" in verdict(summary)
    assert [r.mean_rank for r in summary.rows if r.kind == "multi"] == [1, 2, 3]


def test_conditions_with_other_data_have_their_own_tasks(point):
    cells = []
    for data, tasks in (("digits", ("left", "right")), ("toy", ("x",))):
        where = {"condition": {"data.name": data}}
        cells += [point("single-task", "adam", 0, {task: 0.5}, role=SINGLE, **where) for task in tasks]
        cells.append(point("ew", "adam", 0, dict.fromkeys(tasks, 0.6), **where))
    rows = [row for row in summarize(cells).rows if row.kind == "multi"]
    assert [row.delta_m.mean for row in rows] == pytest.approx([-20, -20])
    assert {row.tasks for row in rows} == {("left", "right"), ("x",)}


def with_scalarization(point, best, methods, seeds=4):
    """Tuned scalarization whose test accuracy is `best` at the weights with the best validation, and methods."""
    draw, cells = random.Random(0), []

    def near(level):
        return {task: level + draw.gauss(0, 0.001) for task in ("left", "right")}

    for s in range(seeds):
        cells += [point("single-task", "adam", s, {t: v}, role=SINGLE) for t, v in near(0.9).items()]
        for k in range(1, 10):
            test, setting = near(best if k == 3 else best + 0.05), {WEIGHTS: {"left": k / 10, "right": 1 - k / 10}}
            validation = near(0.8 if k == 3 else 0.7)
            where = {"validation": validation, "role": SCALARIZATION}
            cells.append(point("scalarization (tuned)", "adam", s, test, setting, **where))
        for name, level in methods.items():
            cells += [point(name, "adam", s, near(level), {"method.options.c": c}) for c in (0.1, 0.4)]
    return cells


def null_line(summary):
    return next(line for line in verdict(summary).split("\n") if "uned scalarization" in line)


def test_the_null_hypothesis_is_rejected_by_a_better_method_only(point):
    summary = summarize(with_scalarization(point, 0.85, {"ew": 0.9, "cagrad": 0.88, "mgda": 0.80}))
    found = {c.row.method: c for c in against_scalarization(summary)}
    assert set(found) == {"cagrad", "mgda"}  # equal weighting is a scalarization itself
    assert (found["cagrad"].beats, found["mgda"].beats) == (True, False)
    line = null_line(summary)
    assert line.startswith("Does any method beat tuned scalarization (weights left 0.3 right 0.7)? The 95% ")
    assert "wholly on the better side for cagrad \N{MINUS SIGN}3." in line
    assert "After correction for 2 comparisons it holds for cagrad." in line
    assert line.endswith("Settings tried, over all optimizers: scalarization (tuned) 9, ew 2, cagrad 2 and mgda 2.")
    scalarization = next(row for row in summary.rows if row.role == SCALARIZATION)
    assert settings_tried(summary, scalarization) == 9
    assert method_text(scalarization) == "scalarization (tuned, weights left 0.3 right 0.7)"
    # its difference and interval are those of scipy's paired test on Δm
    cagrad = next(row for row in summary.rows if row.method == "cagrad")
    a, b = (list(row.delta_m_by_seed.values()) for row in (cagrad, scalarization))
    expected = stats.ttest_rel(a, b)
    assert found["cagrad"].difference.p_value == pytest.approx(expected.pvalue)
    interval = found["cagrad"].difference.interval
    assert (interval.low, interval.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))


@pytest.mark.parametrize("count", [1, 2, 4, 6, 7])
def test_the_expected_choice_agrees_with_all_subsets(grid, count):
    candidates = [c for row in summarize(grid).rows if row.method == "ew" for c in row.candidates][:6]
    failed = dataclasses.replace(candidates[0], seeds=(), validation=math.nan, delta_m_by_seed={})
    candidates = [*candidates, failed]
    totals: dict[int, list[float]] = {}
    for subset in itertools.combinations(candidates, count):
        able = [c for c in subset if c.seeds]
        if able:
            most = max(len(c.seeds) for c in able)
            best = max((c for c in able if len(c.seeds) == most), key=lambda c: c.validation)
            for seed, change in best.delta_m_by_seed.items():
                totals.setdefault(seed, []).append(change)
    expected = {seed: sum(changes) / len(changes) for seed, changes in totals.items()}
    assert expected_choice(candidates, count) == pytest.approx(expected)


def test_scalarization_is_compared_at_the_budget_of_each_method_too(point):
    summary = summarize(with_scalarization(point, 0.85, {"ew": 0.9, "cagrad": 0.88, "mgda": 0.80}))
    found = {entry.row.method: entry for entry in at_equal_budget(summary)}
    assert {name: (entry.settings, entry.tuned_settings) for name, entry in found.items()} == {
        "cagrad": (2, 9),
        "mgda": (2, 9),
    }
    # of two settings at random the best on validation, 5 points worse on test, is one with probability 2 / 9
    tuned = next(row for row in summary.rows if row.role == SCALARIZATION)
    others = np.mean([c.delta_m.mean for c in tuned.candidates if not c.chosen])
    expected = 2 / 9 * tuned.delta_m.mean + 7 / 9 * others
    entry = found["cagrad"]
    assert entry.expected.mean == pytest.approx(expected, abs=0.05)  # the others are alike
    assert entry.difference.interval.mean == pytest.approx(entry.row.delta_m.mean - entry.expected.mean)
    line = next(line for line in verdict(summary).split("\n") if line.startswith("At equal budget"))
    shown = f"{entry.expected.mean:+.2f}".replace("-", "\N{MINUS SIGN}")
    assert "With 2 settings, drawn at random from its 9, scalarization would be " in line
    assert f"be expected at Δm {shown}; against that: cagrad " in line
    assert " and mgda +" in line


def test_no_line_at_equal_budget_where_the_budgets_are_equal(point):
    cells = with_scalarization(point, 0.85, {"ew": 0.9, "cagrad": 0.88})
    few = [c for c in cells if c["role"] != SCALARIZATION or c["setting"][WEIGHTS]["left"] in (0.3, 0.6)]
    assert at_equal_budget(summarize(few)) == ()
    assert "At equal budget" not in verdict(summarize(few))


def test_a_value_chosen_at_the_end_of_its_axis_is_named(point):
    def study(rates, best):
        cells = []
        for s, (i, rate) in itertools.product(range(2), enumerate(rates)):
            for method, chosen in best.items():
                near = {"left": 0.9 - 0.05 * abs(i - chosen) + 0.001 * s * (1 + chosen)}
                role = SINGLE if method == "single-task" else "method"
                cells.append(point(method, "adam", s, near, {RATE: rate, "method.options.exact": bool(i)}, role=role))
        lines = verdict(summarize(cells)).split("\n")
        return next((line for line in lines if line.startswith("Chosen at the end of the grid")), None)

    found = study((0.001, 0.01, 0.03), {"single-task": 0, "ew": 2, "cagrad": 2, "mgda": 1})
    assert found is not None
    for text in ("adam 0.001 for single-task left", "adam 0.03 for "):
        assert text in found
    assert "cagrad and ew" in found or "ew and cagrad" in found
    assert "mgda" not in found
    assert "exact" not in found
    assert study((0.001, 0.01), {"single-task": 0, "ew": 1, "cagrad": 0}) is None  # two values are no axis
    assert study((0.001, 0.01, 0.03), {"single-task": 1, "ew": 1, "cagrad": 1}) is None


def test_the_null_hypothesis_stands_where_no_method_is_better(point):
    line = null_line(summarize(with_scalarization(point, 0.88, {"ew": 0.8, "cagrad": 0.87})))
    assert "? No: no method's 95% interval lies wholly on the better side." in line
    assert "scalarization (tuned) 9" in line


def test_a_study_without_scalarization_says_how_to_add_it(point):
    cells = with_scalarization(point, 0.88, {"ew": 0.8, "cagrad": 0.87})
    assert "weight_grid=9 in the StudyConfig adds it" in null_line(
        summarize([cell for cell in cells if cell["role"] != SCALARIZATION])
    )
    failed = [c | {"status": "failed", "reason": "NaN"} if c["role"] == SCALARIZATION else c for c in cells]
    assert "Tuned scalarization has no finished run" in null_line(summarize(failed))
    assert "nothing is shown" in null_line(summarize(with_scalarization(point, 0.8, {"cagrad": 0.9}, seeds=1)))
