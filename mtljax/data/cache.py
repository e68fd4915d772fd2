"""A cache of arrays on disk that never returns a damaged array and never stops a run.

Each array is two files, `KEY.npy` and the manifest `KEY.json` with the SHA-256 of the first file and the array's
shape and dtype. Files are written under another name in the same directory and renamed, so that readers, concurrent
ones too, see a whole file or none; the manifest is written last.
"""

import functools
import hashlib
import json
import logging
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np

logger = logging.getLogger(__name__)


def directory() -> Path:
    """Returns the cache directory, `$MTLJAX_CACHE` or `~/.cache/mtljax`; it need not exist.

    Raises:
      OSError: If there is no home directory to put it in.
    """
    try:
        return Path(os.environ.get("MTLJAX_CACHE") or "~/.cache/mtljax").expanduser()
    except RuntimeError as error:
        raise OSError(str(error)) from None


def load(key: str) -> np.ndarray | None:
    """Reads one array.

    Args:
      key: Its path in the cache, without suffix.

    Returns:
      The array, or None if it is not there or is not what its manifest says; the latter is logged as a warning.
    """
    try:
        path = directory() / f"{key}.npy"
        if not path.exists() and not path.with_suffix(".json").exists():
            return None
        manifest = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        with path.open("rb") as file:
            # Before numpy parses it: a damaged header can ask for any amount of memory.
            if hashlib.file_digest(file, "sha256").hexdigest() != manifest["sha256"]:
                raise ValueError("its content is not what was written")
            file.seek(0)
            array = np.load(file, allow_pickle=False)
        if manifest["shape"] != list(array.shape) or manifest["dtype"] != str(array.dtype):
            raise ValueError("its manifest is of another array")
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("cache entry %s is damaged (%s): building it again", key, error)
        return None
    return array


def store(key: str, array: np.ndarray) -> None:
    """Writes one array. If that fails (disk full, directory not writable) it warns once and leaves nothing behind."""
    try:
        path = directory() / f"{key}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        digest = _replace(path, lambda file: np.save(file, array, allow_pickle=False))
        manifest = {"sha256": digest, "shape": list(array.shape), "dtype": str(array.dtype)}
        _replace(path.with_suffix(".json"), lambda file: file.write(json.dumps(manifest).encode()))
    except OSError as error:
        # Not the whole error: it names a temporary file, and each would be warned of anew.
        reason = error.strerror or str(error)
        _warn_once(f"cannot write the cache ({reason}): going on without it; MTLJAX_CACHE names another directory")


def _replace(path: Path, write: Callable[[BinaryIO], object]) -> str:
    """Writes a file as a whole or not at all; returns its SHA-256."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("x+b") as file:
            write(file)
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return digest


@functools.cache
def _warn_once(message: str) -> None:
    logger.warning(message)
