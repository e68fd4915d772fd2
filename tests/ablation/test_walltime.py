"""Claims about Δm at equal time and at equal steps, on histories made by hand."""

import math

import pytest

from mtljax.ablation.statistics import delta_m, equal_time, summarize

RATE = "optimizer.learning_rate"


@pytest.fixture
def run(synthetic):
    """A cell whose validation accuracy is given by step; every 10 steps an evaluation."""

    def make(method, seed, curve, per_step, kind="multi", task="left", **options):
        cell = synthetic.cell(method, "adam", seed, {task: 0.9}, kind=kind, seconds_per_step=per_step, **options)
        cell["history"] = [
            {"step": 10 * (i + 1), "epoch": i + 1.0, "split": split, "seconds": 100.0 + i, **found}
            for i, value in enumerate(curve)
            for split, found in (
                ("train", {"losses": {task: 1.0}, "weights": None}),
                ("validation", {"metrics": {task: {"accuracy": value, "loss": 1.0}}}),
            )
        ]
        cell["history"].append(
            {"step": 10, "epoch": 1.0, "split": "test", "seconds": 1.0, "metrics": {task: {"accuracy": 0.0}}}
        )
        return cell

    return make


@pytest.fixture
def cells(run):
    """Single-task reaches 0.8 on validation; ew is fast and stalls, cagrad takes twice the time and gets further."""
    cells = [run("single-task", s, [0.7, 0.8 + 0.01 * (2 * s - 1)], 0.01, kind="single") for s in (0, 1)]
    cells += [run("ew", s, [0.5, 0.6, 0.7, 0.72 + 0.01 * s], 0.01) for s in (0, 1)]
    cells += [run("cagrad", s, [0.4, 0.6 + 0.02 * s, 0.7, 0.8], 0.02) for s in (0, 1)]
    return cells


def test_equal_time_by_hand(cells):
    (found,) = equal_time(summarize(cells), cells)
    assert found.seconds == pytest.approx(0.4)  # 40 steps of ew
    assert found.steps == 40
    assert [entry.row.method for entry in found.rows] == ["ew", "cagrad"]  # at equal time ew is ahead
    ew, cagrad = found.rows
    # against 0.8, the mean of the last evaluations on validation
    assert ew.at_seconds == ew.at_steps
    assert ew.at_seconds.mean == pytest.approx((10 + 8.75) / 2)
    assert cagrad.at_steps.mean == pytest.approx(0, abs=1e-9)
    assert cagrad.at_seconds.mean == pytest.approx((25 + 22.5) / 2)  # 20 steps
    expected = [delta_m({("left", "m"): v}, {("left", "m"): 0.8}, {("left", "m"): True}) for v in (0.6, 0.62)]
    assert cagrad.at_seconds.mean == pytest.approx(sum(expected) / 2)
    assert (ew.steps_at_seconds, cagrad.steps_at_seconds) == (40, 20)
    assert any("On validation data" in note for note in found.notes)
    assert not any("chosen" in note for note in found.notes)  # there was nothing to choose


def test_what_was_chosen_on_the_same_data_is_told(cells):
    other = [c | {"cell": c["cell"] + "-b", "setting": {RATE: 0.1}} for c in cells if c["method"] == "cagrad"]
    (found,) = equal_time(summarize([*cells, *other]), [*cells, *other])
    assert "chosen on the same validation data at full length, which flatters most" in found.notes[-1]


def test_runs_too_slow_for_one_evaluation_have_no_number(run, cells):
    slow = [run("nash_mtl", s, [0.9, 0.9, 0.9, 0.9], 1.0) for s in (0, 1)]
    (found,) = equal_time(summarize([*cells, *slow]), [*cells, *slow])
    last = found.rows[-1]
    assert last.row.method == "nash_mtl"
    assert math.isnan(last.at_seconds.mean)
    assert math.isnan(last.steps_at_seconds)
    assert last.at_steps.mean == pytest.approx(-12.5)


def test_a_run_that_stopped_early_sets_the_steps(run, cells):
    short = [run("mgda", s, [0.6, 0.6], 0.05) for s in (0, 1)]
    (found,) = equal_time(summarize([*cells, *short]), [*cells, *short])
    assert found.steps == 20
    assert {entry.row.method: entry.at_steps.mean for entry in found.rows} == pytest.approx(
        {"ew": 25.0, "cagrad": 23.75, "mgda": 25.0}
    )


def test_only_the_chosen_setting_is_compared(run, cells):
    other = [
        cell | {"cell": cell["cell"] + "-other", "setting": {RATE: 9.0}, "validation": {"left": {"accuracy": 0.1}}}
        for cell in cells
        if cell["kind"] == "multi"
    ]
    for cell in other:
        cell["seconds_per_step"] = 1e-6  # would set the budget
    assert equal_time(summarize([*cells, *other]), [*cells, *other])[0].seconds == pytest.approx(0.4)


def test_wall_clock_is_taken_where_steps_were_not_timed(cells):
    for cell in cells:
        cell["seconds_per_step"] = None
        for entry in cell["history"]:
            entry["seconds"] = entry["step"] * (0.03 if cell["method"] == "cagrad" else 0.01)
    (found,) = equal_time(summarize(cells), cells)
    assert found.seconds == pytest.approx(0.4)
    assert [entry.steps_at_seconds for entry in found.rows] == [40, 10]
    assert any("wall clock with compilation" in note for note in found.notes)


@pytest.mark.parametrize("strategy", ["vmap", "processes", "ray"])
def test_cells_that_shared_the_machine_are_left_out_and_named(run, cells, strategy):
    extra = [run("mgda", s, [0.6, 0.6, 0.6, 0.6], 1e-6) | {"strategy": strategy} for s in (0, 1)]
    (found,) = equal_time(summarize([*cells, *extra]), [*cells, *extra])
    assert [entry.row.method for entry in found.rows] == ["ew", "cagrad"]
    assert found.seconds == pytest.approx(0.4)
    assert found.notes[0].startswith("Left out: mgda, trained several runs at once")
    everything = [cell | {"strategy": strategy} for cell in cells]
    (found,) = equal_time(summarize(everything), everything)
    assert found.rows == ()
    assert "Left out: " in found.notes[0]


def test_without_history_or_baseline_there_is_nothing(cells):
    bare = [{key: value for key, value in cell.items() if key != "history"} for cell in cells]
    assert equal_time(summarize(bare), bare) == ()
    multi = [cell for cell in cells if cell["kind"] == "multi"]
    assert equal_time(summarize(multi), multi) == ()
