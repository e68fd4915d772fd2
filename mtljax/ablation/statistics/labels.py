"""How the rows of a study are called in sentences, tables and legends."""

from collections.abc import Iterable, Mapping
from typing import Any

from mtljax.ablation.statistics.candidates import Candidate, Fields

RATE = "optimizer.learning_rate"


def setting_text(fields: Fields) -> str:
    """Fields in words: the last part of each path, and its value.

    >>> setting_text({"optimizer.learning_rate": 0.003, "method.options.weights": {"left": 0.3, "right": 0.7}})
    'learning rate 0.003, weights left 0.3 right 0.7'
    """
    return ", ".join(f"{field_name(path)} {value_text(value)}" for path, value in fields.items())


def field_name(path: str) -> str:
    """The last part of a field's path in words; a task before it, as in "left: optimizer.learning_rate", stays."""
    task, colon, field = path.rpartition(": ")
    return f"{task}{colon}{field.rpartition('.')[2].replace('_', ' ')}"


def value_text(value: Any) -> str:
    """A value in a few characters; numbers with four digits."""
    if isinstance(value, Mapping):
        return " ".join(f"{key} {value_text(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        return " x ".join(map(value_text, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def row_name(row: Candidate) -> str:
    """The method, with its condition where there is one: "cagrad (features 32)"."""
    return _with(row.method, row.condition)


def method_text(row: Candidate) -> str:
    """The method with its condition and what was chosen for it alone: "cagrad (features 32, c 0.4)"."""
    own = {**row.condition, **{name: value for name, value in row.setting.items() if not _is_optimizer(name)}}
    return _with(row.method, own)


def optimizer_text(row: Candidate) -> str:
    """The optimizer with what was chosen for it, the learning rate as a bare number: "adam 0.003"."""
    own = {name: value for name, value in row.setting.items() if _is_optimizer(name)}
    rate = f" {value_text(own.pop(RATE))}" if RATE in own else ""
    return f"{row.optimizer}{rate}" + (f" ({setting_text(own)})" if own else "")


def joined(names: Iterable[str], most: int | None = None) -> str:
    """Names for a sentence: "a, b and c"; with more than `most`, the number of those left out.

    >>> joined(["a", "b", "c", "d"], most=2)
    'a, b and 2 more'
    """
    *first, last = names
    if most is not None and len(first) + 1 > most:
        left = len(first) + 1 - most
        first, last = first[:most], f"{left} more"
    return f"{', '.join(first)} and {last}" if first else last


def seeds_text(seeds: Iterable[int]) -> str:
    """Seeds for a sentence: "seed 3", "seeds 0 and 1"."""
    unique = sorted(set(seeds))
    return f"seed {unique[0]}" if len(unique) == 1 else f"seeds {joined(map(str, unique))}"


def _with(name: str, fields: Fields) -> str:
    """A name and fields in brackets, the name's own if it ends with some."""
    if not fields:
        return name
    return f"{name[:-1]}, {setting_text(fields)})" if name.endswith(")") else f"{name} ({setting_text(fields)})"


def _is_optimizer(path: str) -> bool:
    return path.rpartition(": ")[2].startswith("optimizer.")
