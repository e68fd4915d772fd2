"""Claims about the tables: pandas reads them in one line, and the study comes back from them."""

import copy
import importlib.util
import json
import math

import pandas as pd
import pytest

from mtljax.ablation.statistics import (
    COLUMNS,
    CURVES,
    curves,
    read_tables,
    summarize,
    tidy,
    verdict,
    write_tables,
)

NAMES = ["results.csv", "results.parquet", "curves.csv", "curves.parquet"]
SETTINGS = [
    {"optimizer.learning_rate": 0.003, "method.options.exact": True},
    {"optimizer.learning_rate": 1e-05, "method.options.weights": {"left": 0.25, "right": 3}},
    {"method.options.solver": "pgd", "method.options.steps": 7, "method.options.init": None},
    {"method.options.solver": "1.0", "model.options.channels": [16, 32], "method.options.weights": {}},
    {"method.options.solver": "True", "model.options.name": "", "method.options.steps": 2.0},
]


@pytest.fixture
def cells(synthetic):
    """Several settings and conditions, weights, a failed run and a NaN."""
    cells = synthetic.study({"ew": 0.0, "cagrad": 0.02}, optimizers={"adam": 0.0, "sgd": -0.02}, seeds=2)
    cells = [copy.deepcopy(cell) for cell in cells]
    for i, cell in enumerate(cells):
        cell["setting"] = SETTINGS[i % len(SETTINGS)] if cell["method"] == "cagrad" else {}
        cell["condition"] = {"model.options.features": 32} if cell["method"] == "cagrad" else {}
        cell["role"] = "single" if cell["kind"] == "single" else "method"
        cell["strategy"] = "sequential"
    cells[0]["test"]["left"]["accuracy"] = None
    last = cells[-1]
    cells[-1] = synthetic.cell("mgda", "adam", 0, {"left": 0, "right": 0}, failed='a "loss", NaN')
    return [*cells, last]


def test_the_study_comes_back_from_its_tables(cells, tmp_path):
    write_tables(cells, tmp_path)
    found = read_tables(tmp_path)
    kept = [{k: v for k, v in cell.items() if k not in ("config", "environment")} for cell in cells]
    for cell in kept:
        cell.setdefault("setting", {})
        cell.setdefault("condition", {})
        cell.setdefault("role", "method")
    assert found == kept
    assert verdict(summarize(found)) == verdict(summarize(cells))
    assert repr(summarize(found)) == repr(summarize(cells))


def test_every_setting_and_condition_is_a_column(cells, tmp_path):
    write_tables(cells, tmp_path)
    frame = pd.read_csv(tmp_path / "results.csv")
    assert tuple(frame.columns[: len(COLUMNS)]) == COLUMNS
    for name in (
        "setting.optimizer.learning_rate",
        "setting.method.options.weights[left]",
        "condition.model.options.features",
    ):
        assert pd.api.types.is_numeric_dtype(frame[name])
    cagrad = frame[(frame.method == "cagrad") & frame["setting.method.options.weights[right]"].notna()]
    assert set(cagrad["setting.optimizer.learning_rate"]) == {1e-05}
    assert len(frame) == len(tidy(cells))


def test_curves_hold_every_number_of_the_histories(cells, tmp_path):
    write_tables(cells, tmp_path)
    frame = pd.read_csv(tmp_path / "curves.csv")
    assert tuple(frame.columns) == CURVES
    cell = next(cell for cell in cells if cell["method"] == "cagrad" and cell["status"] == "finished")
    own = frame[(frame.cell == cell["cell"]) & (frame.task == "right")]
    for quantity, split, key in (("weight", "train", "weights"), ("loss", "train", "losses")):
        expected = [entry[key]["right"] for entry in cell["history"] if entry["split"] == split]
        assert own[(own.quantity == quantity) & (own.split == split)].value.tolist() == pytest.approx(expected)
    expected = [e["metrics"]["right"]["accuracy"] for e in cell["history"] if e["split"] == "validation"]
    found = own[own.quantity == "accuracy"]
    assert found.value.tolist() == pytest.approx(expected)
    assert found.seconds.tolist() == [e["seconds"] for e in cell["history"] if e["split"] == "validation"]


@pytest.mark.skipif(importlib.util.find_spec("pyarrow") is None, reason="pyarrow is optional")
def test_parquet_holds_what_the_csv_holds(cells, tmp_path):
    assert [path.name for path in write_tables(cells, tmp_path)] == NAMES
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(NAMES)
    for name in ("results", "curves"):
        frame, text = pd.read_parquet(tmp_path / f"{name}.parquet"), pd.read_csv(tmp_path / f"{name}.csv")
        assert list(frame.columns) == list(text.columns)
        assert len(frame) == len(text)
        assert frame["value"].dtype == float
        assert frame["seed"].dtype == "int64"
        for column in frame:
            for a, b in zip(frame[column], text[column], strict=True):
                nothing = a is None or a == "null" or pd.isna(a)  # pandas reads null as missing
                assert (nothing and pd.isna(b)) or str(a) == str(b) or float(a) == pytest.approx(float(b))
    assert pd.read_parquet(tmp_path / "results.parquet")["higher_is_better"].dtype == bool
    write_tables([], tmp_path)
    assert list(pd.read_parquet(tmp_path / "results.parquet").columns) == list(COLUMNS)


def test_without_pyarrow_there_is_csv_and_no_stale_parquet(cells, tmp_path, monkeypatch):
    (tmp_path / "results.parquet").write_text("of yesterday")
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pyarrow" else found(name))
    assert [path.name for path in write_tables(cells, tmp_path)] == ["results.csv", "curves.csv"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curves.csv", "results.csv"]


def test_results_alone_are_enough_for_the_numbers(cells, tmp_path):
    write_tables(cells, tmp_path)
    (tmp_path / "curves.csv").unlink()
    found = read_tables(tmp_path)
    assert all("history" not in cell for cell in found)
    assert repr(summarize(found)) == repr(summarize(cells))


def test_a_damaged_table_is_told_in_one_sentence(cells, tmp_path):
    with pytest.raises(FileNotFoundError):
        read_tables(tmp_path)
    path = tmp_path / "results.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="is no table of a study: it lacks cell, kind, role"):
        read_tables(tmp_path)
    write_tables(cells, tmp_path)
    path.write_text(path.read_text().replace(",0.9", ",zero", 1))
    with pytest.raises(ValueError, match=r"results\.csv is damaged near line .*could not convert.*run the study again"):
        read_tables(tmp_path)
    write_tables(cells, tmp_path)
    path.write_text("\n".join(path.read_text().split("\n")[:9]) + "\n")
    with pytest.raises(ValueError, match=r"curves\.csv has a cell .* that results.csv does not have"):
        read_tables(tmp_path)


def test_tables_are_json_free_numbers(cells):
    for row in [*tidy(cells), *curves(cells)]:
        json.dumps(row)  # plain values only
        assert row["value"] is None or isinstance(row["value"], float)
        assert not (isinstance(row["value"], float) and math.isinf(row["value"]))
