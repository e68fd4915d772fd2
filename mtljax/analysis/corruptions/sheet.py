"""A sheet of one image in all 75 corruptions, for eyes, and how far each lies from the clean image."""

from typing import TYPE_CHECKING

import jax
import numpy as np

from mtljax.analysis.corruptions import SEVERITIES, corrupt, names

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BLOCKS = 3  # groups of corruptions side by side


def distances(key: jax.Array, images: np.ndarray) -> dict[str, np.ndarray]:
    """How far corruptions move images.

    Args:
      key: PRNG key.
      images: (N, H, W, C).

    Returns:
      By corruption, for each severity the mean over the images of the root mean square of the change of a pixel, where
      white is 1.
    """
    by_corruption = {}
    for name in names():
        made = (np.asarray(corrupt(key, images, name, severity)) for severity in SEVERITIES)
        by_corruption[name] = np.array([_distance(each, images) for each in made])
    return by_corruption


def _distance(images: np.ndarray, clean: np.ndarray) -> float:
    change = images.astype(np.float64) - clean
    white = 255 if clean.dtype == np.uint8 else 1
    return float(np.sqrt(np.square(change / white).mean((1, 2, 3))).mean())


def plot_corruptions(key: jax.Array, image: np.ndarray) -> "Figure":
    """Draws an image in all corruptions: a row for each, the clean image first and severity growing to the right.

    Args:
      key: PRNG key.
      image: (H, W, C).

    Returns:
      A matplotlib figure; `figure.savefig(path)` writes it.
    """
    from matplotlib.figure import Figure

    rows = -(-len(names()) // _BLOCKS)
    figure = Figure(figsize=(3.6 * _BLOCKS, 0.78 * rows), layout="constrained")
    panels = figure.subplots(rows, _BLOCKS, squeeze=False)
    for place, name in enumerate(names()):
        made = [image, *(np.asarray(corrupt(key, image, name, severity)) for severity in SEVERITIES)]
        panel = panels[place % rows, place // rows]
        panel.imshow(_in_a_row(made), cmap="gray", interpolation="nearest")
        panel.set_title(f"{name.replace('_', ' ')}: clean, 1 to 5", fontsize=8, loc="left", pad=2)
    for panel in panels.flat:
        panel.axis("off")
    return figure


def _in_a_row(images: list[np.ndarray]) -> np.ndarray:
    """(H, W', 3) from 0 to 1, white between the images."""
    white = 255 if images[0].dtype == np.uint8 else 1
    framed = [np.pad(each / white, ((0, 0), (0, 1), (0, 0)), constant_values=1) for each in images]
    return np.broadcast_to(row := np.concatenate(framed, axis=1), (*row.shape[:2], 3))
