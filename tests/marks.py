"""Which parameters run by default."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def mostly_slow(names: Iterable[Any], quick: Collection[Any]) -> list[Any]:
    """All of the parameters, those that are not in `quick` marked slow."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]
