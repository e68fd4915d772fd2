"""One row per condition, method and optimizer: its setting chosen on validation, and which rows to compare."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from mtljax.ablation.statistics.candidates import (
    SINGLE,
    Candidate,
    Fields,
    Record,
    choose,
    frozen,
    gather,
    measured,
)
from mtljax.ablation.statistics.intervals import Key, t_interval

R = TypeVar("R", bound=Candidate)


@dataclass(frozen=True)
class Row(Candidate):
    """One method with one optimizer under one condition: the setting chosen on validation, and all that were tried.

    Single-task training has its setting chosen for every task by itself; where tasks differ, `setting` names them as
    "TASK: FIELD". With nothing finished, `setting` is empty and `failures` are those of all settings.

    Attributes:
      candidates: every setting tried; for "single" of every task.
      selected: whether this is the method's optimizer, chosen on validation for its condition.
      mean_rank: over (task, metric), among the selected multi-task rows of the same surroundings; NaN for other rows.
    """

    candidates: tuple[Candidate, ...] = ()
    selected: bool = False
    mean_rank: float = math.nan

    @property
    def tried(self) -> int:
        """How many settings were tried; for "single" per task."""
        return len({frozen(candidate.setting) for candidate in self.candidates})


def make_row(cells: Sequence[Record], records: Sequence[Record], directions: Mapping[Key, bool]) -> Row:
    """The cells of one condition, method and optimizer; Δm is still missing."""
    single = cells[0]["kind"] == SINGLE
    settings: dict[tuple[str, ...], list[Record]] = {}
    for cell in cells:
        settings.setdefault((*cell["tasks"], frozen(cell.get("setting"))), []).append(cell)
    tried = {key: gather(parts, parts[0]["tasks"], directions) for key, parts in settings.items()}
    best = {}
    for tasks in sorted({candidate.tasks for candidate in tried.values()}):
        keys = [key for key, candidate in tried.items() if candidate.tasks == tasks]
        choice = choose(tried[key] for key in keys)
        for key in keys:
            tried[key] = dataclasses.replace(tried[key], chosen=tried[key] is choice)
        best[tasks] = max(keys, key=lambda key: (tried[key].chosen, len(tried[key].seeds)))
    candidates = tuple(tried.values())
    if not single:
        (key,) = best.values()
        row = Row(**vars(tried[key]), candidates=candidates)
    else:
        condition = (cells[0].get("condition") or {}).items()
        wanted = {t for r in records if condition <= (r.get("condition") or {}).items() for t in r["tasks"]}
        joined = gather([cell for key in best.values() for cell in settings[key]], wanted, directions)
        own = {" ".join(tasks): tried[key].setting for tasks, key in best.items() if tried[key].seeds}
        row = Row(**vars(joined) | {"setting": _common(own), "chosen": True}, candidates=candidates)
    if not any(candidate.seeds for candidate in candidates):
        everything = tuple(failure for candidate in candidates for failure in candidate.failures)
        row = dataclasses.replace(row, setting={} if row.tried > 1 else row.setting, failures=everything, chosen=False)
    return row


def _common(settings: Mapping[str, Fields]) -> dict[str, object]:
    """The settings of all tasks in one: a field that differs between tasks has the task before its name."""
    common: dict[str, object] = {}
    for field in sorted({field for setting in settings.values() for field in setting}):
        values = {task: setting[field] for task, setting in settings.items() if field in setting}
        alike = len({frozen({field: value}) for value in values.values()}) == 1
        common |= {field: next(iter(values.values()))} if alike else {f"{t}: {field}": v for t, v in values.items()}
    return common


def with_delta_m(row: Row, baseline: Row | None, directions: Mapping[Key, bool]) -> Row:
    """The row with its Δm and that of its candidates."""
    if baseline is None:
        return row

    def changed(candidate: R) -> R:
        changes = {
            seed: measured(baseline, candidate.tasks, test, directions) for seed, test in candidate.test_by_seed.items()
        }
        return dataclasses.replace(candidate, delta_m=t_interval(list(changes.values())), delta_m_by_seed=changes)

    return dataclasses.replace(changed(row), candidates=tuple(map(changed, row.candidates)))


def nearest(rows: Iterable[R], row: Candidate) -> R | None:
    """Among `rows` the one to compare a row with: no field of its condition has another value, and most are the same.

    A condition of a method's own option, which the others do not have, is so compared with those that do without.
    """
    fitting = [
        other
        for other in rows
        if set(row.tasks) <= set(other.tasks)
        and all(name in row.condition and row.condition[name] == value for name, value in other.condition.items())
    ]
    return max(fitting, key=lambda other: len(other.condition), default=None)


def surroundings(condition: Fields) -> Fields:
    """The fields of a condition that are not the method's or the optimizer's own: those that competitors share."""
    return {name: value for name, value in condition.items() if not name.startswith(("method.", "optimizer."))}
