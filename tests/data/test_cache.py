import errno
import json
import logging
import multiprocessing
import os

import numpy as np
import pytest

from mtljax.data import cache

KEY = "some-set/train/image"
ARRAY = np.arange(600, dtype=np.int32).reshape(20, 30)


def files(directory):
    return sorted(path.name for path in directory.rglob("*") if path.is_file())


def test_a_stored_array_comes_back(cache_dir):
    assert cache.load(KEY) is None
    cache.store(KEY, ARRAY)
    found = cache.load(KEY)
    np.testing.assert_array_equal(found, ARRAY)
    assert found.dtype == ARRAY.dtype
    assert files(cache_dir) == ["image.json", "image.npy"]
    manifest = json.loads((cache_dir / f"{KEY}.json").read_text())
    assert manifest["shape"] == [20, 30]
    assert manifest["dtype"] == "int32"
    assert len(manifest["sha256"]) == 64


def truncate(path):
    path.write_bytes(path.read_bytes()[:-7])


def flip_last_byte(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def flip_header_byte(path):
    content = bytearray(path.read_bytes())
    content[20] ^= 1
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b"")


def replace_by_another_array(path):
    with path.open("wb") as file:
        np.save(file, ARRAY + 1)


@pytest.mark.parametrize("suffix", [".npy", ".json"])
@pytest.mark.parametrize(
    "damage", [truncate, flip_last_byte, flip_header_byte, empty, replace_by_another_array, os.unlink]
)
def test_damage_is_noticed_logged_once_and_repaired_by_storing_again(cache_dir, caplog, damage, suffix):
    cache.store(KEY, ARRAY)
    damage(cache_dir / f"{KEY}{suffix}")
    with caplog.at_level(logging.WARNING, "mtljax"):
        assert cache.load(KEY) is None
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "building it again" in caplog.text
    cache.store(KEY, ARRAY)
    np.testing.assert_array_equal(cache.load(KEY), ARRAY)


@pytest.mark.parametrize("content", ["[]", "{}", "null", '{"sha256": 3}'])
def test_a_manifest_of_another_form_counts_as_damage(cache_dir, caplog, content):
    cache.store(KEY, ARRAY)
    (cache_dir / f"{KEY}.json").write_text(content)
    assert cache.load(KEY) is None
    assert "damaged" in caplog.text


@pytest.mark.parametrize("stop", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_stops_midway_leaves_no_partial_file(cache_dir, monkeypatch, stop):
    def half(file, array, **_):
        file.write(array.tobytes()[:100])
        file.flush()
        raise stop

    monkeypatch.setattr(np, "save", half)
    if isinstance(stop, OSError):
        cache.store(KEY, ARRAY)
    else:
        with pytest.raises(KeyboardInterrupt):
            cache.store(KEY, ARRAY)
    assert files(cache_dir) == []
    assert cache.load(KEY) is None


def test_a_failed_rewrite_keeps_the_array_that_was_there(monkeypatch):
    cache.store(KEY, ARRAY)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
        cache.store(KEY, ARRAY + 1)
    np.testing.assert_array_equal(cache.load(KEY), ARRAY)


def test_full_disk_warns_once_and_goes_on(monkeypatch, caplog):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    cache.store(KEY, ARRAY)
    cache.store(KEY, ARRAY)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "No space left on device" in caplog.text
    assert "going on without it" in caplog.text


def test_an_unusable_cache_directory_warns_and_goes_on(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("not a directory")
    monkeypatch.setenv("MTLJAX_CACHE", str(tmp_path / "file" / "cache"))
    cache.store(KEY, ARRAY)
    assert cache.load(KEY) is None
    assert len(caplog.records) == 1
    assert "going on without it" in caplog.text


def _store_often(directory, value):
    os.environ["MTLJAX_CACHE"] = directory
    for _ in range(20):
        cache.store(KEY, np.full((200, 200), value))


def test_concurrent_writers_leave_one_whole_array(cache_dir):
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_store_often, args=(str(cache_dir), 5)) for _ in range(2)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        found = cache.load(KEY)
        assert found is None or (found == 5).all()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    np.testing.assert_array_equal(cache.load(KEY), np.full((200, 200), 5))
    assert files(cache_dir) == ["image.json", "image.npy"]
