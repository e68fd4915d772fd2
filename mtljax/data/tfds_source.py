"""Finds TFDS data sets on disk and reads them into arrays, without TensorFlow, once.

What a prepared set holds is read from its own metadata files, so that a set whose arrays are in the cache costs no
import of tensorflow_datasets, and sets whose TFDS class is absent, or needs more packages, are read like any other.
"""

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from mtljax.data import cache, tfds_decode, tfds_download
from mtljax.errors import unknown

PathLike = str | os.PathLike[str]


@dataclasses.dataclass(frozen=True)
class Source:
    """A TFDS data set prepared in array_record format.

    Attributes:
      name: TFDS name, such as `"mnist"` or `"qm9/dimenet"`.
      directory: Where it lies, with its version.
      features: Names of its features, to the number of classes where a feature is a class label.
      splits: Names of its splits, to their numbers of examples.
    """

    name: str
    directory: Path
    features: Mapping[str, int | None]
    splits: Mapping[str, int]


def find(name: str, data_dir: PathLike | None = None, *, download: bool = True) -> Source:
    """Finds a data set in `data_dir`, `$MTLJAX_DATA` or TFDS's own directory, the first of them that is set.

    Args:
      name: TFDS name, `set`, `set/config`, either with `:version`; the newest version by default.
      data_dir: TFDS data_dir.
      download: Whether a registered TFDS set that is not there may be downloaded and prepared by TFDS.

    Returns:
      The source.

    Raises:
      FileNotFoundError: If the set is neither there nor could be downloaded.
      ValueError: If the name is unknown (the nearest one is named), or the set is in a format that needs TensorFlow.
    """
    root = _root(data_dir)
    directory = _prepared(root, name)
    if directory is None:
        directory = tfds_download.prepare(name, root, _local_names(root), download=download)
    if not any(directory.glob("*.array_record*")):
        raise ValueError(
            f"data set {name!r} in {directory} is not in array_record format, and other formats need TensorFlow: "
            "prepare it in another data_dir with tfds.builder(..., file_format='array_record')"
        )
    return _describe(name, directory)


def read(source: Source, split: str, features: Sequence[str]) -> dict[str, np.ndarray]:
    """Reads some features of a split, from the cache where they are in it.

    Args:
      source: Where from.
      split: Name of a split, or a TFDS slice of one such as `"train[:90%]"`.
      features: Names of the features.

    Returns:
      `{feature: (N, ...)}`: uint8 stays uint8, other integers become int32 (int64 where they need it), floats
      float32.

    Raises:
      ValueError: If a feature or split is unknown, or a feature is no number or not of one shape.
      OSError: If the records cannot be decoded.
    """
    for feature in features:
        if feature not in source.features:
            raise unknown(f"feature of {source.name}", feature, source.features)
    split_name = split.partition("[")[0]
    if split_name not in source.splits:
        raise unknown(f"split of {source.name}", split_name, source.splits)
    keys = {feature: _key(source, split, feature) for feature in features}
    cached = {feature: cache.load(key) for feature, key in keys.items()}
    arrays = {feature: array for feature, array in cached.items() if array is not None}
    missing = [feature for feature in keys if feature not in arrays]
    if missing:
        for feature, array in tfds_decode.decode(source.name, source.directory, split, missing).items():
            cache.store(keys[feature], array)
            arrays[feature] = array
    return {feature: arrays[feature] for feature in features}


def _root(data_dir: PathLike | None) -> Path:
    chosen = data_dir or os.environ.get("MTLJAX_DATA") or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return Path(chosen).expanduser()


def _prepared(root: Path, name: str) -> Path | None:
    """The directory of the newest, or the named, version of a set."""
    base, _, version = name.partition(":")
    versions = [path for path in _children(root / base) if (path / "dataset_info.json").is_file()]
    versions = [path for path in versions if path.name == version or (not version and _number(path.name))]
    return max(versions, key=lambda path: _number(path.name), default=None)


def _number(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split("."))) if re.fullmatch(r"\d+\.\d+\.\d+", version) else ()


def _local_names(root: Path) -> list[str]:
    """Names of the sets prepared under a data_dir, configs included."""
    sets = _children(root)
    configs = [config for folder in sets for config in _children(folder)]
    names = [str(path.relative_to(root)) for path in (*sets, *configs)]
    return [name for name in names if _prepared(root, name)]


def _children(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def _describe(name: str, directory: Path) -> Source:
    try:
        info = json.loads((directory / "dataset_info.json").read_text(encoding="utf-8"))
        features = json.loads((directory / "features.json").read_text(encoding="utf-8"))["featuresDict"]["features"]
        return Source(
            name=name,
            directory=directory,
            features={key: _num_classes(feature) for key, feature in features.items()},
            splits={split["name"]: sum(map(int, split.get("shardLengths", ()))) for split in info["splits"]},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"the metadata of data set {name!r} in {directory} cannot be read ({error!r}): prepare it again with TFDS"
        ) from None


def _num_classes(feature: Mapping[str, Any]) -> int | None:
    count = feature.get("classLabel", {}).get("numClasses")
    return None if count is None else int(count)


def _key(source: Source, split: str, feature: str) -> str:
    """Cache key that changes when the set does: it covers metadata and the names, sizes and times of the records."""
    state = hashlib.sha256()
    for path in sorted(source.directory.iterdir()):
        stat = path.stat()
        state.update(f"{path.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    base = quote(source.name, safe="")
    return f"{base}-{state.hexdigest()[:16]}/{quote(split, safe='')}/{quote(feature, safe='')}"
