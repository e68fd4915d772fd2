"""What the probes of finished runs saw, epoch by epoch and over seeds, beside the claim of arXiv:2311.04698, Sec. 4.2.

The claim: magnitude similarity is lower between tasks than between examples in every epoch; angles show no such order;
the share of coordinates with opposite signs is similar.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from mtljax.ablation.report import read_cells
from mtljax.ablation.statistics import SINGLE, Difference, Interval, paired_difference, t_interval
from mtljax.ablation.statistics.labels import setting_text
from mtljax.analysis.claims import NOT_DECIDED, NOT_REPRODUCED, REPRODUCED, verdict
from mtljax.analysis.epoch_probe import default_every
from mtljax.training.config import differences, setting
from mtljax.training.logs import METRICS, read_records
from mtljax.training.workdir import CONFIG

Histories: TypeAlias = dict[int, Sequence[Mapping[str, Any]]]  # log records by seed

MAGNITUDE_RULE = (
    "Magnitude: reproduced if in every epoch the 95% t-interval of (between tasks - between examples), paired over "
    "seeds, lies below 0; not reproduced if in some epoch it lies above 0; else not decided."
)
ANGLE_RULE = (
    "Angles have an order if the interval of the same difference of mean cosines lies on the same side of 0 in every "
    "epoch of every data set: then not reproduced. Reproduced if it lies above 0 in one epoch and below 0 in another, "
    "of any data sets; else not decided."
)
SIGN_RULE = (
    "Opposite signs: not reproduced if on some data set the interval of the same difference of their shares lies on "
    "one side of 0 in every epoch; else not decided, since no interval shows that two things are the same."
)


class EpochConflicts(NamedTuple):
    """One epoch over seeds.

    Attributes:
      epoch: counted from 1, the end of the first.
      between_tasks: mean similarity by measure.
      between_samples: likewise.
      difference: by measure, the first minus the second, paired by seed.
      cosines: by kind ("between_tasks", "between_samples") the 2.5 and 97.5 percentile of cosines, means over seeds.
    """

    epoch: float
    between_tasks: dict[str, Interval]
    between_samples: dict[str, Interval]
    difference: dict[str, Difference]
    cosines: dict[str, tuple[float, float]]


def read_runs(paths: Iterable[str | Path]) -> dict[str, Histories]:
    """The logs of runs and studies that were probed, seeds put together.

    Args:
      paths: directories of runs (`mtljax train`) and of studies (`mtljax ablate`).

    Returns:
      The log records by seed, by what was trained: the name of the run or study, with the method where there are
      several, without single-task baselines.

    Raises:
      ValueError: if a directory holds no run and no study, nothing in it was probed, a run is there twice, or runs of
        one name differ in more than the seed.
    """
    histories: dict[tuple[str, str], Histories] = {}
    configs: dict[tuple[str, str], tuple[Path, Mapping[str, Any]]] = {}
    for path in map(Path, paths):
        runs = _study(path) if (path / "cells").is_dir() else _run(path)
        for (name, own), config, history in runs:
            if config["seed"] in histories.setdefault((name, own), {}):
                raise ValueError(f"{path}: {name} {own} was trained with seed {config['seed']} twice; give one of them")
            histories[name, own][config["seed"]] = history
            first, like = configs.setdefault((name, own), (path, config))
            if changed := differences(setting(like), setting(config)):
                raise ValueError(
                    f"{first} and {path} are both {name} {own}, but differ in {', '.join(changed)}: give runs that "
                    "differ in the seed alone, or in the name"
                )
    names = [name for name, _ in histories]
    return {f"{name} {own}" if names.count(name) > 1 else name: runs for (name, own), runs in histories.items()}


def _run(path: Path) -> Iterable[tuple[tuple[str, str], Mapping[str, Any], Sequence[Mapping[str, Any]]]]:
    if not (path / CONFIG).is_file():
        raise ValueError(f"{path} holds neither a run (config.json) nor a study (cells/), and is no config file")
    run = json.loads((path / CONFIG).read_text(encoding="utf-8"))
    config = run["config"]
    history = read_records(path / METRICS)
    if not any(record["split"] == "probe" for record in history):
        every = default_every(config["model"]["encoder"], len(run.get("data_spec", {}).get("tasks", ())))
        raise ValueError(
            f"{path} was trained without a probe: train it anew with --probe_every={every}, in another --workdir"
        )
    yield (config["name"], config["method"]["name"]), config, history


def _study(path: Path) -> Iterable[tuple[tuple[str, str], Mapping[str, Any], Sequence[Mapping[str, Any]]]]:
    records, _ = read_cells(path)
    probed = [
        record
        for record in records
        if record["kind"] != SINGLE and any(entry["split"] == "probe" for entry in record.get("history") or ())
    ]
    if not probed:
        raise ValueError(
            f"{path} holds no finished run with a probe: run the study anew with --base.probe_every=30 (200 for "
            "perceptrons), in another --workdir"
        )
    for record in probed:
        around = {**record.get("condition", {}), **record.get("setting", {})}
        parts = (record["method"], record["optimizer"], setting_text(around))
        yield (path.resolve().name, ", ".join(filter(None, parts))), {"seed": record["seed"]}, record["history"]


def over_epochs(histories: Histories) -> list[EpochConflicts]:
    """The epochs that every seed has; raises ValueError where they have none in common."""
    by_seed = {
        seed: {record["epoch"]: record["probe"] for record in history if record["split"] == "probe"}
        for seed, history in histories.items()
    }
    epochs, common = [], sorted(set.intersection(*map(set, by_seed.values())))
    if not common:
        raise ValueError(f"the runs with seeds {', '.join(map(str, by_seed))} share no epoch: give runs of equal steps")
    for epoch in common:
        kinds: dict[str, dict[str, dict[int, float]]] = {"between_tasks": {}, "between_samples": {}}
        for kind, measures in kinds.items():
            for measure in ("cosine", "magnitude", "sign_conflict"):
                means = {seed: run[epoch][kind][measure]["mean"] for seed, run in by_seed.items()}
                measures[measure] = {seed: math.nan if mean is None else mean for seed, mean in means.items()}
        tasks, samples = kinds.values()
        epochs.append(
            EpochConflicts(
                epoch,
                {measure: t_interval(list(values.values())) for measure, values in tasks.items()},
                {measure: t_interval(list(values.values())) for measure, values in samples.items()},
                {measure: paired_difference(values, samples[measure]) for measure, values in tasks.items()},
                {kind: _percentiles([run[epoch][kind]["cosine"] for run in by_seed.values()]) for kind in kinds},
            )
        )
    return epochs


def _percentiles(spreads: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    low, high = (
        t_interval([math.nan if each[end] is None else each[end] for each in spreads]) for end in ("low", "high")
    )
    return low.mean, high.mean


def magnitude_verdict(epochs: Sequence[EpochConflicts]) -> str:
    """Whether magnitudes are less alike between tasks than between examples in every epoch; see `MAGNITUDE_RULE`."""
    lower = [verdict(_negative(epoch.difference["magnitude"])) for epoch in epochs]
    if NOT_REPRODUCED in lower:
        return NOT_REPRODUCED
    return REPRODUCED if lower and set(lower) == {REPRODUCED} else NOT_DECIDED


def angle_verdict(groups: Iterable[Sequence[EpochConflicts]]) -> str:
    """Whether angles have no order that holds on all data sets; see `ANGLE_RULE`."""
    signs = {verdict(epoch.difference["cosine"]) for epochs in groups for epoch in epochs}
    if {REPRODUCED, NOT_REPRODUCED} <= signs:
        return REPRODUCED
    return NOT_REPRODUCED if len(signs) == 1 and NOT_DECIDED not in signs else NOT_DECIDED


def sign_verdict(groups: Iterable[Sequence[EpochConflicts]]) -> str:
    """Whether as many coordinates have opposite signs between tasks as between examples; see `SIGN_RULE`."""
    for epochs in groups:
        sides = {verdict(epoch.difference["sign_conflict"]) for epoch in epochs}
        if len(sides) == 1 and NOT_DECIDED not in sides:
            return NOT_REPRODUCED
    return NOT_DECIDED


def _negative(difference: Difference) -> Difference:
    return difference._replace(interval=difference.interval._replace(mean=-difference.interval.mean))
