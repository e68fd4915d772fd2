import os
from pathlib import Path

import pytest

from mtljax.data import cache


@pytest.fixture(autouse=True)
def cache_dir(tmp_path, monkeypatch):
    """A cache of its own for every test."""
    monkeypatch.setenv("MTLJAX_CACHE", str(tmp_path / "cache"))
    cache._warn_once.cache_clear()
    return tmp_path / "cache"


@pytest.fixture
def tfds_dir(monkeypatch) -> Path:
    """The TFDS data_dir with the real sets."""
    found = Path(os.environ.get("MTLJAX_DATA") or "nowhere")
    if not found.is_dir():
        pytest.skip("needs TFDS data: set MTLJAX_DATA to a data_dir with mnist and others in array_record format")
    monkeypatch.setenv("MTLJAX_DATA", str(found))
    return found


@pytest.fixture
def no_data(monkeypatch, tmp_path):
    """No TFDS data anywhere, and no network to get it from."""
    for variable in ("MTLJAX_DATA", "TFDS_DATA_DIR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))

    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", offline)
