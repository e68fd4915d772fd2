"""Pooling without reduce_window, whose backward pass is slow on CPU."""

import functools

import jax
import jax.numpy as jnp


def max_pool_2x2(x: jax.Array) -> jax.Array:
    """Non-overlapping 2 x 2 max pooling, as the maximum of four strided slices.

    Args:
      x: (B, H, W, C); an odd last row or column is dropped.

    Returns:
      (B, H // 2, W // 2, C).

    Raises:
      ValueError: if the image is smaller than the window.
    """
    _, height, width, _ = x.shape
    if height < 2 or width < 2:
        raise ValueError(
            f"the image has shrunk to {height} x {width} before pooling: use smaller kernels or padding='SAME'"
        )
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    return functools.reduce(_larger, [x[:, i::2, j::2] for i in range(2) for j in range(2)])


def max_pool_3x3_stride_2(x: jax.Array) -> jax.Array:
    """3 x 3 max pooling of stride 2 with one row and column of padding, as the maximum of nine shifted slices.

    Args:
      x: (B, H, W, C).

    Returns:
      (B, ceil(H / 2), ceil(W / 2), C).
    """
    height, width = (x.shape[1] + 1) // 2, (x.shape[2] + 1) // 2
    padded = jnp.pad(x, ((0, 0), (1, 2), (1, 2), (0, 0)), constant_values=-jnp.inf)
    slices = [padded[:, i : i + 2 * height : 2, j : j + 2 * width : 2] for i in range(3) for j in range(3)]
    return functools.reduce(_larger, slices)


@jax.custom_jvp
def _larger(a: jax.Array, b: jax.Array) -> jax.Array:
    """The maximum, whose gradient goes to the first of two equals, which costs one comparison."""
    return jnp.maximum(a, b)


@_larger.defjvp
def _larger_jvp(
    primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (a, b), (da, db) = primals, tangents
    return jnp.maximum(a, b), jnp.where(a >= b, da, db)


def shrunk(x: jax.Array, factor: int) -> jax.Array:
    """Means over squares of `factor` x `factor` pixels; what does not fill a square is dropped.

    Args:
      x: (B, H, W, C).
      factor: at least 1.

    Returns:
      (B, H // factor, W // factor, C).

    Raises:
      ValueError: if these are no images, or the factor is below 1 or exceeds them.
    """
    if x.ndim != 4:
        raise ValueError(f"shrink averages pixels of images (B, H, W, C), got inputs of shape {x.shape}")
    batch, height, width, channels = x.shape
    if not 1 <= factor <= min(height, width):
        raise ValueError(f"shrink must be from 1 to the size of the image, {height} x {width}, got {factor}")
    rows, columns = height // factor, width // factor
    x = x[:, : rows * factor, : columns * factor]
    return x.reshape(batch, rows, factor, columns, factor, channels).mean(axis=(2, 4))
