"""The tables of a study for pandas: results (a row per cell, split, task and metric) and curves (per log record).

Values of settings and conditions are columns "setting.FIELD" and "condition.FIELD"; a field that holds a mapping has a
column for each of its keys, "setting.FIELD[KEY]". Numbers, true and false are themselves; anything else is text, as
JSON where plain text would be ambiguous.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mtljax.ablation.statistics.candidates import Record, role

Table = list[dict[str, Any]]
COLUMNS = (
    "cell", "kind", "role", "method", "optimizer", "seed", "split", "task", "metric", "higher_is_better", "value",
    "best_step", "steps", "epochs", "seconds_per_step", "seconds", "strategy", "status", "reason",
)  # fmt: skip
CURVES = (
    "cell", "kind", "method", "optimizer", "seed", "split", "step", "epoch", "seconds", "task", "quantity", "value",
)  # fmt: skip
FLOATS = ("value", "epochs", "epoch", "seconds_per_step", "seconds")
INTEGERS = ("seed", "best_step", "steps", "step")


def columns(records: Sequence[Record]) -> tuple[str, ...]:
    """The columns of `tidy(records)`: `COLUMNS`, and one for each field of settings and conditions."""
    return (*COLUMNS, *sorted({name for record in records for name in _fields(record)}))


def tidy(records: Sequence[Record]) -> Table:
    """One row per cell, split, task and metric, with the columns `columns(records)`.

    A failed cell has its rows too, with `value` None, so that nothing disappears silently.

    Args:
      records: the cells of a study.

    Returns:
      The rows, in the order of the records.
    """
    names, rows = columns(records), []
    for record in records:
        own = {name: record.get(name) for name in COLUMNS} | {"role": role(record)} | _fields(record)
        for split in ("validation", "test"):
            for task, directions in sorted(record["metric_directions"].items()):
                values = (record.get(split) or {}).get(task) or {}
                for metric in dict.fromkeys([*directions, *values]):
                    row = own | {"split": split, "task": task, "metric": metric, "value": values.get(metric)}
                    row["higher_is_better"] = directions.get(metric, False)
                    rows.append({name: row.get(name) for name in names})
    return rows


def curves(records: Sequence[Record]) -> Table:
    """One row per cell, log record, task and quantity ("loss", "weight" or the name of a metric), columns `CURVES`.

    Args:
      records: the cells of a study.

    Returns:
      The rows, in the order of the records and their histories.
    """
    rows = []
    for record in records:
        own = {name: record.get(name) for name in CURVES}
        for entry in record.get("history") or ():
            at = own | {name: entry.get(name) for name in ("split", "step", "epoch", "seconds")}
            quantities = [(task, "loss", value) for task, value in (entry.get("losses") or {}).items()]
            quantities += [(task, "weight", value) for task, value in (entry.get("weights") or {}).items()]
            quantities += [
                (t, name, value)
                for t, metrics in (entry.get("metrics") or {}).items()
                for name, value in metrics.items()
            ]
            rows += [at | {"task": task, "quantity": quantity, "value": value} for task, quantity, value in quantities]
    return rows


def _fields(record: Record) -> dict[str, Any]:
    """The columns of a record's setting and condition."""
    by_column = {}
    for group in ("setting", "condition"):
        for field, value in (record.get(group) or {}).items():
            if isinstance(value, Mapping) and value:
                by_column |= {f"{group}.{field}[{key}]": encoded(inner) for key, inner in value.items()}
            else:
                by_column[f"{group}.{field}"] = encoded(value)
    return by_column


def encoded(value: Any) -> Any:
    """A value of a field as it stands in a table: a number, true, false or a text that `decoded` takes back."""
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, str) and value and decoded(value) == value:
        return value
    return json.dumps(value)


def decoded(text: str) -> Any:
    """The value that a text in a table stands for."""
    if text in ("True", "False"):
        return text == "True"
    try:
        return json.loads(text)
    except ValueError:
        return text
