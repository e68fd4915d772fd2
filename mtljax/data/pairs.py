"""Pairs of overlaid images, the construction behind Multi-MNIST and MultiDigits.

Random numbers come from the raw 64-bit stream of PCG64, which numpy keeps the same on every platform and in every
version (NEP 19); the methods of `np.random.Generator` carry no such promise.
"""

import dataclasses

import numpy as np

from mtljax.data.multitask import Split


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the two images of a pair go.

    Attributes:
      canvas: Side of the square canvas, in pixels.
      first: Offsets of the first image, each drawn from this range for row and column.
      second: The same for the second image.
      distinct: Whether the two classes must differ.
    """

    canvas: int
    first: range
    second: range
    distinct: bool


def stream(*seed: int) -> np.random.PCG64:
    """Starts a random stream; streams of different seeds are independent."""
    if any(isinstance(part, bool) or not isinstance(part, int | np.integer) or part < 0 for part in seed):
        raise ValueError(f"seed must be an integer of at least 0, got {seed[0]!r}")
    return np.random.PCG64(np.random.SeedSequence([int(part) for part in seed]))


def integers(bits: np.random.PCG64, high: int, size: int) -> np.ndarray:
    """Draws `size` integers from 0 to `high - 1`, int64 (the remainder's bias is `high / 2**64`)."""
    return (bits.random_raw(size) % np.uint64(high)).astype(np.int64)


def permutation(bits: np.random.PCG64, size: int) -> np.ndarray:
    """Draws a random order of `0 .. size - 1`, int64."""
    return np.argsort(bits.random_raw(size), kind="stable")


def draw_pairs(
    bits: np.random.PCG64, first_labels: np.ndarray, second_labels: np.ndarray, count: int, *, distinct: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Draws which two source images make each pair.

    Every first image is used equally often, up to one; the second is drawn uniformly, again and again until the classes
    differ where they must.

    Args:
      bits: Random stream.
      first_labels: `(n,)` classes of the images that may come first.
      second_labels: `(m,)` classes of the images that may come second.
      count: Number of pairs.
      distinct: Whether the two classes must differ.

    Returns:
      Two int64 arrays `(count,)`, indices into the first and the second images.

    Raises:
      ValueError: If classes must differ but there is only one.
    """
    if distinct and len(np.unique(second_labels)) < 2:
        raise ValueError("pairs of different classes need second images of at least two classes")
    rounds = -(-count // len(first_labels))
    first = np.concatenate([permutation(bits, len(first_labels)) for _ in range(rounds)])[:count]
    second = integers(bits, len(second_labels), count)
    clash = np.flatnonzero(first_labels[first] == second_labels[second]) if distinct else np.empty(0, np.int64)
    while clash.size:
        second[clash] = integers(bits, len(second_labels), clash.size)
        clash = clash[first_labels[first[clash]] == second_labels[second[clash]]]
    return first, second


def overlay(
    first: np.ndarray, second: np.ndarray, first_offsets: np.ndarray, second_offsets: np.ndarray, canvas: int
) -> np.ndarray:
    """Puts two images on a black canvas; where they overlap, the brighter pixel wins.

    Args:
      first: `(N, h, w)` uint8.
      second: `(N, h, w)` uint8.
      first_offsets: `(N, 2)` row and column of the first image's upper left pixel.
      second_offsets: The same for the second.
      canvas: Side of the canvas.

    Returns:
      `(N, canvas, canvas, 1)` uint8.
    """
    out = np.zeros((len(first), canvas, canvas), np.uint8)
    for images, offsets in ((first, first_offsets), (second, second_offsets)):
        height, width = images.shape[1:]
        for row, column in np.unique(offsets, axis=0):
            here = np.flatnonzero((offsets == (row, column)).all(axis=1))
            window = np.s_[here, row : row + height, column : column + width]
            out[window] = np.maximum(out[window], images[here])
    return out[..., None]


def make_split(
    bits: np.random.PCG64,
    first: tuple[np.ndarray, np.ndarray],
    second: tuple[np.ndarray, np.ndarray],
    count: int,
    layout: Layout,
) -> Split:
    """Makes one split of pairs with the tasks `left` (class of the first image) and `right` (of the second).

    Args:
      bits: Random stream.
      first: Images `(n, h, w)` uint8 and labels `(n,)` that may come first.
      second: The same for the second image.
      count: Number of pairs, at least 1.
      layout: Canvas and offsets.

    Returns:
      A split with inputs `(count, canvas, canvas, 1)` uint8 and int32 targets `(count,)`.

    Raises:
      ValueError: If `count` is not a positive integer.
    """
    if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 1:
        raise ValueError(f"the number of pairs in a split must be an integer of at least 1, got {count!r}")
    i, j = draw_pairs(bits, first[1], second[1], count, distinct=layout.distinct)
    offsets = [
        np.stack([integers(bits, len(choices), count) + choices.start for _ in range(2)], axis=1)
        for choices in (layout.first, layout.second)
    ]
    images = overlay(first[0][i], second[0][j], offsets[0], offsets[1], layout.canvas)
    targets = {"left": first[1][i].astype(np.int32), "right": second[1][j].astype(np.int32)}
    return Split(images, dict(targets))
