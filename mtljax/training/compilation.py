"""The compilation cache on disk: a program that was compiled once, by any process, is read back."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache

from mtljax.data import cache

_VARIABLE = "JAX_COMPILATION_CACHE_DIR"
_SETTINGS = {
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}


def directory() -> Path:
    """Where programs are kept: `$JAX_COMPILATION_CACHE_DIR`, or `compiled` in the cache directory of the data."""
    given = os.environ.get(_VARIABLE)
    return Path(given) if given else cache.directory() / "compiled"


@contextlib.contextmanager
def kept_programs() -> Iterator[None]:
    """Keeps what is compiled inside, and reads what was kept; without a place to write, it compiles as ever."""
    try:
        where = directory()
        where.mkdir(parents=True, exist_ok=True)
    except OSError:
        yield
        return
    settings = {"jax_compilation_cache_dir": str(where), **_SETTINGS}
    before = {name: getattr(jax.config, name) for name in settings}
    _apply(settings)
    try:
        yield
    finally:
        _apply(before)


def _apply(settings: dict[str, object]) -> None:
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()  # it looks at the settings once
