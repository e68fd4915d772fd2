"""Multi-MNIST, Multi-Fashion and Fashion+MNIST: two overlaid 28 x 28 images on a 36 x 36 canvas."""

import os

import numpy as np

from mtljax.data import pairs, tfds_source
from mtljax.data.multitask import SPLITS, MultiTaskData
from mtljax.tasks import classification

Sources = dict[str, tuple[np.ndarray, np.ndarray]]


def multi_mnist(
    seed: int = 0,
    num_train: int = 108_000,
    num_validation: int = 12_000,
    num_test: int = 20_000,
    data_dir: str | os.PathLike[str] | None = None,
    download: bool = True,
) -> MultiTaskData:
    """Makes Multi-MNIST: two overlaid digits of different classes, tasks `left` and `right`.

    The first digit's offset is drawn from {0..4}^2, the second's from {4..8}^2, and where they overlap the brighter
    pixel wins. Training and validation pairs together are 120,000, as in the papers, and come from MNIST's training
    images, test pairs from its test images. Where the papers hold out the last 10% of the pairs, here validation pairs
    are made from the last 10% of the source images, which no training pair uses: model selection then sees unseen
    handwriting. Each split has a random stream of its own.

    MNIST is read from TFDS without TensorFlow and decoded once into a cache of .npy files (about 15 seconds).

    Args:
      seed: Decides the pairs and the offsets.
      num_train: Number of training pairs.
      num_validation: Number of validation pairs.
      num_test: Number of test pairs.
      data_dir: TFDS data_dir; by default `$MTLJAX_DATA`, then TFDS's own.
      download: Whether TFDS may download the set when it is not found.

    Returns:
      Inputs `(N, 36, 36, 1)` uint8 from 0 to 255, targets `(N,)` int32. The same for a seed on every platform.

    Raises:
      FileNotFoundError: If the source images are neither found nor downloaded.
      ValueError: If the seed is negative or a number of pairs is below 1.

    References:
      Lin et al., Pareto Multi-Task Learning, arXiv:1912.12854, section 6.1; Sabour et al., arXiv:1710.09829.
    """
    source = _read("mnist", data_dir, download)
    return _overlaid("multi_mnist", source, source, True, seed, (num_train, num_validation, num_test))


def multi_fashion(
    seed: int = 0,
    num_train: int = 108_000,
    num_validation: int = 12_000,
    num_test: int = 20_000,
    data_dir: str | os.PathLike[str] | None = None,
    download: bool = True,
) -> MultiTaskData:
    """Makes Multi-Fashion: `multi_mnist` from the images of Fashion-MNIST; same arguments, shapes and errors."""
    source = _read("fashion_mnist", data_dir, download)
    return _overlaid("multi_fashion", source, source, True, seed, (num_train, num_validation, num_test))


def fashion_and_mnist(
    seed: int = 0,
    num_train: int = 108_000,
    num_validation: int = 12_000,
    num_test: int = 20_000,
    data_dir: str | os.PathLike[str] | None = None,
    download: bool = True,
) -> MultiTaskData:
    """Makes Fashion+MNIST: `multi_mnist` with an MNIST digit first and a Fashion-MNIST image second.

    `left` is the digit's class, `right` the garment's; any two classes meet. Arguments, shapes and errors are those
    of `multi_mnist`.
    """
    first, second = _read("mnist", data_dir, download), _read("fashion_mnist", data_dir, download)
    return _overlaid("fashion_and_mnist", first, second, False, seed, (num_train, num_validation, num_test))


def _read(name: str, data_dir: str | os.PathLike[str] | None, download: bool) -> Sources:
    """Images `(n, 28, 28)` uint8 and labels int32 for each split; validation is the last tenth of TFDS's train."""
    source = tfds_source.find(name, data_dir, download=download)
    train, test = (tfds_source.read(source, split, ("image", "label")) for split in ("train", "test"))
    held_out = len(train["label"]) * 9 // 10
    images, labels = train["image"][..., 0], train["label"]
    return {
        "train": (images[:held_out], labels[:held_out]),
        "validation": (images[held_out:], labels[held_out:]),
        "test": (test["image"][..., 0], test["label"]),
    }


def _overlaid(
    name: str, first: Sources, second: Sources, distinct: bool, seed: int, counts: tuple[int, int, int]
) -> MultiTaskData:
    layout = pairs.Layout(canvas=36, first=range(5), second=range(4, 9), distinct=distinct)
    splits = {
        split: pairs.make_split(pairs.stream(seed, k + 1), first[split], second[split], count, layout)
        for k, (split, count) in enumerate(zip(SPLITS, counts, strict=True))
    }
    return MultiTaskData(name, {"left": classification(10), "right": classification(10)}, splits)
