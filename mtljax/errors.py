"""Errors that teach: one sentence that says what was wrong and what to write instead."""

import difflib
from collections.abc import Iterable

_MAX_LISTED = 20


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
