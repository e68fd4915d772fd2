"""Claims about the tidy table, its CSV and the table for a terminal."""

import io
import itertools
import math

import pandas as pd
import pytest
from rich.console import Console

from mtljax.ablation.statistics import (
    COLUMNS,
    Interval,
    shown,
    summarize,
    text_table,
    tidy,
    write_csv,
)
from mtljax.ablation.statistics.tables import milliseconds

LEFT, RIGHT = ("left", "accuracy"), ("right", "accuracy")


def test_tidy_has_one_row_per_cell_split_task_and_metric(synthetic):
    cells = synthetic.study({"ew": 0.0, "cagrad": 0.01}, seeds=2)
    rows = tidy(cells)
    expected = itertools.chain.from_iterable(
        itertools.product([cell["cell"]], ("validation", "test"), cell["tasks"], ("accuracy", "loss")) for cell in cells
    )
    assert sorted((r["cell"], r["split"], r["task"], r["metric"]) for r in rows) == sorted(expected)
    assert all(tuple(row) == COLUMNS for row in rows)


def test_pandas_reads_the_csv_in_one_line(synthetic, tmp_path):
    cells = synthetic.study({"ew": 0.0, 'scalarization(weights={"left": 1, "right": 2})': 0.01}, seeds=2)
    cells[0]["test"]["left"]["accuracy"] = math.nan
    cells.append(
        synthetic.cell(
            "mgda", "adam 0.001", 0, {"left": 0, "right": 0}, failed="the loss is NaN", seconds_per_step=None
        )
    )
    write_csv(cells, tmp_path / "results.csv")
    frame = pd.read_csv(tmp_path / "results.csv")
    expected = pd.DataFrame(tidy(cells), columns=list(COLUMNS))
    assert frame["value"].dtype == float
    assert frame["higher_is_better"].dtype == bool
    assert frame["seed"].dtype == int
    pd.testing.assert_frame_equal(frame, expected.fillna(math.nan), check_dtype=False)
    failed = frame[frame["status"] == "failed"]
    assert len(failed) == 4
    assert failed["value"].isna().all()
    assert [path.name for path in tmp_path.iterdir()] == ["results.csv"]


def test_delta_m_can_be_recomputed_from_the_csv(synthetic, tmp_path):
    cells = synthetic.study({"ew": 0.0, "cagrad": 0.02})
    write_csv(cells, tmp_path / "results.csv")
    frame = pd.read_csv(tmp_path / "results.csv").query("split == 'test' and metric == 'accuracy'")
    baseline = frame[frame.kind == "single"].groupby("task").value.mean()
    cagrad = frame[frame.method == "cagrad"].set_index("task").value
    expected = -100 * (cagrad / baseline.reindex(cagrad.index) - 1).mean()
    row = next(row for row in summarize(cells).rows if row.method == "cagrad")
    assert row.delta_m.mean == pytest.approx(expected)


def test_the_terminal_table_fits_100_columns_and_starts_with_single_task(synthetic):
    effects = {"ew": 0.0, "cagrad(c=0.5)": 0.02, "scalarization(weights={'left': 0.3, 'right': 0.7})": -0.01}
    for tasks in (("left",), ("left", "right"), ("depth", "normal", "segmentation", "a_task_with_a_long_name")):
        summary = summarize(synthetic.study(effects, optimizers={"adam 0.001": 0.0, "sgd 0.1": -0.2}, tasks=tasks))
        out = io.StringIO()
        Console(file=out, width=100, force_terminal=False).print(text_table(summary))
        lines = out.getvalue().splitlines()
        assert max(map(len, lines)) <= 100
        rows = [line for line in lines if "adam 0.001" in line or "sgd 0.1" in line]
        assert len(rows) == len(summary.rows)
        assert rows[0].lstrip().startswith("single-task")
        assert all(shown(row.delta_m) in line for row, line in zip(summary.rows, rows, strict=True))


@pytest.mark.parametrize("strategy", ["vmap", "processes", "ray"])
def test_the_time_of_a_step_is_shown_for_sequential_runs_only(synthetic, strategy):
    cells = synthetic.study({"ew": 0.0, "cagrad": 0.01})
    changed = [c | {"strategy": strategy} if (c["method"], c["seed"]) == ("cagrad", 1) else c for c in cells]
    for records, expected in ((cells, ("3", "3")), (changed, ("3", "–"))):
        summary = summarize(records)
        rows = {row.method: row for row in summary.rows}
        assert (milliseconds(rows["ew"]), milliseconds(rows["cagrad"])) == expected
        out = io.StringIO()
        Console(file=out, width=100, force_terminal=False).print(text_table(summary))
        assert ("a dash where several runs shared" in " ".join(out.getvalue().split())) == (records is changed)


def test_numbers_are_shown_in_their_units():
    assert shown(Interval(0.931, 0.004, 3), "accuracy") == "93.1 ± 0.4"
    assert shown(Interval(0.01234, 0.00056, 3), "mae") == "0.01234 ± 0.00056"
    assert shown(Interval(-1.234, 0.5, 3)) == "\N{MINUS SIGN}1.23 ± 0.50"
    assert shown(Interval(-0.0001, 0.5, 3)) == "0.00 ± 0.50"
    assert shown(Interval(0.5, math.nan, 1), "accuracy") == "50.0"
    assert shown(Interval(math.nan, math.nan, 0), "accuracy") == "–"


def test_an_empty_study_still_has_a_header(tmp_path):
    write_csv([], tmp_path / "results.csv")
    assert (tmp_path / "results.csv").read_text() == ",".join(COLUMNS) + "\n"


def test_the_terminal_table_shows_what_was_chosen(synthetic):
    rate, option = "optimizer.learning_rate", "method.options.c"
    cells = [
        synthetic.cell("cagrad", optimizer, 0, {"left": level})
        | {"setting": {rate: 0.003, option: c}, "condition": {"model.options.features": 32}, "cell": f"{optimizer} {c}"}
        for optimizer in ("adam", "sgd")
        for c, level in ((0.1, 0.8), (0.4, 0.7))
    ]
    out = io.StringIO()
    Console(file=out, width=100, force_terminal=False).print(text_table(summarize(cells)))
    words = " ".join(out.getvalue().split())
    assert "adam 0.003" in words
    assert "(features 32," in words
    assert "0.1)" in words  # cells wrap before it
    assert "0.4" not in words
    assert "settings chosen on validation" in words
