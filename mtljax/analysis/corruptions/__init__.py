"""The 15 common corruptions of images at 5 severities (Hendrycks and Dietterich, arXiv:1903.12261), in pure JAX.

`noise.py`, `blur.py`, `weather.py` and `digital.py` hold a function for each, of one image; `filters.py` what they
share; `sheet.py` draws all 75. Severities are stated for small images, 28 to 64 pixels, and lengths grow with the
image. They are ours, between those published for 32 and for 224 pixels, and chosen so that each severity lies farther
from the clean image than the one before. Imports jax, numpy and `mtljax.errors`.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from mtljax.analysis.corruptions import blur, digital, noise, weather
from mtljax.errors import unknown

__all__ = ["FAMILIES", "SEVERITIES", "corrupt", "corrupt_each", "names"]

_MODULES = {
    noise: ("gaussian_noise", "shot_noise", "impulse_noise"),
    blur: ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    weather: ("snow", "frost", "fog", "brightness"),
    digital: ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
}
_CORRUPTIONS: dict[str, Callable[..., jax.Array]] = {
    name: getattr(module, name) for module, members in _MODULES.items() for name in members
}
FAMILIES = {module.__name__.rpartition(".")[2]: members for module, members in _MODULES.items()}
SEVERITIES = (1, 2, 3, 4, 5)
_LEAST = 8  # pixels along a side
_CHUNK = 500  # images at once: what is computed along the way takes up to a hundred times their memory


def names() -> tuple[str, ...]:
    """Lists the corruptions, by family."""
    return tuple(_CORRUPTIONS)


def corrupt(key: jax.Array, images: Any, name: str, severity: Any) -> jax.Array:
    """Corrupts images.

    Runs inside jit and vmap. What is random depends on the key and the place of an image in the batch, and is the same
    at every severity.

    Args:
      key: PRNG key.
      images: (N, H, W, C) or one (H, W, C): floats from 0 to 1, or uint8 from 0 to 255. H and W at least 8.
      name: one of `names()`, such as "fog".
      severity: 1 to 5, or (N,) of these.

    Returns:
      Images of the same shape, dtype and range.

    Raises:
      ValueError: if the name is unknown, the severity is none, or the images are no images.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> images = jnp.zeros((2, 32, 32, 3), jnp.uint8)
      >>> corrupt(jax.random.PRNGKey(0), images, "brightness", 5)[0, 0, 0]
      Array([128, 128, 128], dtype=uint8)
    """
    _check(name, severity)
    images = jnp.asarray(images)
    require_images(images.shape, images.dtype)
    batch = images if images.ndim == 4 else images[None]
    severity = jnp.asarray(severity)
    if severity.shape not in ((), (len(batch),)):
        raise ValueError(f"corrupt takes one severity, or one for each of {len(batch)} images, got {severity.shape}")
    levels = jnp.broadcast_to(severity.astype(jnp.int32) - 1, (len(batch),))
    return _program(_keys(key, len(batch)), batch, levels, name=name).reshape(images.shape)


def corrupt_each(key: jax.Array, images: np.ndarray, which: np.ndarray, severities: np.ndarray) -> np.ndarray:
    """Corrupts each image in a way of its own, in parts, so that memory holds for any number of images.

    Args:
      key: PRNG key; image i is what `corrupt` makes of it at place i.
      images: (N, H, W, C), on the host.
      which: (N,) indices into `names()`.
      severities: (N,) from 1 to 5.

    Returns:
      (N, H, W, C), on the host.

    Raises:
      ValueError: if the inputs are no images, or an index, a severity or their number is wrong.
    """
    require_images(images.shape, images.dtype)
    if not len(which) == len(severities) == len(images):
        raise ValueError(
            f"corrupt_each takes an index and a severity for each of {len(images)} images, got {len(which)} and "
            f"{len(severities)}"
        )
    if not np.isin(which, range(len(names()))).all():
        raise ValueError(f"corrupt_each takes indices from 0 to {len(names()) - 1}, those of names()")
    _check(names()[0], severities)
    keys, corrupted = _keys(key, len(images)), np.empty_like(images)
    for index in np.unique(which):
        places = np.flatnonzero(which == index)
        for start in range(0, len(places), _CHUNK):
            part = places[start : start + _CHUNK]
            same = np.resize(part, min(_CHUNK, len(images)))  # one shape, one program
            made = _program(keys[same], images[same], severities[same].astype(np.int32) - 1, name=names()[index])
            corrupted[part] = np.asarray(made)[: len(part)]
    return corrupted


def require_images(shape: tuple[int, ...], dtype: Any) -> None:
    """Raises ValueError if arrays of this shape and dtype hold no images."""
    right = len(shape) in (3, 4) and shape[-1] in (1, 3) and min(shape[-3:-1]) >= _LEAST
    if not right or not (dtype == np.uint8 or jnp.issubdtype(dtype, jnp.floating)):
        raise ValueError(
            f"corruptions are for images, (N, height, width, 1 or 3) of at least {_LEAST} pixels a side, uint8 or "
            f"floats from 0 to 1; these inputs are {np.dtype(dtype).name} of shape {tuple(shape)}"
        )


@functools.partial(jax.jit, static_argnames="name")
def _program(keys: jax.Array, images: jax.Array, levels: jax.Array, *, name: str) -> jax.Array:
    whole = images.dtype == jnp.uint8
    values = images / jnp.float32(255) if whole else images.astype(jnp.promote_types(images.dtype, jnp.float32))
    made = jnp.clip(jax.vmap(_CORRUPTIONS[name])(keys, values, levels), 0, 1)
    return (jnp.round(255 * made) if whole else made).astype(images.dtype)


def _keys(key: jax.Array, count: int) -> jax.Array:
    """A key for each place of a batch, whatever the size of the batch."""
    return jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(count))


def _check(name: str, severity: Any) -> None:
    if name not in _CORRUPTIONS:
        raise unknown("corruption", name, _CORRUPTIONS)
    if isinstance(severity, Tracer):
        return
    if not np.isin(severity, SEVERITIES).all():
        raise ValueError(f"severity must be an integer from 1 to 5, got {severity!r}")
