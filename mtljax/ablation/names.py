"""Labels of methods and optimizers, and the file names of cells."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from mtljax.ablation.cell import Cell
from mtljax.training.config import OptimizerConfig, to_dict

_LONGEST_NAME = 180  # file names end at 255 bytes
_LISTED = 3  # of repeated cells


def optimizer_label(config: OptimizerConfig, varied: Mapping[str, Any]) -> str:
    """The label of an optimizer, without what varies."""
    name = config.name
    if "optimizer.learning_rate" not in varied:
        name += f" {config.learning_rate:g}"
    shown = unvaried(config.options, "optimizer.options.", varied)
    for other in ("schedule", "warmup_steps", "clip_norm"):
        value = getattr(config, other)
        if f"optimizer.{other}" not in varied and value != getattr(OptimizerConfig(), other):
            shown[other] = value
    return label(name, shown)


def unvaried(options: Mapping[str, Any], prefix: str, varied: Mapping[str, Any]) -> dict[str, Any]:
    """The options that no axis varies."""
    return {name: value for name, value in options.items() if prefix + name not in varied}


def label(name: str, options: Mapping[str, Any]) -> str:
    """A name with its options: `cagrad(c=0.5)`."""
    inside = ", ".join(f"{key}={value}" for key, value in sorted(options.items()))
    return f"{name}({inside})" if inside else name


def short(name: str, fields: Sequence[str]) -> str:
    """The last part of a dotted name, the whole where another field ends alike."""
    last = name.rpartition(".")[2]
    return last if sum(other.rpartition(".")[2] == last for other in fields) < 2 else name


def value_text(value: Any) -> str:
    """A value as part of a file name."""
    if isinstance(value, Mapping):
        return "_".join(f"{key}={value_text(item)}" for key, item in value.items())
    if isinstance(value, tuple | list):
        return "_".join(map(value_text, value))
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


def with_unique_names(study: str, cells: list[Cell]) -> list[Cell]:
    """The cells, those whose names are alike (to any file system) or too long told apart by a hash of their config."""
    alike: dict[str, list[Cell]] = {}
    for cell in cells:
        alike.setdefault(cell.name.lower(), []).append(cell)
    unique, repeated, seen = [], [], set()
    for cell in cells:
        if len(alike[cell.name.lower()]) > 1 or len(cell.name) > _LONGEST_NAME:
            config = {key: value for key, value in to_dict(cell.config).items() if key != "name"}
            text = json.dumps(config, sort_keys=True, default=repr)
            if text in seen:
                repeated.append(cell.name)
            seen.add(text)
            stem, seed = cell.name.rsplit("-", 1)
            name = f"{stem[:_LONGEST_NAME]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}-{seed}"
            cell = cell._replace(name=name, config=dataclasses.replace(cell.config, name=name))
        unique.append(cell)
    if repeated:
        names = sorted(set(repeated))
        more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
        raise ValueError(
            f"the study {study!r} lists the same run twice: {', '.join(names[:_LISTED])}{more}; take the repeated "
            "seed, method, optimizer or value out"
        )
    return unique
