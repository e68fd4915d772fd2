"""Corruption robustness of finished training runs: which can be compared, and what each is measured to be.

Reads the directories that `mtljax train` writes and keeps what it finds in each as `robustness.json`;
`robustness_verdict` compares. Imports training; `mtljax.analysis` does not import it, to stay quick.
"""

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from mtljax import tasks as task_kinds
from mtljax.analysis.corruptions import require_images
from mtljax.analysis.corruptions.data import CorruptedData, corrupted_data
from mtljax.analysis.robustness import (
    Measured,
    Robustness,
    measure,
    measuring,
)
from mtljax.tasks import Task
from mtljax.training.config import TrainConfig, differences, setting, to_dict
from mtljax.training.logs import finite, write_atomically
from mtljax.training.loop import load_data
from mtljax.training.workdir import Loaded, load, read_config

RESULT = "robustness.json"
_PROTOCOL = 1  # counts the changes to corruptions or measurement that make kept results stale


@dataclasses.dataclass(frozen=True)
class RobustnessConfig:
    """How runs are measured; what it was is kept with each result.

    Attributes:
      num_train: training examples the heads are fine-tuned on.
      num_test: test examples.
      epochs: passes of the fine-tuning.
      learning_rate: of Adam.
      batch_size: of the fine-tuning.
      seed: of the corruptions and the order of the examples, the same for all runs.
    """

    num_train: int = 6000
    num_test: int = 2000
    epochs: int = 5
    learning_rate: float = 1e-3
    batch_size: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks ranges."""
        for name in ("num_train", "num_test", "epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.learning_rate < float("inf"):
            raise ValueError(f"learning_rate must be positive and finite, got {self.learning_rate}")


class Run(NamedTuple):
    """A run directory.

    Attributes:
      directory: where.
      config: its config.
      tasks: the tasks it was trained on.
    """

    directory: Path
    config: TrainConfig
    tasks: dict[str, Task]


def read_runs(directories: Sequence[str | Path]) -> list[Run]:
    """Reads the configs of runs and checks, before any work, that they can be compared.

    Args:
      directories: of runs: multi-task ones, and for each seed of these a single-task run of every task.

    Returns:
      The runs.

    Raises:
      ValueError: if a directory holds no run, its inputs are no images, the data sets or networks differ, a run has no
        single-task baseline or two, or there is no multi-task run.
    """
    if not directories:
        raise ValueError("give the directories of runs made by mtljax train")
    runs = []
    for directory in dict.fromkeys(Path(each) for each in directories):
        config, spec = read_config(directory)
        try:
            require_images((1, *spec["inputs"]["shape"]), np.dtype(spec["inputs"]["dtype"]))
        except ValueError as error:
            raise ValueError(f"{directory}: {error}") from None
        runs.append(Run(directory, config, {name: task_kinds.from_spec(task) for name, task in spec["tasks"].items()}))
    for run in runs[1:]:
        for part in ("data", "model"):
            if getattr(run.config, part) != getattr(runs[0].config, part):
                raise ValueError(
                    f"{run.directory} and {runs[0].directory} differ in {part}: compare runs that share data and model"
                )
    baselines(runs)
    if not multi_task(runs):
        raise ValueError("all runs are of a single task: give multi-task runs to compare them with, too")
    labels(runs)
    return runs


def multi_task(runs: Sequence[Run]) -> list[Run]:
    """The runs of several tasks."""
    return [run for run in runs if len(run.tasks) > 1]


def baselines(runs: Sequence[Run]) -> dict[tuple[str, int], Run]:
    """The single-task runs by task and seed, checked to be there for all multi-task runs."""
    single: dict[tuple[str, int], Run] = {}
    for run in runs:
        if len(run.tasks) == 1:
            key = next(iter(run.tasks)), run.config.seed
            if key in single:
                raise ValueError(
                    f"{single[key].directory} and {run.directory} are both single-task runs of task {key[0]!r} with "
                    f"seed {key[1]}: give one of them"
                )
            single[key] = run
    for run in multi_task(runs):
        for task in run.tasks:
            if (task, run.config.seed) not in single:
                raise ValueError(
                    f"{run.directory} has no single-task baseline of task {task!r} with seed {run.config.seed}: train "
                    f"one with mtljax train CONFIG --tasks='(\"{task}\",)' --seed={run.config.seed}, and give its "
                    "directory too"
                )
    return single


def labels(runs: Sequence[Run]) -> dict[Path, str]:
    """What multi-task runs are called: the method, and the fields of the config in which runs of a method differ."""
    groups: dict[str, list[Run]] = {}
    for run in multi_task(runs):
        groups.setdefault(run.config.method.name, []).append(run)
    by_directory, seen = {}, {}
    for method, members in groups.items():
        configs = [setting(to_dict(run.config)) for run in members]
        fields = sorted({name for config in configs for name in differences(configs[0], config)})
        for run, config in zip(members, configs, strict=True):
            values = ", ".join(f"{name.rpartition('.')[2]} {_field(config, name)}" for name in fields)
            label = f"{method} ({values})" if fields else method
            if (label, run.config.seed) in seen:
                other = seen[label, run.config.seed]
                raise ValueError(f"{other} and {run.directory} are the same run, {label} with seed {run.config.seed}")
            seen[label, run.config.seed] = run.directory
            by_directory[run.directory] = label
    return by_directory


def _field(config: Mapping[str, Any], path: str) -> Any:
    for part in path.split("."):
        config = config.get(part, {}) if isinstance(config, Mapping) else {}
    return "default" if config == {} else config


def measure_runs(
    runs: Sequence[Run],
    config: RobustnessConfig | None = None,
    *,
    force: bool = False,
    line: Callable[[str], None] = lambda text: None,
) -> dict[Path, Robustness]:
    """Measures runs, each kept in its directory as soon as it is done.

    Args:
      runs: from `read_runs`.
      config: how.
      force: measure again what is kept.
      line: told what is done, and how long the rest will take.

    Returns:
      What was found, by directory. Where a result of this network and config is kept, that.

    Raises:
      ValueError: if a run holds no readable checkpoint.
    """
    config = config or RobustnessConfig()
    results, left = {}, []
    for run in runs:
        network = load(run.directory)
        key = {"protocol": _PROTOCOL, "network": _digest(network), "options": dataclasses.asdict(config)}
        kept = None if force else _kept(run.directory / RESULT, key)
        if kept is None:
            left.append((run, network, key))
        else:
            results[run.directory] = kept
    if results:
        line(f"{len(results)} of {len(runs)} runs were measured before: kept (--force measures them again)")
    if not left:
        return results
    data = _data(runs, config)
    compiled: dict[str, Measured] = {}
    start = time.perf_counter()
    for done, (run, network, key) in enumerate(left, 1):
        before = time.perf_counter()
        result = _measured(network, data, config, compiled)
        record = {**key, "seconds": round(time.perf_counter() - before, 1), **result._asdict()}
        write_atomically(run.directory / RESULT, json.dumps(finite(record), indent=1) + "\n")
        results[run.directory] = result
        rest = (time.perf_counter() - start) / done * (len(left) - done)
        line(f"{done} of {len(left)}: {run.directory}, {record['seconds']:.0f} s; about {rest:.0f} s left")
    return results


def _data(runs: Sequence[Run], config: RobustnessConfig) -> CorruptedData:
    splits = load_data(dataclasses.replace(runs[0].config, tasks=())).splits
    for name, count, split in (
        ("num_train", config.num_train, splits["train"]),
        ("num_test", config.num_test, splits["test"]),
    ):
        if count > split.num_examples:
            raise ValueError(f"{name} is {count}, but the data set has {split.num_examples}: ask for as many at most")
    return corrupted_data(
        splits["train"], splits["test"], seed=config.seed, num_train=config.num_train, num_test=config.num_test
    )


def _measured(
    network: Loaded, data: CorruptedData, config: RobustnessConfig, compiled: dict[str, Measured]
) -> Robustness:
    model, params = network.model, {**network.params, "state": network.model_state}
    structure = json.dumps([dataclasses.asdict(network.config.model), sorted(network.tasks)], sort_keys=True)
    if structure not in compiled:
        compiled[structure] = measuring(
            model.decode,
            params,
            network.tasks,
            encode=lambda params, images: model.encode(params, params["state"], images)[0],
            learning_rate=config.learning_rate,
        )
    return measure(
        compiled[structure], params, data, epochs=config.epochs, batch_size=config.batch_size, seed=config.seed
    )


def _digest(network: Loaded) -> str:
    """Of the parameters: a run that was trained on has another."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves((network.params, network.model_state)):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()[:16]


def _kept(path: Path, key: Mapping[str, Any]) -> Robustness | None:
    try:
        record = json.loads(path.read_text())
        if any(record[name] != value for name, value in key.items()):
            return None
        return Robustness(*(_numbers(record[name]) for name in Robustness._fields))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _numbers(values: Any) -> Any:
    """Metrics from JSON, where null stands for NaN; names stay in their order."""
    if isinstance(values, dict):
        return {name: _numbers(value) for name, value in values.items()}
    if isinstance(values, list):
        return [_numbers(value) for value in values]
    return float("nan") if values is None else float(values)
