"""Digital: contrast, elastic distortion, large pixels and JPEG. Lengths are for a side of 32 pixels."""

import jax
import jax.numpy as jnp
import numpy as np

from mtljax.analysis.corruptions.filters import HIGHEST, along_both, blurred, pick, unit, warped

_SIDES = (0.75, 0.6, 0.45, 0.35, 0.25)
_QUALITIES = (60, 40, 25, 15, 8)
# The tables of the JPEG standard's Annex K for quality 50.
_LUMINANCE = """
    16 11 10 16 24 40 51 61     12 12 14 19 26 58 60 55     14 13 16 24 40 57 69 56     14 17 22 29 51 87 80 62
    18 22 37 56 68 109 103 77   24 35 55 64 81 104 113 92   49 64 78 87 103 121 120 101 72 92 95 98 112 100 103 99"""
_CHROMINANCE = """
    17 18 24 47 99 99 99 99     18 21 26 66 99 99 99 99     24 26 56 99 99 99 99 99     47 66 99 99 99 99 99 99
    99 99 99 99 99 99 99 99     99 99 99 99 99 99 99 99     99 99 99 99 99 99 99 99     99 99 99 99 99 99 99 99"""
_TO_YCC = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])


def contrast(key: jax.Array, image: jax.Array, level: jax.Array) -> jax.Array:
    """Brings each channel nearer to its mean: 0.7 to 0.15 of the distance is left."""
    del key
    mean = jnp.mean(image, axis=(0, 1))
    return mean + pick((0.7, 0.5, 0.35, 0.25, 0.15), level) * (image - mean)


def elastic_transform(key: jax.Array, image: jax.Array, level: jax.Array) -> jax.Array:
    """Distorts the image: a smooth random displacement of 0.4 to 1.8 (root mean square), and a random linear map."""
    field_key, linear_key = jax.random.split(key)
    shape = image.shape[:2]
    field = blurred(jax.random.normal(field_key, (*shape, 2)), (2.2,) * 5, level)
    field = field / jnp.std(field, axis=(0, 1)) * pick((0.4, 0.7, 1.0, 1.4, 1.8), level) * unit(image)
    entries = jax.random.uniform(linear_key, (2, 2), minval=-1, maxval=1) * pick((0.02, 0.04, 0.06, 0.08, 0.1), level)
    rows, columns = (jnp.arange(size) - (size - 1) / 2 for size in shape)
    places = jnp.stack(jnp.broadcast_arrays(rows[:, None], columns), axis=-1)
    moves = field + jnp.matmul(places, entries, precision=HIGHEST)
    return warped(image, moves[..., 0], moves[..., 1])


def pixelate(key: jax.Array, image: jax.Array, level: jax.Array) -> jax.Array:
    """Averages over larger pixels, with 0.75 to 0.25 times as many of them along each side."""
    del key
    rows, columns = (pick(_pixels(size), level) for size in image.shape[:2])
    return along_both(rows, columns, image)


def jpeg_compression(key: jax.Array, image: jax.Array, level: jax.Array) -> jax.Array:
    """Rounds the coefficients of 8 x 8 cosine transforms as JPEG does at qualities 60 to 8.

    All that JPEG loses it loses here: colour at half the resolution (images of 3 channels; any other number of channels
    is coded one by one as brightness), and the quantised coefficients. What encoder and decoder do besides is lossless.
    """
    del key
    pixels = 255 * image
    if image.shape[-1] != 3:
        return _rounded(pixels, _tables(_LUMINANCE), level) / 255
    ycc = jnp.matmul(jnp.round(pixels), jnp.asarray(_TO_YCC.T, image.dtype), precision=HIGHEST)
    ycc = jnp.round(ycc + jnp.array([0.0, 128.0, 128.0]))
    luminance = _rounded(ycc[..., :1], _tables(_LUMINANCE), level)
    height, width = image.shape[:2]
    even = jnp.pad(ycc[..., 1:], ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    halved = even.reshape(even.shape[0] // 2, 2, even.shape[1] // 2, 2, 2).mean((1, 3))
    halved = _rounded(halved, _tables(_CHROMINANCE), level)
    chrominance = jax.image.resize(halved, even.shape, "linear")[:height, :width] - 128
    decoded = jnp.concatenate([luminance, chrominance], axis=-1)
    return jnp.matmul(decoded, jnp.asarray(np.linalg.inv(_TO_YCC).T, image.dtype), precision=HIGHEST) / 255


def _rounded(pixels: jax.Array, tables: np.ndarray, level: jax.Array) -> jax.Array:
    """Channels (H, W, C) from 0 to 255 after their blocks' coefficients were rounded to multiples of a table."""
    height, width, channels = pixels.shape
    padded = jnp.pad(jnp.round(pixels) - 128, ((0, -height % 8), (0, -width % 8), (0, 0)), mode="edge")
    blocks = padded.reshape(padded.shape[0] // 8, 8, padded.shape[1] // 8, 8, channels)
    cosines = jnp.asarray(_cosines(), pixels.dtype)
    step = pick(tables, level)[None, :, None, :, None]
    coefficients = jnp.einsum("ui,aibjc,vj->aubvc", cosines, blocks, cosines, precision=HIGHEST)
    coefficients = jnp.round(coefficients / step) * step
    decoded = jnp.einsum("ui,aubvc,vj->aibjc", cosines, coefficients, cosines, precision=HIGHEST)
    return jnp.clip(jnp.round(decoded.reshape(padded.shape) + 128), 0, 255)[:height, :width]


def _cosines() -> np.ndarray:
    """The orthonormal cosine transform of 8 values."""
    waves = np.cos(np.pi * np.arange(8)[:, None] * (np.arange(8) + 0.5) / 8) / 2
    waves[0] /= np.sqrt(2)
    return waves


def _tables(text: str) -> np.ndarray:
    """(5, 8, 8): the table of quality 50, scaled to each quality as the reference encoder does."""
    table, qualities = np.array(text.split(), int).reshape(8, 8), np.array(_QUALITIES)
    scales = np.where(qualities < 50, 5000 // qualities, 200 - 2 * qualities)
    return np.clip((table * scales[:, None, None] + 50) // 100, 1, 255)


def _pixels(size: int) -> np.ndarray:
    """(5, size, size): means over larger pixels, spread over the pixels they cover most."""
    return np.stack([_pixelation(size, max(1, round(share * size))) for share in _SIDES])


def _pixelation(size: int, fewer: int) -> np.ndarray:
    edges, coarse = np.arange(size), np.arange(fewer)[:, None] * size / fewer
    overlap = np.minimum(edges + 1, coarse + size / fewer) - np.maximum(edges, coarse)
    mean = np.maximum(overlap, 0) * fewer / size
    return mean[np.minimum(((edges + 0.5) * fewer / size).astype(int), fewer - 1)]
