"""Corrupted training and test examples, shared by the networks that are compared on them."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from mtljax.analysis.corruptions import SEVERITIES, corrupt_each, names, require_images
from mtljax.data import Split
from mtljax.errors import unknown

_KEPT = 1_500_000_000  # bytes of corrupted test images kept in memory; beyond they are made again for each network


class CorruptedData(NamedTuple):
    """What networks are measured on; networks that are compared should share it. See `corrupted_data`.

    Attributes:
      train: training examples, each with a corruption and a severity of its own.
      test: clean test examples.
      images: `(corruption, severity) -> (N, H, W, C)`, the images of the test examples corrupted.
      corruptions: their names.
    """

    train: Split
    test: Split
    images: Callable[[str, int], np.ndarray]
    corruptions: tuple[str, ...]


def corrupted_data(
    train: Split,
    test: Split,
    *,
    corruptions: Sequence[str] = names(),
    seed: int = 0,
    num_train: int | None = None,
    num_test: int | None = None,
) -> CorruptedData:
    """Corrupts training and test images.

    Args:
      train: training examples, `(images, {task: targets})`; images as `corrupt` takes them.
      test: test examples.
      corruptions: which, of `mtljax.analysis.corruptions.names()`; all 15 by default.
      seed: of all that is random.
      num_train: how many to take, from the first on; None for all.
      num_test: likewise.

    Returns:
      The data. Test images are corrupted when asked for first, and kept.

    Raises:
      ValueError: if the inputs are no images, a corruption is unknown, a number is below 1, or floats are not from 0
        to 1.
    """
    known = names()
    if isinstance(corruptions, str):
        raise ValueError(f"corruptions takes a list of names, such as [{corruptions!r}]")
    if not corruptions:
        raise ValueError(f"corruptions is empty: name at least one of {', '.join(known)}")
    for name in corruptions:
        if name not in known:
            raise unknown("corruption", name, known)
    used = np.array([known.index(name) for name in corruptions])
    train, test = _first(train, num_train, "num_train"), _first(test, num_test, "num_test")
    for inputs in (train.inputs, test.inputs):
        require_images(inputs.shape, inputs.dtype)
        if inputs.dtype != np.uint8 and not (inputs.min() >= 0 and inputs.max() <= 1):
            raise ValueError(
                f"corruptions are for images with values from 0 to 1, these go from {inputs.min():.3g} to "
                f"{inputs.max():.3g}: leave normalisation to the model"
            )
    which_key, severity_key, train_key, test_key = jax.random.split(jax.random.PRNGKey(seed), 4)
    which, severities = (
        np.asarray(jax.random.randint(key, (train.num_examples,), low, high))
        for key, low, high in ((which_key, 0, len(used)), (severity_key, 1, len(SEVERITIES) + 1))
    )
    kept: dict[tuple[str, int], np.ndarray] = {}
    keep = test.inputs.nbytes * len(used) * len(SEVERITIES) <= _KEPT

    def images(corruption: str, severity: int) -> np.ndarray:
        if (corruption, severity) in kept:
            return kept[corruption, severity]
        index = known.index(corruption)
        same = (np.full(test.num_examples, value) for value in (index, severity))
        made = corrupt_each(jax.random.fold_in(test_key, index), np.asarray(test.inputs), *same)
        if keep:
            kept[corruption, severity] = made
        return made

    inputs = corrupt_each(train_key, np.asarray(train.inputs), used[which], severities)
    return CorruptedData(Split(inputs, train.targets), test, images, tuple(corruptions))


def _first(split: Split, count: int | None, what: str) -> Split:
    split = Split(*split)
    if count is not None and count < 1:
        raise ValueError(f"{what} must be at least 1, got {count}")
    return jax.tree.map(lambda leaf: np.asarray(leaf[:count]), split)
