"""What several corruptions share: blurs, interpolation and random fields, each of one image (H, W, C) of floats.

Blurs are products with small matrices or go through the FFT, interpolation is a gather: no convolution, which is slow
inside vmap on a CPU.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.ndimage import map_coordinates

HIGHEST = lax.Precision.HIGHEST


def unit(image: jax.Array) -> float:
    """The pixels in a length of 1: severities state lengths for images whose shorter side is 32."""
    return min(image.shape[:2]) / 32


def pick(values: Sequence[float] | np.ndarray, level: jax.Array) -> jax.Array:
    """The entry of a table that belongs to a level, 0 to 4."""
    return jnp.asarray(np.asarray(values, np.float32))[level]


def along_both(rows: jax.Array, columns: jax.Array, image: jax.Array) -> jax.Array:
    """A linear map of the rows (H', H) and one of the columns (W', W), applied to an image."""
    return jnp.einsum("ij,jkc,lk->ilc", rows, image, columns, precision=HIGHEST)


def blurred(image: jax.Array, sigmas: Sequence[float], level: jax.Array) -> jax.Array:
    """Gaussian blur with the sigma of a level, in units; at the border the weights of what is there add up to 1."""
    rows, columns = (pick(_gaussians(size, np.multiply(sigmas, unit(image))), level) for size in image.shape[:2])
    return along_both(rows, columns, image)


def _gaussians(size: int, sigmas: np.ndarray) -> np.ndarray:
    distances = np.arange(size)[:, None] - np.arange(size)
    weights = np.exp(-0.5 * (distances / sigmas[:, None, None]) ** 2)
    return weights / weights.sum(-1, keepdims=True)


def splat(rows: jax.Array, columns: jax.Array, reach: int) -> jax.Array:
    """A kernel (2 reach + 1, 2 reach + 1) of points of equal weight around its centre, spread over the pixels nearby.

    Args:
      rows: (n,) coordinates of the points, in pixels from the centre, up to `reach`.
      columns: (n,) the same along the other axis.
      reach: half the size.

    Returns:
      The kernel; it sums to 1.
    """
    grid = jnp.arange(-reach, reach + 1.0)[:, None]
    hats = [jnp.maximum(1 - jnp.abs(grid - points), 0) for points in (rows, columns)]
    return jnp.matmul(hats[0], hats[1].T, precision=HIGHEST) / rows.shape[0]


def streak(angle: jax.Array, length: jax.Array | float, longest: float) -> jax.Array:
    """The kernel of a straight motion.

    Args:
      angle: of the motion against the rows of the image.
      length: in pixels.
      longest: the greatest length, which fixes the size.

    Returns:
      The kernel; see `splat`.
    """
    reach = math.ceil(longest / 2)
    points = jnp.linspace(-0.5, 0.5, 4 * reach + 1) * length
    return splat(points * jnp.sin(angle), points * jnp.cos(angle), reach)


def filtered(image: jax.Array, kernel: jax.Array) -> jax.Array:
    """The convolution of an image with a kernel of odd size, by FFT; beyond the border its last pixel goes on."""
    reach = kernel.shape[0] // 2
    padded = jnp.pad(image, ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    shape = padded.shape[:2]
    spectrum = jnp.fft.rfft2(padded, axes=(0, 1)) * jnp.fft.rfft2(kernel, s=shape)[..., None]
    # What wraps around spoils the first rows and columns only; the rest has the size of the image.
    return jnp.fft.irfft2(spectrum, s=shape, axes=(0, 1))[2 * reach :, 2 * reach :].astype(image.dtype)


def warped(image: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """The image read at displaced places, with linear interpolation; beyond the border its last pixel goes on.

    Args:
      image: (H, W, C).
      rows: (H, W) displacement of the place each pixel is read from, in pixels.
      columns: the same along the other axis.

    Returns:
      (H, W, C).
    """
    height, width = image.shape[:2]
    places = [jnp.arange(height)[:, None] + rows, jnp.arange(width) + columns]
    read = lambda channel: map_coordinates(channel, places, order=1, mode="nearest")  # noqa: E731
    return jax.vmap(read, in_axes=-1, out_axes=-1)(image)


def fractal(key: jax.Array, shape: Sequence[int], exponent: float) -> jax.Array:
    """A random field from 0 to 1 whose amplitudes fall with a power of the frequency: clouds at 1.5, noise at 0."""
    height, width = shape
    frequencies = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequencies[0, 0] = np.inf
    amplitudes = jnp.asarray((frequencies**-exponent).astype(np.float32))
    field = jnp.fft.irfft2(jnp.fft.rfft2(jax.random.normal(key, shape)) * amplitudes, s=shape)
    low, high = field.min(), field.max()
    return (field - low) / (high - low)
