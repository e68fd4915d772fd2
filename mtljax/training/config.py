"""Experiment configurations: frozen dataclasses, checked overrides, config files."""

import ast
import dataclasses
import difflib
import importlib.util
import math
import re
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from mtljax.errors import unknown
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
      name: "adam", "adamw", "sgd", "lion" or "rmsprop", as in optax.
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
      batch_size: examples a step, over all devices.
      epochs: passes over the training split; the last incomplete batch of each is left out.
      seed: seed of the parameters, the batches and the method.
      mode: how per-task gradients are computed, see `mtljax.task_gradients`.
      subset: a regular expression on the paths of the shared parameters, such as "Dense_0": those that match enter the
        Gramian, an approximation. None for all.
      accumulate: microbatches a step: the memory of one, the gradients of the whole batch.
      patience: evaluations without a better validation score after which training stops, None for never.
      evaluate_every: steps between evaluations on the validation split, 0 for once an epoch.
      log_every: steps between training records in the log.
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
    batch_size: int = 256
    epochs: int = 10
    seed: int = 0
    mode: Mode = "auto"
    subset: str | None = None
    accumulate: int = 1
    patience: int | None = None
    evaluate_every: int = 0
    log_every: int = 50
    checkpoints: bool = True
    tensorboard: bool = True
    devices: int = 0
    parallel: Literal["pmap", "jit"] = "pmap"
    reduce: Reduce = "mean"

    def __post_init__(self) -> None:
        """Checks ranges; names are checked where they are looked up."""
        leasts = {"batch_size": 1, "epochs": 1, "accumulate": 1, "log_every": 1, "evaluate_every": 0, "devices": 0}
        for name, least in leasts.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"tasks lists a task twice: {', '.join(self.tasks)}")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience must be at least 1 or None, got {self.patience}")
        if self.reduce == "scatter" and self.parallel == "jit":
            raise ValueError('reduce="scatter" needs parallel="pmap": under jit the compiler places the collectives')
        if self.subset is not None:
            try:
                re.compile(self.subset)
            except re.error as error:
                raise ValueError(f"subset={self.subset!r} is no regular expression: {error}") from error


def to_dict(config: Any) -> dict[str, Any]:
    """The config as JSON-able nested dicts."""
    return _jsonable(dataclasses.asdict(config))


def from_dict(cls: type[Config], values: dict[str, Any], path: str = "") -> Config:
    """Rebuilds a config from `to_dict`; keys and types are checked as overrides are."""
    hints = typing.get_type_hints(cls)
    arguments = {}
    for key, value in values.items():
        if key not in hints:
            raise unknown("config key", path + key, [path + name for name in hints])
        if dataclasses.is_dataclass(hints[key]) and isinstance(value, dict):
            arguments[key] = from_dict(typing.cast(type, hints[key]), value, f"{path}{key}.")
        else:
            arguments[key] = _checked(hints[key], value, path + key)
    return cls(**arguments)


def override(config: Config, overrides: Sequence[str]) -> Config:
    """Applies command line overrides.

    >>> override(TrainConfig(), ["--method.name=cagrad", "--method.options.c=0.5"]).method
    MethodConfig(name='cagrad', options={'c': 0.5})

    Args:
      config: a frozen dataclass, possibly of dataclasses.
      overrides: strings `--path.to.field=value`.

    Returns:
      A changed copy.

    Raises:
      ValueError: on a malformed string, an unknown key (naming the nearest) or a value of the wrong type.
    """
    for text in overrides:
        key, separator, value = text.removeprefix("--").partition("=")
        if not text.startswith("--") or not separator or not key:
            raise ValueError(f"cannot read {text!r}: overrides look like --optimizer.learning_rate=3e-4")
        config = _replace(config, key.split("."), value, key)
    return config


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
    spec.loader.exec_module(module)
    get_config = getattr(module, "get_config", None)
    try:
        config = get_config() if callable(get_config) else None
    except TypeError as error:  # a misspelt or mistyped field
        raise ValueError(f"{path}: get_config() failed: {error}") from error
    if not dataclasses.is_dataclass(config):
        raise ValueError(f"{path} must define get_config() returning a TrainConfig or a StudyConfig, got {config!r}")
    return config


def differences(a: Any, b: Any, path: str = "") -> list[str]:
    """The dotted names of the fields in which two `to_dict` results differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        keys = sorted(a.keys() | b.keys())
        return [name for key in keys for name in differences(a.get(key), b.get(key), f"{path}{key}.")]
    return [] if a == b else [path.rstrip(".")]


def _replace(config: Any, keys: list[str], value: str, full: str) -> Any:
    hints = typing.get_type_hints(type(config))
    key, *rest = keys
    prefix = full[: len(full) - len(".".join(keys))]
    if key not in hints:
        raise unknown("config key", prefix + key, [prefix + name for name in hints])
    current = getattr(config, key)
    if dataclasses.is_dataclass(current):
        if not rest:
            names = ", ".join(f"{full}.{name}" for name in typing.get_type_hints(type(current)))
            raise ValueError(f"{full} is a group: set one of {names}")
        return dataclasses.replace(config, **{key: _replace(current, rest, value, full)})
    if isinstance(current, dict) and len(rest) == 1:
        return dataclasses.replace(config, **{key: {**current, rest[0]: _literal(value)}})
    if rest:
        raise ValueError(f"{prefix + key} is a single value and has no field {'.'.join(rest)!r}")
    return dataclasses.replace(config, **{key: _checked(hints[key], _parsed(hints[key], value), full)})


def _parsed(hint: Any, text: str) -> Any:
    """The text as a value; quotes around strings and parentheses around tuples are optional."""
    if hint is str:
        return text
    value = _literal(text)
    if typing.get_origin(hint) is tuple:
        if isinstance(value, str):
            return tuple(_literal(part) for part in text.split(",") if part)
        return tuple(value) if isinstance(value, (tuple, list)) else (value,)
    return value


def _literal(text: str) -> Any:
    try:
        return {"true": True, "false": False, "none": None}[text.lower()]
    except KeyError:
        pass
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _checked(hint: Any, value: Any, path: str) -> Any:
    """The value if it has the hinted type (ints count as floats, lists as tuples); otherwise ValueError."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin is Literal:
        if value in arguments:
            return value
        raise ValueError(f"{path} must be one of {', '.join(map(repr, arguments))}, got {value!r}")
    if origin in (types.UnionType, typing.Union):
        for option in arguments:
            try:
                return _checked(option, value, path)
            except ValueError:
                continue
        raise ValueError(f"{path} must be {_describe(hint)}, got {value!r}")
    if origin is tuple and isinstance(value, (tuple, list)):
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(_element(arguments[0], item, f"{path}[{i}]") for i, item in enumerate(value))
        if len(arguments) == len(value):
            return tuple(_element(a, v, f"{path}[{i}]") for i, (a, v) in enumerate(zip(arguments, value, strict=True)))
    if origin is dict and isinstance(value, dict):
        return dict(value)
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if hint in (bool, str, type(None)) and isinstance(value, hint):
        return value
    raise ValueError(f"{path} must be {_describe(hint)}, got {value!r}")


def _element(hint: Any, value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return from_dict(typing.cast(type, hint), value, f"{path}.")
    if dataclasses.is_dataclass(hint) and isinstance(value, typing.cast(type, hint)):
        return value
    return _checked(hint, value, path)


def _describe(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_describe(option) for option in arguments)
    if origin is tuple:
        return f"a tuple of {_describe(arguments[0])}"
    names = {int: "an integer", float: "a number", bool: "true or false", str: "a string", type(None): "none"}
    return names.get(hint, "a dict" if origin is dict else str(hint))


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_jsonable(item) for item in value]
    return value
