"""Configs from dicts and from command line overrides, every key and type checked."""

import ast
import dataclasses
import difflib
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

from mtljax.errors import unknown

Config = TypeVar("Config")


def from_dict(cls: type[Config], values: dict[str, Any], path: str = "") -> Config:
    """Rebuilds a config from `to_dict`; keys and types are checked as overrides are."""
    hints = typing.get_type_hints(cls)
    arguments = {}
    for key, value in values.items():
        if key not in hints:
            raise unknown("config key", path + key, [path + name for name in hints])
        arguments[key] = checked(hints[key], value, path + key)
    return cls(**arguments)


def override(config: Config, overrides: Sequence[str]) -> Config:
    """Applies command line overrides.

    >>> from mtljax.training import TrainConfig
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
        config = _replace(config, key.split("."), value, key, _parsed)
    return config


def replaced(config: Config, key: str, value: Any) -> Config:
    """A copy with one field set, checked as `override` checks it.

    >>> from mtljax.training import TrainConfig
    >>> replaced(TrainConfig(), "model.options.features", (32, 64)).model.options
    {'features': (32, 64)}

    Args:
      config: a frozen dataclass, possibly of dataclasses.
      key: `path.to.field`.
      value: the value, not text.

    Returns:
      A changed copy.

    Raises:
      ValueError: on an unknown key (naming the nearest) or a value of the wrong type.
    """
    return _replace(config, key.split("."), value, key, lambda hint, value: value)


def _replace(config: Any, keys: list[str], value: Any, full: str, read: Callable[[Any, Any], Any]) -> Any:
    hints = typing.get_type_hints(type(config))
    key, *rest = keys
    prefix = full[: len(full) - len(".".join(keys))]
    if key not in hints:
        paths = _paths(config, keys[-1])
        elsewhere = [prefix + p for p in paths if f".{p}".endswith(f".{'.'.join(keys)}")] or [prefix + p for p in paths]
        if elsewhere and not difflib.get_close_matches(key, hints, cutoff=0.75):
            raise ValueError(f"unknown config key {full!r}: did you mean {' or '.join(map(repr, elsewhere))}?")
        raise unknown("config key", prefix + key, [prefix + name for name in hints])
    current = getattr(config, key)
    if dataclasses.is_dataclass(current):
        if not rest:
            names = ", ".join(f"{full}.{name}" for name in typing.get_type_hints(type(current)))
            raise ValueError(f"{full} is a group: set one of {names}")
        return dataclasses.replace(config, **{key: _replace(current, rest, value, full, read)})
    if isinstance(current, dict) and len(rest) == 1:
        return dataclasses.replace(config, **{key: {**current, rest[0]: read(Any, value)}})
    if rest:
        raise ValueError(f"{prefix + key} is a single value and has no field {'.'.join(rest)!r}")
    return dataclasses.replace(config, **{key: checked(hints[key], read(hints[key], value), full)})


def _paths(config: Any, name: str) -> list[str]:
    """Where a config, or one inside it, has a field of this name."""
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    inside = [f"{key}.{path}" for key, v in fields.items() if dataclasses.is_dataclass(v) for path in _paths(v, name)]
    return ([name] if name in fields else []) + inside


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


def checked(hint: Any, value: Any, path: str) -> Any:
    """Checks the type of a value.

    >>> checked(tuple[int, ...], [0, "1"], "seeds")
    Traceback (most recent call last):
    ValueError: seeds[1] must be an integer, got '1'

    Args:
      hint: the type: of plain values, tuples, dicts and dataclasses.
      value: the value; ints count as floats, lists as tuples, and dicts of its fields as a dataclass.
      path: what the error calls it.

    Returns:
      The value, converted to the type.

    Raises:
      ValueError: if it has another type.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return from_dict(typing.cast(type, hint), value, f"{path}.")
    if hint is Any or (dataclasses.is_dataclass(hint) and isinstance(value, typing.cast(type, hint))):
        return value
    if origin is Literal:
        if value in arguments:
            return value
        raise ValueError(f"{path} must be one of {', '.join(map(repr, arguments))}, got {value!r}")
    if origin in (types.UnionType, typing.Union):
        for option in arguments:
            try:
                return checked(option, value, path)
            except ValueError:
                continue
        raise ValueError(f"{path} must be {_describe(hint)}, got {value!r}")
    if origin is tuple and isinstance(value, (tuple, list)):
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(checked(arguments[0], item, f"{path}[{i}]") for i, item in enumerate(value))
        if len(arguments) == len(value):
            return tuple(checked(a, v, f"{path}[{i}]") for i, (a, v) in enumerate(zip(arguments, value, strict=True)))
    if origin is dict and isinstance(value, dict):
        return dict(value)
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if hint in (bool, str, type(None)) and isinstance(value, hint):
        return value
    raise ValueError(f"{path} must be {_describe(hint)}, got {value!r}")


def _describe(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_describe(option) for option in arguments)
    if origin is tuple:
        return f"a tuple of {_describe(arguments[0])}"
    if dataclasses.is_dataclass(hint):
        name, first = typing.cast(type, hint).__name__, dataclasses.fields(typing.cast(Any, hint))[0].name
        return f"{'an' if name[0] in 'AEIO' else 'a'} {name}, on the command line a dict such as {{'{first}': ...}}"
    names = {int: "an integer", float: "a number", bool: "true or false", str: "a string", type(None): "none"}
    return names.get(hint, "a dict" if origin is dict else str(hint))
