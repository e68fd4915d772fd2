"""The files of a study's tables: results and curves as CSV and Parquet, and the records from them again."""

import csv
import importlib
import importlib.util
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mtljax.ablation.statistics.candidates import Record
from mtljax.ablation.statistics.tidy import COLUMNS, CURVES, FLOATS, INTEGERS, Table, curves, decoded, tidy


def csv_text(rows: Sequence[Mapping[str, Any]], columns: Iterable[str] = COLUMNS) -> str:
    """Rows with the same keys as CSV with a header, that of `columns` when there is no row; None and NaN are empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: None if value != value else value for key, value in row.items()} for row in rows)
    return text.getvalue()


def write_tables(records: Sequence[Record], directory: str | Path) -> list[Path]:
    """Writes results.csv and curves.csv, and both as .parquet when pyarrow is installed, each in one step.

    `pandas.read_csv("results.csv")` and `pandas.read_parquet("results.parquet")` read them. Without pyarrow, Parquet
    files of an earlier call are removed, since they would be out of date.

    Args:
      records: the cells of a study.
      directory: where the files go.

    Returns:
      The files written.
    """
    from mtljax.training.logs import write_atomically

    written = []
    for name, rows, header in (("results", tidy(records), COLUMNS), ("curves", curves(records), CURVES)):
        path = Path(directory) / f"{name}.csv"
        write_atomically(path, csv_text(rows, header))
        written.append(path)
        path = path.with_suffix(".parquet")
        if importlib.util.find_spec("pyarrow") is None:
            path.unlink(missing_ok=True)
        else:
            _write_parquet(rows, header, path)
            written.append(path)
    return written


def write_csv(records: Sequence[Record], path: str | Path) -> None:
    """Writes `tidy(records)` as CSV, in one step; `pandas.read_csv(path)` reads it.

    Args:
      records: the cells of a study.
      path: the file, replaced when it exists.
    """
    from mtljax.training.logs import write_atomically

    write_atomically(Path(path), csv_text(tidy(records)))


def read_tables(directory: str | Path) -> list[dict[str, Any]]:
    """The records of a study from results.csv and, where there is one, curves.csv: what `write_tables` was given.

    Only `config` and `environment` are in no table.

    Args:
      directory: of the files.

    Returns:
      The records, in the order of the table.

    Raises:
      FileNotFoundError: if there is no results.csv.
      ValueError: if a file is no table of a study.
    """
    records: dict[str, dict[str, Any]] = {}
    for row in _read(Path(directory) / "results.csv", COLUMNS):
        record = records.setdefault(row["cell"], _record(row))
        task, metric = row["task"], row["metric"]
        own = record["metric_directions"].setdefault(task, {})
        if metric != "loss":
            own[metric] = row["higher_is_better"]
        record["tasks"] = sorted(record["metric_directions"])
        if row["status"] == "finished":
            record.setdefault(row["split"], {}).setdefault(task, {})[metric] = row["value"]
    path = Path(directory) / "curves.csv"
    for row in _read(path, CURVES) if path.is_file() else ():
        if row["cell"] not in records:
            raise ValueError(f"{path} has a cell {row['cell']!r} that results.csv does not have; write both again")
        _add(records[row["cell"]].setdefault("history", []), row)
    return list(records.values())


def _record(row: Mapping[str, Any]) -> dict[str, Any]:
    """What all rows of a cell say."""
    not_own = ("split", "task", "metric", "higher_is_better", "value")
    record = {
        name: row[name] for name in COLUMNS if name not in not_own and (row[name] is not None or name == "reason")
    }
    return record | {
        "metric_directions": {},
        "setting": _nested(row, "setting."),
        "condition": _nested(row, "condition."),
    }


def _add(history: Table, row: Mapping[str, Any]) -> None:
    """Adds a value to the log record it belongs to, the last one or a new one."""
    at = {name: row[name] for name in ("step", "epoch", "split", "seconds")}
    if not history or any(history[-1][name] != value for name, value in at.items()):
        history.append(at | ({"losses": {}, "weights": None} if row["split"] == "train" else {"metrics": {}}))
    entry, task, quantity = history[-1], row["task"], row["quantity"]
    if row["split"] != "train":
        entry["metrics"].setdefault(task, {})[quantity] = row["value"]
    elif quantity == "weight":
        entry["weights"] = (entry["weights"] or {}) | {task: row["value"]}
    else:
        entry["losses"][task] = row["value"]


def _nested(row: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """A setting or condition from its columns."""
    fields: dict[str, Any] = {}
    for column, text in row.items():
        if column.startswith(prefix) and text is not None:
            field, bracket, key = column.removeprefix(prefix).partition("[")
            if bracket:
                fields.setdefault(field, {})[key.removesuffix("]")] = decoded(text)
            else:
                fields[field] = decoded(text)
    return fields


def _read(path: Path, needed: Sequence[str]) -> Table:
    """The rows of a CSV file with numbers as numbers; empty fields are None."""
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        if missing := [name for name in needed if name not in (reader.fieldnames or ())]:
            raise ValueError(f"{path} is no table of a study: it lacks {', '.join(missing)}; run the study again")
        try:
            return [_typed(row) for row in reader]
        except (ValueError, TypeError, AttributeError, csv.Error) as error:
            raise ValueError(f"{path} is damaged near line {reader.line_num}: {error}; run the study again") from error


def _typed(row: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {name: text or None for name, text in row.items()}
    for name in FLOATS:
        if values.get(name) is not None:
            values[name] = float(values[name])
    for name in INTEGERS:
        if values.get(name) is not None:
            values[name] = int(float(values[name]))
    if "higher_is_better" in values:
        values["higher_is_better"] = values["higher_is_better"] == "True"
    return values


def _write_parquet(rows: Table, header: Sequence[str], path: Path) -> None:
    pyarrow, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    arrays = {}
    for name in rows[0] if rows else header:
        values = [None if row[name] is None or row[name] != row[name] else row[name] for row in rows]
        kinds = {type(value) for value in values if value is not None}
        if name in FLOATS or (float in kinds and kinds <= {int, float}):
            kind = pyarrow.float64()
        elif name in INTEGERS or kinds == {int}:
            kind = pyarrow.int64()
        elif name == "higher_is_better" or kinds == {bool}:
            kind = pyarrow.bool_()
        else:
            kind, values = pyarrow.string(), [None if value is None else str(value) for value in values]
        arrays[name] = pyarrow.array(values, kind)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        parquet.write_table(pyarrow.table(arrays), temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
