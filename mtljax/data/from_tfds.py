"""Any TFDS data set as a multi-task one: which features are the inputs, and which are the tasks."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mtljax.data import pairs, tfds_source
from mtljax.data.multitask import SPLITS, MultiTaskData, Split
from mtljax.errors import unknown
from mtljax.tasks import Task, binary, classification, kinds, regression


class Target(NamedTuple):
    """Where the targets of a task come from. A plain tuple `(feature, kind[, component[, where]])` does as well.

    Attributes:
      feature: Name of a feature.
      kind: `"classification"`, `"regression"` (L2 loss) or `"binary"`, or a `Task`.
      component: Which one to take of a vector-valued feature; None takes it whole.
      where: `(feature, value)`: only examples whose feature has this value belong to the task, its label is missing
        in the others. For sets that hold one label an example and name the task it is of.
    """

    feature: str
    kind: str | Task
    component: int | None = None
    where: tuple[str, Any] | None = None


def from_tfds(
    name: str,
    *,
    inputs: str | Sequence[str],
    tasks: Mapping[str, Sequence[Any]],
    data_dir: str | os.PathLike[str] | None = None,
    splits: Mapping[str, str] | None = None,
    validation_fraction: float = 0.1,
    seed: int = 0,
    preprocess: Callable[[np.ndarray], np.ndarray] | None = None,
    download: bool = True,
) -> MultiTaskData:
    """Reads a TFDS data set, prepared in array_record format, as a multi-task one.

    Needs no TensorFlow. Features are decoded once into a cache of .npy files. Values are not normalised: uint8 inputs
    stay uint8 for the model to divide by 255, numbers stay in the units of the set.

    Args:
      name: TFDS name, such as `"tox21"` or `"qm9/dimenet"`.
      inputs: A feature, kept in its shape, or several numeric ones, flattened and concatenated as float32.
      tasks: Task name to `Target`, or the tuple of it: `{"torque": ("y", "regression", 0)}`.
      data_dir: TFDS data_dir; by default `$MTLJAX_DATA`, then TFDS's own.
      splits: TFDS splits, or slices of them, for ours: `{"train": "train[:80%]", "test": "train[80%:]"}`.
        By default those of the same names. Without a validation split, a part of the training examples, chosen by
        a seeded permutation, is held out for it.
      validation_fraction: The size of that part, between 0 and 1.
      seed: Seed of that permutation.
      preprocess: Applied to the inputs `(N, ...)` of each split, for instance to unpack bits.
      download: Whether TFDS may download the set when it is not found.

    Returns:
      The data set. Targets are int32 for classification (the number of classes is TFDS's, or one more than the largest
      label) and for binary tasks, with -1 for missing labels, and float32 for regression, with NaN for missing ones.

    Raises:
      FileNotFoundError: If the set is neither found nor downloaded.
      ValueError: If a name (set, feature, split, kind) is unknown, if a feature cannot be what it should, or if a label
        is out of range. The message names the nearest valid name or lists the features.

    Example:
      Twelve assays with missing labels, from a fingerprint packed into bytes::

        mtljax.data.from_tfds("tox21", inputs="fp", tasks={f"assay_{k}": ("y", "binary", k) for k in range(12)},
                              preprocess=lambda packed: np.unpackbits(packed, axis=1).astype(np.float32))
    """
    source = tfds_source.find(name, data_dir, download=download)
    targets = {task: _target(name, task, entry) for task, entry in tasks.items()}
    input_names = (inputs,) if isinstance(inputs, str) else tuple(inputs)
    if not input_names or not targets:
        raise ValueError(f"{name}: give at least one input and one task; the features are {', '.join(source.features)}")
    used = [*input_names, *(t.feature for t in targets.values()), *(t.where[0] for t in targets.values() if t.where)]
    columns = {
        split: tfds_source.read(source, expression, list(dict.fromkeys(used)))
        for split, expression in _splits(source, splits).items()
    }
    if "validation" not in columns:
        columns["train"], columns["validation"] = _hold_out(name, columns["train"], validation_fraction, seed)
    made = {task: _task(source, target, columns) for task, target in targets.items()}
    return MultiTaskData(
        name,
        made,
        {
            split: Split(
                _inputs(columns[split], input_names, preprocess),
                {task: _column(columns[split], target, made[task], task) for task, target in targets.items()},
            )
            for split in SPLITS
        },
    )


def _target(name: str, task: str, entry: Sequence[Any]) -> Target:
    if isinstance(entry, str) or not 2 <= len(entry) <= len(Target._fields):
        raise ValueError(f"{name}: task {task!r} must be (feature, kind[, component[, where]]), got {entry!r}")
    target = Target(*entry)
    if not isinstance(target.kind, Task) and target.kind not in kinds():
        raise unknown("kind of task", target.kind, kinds())
    return target


def _splits(source: tfds_source.Source, splits: Mapping[str, str] | None) -> dict[str, str]:
    if splits is None:
        splits = {split: split for split in SPLITS if split in source.splits}
    for split in splits:
        if split not in SPLITS:
            raise unknown("split", split, SPLITS)
    for split in ("train", "test"):
        if split not in splits:
            raise ValueError(
                f"{source.name} needs a {split} split, it has {', '.join(source.splits)}: name one, for instance "
                "splits={'train': 'train[:80%]', 'test': 'train[80%:]'}"
            )
    return dict(splits)


def _hold_out(
    name: str, train: dict[str, np.ndarray], fraction: float, seed: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Divides the training examples by a seeded permutation; both parts keep the order of the set."""
    count = len(next(iter(train.values())))
    held_out = round(count * fraction)
    if not 0 < held_out < count:
        raise ValueError(f"{name}: validation_fraction {fraction} of {count} training examples leaves a split empty")
    order = pairs.permutation(pairs.stream(seed), count)
    kept, held = np.sort(order[held_out:]), np.sort(order[:held_out])
    return {key: array[kept] for key, array in train.items()}, {key: array[held] for key, array in train.items()}


def _inputs(
    columns: Mapping[str, np.ndarray],
    names: Sequence[str],
    preprocess: Callable[[np.ndarray], np.ndarray] | None,
) -> np.ndarray:
    arrays = [columns[name] if columns[name].ndim > 1 else columns[name][:, None] for name in names]
    if len(arrays) == 1:
        inputs = arrays[0] if arrays[0].dtype == np.uint8 else arrays[0].astype(np.float32)
    else:
        inputs = np.concatenate([array.reshape(len(array), -1).astype(np.float32) for array in arrays], axis=1)
    return inputs if preprocess is None else preprocess(inputs)


def _values(columns: Mapping[str, np.ndarray], target: Target) -> np.ndarray:
    values = columns[target.feature]
    if target.component is None:
        return values
    if values.ndim < 2 or not -values.shape[1] <= target.component < values.shape[1]:
        raise ValueError(f"feature {target.feature!r} of shape {values.shape[1:]} has no component {target.component}")
    return values[:, target.component]


def _task(source: tfds_source.Source, target: Target, columns: Mapping[str, Mapping[str, np.ndarray]]) -> Task:
    if isinstance(target.kind, Task):
        return target.kind
    values = [_values(columns[split], target) for split in SPLITS]
    shape = values[0].shape[1:]
    if target.kind == "regression" and len(shape) <= 1:
        return regression(size=shape[0] if shape else 1)
    if shape:
        raise ValueError(
            f"feature {target.feature!r} of {source.name} has shape {shape}, a {target.kind} task needs one number: "
            f"choose a component, ({target.feature!r}, {target.kind!r}, 0)"
        )
    if target.kind == "binary":
        return binary()
    num_classes = source.features[target.feature] or 1 + int(max(value.max(initial=0) for value in values))
    return classification(max(2, num_classes))


def _column(columns: Mapping[str, np.ndarray], target: Target, task: Task, name: str) -> np.ndarray:
    values = _values(columns, target)
    if task.kind == "regression":
        values, missing = values.astype(np.float32), np.nan
    elif task.kind in ("classification", "binary"):
        values = np.nan_to_num(values, nan=-1)
        top = task.spec.get("num_classes", 2) - 1
        if values.size and (values.max() > top or (values != np.floor(values)).any()):
            raise ValueError(
                f"task {name!r}: {task.kind} labels must be integers from 0 to {top}, or negative where missing, but "
                f"feature {target.feature!r} holds values from {values.min()} to {values.max()}"
            )
        values, missing = values.astype(np.int32), -1
    else:
        missing = np.nan if values.dtype.kind == "f" else -1
    if target.where is None:
        return values
    feature, value = target.where
    belongs = columns[feature] == value
    return np.where(belongs.reshape(-1, *[1] * (values.ndim - 1)), values, np.asarray(missing, values.dtype))
