"""The directory of a run: its config, and loading what it trained."""

import functools
import importlib.metadata
import json
import subprocess
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from mtljax import tasks as task_kinds
from mtljax.models import MultiTaskModel
from mtljax.tasks import Task
from mtljax.training import checkpoint as ckpt
from mtljax.training.config import TrainConfig, differences, to_dict
from mtljax.training.logs import METRICS, read_records, write_atomically
from mtljax.training.overrides import from_dict
from mtljax.training.program import build_model, example

PyTree = Any
CONFIG = "config.json"
_PACKAGES = ("mtljax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
# May differ when a run is resumed: they change neither the trajectory so far nor the structure of the state.
_RESUMABLE = ("epochs", "patience", "log_every", "evaluate_every", "devices", "parallel", "reduce", "tensorboard")


class Loaded(NamedTuple):
    """A trained run, ready for `model.apply(params, model_state, inputs)`.

    Attributes:
      model: the network.
      params: `{"shared": ..., "heads": {task: ...}}`.
      model_state: batch statistics and the like.
      tasks: the tasks by name.
      config: the run's config.
    """

    model: MultiTaskModel
    params: PyTree
    model_state: PyTree
    tasks: dict[str, Task]
    config: TrainConfig


def prepare(workdir: Path, config: TrainConfig, spec: Mapping[str, Any], *, resume: bool) -> list[str]:
    """Makes the directory of a run and writes its config, or checks that it is this run's.

    Args:
      workdir: the directory.
      config: the run.
      spec: `MultiTaskData.spec`, from which the model can be rebuilt without the data.
      resume: whether the run continues.

    Returns:
      What a resumed run has other than before, as "epochs 4 -> 8".

    Raises:
      ValueError: if the directory holds another run, or this run and `resume` is false, or cannot be made.
    """
    path = workdir / CONFIG
    resumed, changes = [], []
    if path.is_file():
        changed = differences(_read(path)["config"], to_dict(config))
        if not resume:
            what = f"another run (it differs in {', '.join(changed)})" if changed else "this run"
            advice = "choose another --workdir" if changed else "continue it with --resume, or choose another --workdir"
            raise ValueError(f"{workdir} already holds {what}: {advice}")
        forbidden = [name for name in changed if name not in _RESUMABLE and name != "name"]
        if forbidden:
            raise ValueError(
                f"{workdir} cannot be resumed: the config differs in {', '.join(forbidden)}; only "
                f"{', '.join(_RESUMABLE)} may change. Choose another --workdir for a new run"
            )
        if "epochs" in changed and config.optimizer.schedule != "constant":
            raise ValueError(
                f"{workdir} cannot be resumed with other epochs: they set optimizer.schedule, which is not constant"
            )
        before = json.loads(path.read_text())
        changes = [f"{name} {before['config'].get(name)} -> {to_dict(config)[name]}" for name in changed]
        resumed = [*before.get("resumed", []), {key: before.get(key) for key in environment()}]
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        record = {"config": to_dict(config), "data_spec": dict(spec), **environment(), "resumed": resumed}
        write_atomically(path, json.dumps(record, indent=2) + "\n")
    except OSError as error:
        raise ValueError(f"cannot write to the workdir {workdir}: {error.strerror}") from error
    return changes


def finished(workdir: Path, config: Mapping[str, Any]) -> bool:
    """Whether a directory holds the run of this config, as a dict, to its end; False if it holds nothing.

    Raises:
      ValueError: if it holds another run.
    """
    if not (workdir / CONFIG).is_file():
        return False
    if changed := differences(_read(workdir / CONFIG)["config"], config):
        raise ValueError(
            f"{workdir} holds another run (it differs in {', '.join(changed)}): choose another --workdir, or remove it"
        )
    return any(record["split"] == "test" for record in read_records(workdir / METRICS))


def load(workdir: str | Path) -> Loaded:
    """Loads the network a run selected on validation data; the data itself is not needed.

    Args:
      workdir: directory of a run trained with checkpoints.

    Returns:
      Model, parameters, model state and tasks; see `Loaded`.

    Raises:
      ValueError: if the directory holds no run or no readable checkpoint.
    """
    workdir = Path(workdir)
    config, spec = read_config(workdir)
    model = build_model(config, spec)
    like, model_state = jax.eval_shape(model.init, jax.random.PRNGKey(0), example(spec))

    def warn(text: str) -> None:
        warnings.warn(text, stacklevel=3)

    network = None
    if (workdir / "checkpoints").is_dir():
        checkpoints = ckpt.open_checkpoints(workdir, warn, create=False)
        try:
            network = ckpt.restore_best(checkpoints, like, model_state)
        finally:
            ckpt.close(checkpoints)
    if network is None:
        raise ValueError(
            f"{workdir} holds no checkpoint: the run was made with checkpoints=false or has not evaluated yet"
        )
    tasks = {name: task_kinds.from_spec(task) for name, task in spec["tasks"].items()}
    return Loaded(model, *network, tasks, config)


def read_config(workdir: Path) -> tuple[TrainConfig, dict[str, Any]]:
    """The config and data spec of a run; ValueError if the directory holds none."""
    path = workdir / CONFIG
    if not path.is_file():
        study = " (it is a study, whose cells keep no networks)" if (workdir / "cells").is_dir() else ""
        raise ValueError(f"{workdir} holds no run{study}: there is no {CONFIG} in it; give a directory of mtljax train")
    record = _read(path)
    return from_dict(TrainConfig, record["config"]), record["data_spec"]


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text())
        return {"config": record["config"], "data_spec": record["data_spec"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}): it is no config of a run") from error


@functools.cache
def environment() -> dict[str, Any]:
    """What the run is made with: versions of packages and Python, git commit, device."""
    try:
        commit = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        commit = None
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    device = jax.local_devices()[0].device_kind
    return {"versions": versions, "python": sys.version.split()[0], "git_commit": commit, "device": device}
