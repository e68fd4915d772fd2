"""MultiDigits: two small handwritten digits on one canvas, made from an archive that ships with the package."""

from importlib import resources

import numpy as np

from mtljax.data import pairs
from mtljax.data.multitask import SPLITS, MultiTaskData
from mtljax.tasks import classification

LAYOUT = pairs.Layout(canvas=12, first=range(3), second=range(2, 5), distinct=True)
# Of the 1797 source images: 60% make the training pairs, 20% the validation pairs, the rest the test pairs.
SOURCE_BOUNDS = (0, 1078, 1438, 1797)


def digits(seed: int = 0, num_train: int = 8000, num_validation: int = 2000, num_test: int = 2000) -> MultiTaskData:
    """Makes MultiDigits: two overlaid digits, tasks `left` and `right`, each with ten classes.

    The first digit lies in the upper left (offsets 0 to 2), the second in the lower right (2 to 4) of a 12 x 12 canvas;
    where they overlap the brighter pixel wins, and the two classes differ. A seeded permutation deals the source images
    to the three splits, so no handwriting of the test pairs is seen in training. Each split has a random stream of its
    own: the test pairs of a seed do not depend on the number of training pairs. Needs neither network nor TFDS.

    Args:
      seed: Decides the division of the source images, the pairs and the offsets.
      num_train: Number of training pairs.
      num_validation: Number of validation pairs.
      num_test: Number of test pairs.

    Returns:
      Inputs `(N, 12, 12, 1)` uint8 from 0 to 255, targets `(N,)` int32. The same for a seed on every platform.

    Raises:
      ValueError: If the seed is negative or a number of pairs is below 1.

    References:
      Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998 (CC BY 4.0),
      8 x 8 images of 17 grey levels; the construction follows Multi-MNIST of Sabour et al., arXiv:1710.09829.
    """
    images, labels = _sources()
    order = pairs.permutation(pairs.stream(seed, 0), len(images))
    counts = (num_train, num_validation, num_test)
    splits = {}
    for k, (name, count) in enumerate(zip(SPLITS, counts, strict=True)):
        chosen = order[SOURCE_BOUNDS[k] : SOURCE_BOUNDS[k + 1]]
        source = images[chosen], labels[chosen]
        splits[name] = pairs.make_split(pairs.stream(seed, k + 1), source, source, count, LAYOUT)
    return MultiTaskData("digits", {"left": classification(10), "right": classification(10)}, splits)


def _sources() -> tuple[np.ndarray, np.ndarray]:
    """The 1797 source images, 8 x 8, scaled from 0..16 to 0..255, and their labels."""
    archive = resources.files("mtljax.data") / "digits.npz"
    with archive.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        images, labels = arrays["images"], arrays["labels"]
    return (images.astype(np.uint16) * 255 // 16).astype(np.uint8), labels.astype(np.int32)
