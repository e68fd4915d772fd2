"""Decodes the records of a prepared TFDS data set into arrays, without TensorFlow."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from mtljax.data import tfds_download

logger = logging.getLogger(__name__)

_CHUNK = 2048  # examples decoded at a time, so that the decoded Python objects stay few


def decode(name: str, directory: Path, split: str, features: Sequence[str]) -> dict[str, np.ndarray]:
    """Decodes some features of a split.

    Args:
      name: Name of the set, for messages.
      directory: Where it lies, with its version.
      split: Name of a split, or a TFDS slice of one.
      features: Names of top-level features.

    Returns:
      `{feature: (N, ...)}`, uint8, int32, int64 or float32.

    Raises:
      ValueError: If the slice is none, it holds no example, or a feature is no number or not of one shape.
      OSError: If the records cannot be decoded.
    """
    logger.info("decoding %s of %s from %s", split, name, directory)
    columns: dict[str, list[np.ndarray]] = {feature: [] for feature in features}
    with tfds_download.quiet_tfds() as tfds:
        for rows in _chunks(_open(tfds, name, directory, split, features), name, directory, split):
            for feature in features:
                columns[feature].append(_stack(name, feature, [row[feature] for row in rows]))
    if not all(columns.values()):
        raise ValueError(f"split {split!r} of data set {name!r} holds no example")
    return {feature: _plain(np.concatenate(chunks)) for feature, chunks in columns.items()}


def _open(tfds: ModuleType, name: str, directory: Path, split: str, features: Sequence[str]) -> Any:
    """The data source, a sequence of examples; images nobody asked for stay undecoded."""
    builder = tfds.builder_from_directory(str(directory), file_format="array_record")
    media = (tfds.features.Image, tfds.features.Audio, tfds.features.Video)
    unused = {key for key, feature in builder.info.features.items() if isinstance(feature, media)} - set(features)
    try:
        return builder.as_data_source(split=split, decoders={key: tfds.decode.SkipDecoding() for key in unused})
    except Exception as error:
        raise ValueError(
            f"split {split!r} of data set {name!r} cannot be opened ({tfds_download.first_line(error)})"
        ) from error


def _chunks(records: Any, name: str, directory: Path, split: str) -> Iterator[list[dict[str, Any]]]:
    for start in range(0, len(records), _CHUNK):
        try:
            rows = records.__getitems__(list(range(start, min(start + _CHUNK, len(records)))))
        except Exception as error:
            raise OSError(
                f"split {split!r} of data set {name!r} in {directory} cannot be decoded "
                f"({tfds_download.first_line(error)}): prepare it again"
            ) from error
        yield rows


def _stack(name: str, feature: str, values: list[Any]) -> np.ndarray:
    arrays = [np.asarray(value) for value in values]
    if arrays[0].dtype.kind not in "biuf":
        raise ValueError(f"feature {feature!r} of {name} is not a number or an array of numbers")
    if len({array.shape for array in arrays}) > 1:
        raise ValueError(f"feature {feature!r} of {name} changes its shape from example to example")
    return np.stack(arrays)


def _plain(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind == "f":
        return array.astype(np.float32)
    if array.dtype == np.uint8:
        return array
    return array.astype(np.int32 if array.min() >= -(2**31) and array.max() < 2**31 else np.int64)
