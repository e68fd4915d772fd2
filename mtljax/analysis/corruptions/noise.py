"""Noise: of the electronics, of the light, and dead pixels. It hits each channel of each pixel on its own."""

import jax
import jax.numpy as jnp

from mtljax.analysis.corruptions.filters import pick

_PHOTONS = (80, 50, 30, 18, 10)  # exp(-80) is still a normal float32
_MOST_PHOTONS = 152  # more arrive with probability 1e-12


def gaussian_noise(key: jax.Array, image: jax.Array, level: jax.Array) -> jax.Array:
    """Adds normal noise with standard deviation 0.04 to 0.18, as published for 64 pixels."""
    return image + pick((0.04, 0.08, 0.12, 0.15, 0.18), level) * jax.random.normal(key, image.shape, image.dtype)


def shot_noise(key: jax.Array, image: jax.Array, level: jax.Array) -> jax.Array:
    """Counts photons: Poisson numbers with a mean of 80 to 10 in a white pixel. Black stays black.

    Drawn by inverting the distribution function, so that an image gets the same draws at every severity.
    """
    photons = pick(_PHOTONS, level)
    mean = jnp.clip(image, 0, 1) * photons
    draws = jax.random.uniform(key, image.shape, image.dtype)

    def count(k: int, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        probability, below, counted = carry
        # Past the tail the sum of all probabilities is 1 but for rounding.
        counted = counted + ((draws >= below) & ((k < mean) | (probability > 1e-8)))
        probability = probability * mean / (k + 1)
        return probability, below + probability, counted

    none = jnp.exp(-mean)
    _, _, counts = jax.lax.fori_loop(0, _MOST_PHOTONS, count, (none, none, jnp.zeros_like(mean)))
    return counts / photons


def impulse_noise(key: jax.Array, image: jax.Array, level: jax.Array) -> jax.Array:
    """Salt and pepper: a share of 0.01 to 0.14 of the values becomes 0 or 1, as published for 64 pixels."""
    where, what = jax.random.split(key)
    hit = jax.random.uniform(where, image.shape) < pick((0.01, 0.02, 0.05, 0.08, 0.14), level)
    return jnp.where(hit, jax.random.bernoulli(what, shape=image.shape).astype(image.dtype), image)
