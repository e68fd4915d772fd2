"""Weather: snow, frost, fog and brightness. Lengths are for a side of 32 pixels."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mtljax.analysis.corruptions.filters import blurred, filtered, fractal, pick, streak, unit

_STREAK = 4.0  # length of a flake's trace


def snow(key: jax.Array, image: jax.Array, level: jax.Array) -> jax.Array:
    """Adds falling flakes, more of them with severity, and lets the colours fade to white."""
    where, fall = jax.random.split(key)
    noise = blurred(jax.random.normal(where, (*image.shape[:2], 1)), (0.6,) * 5, level)
    noise = noise / jnp.std(noise)
    flakes = jnp.where(noise > pick((1.9, 1.6, 1.35, 1.1, 0.85), level), 1.0, 0.0)
    angle = jax.random.uniform(fall, (), minval=jnp.pi / 4, maxval=3 * jnp.pi / 4)
    falling = filtered(flakes, streak(angle, _STREAK * unit(image), _STREAK * unit(image)))
    fade = pick((0.05, 0.1, 0.15, 0.2, 0.25), level)
    grey = jnp.mean(image, axis=-1, keepdims=True)
    faded = (1 - fade) * image + fade * jnp.maximum(image, 0.5 + 1.5 * grey)
    return faded + pick((0.8, 0.9, 1.0, 1.1, 1.2), level) * jnp.maximum(falling, 0)


def frost(key: jax.Array, image: jax.Array, level: jax.Array) -> jax.Array:
    """Covers the image with ice, thicker at the border: a stand-in for the original's photographs of frost.

    The ice is drawn by a formula: veins, where a random field passes its middle, on a milky ground. It shares the
    mixing with the original, not the look of real crystals, so that numbers compare with each other alone.
    """
    veins_key, ground_key = jax.random.split(key)
    shape = image.shape[:2]
    veins = (1 - jnp.abs(2 * fractal(veins_key, shape, 1.3) - 1)) ** 6
    ground = fractal(ground_key, shape, 1.7)
    ice = jnp.clip(0.7 * veins + 0.5 * ground * (0.5 + jnp.asarray(_border(shape), image.dtype)), 0, 1)
    keep, amount = pick((0.95, 0.9, 0.83, 0.76, 0.7), level), pick((0.2, 0.32, 0.44, 0.57, 0.7), level)
    return keep * image + amount * ice[..., None]


def fog(key: jax.Array, image: jax.Array, level: jax.Array) -> jax.Array:
    """Mixes the image with clouds, 0.2 to 1.5 parts of them to one of the image."""
    clouds = pick((0.2, 0.4, 0.7, 1.0, 1.5), level)
    return (image + clouds * fractal(key, image.shape[:2], 1.5)[..., None]) / (1 + clouds)


def brightness(key: jax.Array, image: jax.Array, level: jax.Array) -> jax.Array:
    """Adds 0.1 to 0.5 to the value of hue, saturation and value."""
    del key
    value = jnp.max(image, axis=-1, keepdims=True)
    colour = jnp.where(value > 0, image / jnp.where(value > 0, value, 1), 1)
    return colour * jnp.minimum(value + pick((0.1, 0.2, 0.3, 0.4, 0.5), level), 1)


def _border(shape: Sequence[int]) -> np.ndarray:
    """1 at the border of an image, 0 in its middle."""
    rows, columns = (np.abs(np.linspace(-1, 1, size)) for size in shape)
    return np.maximum(rows[:, None], columns) ** 2
