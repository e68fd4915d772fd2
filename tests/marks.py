"""Which parameters and tests run by default."""

from collections.abc import Collection, Iterable
from importlib import metadata
from typing import Any

import pytest


def mostly_slow(names: Iterable[Any], quick: Collection[Any]) -> list[Any]:
    """All of the parameters, those that are not in `quick` marked slow."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


def _needs(what: str, extra: str, *packages: str) -> pytest.MarkDecorator:
    installed = {each.metadata["Name"] for each in metadata.distributions()}
    return pytest.mark.skipif(not installed & set(packages), reason=f"needs {what}: pip install 'mtljax[{extra}]'")


needs_tpu_compiler = _needs("libtpu", "tpu", "libtpu")
needs_cuda_compiler = _needs("CUDA's plug-in", "cuda", "jax-cuda12-plugin", "jax-cuda13-plugin")
