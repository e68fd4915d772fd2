"""What a study found: its records gathered into one row per method and optimizer.

A record is the dict of one finished or failed cell, and a cell is one training run. The order of the records never
matters. A method's optimizer is chosen on validation, everything reported is measured on test.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from mtljax.ablation.statistics.intervals import Interval, Key, delta_m, listed, t_interval

Record = Mapping[str, Any]
SINGLE = "single"


class Failure(NamedTuple):
    """A cell that did not finish, and why."""

    cell: str
    method: str
    optimizer: str
    seed: int
    reason: str


@dataclass(frozen=True)
class Row:
    """One method with one optimizer, over its seeds.

    Attributes:
      kind: "multi", or "single" for one network per task.
      method: label of the method.
      optimizer: label of the optimizer.
      seeds: seeds whose run finished; for "single" those where the networks of all tasks did.
      test: interval over seeds by (task, metric).
      delta_m: interval of Δm over seeds, in percent; negative beats single-task training.
      delta_m_by_seed: Δm of every seed, in percent.
      validation: mean over seeds of the validation score; higher is better.
      seconds_per_step: median over seeds; for "single" of the sum over its networks. NaN when not measured.
      failures: the cells that failed.
      selected: whether this is the method's optimizer, chosen on validation.
    """

    kind: str
    method: str
    optimizer: str
    seeds: tuple[int, ...]
    test: Mapping[Key, Interval]
    delta_m: Interval
    delta_m_by_seed: Mapping[int, float]
    validation: float
    seconds_per_step: float
    failures: tuple[Failure, ...]
    selected: bool


@dataclass(frozen=True)
class Summary:
    """What a study found.

    Attributes:
      tasks: names of the tasks, sorted.
      directions: by (task, metric), whether higher is better; a task's metrics in their own order, its primary first.
      primary: each task's primary metric.
      rows: single-task training first, then by Δm, the best first.
      baseline: optimizer of the single-task runs that Δm is measured against; None when there is no such run.
      problem: why Δm is missing and what to do about it, in one sentence; None when it is not.
      failures: all cells that failed.
    """

    tasks: tuple[str, ...]
    directions: Mapping[Key, bool]
    primary: Mapping[str, str]
    rows: tuple[Row, ...]
    baseline: str | None
    problem: str | None
    failures: tuple[Failure, ...]


class _Run(NamedTuple):
    """One seed: a multi-task network, or K single-task networks taken together."""

    test: dict[Key, float]
    score: float
    seconds_per_step: float


def summarize(records: Sequence[Record], *, command: str = "mtljax ablate CONFIG") -> Summary:
    """Summarizes the cells of a study.

    Δm of every seed is measured against the mean over seeds of ONE single-task reference: the optimizer whose
    single-task runs have the best validation score. The validation score is the mean over tasks of the primary metric,
    signed so that up is better. Per method the optimizer with the best mean validation score is selected, among those
    with the most finished seeds, so that seeds that failed or are still to come do not flatter.

    Args:
      records: the cells.
      command: the command that makes the study, named where something is missing.

    Returns:
      The summary.

    Raises:
      ValueError: if two cells hold the same run, or disagree on the direction of a metric.
    """
    directions = _directions(records)
    tasks = tuple(dict.fromkeys(task for task, _ in directions))
    primary = {task: next(metric for t, metric in directions if t == task) for task in tasks}
    groups: dict[tuple[str, str, str], list[Record]] = {}
    for record in sorted(
        records, key=lambda r: (r["kind"] != SINGLE, r["method"], r["optimizer"], r["seed"], r["tasks"])
    ):
        groups.setdefault((record["kind"], record["method"], record["optimizer"]), []).append(record)
    runs = {group: _runs(cells, directions, primary) for group, cells in groups.items()}
    scores = {group: float(np.mean([run.score for run in runs[group].values()] or [math.nan])) for group in groups}
    selected: dict[tuple[str, str], tuple[str, str, str]] = {}
    for kind, method in dict.fromkeys(group[:2] for group in groups):
        candidates = [group for group in groups if group[:2] == (kind, method) and math.isfinite(scores[group])]
        if candidates:
            selected[kind, method] = max(candidates, key=lambda group: (len(runs[group]), scores[group]))

    reference = next((group for (kind, _), group in selected.items() if kind == SINGLE), None)
    baseline = problem = None
    if reference is None:
        problem = (
            f"Δm is missing because no single-task training has finished for all tasks: run `{command}` to make it."
        )
    else:
        baseline = {key: t_interval([run.test[key] for run in runs[reference].values()]).mean for key in directions}

    def row(group: tuple[str, str, str]) -> Row:
        found = runs[group]
        changes = {
            seed: math.nan if baseline is None else delta_m(r.test, baseline, directions) for seed, r in found.items()
        }
        seconds = [run.seconds_per_step for run in found.values() if math.isfinite(run.seconds_per_step)]
        return Row(
            *group,
            seeds=tuple(found),
            test={key: t_interval([run.test[key] for run in found.values()]) for key in directions},
            delta_m=t_interval(list(changes.values())),
            delta_m_by_seed=changes,
            validation=scores[group],
            seconds_per_step=float(np.median(seconds)) if seconds else math.nan,
            failures=tuple(_failure(cell) for cell in groups[group] if cell["status"] != "finished"),
            selected=selected.get(group[:2]) == group,
        )

    rows = sorted(map(row, groups), key=lambda r: (r.kind != SINGLE, _last(r.delta_m.mean), _last(-r.validation)))
    failures = tuple(failure for r in rows for failure in r.failures)
    return Summary(
        tasks, directions, primary, tuple(rows), None if reference is None else reference[2], problem, failures
    )


def _runs(cells: Sequence[Record], directions: Mapping[Key, bool], primary: Mapping[str, str]) -> dict[int, _Run]:
    """The finished runs of one row by seed; a single-task run needs the networks of all tasks."""
    by_seed: dict[int, list[Record]] = {}
    for cell in cells:
        by_seed.setdefault(cell["seed"], []).append(cell)
    runs = {}
    for seed, parts in by_seed.items():
        trained = [task for part in parts for task in part["tasks"]]
        if len(trained) != len(set(trained)):
            raise ValueError(
                f"cells {listed(part['cell'] for part in parts)} hold the same run; remove or relabel all but one"
            )
        finished = [part for part in parts if part["status"] == "finished"]
        if {task for part in finished for task in part["tasks"]} != set(primary):
            continue
        test, validation = (_merged(finished, split) for split in ("test", "validation"))
        scores = [(1 if directions[key] else -1) * _number(validation, key) for key in primary.items()]
        seconds = [part.get("seconds_per_step") or math.nan for part in finished]
        runs[seed] = _Run(
            test={key: _number(test, key) for key in directions},
            score=float(np.mean(scores)),
            seconds_per_step=float(sum(seconds)),
        )
    return runs


def _directions(records: Sequence[Record]) -> dict[Key, bool]:
    directions: dict[Key, bool] = {}
    for record in records:
        for task, metrics in record["metric_directions"].items():
            for metric, higher in metrics.items():
                if directions.setdefault((task, metric), higher) != higher:
                    raise ValueError(
                        f"cell {record['cell']!r} disagrees with others on whether higher {task} {metric} is better"
                    )
    return dict(sorted(directions.items(), key=lambda item: item[0][0]))  # stable: a task's metrics keep their order


def _failure(cell: Record) -> Failure:
    return Failure(cell["cell"], cell["method"], cell["optimizer"], cell["seed"], cell.get("reason") or cell["status"])


def _merged(parts: Sequence[Record], split: str) -> dict[str, dict[str, float | None]]:
    return {task: metrics for part in parts for task, metrics in (part.get(split) or {}).items()}


def _number(metrics: Mapping[str, Mapping[str, float | None]], key: Key) -> float:
    value = metrics.get(key[0], {}).get(key[1])
    return math.nan if value is None or not math.isfinite(value) else float(value)


def _last(value: float) -> float:
    """A sort key that puts NaN last."""
    return math.inf if math.isnan(value) else value
