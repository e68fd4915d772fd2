"""Blurs: of the lens, of rippled glass, of a moving and of a zooming camera. Lengths are for a side of 32 pixels."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from mtljax.analysis.corruptions.filters import along_both, blurred, filtered, pick, splat, streak, unit, warped

_RADII = (0.9, 1.3, 1.8, 2.4, 3.2)
_LENGTHS = (3.0, 4.5, 6.0, 8.0, 11.0)
_ZOOMS = (1.08, 1.14, 1.21, 1.3, 1.42)
_ZOOM_STEPS = 9


def defocus_blur(key: jax.Array, image: jax.Array, level: jax.Array) -> jax.Array:
    """Spreads each pixel over a disc of radius 0.9 to 3.2."""
    del key
    reach = math.ceil(_RADII[-1] * unit(image))
    radius = pick(_RADII, level) * unit(image)
    disc = jnp.asarray(_unit_disc(), image.dtype)
    return filtered(image, splat(radius * disc[0], radius * disc[1], reach))


def glass_blur(key: jax.Array, image: jax.Array, level: jax.Array) -> jax.Array:
    """Reads each pixel from a random place up to 0.5 to 2.8 away, between two Gaussian blurs.

    The original swaps neighbouring pixels one after the other, which cannot be done to all of them at once.
    """
    sigmas = (0.35, 0.4, 0.45, 0.5, 0.6)
    image = blurred(image, sigmas, level)
    moves = jax.random.uniform(key, (2, *image.shape[:2]), image.dtype, -1, 1)
    moves = moves * pick((0.5, 0.9, 1.4, 2.0, 2.8), level) * unit(image)
    return blurred(warped(image, moves[0], moves[1]), sigmas, level)


def motion_blur(key: jax.Array, image: jax.Array, level: jax.Array) -> jax.Array:
    """Moves the camera by 3 to 11 in a random direction, at most 45 degrees off the horizontal."""
    angle = jax.random.uniform(key, (), image.dtype, -jnp.pi / 4, jnp.pi / 4)
    kernel = streak(angle, pick(_LENGTHS, level) * unit(image), _LENGTHS[-1] * unit(image))
    return filtered(image, kernel)


def zoom_blur(key: jax.Array, image: jax.Array, level: jax.Array) -> jax.Array:
    """Averages the image over zooms into its centre, from 1 to a factor of 1.08 to 1.42."""
    del key
    rows, columns = (pick(_zooms(size), level) for size in image.shape[:2])
    return jax.vmap(along_both, in_axes=(0, 0, None))(rows, columns, image).mean(0)


def _unit_disc(points: int = 256) -> np.ndarray:
    """(2, n) points spread evenly over the unit disc, along a spiral of golden angles."""
    order = np.arange(points) + 0.5
    radius, angle = np.sqrt(order / points), order * np.pi * (3 - math.sqrt(5))
    return np.stack([radius * np.sin(angle), radius * np.cos(angle)])


def _zooms(size: int) -> np.ndarray:
    """(5, steps, size, size): linear interpolation from the centre, for each severity and zoom."""
    factors = np.stack([np.linspace(1, zoom, _ZOOM_STEPS) for zoom in _ZOOMS])[..., None, None]
    centre = (size - 1) / 2
    places = (np.arange(size)[:, None] - centre) / factors + centre
    return np.maximum(1 - np.abs(places - np.arange(size)), 0)
