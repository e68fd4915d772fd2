"""Experiment configurations: frozen dataclasses, checked overrides, config files."""

import dataclasses
import difflib
import importlib.util
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from mtljax.gradients import Mode, Reduce

Config = TypeVar("Config")


@dataclass(frozen=True)
class DataConfig:
    """Which data set.

    Attributes:
      name: one of `mtljax.data.names()`.
      options: arguments of that data set's function, such as `num_train` or `seed`.
    """

    name: str = "digits"
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelConfig:
    """Which encoder.

    Attributes:
      encoder: one of `mtljax.models.names()`.
      options: fields of its linen module, such as `features` or `dropout`.
      compute_dtype: dtype of the activations; parameters, Gramians and what comes after stay float32.
    """

    encoder: str = "lenet"
    options: dict[str, Any] = field(default_factory=dict)
    compute_dtype: Literal["float32", "bfloat16"] = "float32"


@dataclass(frozen=True)
class MethodConfig:
    """Which multi-task method.

    Attributes:
      name: one of `mtljax.methods.names()`.
      options: its hyperparameters, such as `c` of cagrad.
    """

    name: str = "ew"
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class OptimizerConfig:
    """Which optimizer, and what happens to the combined gradient around it.

    Attributes:
      name: "adam", "adamw", "sgd", "lion" or "rmsprop", as in optax, or "signsgd", the sign of the momentum.
      learning_rate: peak learning rate.
      options: further arguments of that optax function, such as `momentum` of sgd.
      schedule: factor on the learning rate over training: "constant", "cosine" (to 0) or "step" (halved three times).
      warmup_steps: steps over which the factor first rises linearly from 0 to 1.
      clip_norm: bound on the global norm of the combined gradient, or None.
    """

    name: str = "adam"
    learning_rate: float = 1e-3
    options: dict[str, Any] = field(default_factory=dict)
    schedule: Literal["constant", "cosine", "step"] = "constant"
    warmup_steps: int = 0
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        """Checks ranges; names are checked where they are looked up."""
        if not 0 <= self.learning_rate < math.inf:
            raise ValueError(f"optimizer.learning_rate must be at least 0 and finite, got {self.learning_rate}")
        if self.warmup_steps < 0:
            raise ValueError(f"optimizer.warmup_steps must be at least 0, got {self.warmup_steps}")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"optimizer.clip_norm must be positive or None, got {self.clip_norm}")


@dataclass(frozen=True)
class TrainConfig:
    """One training run.

    Attributes:
      name: a short name for directories and tables.
      data: the data set.
      model: the encoder.
      method: the multi-task method.
      optimizer: the optimizer.
      tasks: the tasks to train, () for all; one task makes a single-task baseline.
      loss_scales: what a task's loss is multiplied by before the method sees it, such as {"right": 10.0}; 1 for tasks
        not named. Losses in the log and metrics are as without.
      batch_size: examples a step, over all devices.
      epochs: passes over the training split; the last incomplete batch of each is left out.
      seed: seed of the parameters, the batches and the method.
      mode: how per-task gradients are computed, see `mtljax.task_gradients`.
      subset: a regular expression on the paths of the shared parameters, such as "Dense_0": those that match enter the
        Gramian, an approximation. None for all.
      trainable: a regular expression on the paths of the parameters, such as "heads|Dense_1": those that match are
        trained, the others stay as they were drawn. None for all.
      accumulate: microbatches a step: the memory of one, the gradients of the whole batch.
      patience: evaluations without a better validation score after which training stops, None for never.
      evaluate_every: steps between evaluations on the validation split, 0 for once an epoch.
      log_every: steps between training records in the log.
      test_curve: whether the log also holds the test metrics at every evaluation, for comparison with papers that
        report the best epoch on test; nothing is selected by them.
      probe_every: steps between looks at the gradients of single examples, 0 for none: see `mtljax analyze conflicts`.
        On a CPU every 20 costs convolutional networks up to 5% of the time, every 200 perceptrons less than 5%.
      probe_samples: examples of the batch at each look.
      checkpoints: whether to keep checkpoints; without them a run cannot be resumed or loaded.
      tensorboard: whether to write TensorBoard files too, when tensorboardX is installed.
      devices: devices to train on, 0 for all.
      parallel: how several devices share a step: "pmap", or "jit" with shardings.
      reduce: how they average a Gramian method's Jacobian: "mean", or "scatter" (pmap), which moves half as much.
    """

    name: str = "run"
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    method: MethodConfig = MethodConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    tasks: tuple[str, ...] = ()
    loss_scales: dict[str, float] = field(default_factory=dict)
    batch_size: int = 256
    epochs: int = 10
    seed: int = 0
    mode: Mode = "auto"
    subset: str | None = None
    trainable: str | None = None
    accumulate: int = 1
    patience: int | None = None
    evaluate_every: int = 0
    log_every: int = 50
    test_curve: bool = False
    probe_every: int = 0
    probe_samples: int = 8
    checkpoints: bool = True
    tensorboard: bool = True
    devices: int = 0
    parallel: Literal["pmap", "jit"] = "pmap"
    reduce: Reduce = "mean"

    def __post_init__(self) -> None:
        """Checks ranges; names are checked where they are looked up."""
        leasts = {"batch_size": 1, "epochs": 1, "accumulate": 1, "log_every": 1, "evaluate_every": 0, "devices": 0}
        leasts |= {"probe_every": 0, "probe_samples": 2}
        for name, least in leasts.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        for task, scale in self.loss_scales.items():
            if isinstance(scale, bool) or not isinstance(scale, int | float) or not 1e-30 <= scale <= 1e30:
                raise ValueError(f"loss_scales.{task} must be a positive number (from 1e-30 to 1e30), got {scale!r}")
        if len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"tasks lists a task twice: {', '.join(self.tasks)}")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience must be at least 1 or None, got {self.patience}")
        if self.reduce == "scatter" and self.parallel == "jit":
            raise ValueError('reduce="scatter" needs parallel="pmap": under jit the compiler places the collectives')
        for name, pattern in (("subset", self.subset), ("trainable", self.trainable)):
            try:
                re.compile(pattern or "")
            except re.error as error:
                raise ValueError(f"{name}={pattern!r} is no regular expression: {error}") from error


def to_dict(config: Any) -> dict[str, Any]:
    """The config as JSON-able nested dicts."""
    return _jsonable(dataclasses.asdict(config))


def load_config(path: str | Path) -> Any:
    """Runs `get_config()` of a config file.

    Args:
      path: a Python file.

    Returns:
      The config it returns.

    Raises:
      ValueError: if there is no such file, or it has no `get_config`, or that returns no dataclass.
    """
    path = Path(path)
    if not path.is_file():
        candidates = [str(p) for p in sorted(Path("configs").rglob("*.py"))] if Path("configs").is_dir() else []
        close = difflib.get_close_matches(str(path), candidates, n=1)
        hint = f": did you mean {close[0]}?" if close else "; it is the path of a Python file with get_config()"
        raise ValueError(f"no config file {path}{hint}")
    spec = importlib.util.spec_from_file_location(f"mtljax_config_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise ValueError(f"{path} is no Python file: {error.msg} in line {error.lineno}") from error
    get_config = getattr(module, "get_config", None)
    try:
        config = get_config() if callable(get_config) else None
    except TypeError as error:  # a misspelt or mistyped field
        raise ValueError(f"{path}: get_config() failed: {error}") from error
    if not dataclasses.is_dataclass(config):
        raise ValueError(
            f"{path} must define get_config() returning a TrainConfig, StudyConfig or ToyConfig, got {config!r}"
        )
    return config


def differences(a: Any, b: Any, path: str = "") -> list[str]:
    """The dotted names of the fields in which two `to_dict` results differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        keys = sorted(a.keys() | b.keys())
        return [name for key in keys for name in differences(a.get(key), b.get(key), f"{path}{key}.")]
    return [] if a == b else [path.rstrip(".")]


def setting(values: Mapping[str, Any]) -> dict[str, Any]:
    """A `to_dict` result without the name, the seed and what changes nothing in training but rounding."""
    hidden = {"name", "seed", "checkpoints", "tensorboard", "log_every", "evaluate_every", "devices", "parallel"}
    hidden |= {"probe_every", "probe_samples", "test_curve"}
    return {name: value for name, value in values.items() if name not in hidden}


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_jsonable(item) for item in value]
    return value
