"""What a study found: one row per condition, method and optimizer.

The order of the records never matters. Settings, and a method's optimizer, are chosen on validation; everything
reported is measured on test.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mtljax.ablation.statistics.candidates import (
    SINGLE,
    Candidate,
    Failure,
    Record,
    choose,
    frozen,
    in_order,
    metric_directions,
)
from mtljax.ablation.statistics.intervals import Key, mean_ranks
from mtljax.ablation.statistics.labels import setting_text
from mtljax.ablation.statistics.rows import Row, make_row, nearest, surroundings, with_delta_m


@dataclass(frozen=True)
class Summary:
    """What a study found.

    Attributes:
      tasks: names of the tasks, sorted.
      directions: by (task, metric), whether higher is better; a task's metrics in their own order, its primary first.
      primary: each task's primary metric.
      rows: single-task training first, then by Δm, the best first.
      baseline: optimizer of the single-task runs that Δm is measured against (several when conditions differ in it);
        None when there is no such run.
      problem: why Δm is missing and what to do about it, in one sentence; None when it is not.
      failures: all cells that failed.
      command: the command that makes the study.
    """

    tasks: tuple[str, ...]
    directions: Mapping[Key, bool]
    primary: Mapping[str, str]
    rows: tuple[Row, ...]
    baseline: str | None
    problem: str | None
    failures: tuple[Failure, ...]
    command: str = "mtljax ablate CONFIG"


def summarize(records: Sequence[Record], *, command: str = "mtljax ablate CONFIG") -> Summary:
    """Summarizes the cells of a study.

    Per condition, method and optimizer the setting with the best mean validation score is chosen, and per condition and
    method the optimizer, each among those with the most finished seeds. Single-task training has its setting chosen for
    every task by itself within an optimizer. Δm of every seed is measured against the mean over seeds of ONE
    single-task reference a condition: the optimizer whose single-task runs have the best validation score. The score
    is the mean over tasks of the primary metric, signed so that up is better.

    Args:
      records: the cells.
      command: the command that makes the study, named where something is missing.

    Returns:
      The summary.

    Raises:
      ValueError: if two cells hold the same run, or disagree on the direction of a metric.
    """
    directions = metric_directions(records)
    tasks = tuple(dict.fromkeys(task for task, _ in directions))
    groups: dict[tuple[str, ...], list[Record]] = {}
    for record in sorted(records, key=_order):
        group = (record["kind"], record["method"], record["optimizer"], frozen(record.get("condition")))
        groups.setdefault(group, []).append(record)
    rows = [make_row(cells, records, directions) for cells in groups.values()]
    methods: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        methods.setdefault((row.kind, row.method, frozen(row.condition)), []).append(row)
    chosen = {id(choose(group)) for group in methods.values()}
    rows = [dataclasses.replace(row, selected=id(row) in chosen) for row in rows]
    references = [row for row in rows if row.role == SINGLE and row.selected]
    rows = [with_delta_m(row, nearest(references, row), directions) for row in rows]
    ranks = {
        id(row): rank for group in together(rows) for row, rank in zip(group, _ranks(group, directions), strict=True)
    }
    rows = [dataclasses.replace(row, mean_rank=ranks.get(id(row), math.nan)) for row in rows]
    rows.sort(key=lambda row: (row.kind != SINGLE, _last(row.delta_m.mean), _last(-row.validation)))
    return Summary(
        tasks,
        directions,
        {task: next(metric for t, metric in directions if t == task) for task in tasks},
        tuple(rows),
        baseline=", ".join(sorted({row.optimizer for row in references})) or None,
        problem=_problem(rows, references, command),
        failures=tuple(dict.fromkeys(f for row in rows for c in row.candidates for f in c.failures)),
        command=command,
    )


def reference(summary: Summary, row: Candidate) -> Row | None:
    """The single-task row that Δm of a row is measured against; None when it is missing."""
    return nearest([other for other in summary.rows if other.role == SINGLE and other.selected], row)


def together(rows: Iterable[Row]) -> list[list[Row]]:
    """The selected multi-task rows, those that compete with each other in one list."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if row.kind != SINGLE and row.selected:
            groups.setdefault(frozen(surroundings(row.condition)), []).append(row)
    return list(groups.values())


def _ranks(rows: Sequence[Row], directions: Mapping[Key, bool]) -> list[float]:
    keys = [key for key in directions if key[0] in rows[0].tasks and key[1] != "loss"]
    values = np.array([[row.test[key].mean for key in keys] for row in rows])
    return mean_ranks(values, [directions[key] for key in keys]).tolist()


def _problem(rows: Sequence[Row], references: Sequence[Row], command: str) -> str | None:
    where, concerned = "", [row for row in rows if row.role == SINGLE]
    if not concerned:
        command = _with(command, "--baselines=true")
    if references:
        lacking = [row for row in rows if row.kind != SINGLE and row.seeds and nearest(references, row) is None]
        if not lacking:
            return None
        where = f" under the condition {setting_text(lacking[0].condition)}"
        concerned = [row for row in concerned if nearest([row], lacking[0]) is not None]
    if any(candidate.failures for row in concerned for candidate in row.candidates):
        command = _with(command, "--retry-failed")
    return (
        f"Δm is missing because no single-task training has finished for all tasks{where}: run `{command}` to make it."
    )


def _with(command: str, option: str) -> str:
    return command if option in command.split() else f"{command} {option}"


def _order(record: Record) -> tuple[object, ...]:
    fields = in_order(record.get("condition")), in_order(record.get("setting"))
    return (record["kind"] != SINGLE, record["method"], record["optimizer"], *fields, record["seed"], record["tasks"])


def _last(value: float) -> float:
    """A sort key that puts NaN last."""
    return math.inf if math.isnan(value) else value
