"""Errors that teach: one sentence that says what was wrong and what to write instead."""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

_MAX_LISTED = 20


class CompilerError(RuntimeError):
    """The compiler of a machine that is planned for refused a program, or died."""


def check_options(
    what: str, options: Mapping[str, Any], build: Callable[..., Any], exclude: Iterable[str] = ()
) -> None:
    """Checks keyword arguments before a call, so that a wrong one is one sentence and not a traceback from inside.

    Args:
      what: What is built, in words: `"method cagrad"`.
      options: The keyword arguments.
      build: The function or class they are for. A value must have the type of its parameter's default: bool, string,
        number (an integer where the default is one) or sequence; where the default is None or missing, anything goes.
        A parameter annotated as `Sequence` takes a sequence whatever its default.
      exclude: Parameters that are set elsewhere.

    Raises:
      ValueError: On an unknown name, naming the nearest valid one, or a value of the wrong type.
    """
    parameters = {name: p for name, p in inspect.signature(build).parameters.items() if name not in set(exclude)}
    for name, value in options.items():
        if name not in parameters:
            raise unknown(f"option of {what}", name, parameters)
        default = parameters[name].default
        expected = next((words for kinds, words, _ in _KINDS if isinstance(default, kinds)), None)
        accepted = next((accepts for kinds, _, accepts in _KINDS if isinstance(default, kinds)), object)
        wrong_bool = isinstance(value, bool) and not isinstance(default, bool)
        numeric_array = isinstance(default, (int, float)) and hasattr(value, "dtype")  # traced, say
        annotation = str(parameters[name].annotation)
        sequence = isinstance(value, (tuple, list)) and "Sequence" in annotation
        by_task = isinstance(value, dict) and "Mapping" in annotation
        if expected and not (numeric_array or sequence or by_task) and (wrong_bool or not isinstance(value, accepted)):
            raise ValueError(f"option {name} of {what} must be {expected}, got {value!r}")


_KINDS: tuple[tuple[type | tuple[type, ...], str, type | tuple[type, ...]], ...] = (
    (bool, "true or false", bool),
    (int, "an integer", int),
    (float, "a number", (int, float)),
    (str, "a string", str),
    ((tuple, list), "a sequence, such as (64, 32)", (tuple, list)),
)


def unknown(what: str, name: object, valid: Iterable[str]) -> ValueError:
    """Makes the error for a name that is not among the valid ones, naming the nearest.

    Args:
      what: What was named, in words: `"method"`, `"config key"`, `"data set"`.
      name: The name that was given.
      valid: The names that would have been right, in any order.

    Returns:
      A `ValueError` for the caller to raise. Its message is one sentence with the nearest valid name, if any is near,
      and the valid names (the 20 nearest of them where there are more).

    Example:
      >>> raise unknown("data set", "digit", ["digits", "multi_mnist"])
      Traceback (most recent call last):
      ValueError: unknown data set 'digit': did you mean 'digits'? Valid: digits, multi_mnist
    """
    text = str(name)
    names = sorted(set(valid))
    if not names:
        return ValueError(f"unknown {what} {text!r}: there is none to choose from")
    by_lowercase = {candidate.lower(): candidate for candidate in reversed(names)}
    near = difflib.get_close_matches(text.lower(), by_lowercase, n=_MAX_LISTED, cutoff=0.3)
    hint = f": did you mean {by_lowercase[near[0]]!r}? Valid: " if near else "; valid: "
    if len(names) <= _MAX_LISTED:
        return ValueError(f"unknown {what} {text!r}{hint}{', '.join(names)}")
    shown = [by_lowercase[match] for match in near] or names[:_MAX_LISTED]
    return ValueError(f"unknown {what} {text!r}{hint}{', '.join(shown)} and {len(names) - len(shown)} more")
