"""Δm at equal training time beside Δm at equal steps, both from the validation data that runs were watched on.

Test data is measured once, at a run's best step, so that what a run had reached earlier is known on validation only.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mtljax.ablation.statistics.candidates import Fields, Record, at_once, number
from mtljax.ablation.statistics.comparisons import settings_tried
from mtljax.ablation.statistics.intervals import Interval, Key, delta_m, t_interval
from mtljax.ablation.statistics.labels import joined, row_name
from mtljax.ablation.statistics.rows import Row, surroundings
from mtljax.ablation.statistics.summary import Summary, reference, together

_MOST_NAMES = 6


class TimedRow(NamedTuple):
    """What a method had reached.

    Attributes:
      row: the method, with its chosen setting and optimizer.
      at_steps: Δm on validation at the last evaluation within the common number of steps.
      at_seconds: Δm on validation at the last evaluation within the common training time.
      steps_at_seconds: median over seeds of the step of that evaluation; NaN when no seed had any.
    """

    row: Row
    at_steps: Interval
    at_seconds: Interval
    steps_at_seconds: float


class EqualTime(NamedTuple):
    """Methods that compete with each other, at equal time and at equal steps.

    Attributes:
      condition: what they share.
      seconds: the training time all are given, that of the fastest.
      steps: the number of steps all are given, that of the shortest run.
      rows: the methods, the best at equal time first.
      notes: what the reader must know, in sentences.
    """

    condition: Fields
    seconds: float
    steps: int
    rows: tuple[TimedRow, ...]
    notes: tuple[str, ...]


class _Evaluation(NamedTuple):
    step: int
    seconds: float  # wall clock since the start of its run
    metrics: Mapping[str, Mapping[str, float | None]]


class _Timed(NamedTuple):
    row: Row
    baseline: Mapping[Key, float]
    runs: list[list[_Evaluation]]


def equal_time(summary: Summary, records: Sequence[Record]) -> tuple[EqualTime, ...]:
    """Δm on validation at equal time and at equal steps, of each method's chosen runs.

    The time of an evaluation is its step times the median time of a step over the method's seeds, which leaves out
    compilation (only the first run of a program pays it) and evaluation; where a step was not timed, the wall clock of
    the runs is taken for all. The budget is the smallest total time over the methods. Cells that ran several at once
    (strategies other than "sequential") shared the machine, and their methods are left out.

    Args:
      summary: of the study.
      records: its cells, with their histories.

    Returns:
      One entry for each group of methods that compete; without rows, and a note why, where fewer than two can be
      compared; no entry at all without a history or a single-task reference.
    """
    by_name = {record["cell"]: record for record in records}
    entries = (_compared(summary, rows, by_name) for rows in together(summary.rows))
    return tuple(entry for entry in entries if entry is not None)


def _compared(summary: Summary, rows: Sequence[Row], by_name: Mapping[str, Record]) -> EqualTime | None:
    shared = [row for row in rows if any(at_once(by_name[cell]) for cell in row.cells)]
    notes = []
    if shared:
        notes.append(
            f"Left out: {joined(map(row_name, shared), _MOST_NAMES)}, trained several runs at once, where wall time "
            "says nothing about one of them; the strategy sequential measures it."
        )
    timed = []
    for row in rows:
        baseline = _baseline(reference(summary, row), by_name)
        runs = [evaluations for cell in row.cells if (evaluations := _evaluations(by_name[cell]))]
        if all(row is not other for other in shared) and baseline and runs:
            timed.append(_Timed(row, baseline, runs))
    around = surroundings(rows[0].condition)
    if len(timed) < 2:
        return EqualTime(around, math.nan, 0, (), tuple(notes)) if notes else None
    if any(math.isnan(entry.row.seconds_per_step) for entry in timed):
        notes.append("Times are wall clock with compilation, since the time of a step was not measured in every run.")
    else:
        timed = [
            entry._replace(
                runs=[[e._replace(seconds=e.step * entry.row.seconds_per_step) for e in r] for r in entry.runs]
            )
            for entry in timed
        ]
    seconds = min(run[-1].seconds for entry in timed for run in entry.runs)
    steps = min(run[-1].step for entry in timed for run in entry.runs)
    timed_rows = []
    for entry in timed:
        in_time = [[e for e in run if e.seconds <= seconds][-1:] for run in entry.runs]
        in_steps = [[e for e in run if e.step <= steps][-1:] for run in entry.runs]
        reached = [e.step for last in in_time for e in last]
        at_steps, at_seconds = (
            t_interval([_change(summary, entry, last) for last in lasts]) for lasts in (in_steps, in_time)
        )
        timed_rows.append(TimedRow(entry.row, at_steps, at_seconds, float(np.median(reached)) if reached else math.nan))
    timed_rows.sort(key=lambda row: math.inf if math.isnan(row.at_seconds.mean) else row.at_seconds.mean)
    notes.append("On validation data, at each run's last evaluation within the budget.")
    if any(settings_tried(summary, entry.row) > 1 for entry in timed):
        notes.append(
            "Settings and optimizers were chosen on the same validation data at full length, which flatters most where "
            "most were tried."
        )
    return EqualTime(around, seconds, steps, tuple(timed_rows), tuple(notes))


def _change(summary: Summary, entry: _Timed, last: Sequence[_Evaluation]) -> float:
    """Δm of an evaluation, NaN when there is none."""
    if not last:
        return math.nan
    values = {key: number(last[0].metrics, key) for key in entry.baseline if key[0] in entry.row.tasks}
    return delta_m(values, {key: entry.baseline[key] for key in values}, summary.directions)


def _baseline(row: Row | None, by_name: Mapping[str, Record]) -> dict[Key, float]:
    """Mean over seeds of the single-task networks' last evaluation; empty when a task has none."""
    lasts = [run[-1].metrics for cell in (row.cells if row else ()) if (run := _evaluations(by_name[cell]))]
    by_key = {
        key: [number(metrics, key) for metrics in lasts if key[0] in metrics] for key in (row.test if row else ())
    }
    kept = {key: t_interval(values).mean for key, values in by_key.items() if row and key[0] in row.tasks}
    return kept if all(math.isfinite(value) for value in kept.values()) else {}


def _evaluations(record: Record) -> list[_Evaluation]:
    entries = [entry for entry in record.get("history") or () if entry["split"] == "validation"]
    evaluations = [_Evaluation(entry["step"], entry.get("seconds") or 0.0, entry["metrics"]) for entry in entries]
    return sorted(evaluations, key=lambda evaluation: evaluation.step)
