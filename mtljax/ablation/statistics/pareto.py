"""Pareto-optimal settings of a study over all test metrics, counted by method, optimizer or any other field.

A run is Pareto-optimal when no other is at least as good in every metric and better in one. "Full" looks at all runs;
with respect to an axis, only at the runs with another value of it: "which runs of Adam does no run of SGD dominate?"
(arXiv:2311.04698, table 2).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mtljax.ablation.statistics.candidates import SINGLE, Candidate, Fields, frozen, in_order
from mtljax.ablation.statistics.intervals import Key, listed
from mtljax.ablation.statistics.labels import value_text
from mtljax.ablation.statistics.rows import surroundings
from mtljax.ablation.statistics.summary import Summary

_ELEMENTS = 2**22  # numbers compared at once: memory stays under some 20 MB for any number of runs


class ParetoPoint(NamedTuple):
    """One run: a setting's mean over its seeds, or one seed.

    Attributes:
      candidate: the setting.
      seed: None for the mean over seeds.
      value: of the axis, "–" where the run has no such field.
      values: test metrics by (task, metric).
      full: whether no run dominates it.
      other: whether no run with another value of the axis does.
      left_out: whether a metric is not a finite number, so that it neither counts nor dominates.
    """

    candidate: Candidate
    seed: int | None
    value: str
    values: Mapping[Key, float]
    full: bool
    other: bool
    left_out: bool


class ParetoCount(NamedTuple):
    """The runs of one value of the axis: how many there are, are Pareto-optimal in each sense, and are left out."""

    value: str
    runs: int
    full: int
    other: int
    left_out: int


class Pareto(NamedTuple):
    """Pareto-optimal runs: the axis, every run, and the counts by value of the axis."""

    axis: str
    points: tuple[ParetoPoint, ...]
    counts: tuple[ParetoCount, ...]


def pareto_optimal(values: np.ndarray, higher_is_better: Sequence[bool]) -> np.ndarray:
    """Which points no other dominates: none is at least as good in every metric and better in one.

    >>> pareto_optimal(np.array([[0.9, 3.0], [0.8, 2.0], [0.8, 4.0]]), [True, False]).tolist()
    [True, True, False]

    Args:
      values: (points, metrics).
      higher_is_better: the direction of each metric.

    Returns:
      One bool a point; points with a metric that is not finite are False and dominate none. Equal points are both True.
    """
    return _undominated(values, higher_is_better, None)


def undominated_by_others(values: np.ndarray, higher_is_better: Sequence[bool], groups: Sequence[object]) -> np.ndarray:
    """Which points no point of another group dominates.

    >>> undominated_by_others(np.array([[0.9], [0.8], [0.7]]), [True], ["adam", "adam", "sgd"]).tolist()
    [True, True, False]

    Args:
      values: (points, metrics).
      higher_is_better: the direction of each metric.
      groups: one label a point.

    Returns:
      One bool a point, as in `pareto_optimal`.
    """
    codes = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    return _undominated(values, higher_is_better, np.array([codes[group] for group in groups]))


def pareto(summary: Summary, axis: str = "optimizer", *, over: str = "settings") -> Pareto:
    """Pareto-optimal multi-task runs over all test metrics, all settings tried taken together.

    Runs compete when the conditions they were trained under agree in everything but the axis and the fields of their
    method and optimizer.

    Args:
      summary: of the study.
      axis: "method", "optimizer", or the path of a field of settings or conditions.
      over: "settings" for the mean over seeds of every setting, "seeds" for every seed by itself.

    Returns:
      The runs and their counts by value of the axis.

    Raises:
      ValueError: if `axis` or `over` is none of these.
    """
    if over not in ("settings", "seeds"):
        raise ValueError(f'pareto: over must be "settings" or "seeds", got {over!r}')
    candidates = [c for row in summary.rows if row.kind != SINGLE for c in row.candidates if c.seeds]
    axes = {"method", "optimizer"}.union(*(_fields(c) for c in candidates))
    if axis not in axes:
        raise ValueError(f"pareto: no run of this study has the axis {axis!r}; there are {listed(axes)}")
    pools: dict[str, list[_Run]] = {}
    for c in sorted(candidates, key=lambda c: (in_order(_on(axis, c)), c.method, c.optimizer, in_order(c.setting))):
        around = {name: value for name, value in surroundings(c.condition).items() if name != axis}
        keys = [key for key in summary.directions if key[0] in c.tasks and key[1] != "loss"]
        pools.setdefault(frozen(around | {"metrics": keys}), []).extend(_runs(c, keys, over))
    points = [point for pool in pools.values() for point in _points(pool, axis, summary.directions)]
    return Pareto(axis, tuple(points), tuple(_counts(points, axis)))


def counts_by_method(front: Pareto) -> dict[str, tuple[ParetoCount, ...]]:
    """The counts of each method by value of the axis, in all words table A2 of arXiv:2311.04698.

    Args:
      front: of `pareto`, with another axis than "method".

    Returns:
      The counts by method, sorted by name.
    """
    groups: dict[str, list[ParetoPoint]] = {}
    for point in front.points:
        groups.setdefault(point.candidate.method, []).append(point)
    return {method: tuple(_counts(groups[method], front.axis)) for method in sorted(groups)}


class _Run(NamedTuple):
    candidate: Candidate
    seed: int | None
    values: dict[Key, float]


def _runs(candidate: Candidate, keys: Sequence[Key], over: str) -> list[_Run]:
    by_seed = candidate.test_by_seed
    if over == "seeds":
        return [_Run(candidate, seed, {key: test[key] for key in keys}) for seed, test in by_seed.items()]
    # NaN for one seed makes the mean NaN: all metrics of a point rest on the same seeds.
    means = {key: float(np.mean([test[key] for test in by_seed.values()])) for key in keys}
    return [_Run(candidate, None, means)]


def _points(runs: Sequence[_Run], axis: str, directions: Mapping[Key, bool]) -> list[ParetoPoint]:
    """The points of runs that compete with each other."""
    values = np.array([list(run.values.values()) for run in runs])
    up = [directions[key] for key in runs[0].values]
    full = pareto_optimal(values, up)
    other = undominated_by_others(values, up, [frozen(_on(axis, run.candidate)) for run in runs])
    left_out: np.ndarray = ~np.all(np.isfinite(values), axis=1)
    return [
        ParetoPoint(run.candidate, run.seed, _text(axis, run.candidate), run.values, *map(bool, flags))
        for run, *flags in zip(runs, full, other, left_out, strict=True)
    ]


def _counts(points: Sequence[ParetoPoint], axis: str) -> list[ParetoCount]:
    groups: dict[str, list[ParetoPoint]] = {}
    for point in sorted(points, key=lambda point: in_order(_on(axis, point.candidate))):
        groups.setdefault(frozen(_on(axis, point.candidate)), []).append(point)
    return [
        ParetoCount(
            own[0].value,
            len(own),
            sum(point.full for point in own),
            sum(point.other for point in own),
            sum(point.left_out for point in own),
        )
        for own in groups.values()
    ]


def _fields(candidate: Candidate) -> Fields:
    own = {"method": candidate.method, "optimizer": candidate.optimizer}
    return {**candidate.setting, **candidate.condition, **own}


def _on(axis: str, candidate: Candidate) -> Fields:
    """The value of the axis; empty where the run has no such field."""
    return {axis: fields[axis]} if axis in (fields := _fields(candidate)) else {}


def _text(axis: str, candidate: Candidate) -> str:
    return next(map(value_text, _on(axis, candidate).values()), "–")


def _undominated(values: np.ndarray, higher_is_better: Sequence[bool], groups: np.ndarray | None) -> np.ndarray:
    costs = np.where(higher_is_better, -np.asarray(values, float), values)
    finite: np.ndarray = np.all(np.isfinite(costs), axis=1)
    costs = np.where(finite[:, None], costs, np.nan)  # comparisons with NaN are all false: it dominates nothing
    undominated = np.zeros(len(costs), bool)
    block = max(1, _ELEMENTS // max(1, costs.size))
    for start in range(0, len(costs), block):
        some = costs[start : start + block, None]
        dominates: np.ndarray = np.all(costs <= some, axis=2) & np.any(costs < some, axis=2)
        if groups is not None:
            dominates &= groups != groups[start : start + block, None]
        undominated[start : start + block] = ~np.any(dominates, axis=1)
    return undominated & finite
