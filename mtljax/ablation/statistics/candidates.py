"""One setting that was tried, over its seeds: records of cells gathered and put together.

A record is the dict of one finished or failed cell, and a cell is one training run. Its `condition` holds the values of
the fields that are compared, its `setting` those that are chosen on validation; old records have neither.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np

from mtljax.ablation.statistics.intervals import Interval, Key, delta_m, listed, t_interval

Record = Mapping[str, Any]
Fields = Mapping[str, Any]  # values by the path of their field, such as "optimizer.learning_rate"
SINGLE = "single"
SCALARIZATION = "scalarization"


class Failure(NamedTuple):
    """A cell that did not finish, and why."""

    cell: str
    method: str
    optimizer: str
    seed: int
    reason: str


@dataclass(frozen=True)
class Candidate:
    """One setting of a method with an optimizer, over its seeds.

    Attributes:
      kind: "multi", or "single" for one network per task.
      role: "method", "scalarization" for the tuned weights every method is compared with, or "single" for what Δm is
        measured against.
      method: label of the method.
      optimizer: label of the optimizer.
      condition: values of the fields that are compared.
      setting: values of the fields that are chosen on validation.
      tasks: sorted; a candidate of kind "single" has one.
      cells: names of the finished cells.
      seeds: seeds whose run finished.
      test: interval over seeds by (task, metric); NaN for the metrics of other tasks.
      test_by_seed: by seed, then by (task, metric); NaN as it came.
      delta_m: interval of Δm over seeds, in percent; negative beats single-task training.
      delta_m_by_seed: Δm of every seed, in percent.
      validation: mean over seeds of the validation score; higher is better.
      validation_by_seed: the validation score of every seed.
      seconds_per_step: median over seeds; for "single" of the sum over its networks. NaN when not measured, and
        when `at_once`.
      failures: the cells that failed.
      chosen: whether validation chose this setting for its condition, method and optimizer.
      at_once: whether some of its runs shared the machine with others, so that their time says nothing of one run.
    """

    kind: str
    role: str
    method: str
    optimizer: str
    condition: Fields
    setting: Fields
    tasks: tuple[str, ...]
    cells: tuple[str, ...]
    seeds: tuple[int, ...]
    test: Mapping[Key, Interval]
    test_by_seed: Mapping[int, Mapping[Key, float]]
    delta_m: Interval
    delta_m_by_seed: Mapping[int, float]
    validation: float
    validation_by_seed: Mapping[int, float]
    seconds_per_step: float
    failures: tuple[Failure, ...]
    chosen: bool = False
    at_once: bool = False


C = TypeVar("C", bound=Candidate)


def role(record: Record) -> str:
    """The role of a record; old ones say nothing but their kind."""
    return record.get("role") or (SINGLE if record["kind"] == SINGLE else "method")


def at_once(record: Record) -> bool:
    """Whether a cell shared the machine with others: any strategy but "sequential", that of old records."""
    return (record.get("strategy") or "sequential") != "sequential"


def frozen(fields: Fields | None) -> str:
    """A text that is equal for equal fields, as a key."""
    return json.dumps(fields or {}, sort_keys=True)


def in_order(fields: Fields | None) -> tuple[Any, ...]:
    """A sort key: fields by name, numbers by value."""
    items = sorted((fields or {}).items())
    numeric = [isinstance(value, int | float) and not isinstance(value, bool) for _, value in items]
    return tuple(
        (name, 0, value, "") if number else (name, 1, 0.0, json.dumps(value, sort_keys=True))
        for (name, value), number in zip(items, numeric, strict=True)
    )


def metric_directions(records: Sequence[Record]) -> dict[Key, bool]:
    """Whether higher is better by (task, metric), tasks sorted and a task's metrics in their own order.

    Args:
      records: the cells.

    Returns:
      The directions.

    Raises:
      ValueError: if two cells disagree.
    """
    directions: dict[Key, bool] = {}
    for record in records:
        for task, metrics in record["metric_directions"].items():
            for metric, higher in metrics.items():
                if directions.setdefault((task, metric), higher) != higher:
                    raise ValueError(
                        f"cell {record['cell']!r} disagrees with others on whether higher {task} {metric} is better"
                    )
    return dict(sorted(directions.items(), key=lambda item: item[0][0]))  # stable


def gather(cells: Sequence[Record], tasks: Iterable[str], directions: Mapping[Key, bool]) -> Candidate:
    """Puts the cells of one setting together; Δm is still missing.

    Args:
      cells: of one method, optimizer, condition and setting; for "single" those of all the tasks wanted.
      tasks: a seed counts when its finished cells cover these.
      directions: of the metrics of the study.

    Returns:
      The candidate.

    Raises:
      ValueError: if two cells hold the same run.
    """
    tasks = tuple(sorted(tasks))
    by_seed: dict[int, list[Record]] = {}
    for cell in cells:
        by_seed.setdefault(cell["seed"], []).append(cell)
    test, scores, seconds = {}, {}, []
    for seed, parts in by_seed.items():
        trained = [task for part in parts for task in part["tasks"]]
        if len(trained) != len(set(trained)):
            raise ValueError(
                f"cells {listed(part['cell'] for part in parts)} hold the same run; remove or relabel all but one"
            )
        finished = [part for part in parts if part["status"] == "finished"]
        if {task for part in finished for task in part["tasks"]} == set(tasks):
            test_metrics, validation = (_merged(finished, split) for split in ("test", "validation"))
            test[seed] = {key: number(test_metrics, key) for key in directions}
            scores[seed] = score(validation, tasks, directions)
            seconds.append(sum(part.get("seconds_per_step") or math.nan for part in finished))
    several = any(at_once(cell) for cell in cells if cell["status"] == "finished")
    seconds = [value for value in seconds if math.isfinite(value) and not several]
    first = cells[0]
    return Candidate(
        kind=first["kind"],
        role=role(first),
        method=first["method"],
        optimizer=first["optimizer"],
        condition=dict(sorted((first.get("condition") or {}).items())),
        setting=dict(sorted((first.get("setting") or {}).items())),
        tasks=tasks,
        cells=tuple(cell["cell"] for cell in cells if cell["status"] == "finished"),
        seeds=tuple(test),
        test={key: t_interval([values[key] for values in test.values()]) for key in directions},
        test_by_seed=test,
        delta_m=t_interval([math.nan] * len(test)),
        delta_m_by_seed=dict.fromkeys(test, math.nan),
        validation=float(np.mean(list(scores.values()))) if scores else math.nan,
        validation_by_seed=scores,
        seconds_per_step=float(np.median(seconds)) if seconds else math.nan,
        failures=tuple(failure(cell) for cell in cells if cell["status"] != "finished"),
        at_once=several,
    )


def measured(baseline: Candidate, tasks: Sequence[str], test: Mapping[Key, float], up: Mapping[Key, bool]) -> float:
    """Δm of a run's test metrics over some tasks, against the baseline's mean over seeds."""
    keys = [key for key in up if key[0] in tasks]
    return delta_m({key: test[key] for key in keys}, {key: baseline.test[key].mean for key in keys}, up)


def choose(candidates: Iterable[C]) -> C | None:
    """The best mean validation score among those with the most finished seeds, the first of equals; None without any.

    Fewer seeds do not compete: seeds that failed or are still to come must not flatter.
    """
    able = [candidate for candidate in candidates if math.isfinite(candidate.validation)]
    return max(able, key=lambda candidate: (len(candidate.seeds), candidate.validation), default=None)


def failure(cell: Record) -> Failure:
    """What a failed cell says."""
    return Failure(cell["cell"], cell["method"], cell["optimizer"], cell["seed"], cell.get("reason") or cell["status"])


def score(
    metrics: Mapping[str, Mapping[str, float | None]], tasks: Iterable[str], directions: Mapping[Key, bool]
) -> float:
    """The mean over tasks of the primary metric, its first, signed so that up is better."""
    primary = [next(key for key in directions if key[0] == task) for task in tasks]
    return float(np.mean([(1 if directions[key] else -1) * number(metrics, key) for key in primary]))


def number(metrics: Mapping[str, Mapping[str, float | None]], key: Key) -> float:
    """A metric of an evaluation; NaN where it is missing, null or infinite."""
    value = metrics.get(key[0], {}).get(key[1])
    return math.nan if value is None or not math.isfinite(value) else float(value)


def _merged(parts: Sequence[Record], split: str) -> dict[str, dict[str, float | None]]:
    return {task: metrics for part in parts for task, metrics in (part.get(split) or {}).items()}
