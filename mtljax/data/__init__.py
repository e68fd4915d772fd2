"""Multi-task data sets in memory, and batches of them.

Each set is a function that returns a `MultiTaskData`: `digits.py` (made on the fly from an archive in the package),
`multi_mnist.py` (three sets overlaid from MNIST and Fashion-MNIST), `from_tfds.py` (any TFDS set). `pairs.py` overlays
images; `tfds_source.py`, `tfds_decode.py` and `tfds_download.py` are the only users of TFDS; `cache.py` keeps decoded
arrays; `batches.py` cuts batches; this file is the registry of the named sets. Imports jax, numpy, `mtljax.tasks` and
`mtljax.errors`; tensorflow_datasets only inside the functions that need it.
"""

import inspect
from collections.abc import Callable
from typing import Any

from mtljax.data.batches import (
    Batch,
    batch_indices,
    epoch_permutation,
    evaluation_batches,
    position,
    steps_per_epoch,
    take,
)
from mtljax.data.digits import digits
from mtljax.data.from_tfds import Target, from_tfds
from mtljax.data.multi_mnist import fashion_and_mnist, multi_fashion, multi_mnist
from mtljax.data.multitask import SPLITS, MultiTaskData, Split
from mtljax.errors import unknown

__all__ = [
    "SPLITS",
    "Batch",
    "MultiTaskData",
    "Split",
    "Target",
    "batch_indices",
    "digits",
    "epoch_permutation",
    "evaluation_batches",
    "fashion_and_mnist",
    "from_tfds",
    "load",
    "multi_fashion",
    "multi_mnist",
    "names",
    "position",
    "steps_per_epoch",
    "take",
]

_DATA_SETS: dict[str, Callable[..., MultiTaskData]] = {
    "digits": digits,
    "fashion_and_mnist": fashion_and_mnist,
    "multi_fashion": multi_fashion,
    "multi_mnist": multi_mnist,
}


def names() -> tuple[str, ...]:
    """Lists the data sets that `load` knows, sorted."""
    return tuple(sorted(_DATA_SETS))


def load(name: str, **arguments: Any) -> MultiTaskData:
    """Makes a data set by name.

    Args:
      name: One of `names()`.
      **arguments: Arguments of the function of that name, such as `seed` and `num_train`.

    Returns:
      The data set.

    Raises:
      ValueError: If the name or an argument is unknown; names the nearest.
      FileNotFoundError: If the set needs TFDS data that is neither found nor downloaded.

    Example:
      >>> load("digits", num_train=100).splits["train"].inputs.shape
      (100, 12, 12, 1)
    """
    if name not in _DATA_SETS:
        raise unknown("data set", name, _DATA_SETS)
    valid = inspect.signature(_DATA_SETS[name]).parameters
    for argument in arguments:
        if argument not in valid:
            raise unknown(f"argument of {name}", argument, valid)
    return _DATA_SETS[name](**arguments)
