"""Convolution by matrix products, for CPUs, where XLA's own is slow in the gradient of a kernel and under vmap."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def tiled_convolution(
    inputs: jax.Array,
    kernel: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    *,
    precision: Any = None,
    **options: Any,
) -> jax.Array:
    """What `jax.lax.conv_general_dilated` computes, as one product with the kernel's band matrix.

    Each row of the output is cut into tiles about as wide as the kernel. A tile depends linearly on the rows of the
    input under it, through a matrix that holds the kernel once for each pixel of the tile, shifted along. That does up
    to twice the arithmetic, but copies the input only a few times, where patches copy it once for each pixel of the
    kernel. It pays for few channels and large kernels (docs/performance.md).

    Args:
      inputs: (B, H, W, C).
      kernel: (h, w, C, O).
      window_strides: any but 1 are left to lax, like dilations, groups and images smaller than the kernel.
      padding: as in lax.
      precision: of the product.
      **options: as `flax.linen.Conv(conv_general_dilated=...)` passes them: dilations,
        `dimension_numbers` (NHWC, HWIO, NHWC) and `feature_group_count`.

    Returns:
      (B, H', W', O).
    """
    strides = tuple(window_strides)
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(inputs.shape[1:3], kernel.shape[:2], strides, padding)
    (batch, height, width, channels), (rows, columns, _, features) = inputs.shape, kernel.shape
    height, width = (size + sum(pads) for size, pads in zip((height, width), padding, strict=True))
    out_height, out_width = height - rows + 1, width - columns + 1
    plain = strides == (1, 1) and kernel.shape[2] == channels and min(out_height, out_width) > 0
    if not plain or any({*(options.get(side) or (1,))} != {1} for side in ("lhs_dilation", "rhs_dilation")):
        return lax.conv_general_dilated(inputs, kernel, strides, padding, precision=precision, **options)
    tiles = -(-out_width // columns)
    tile = -(-out_width // tiles)  # pixels of a tile; the last one may reach beyond the image, into zeros
    beyond, under = tiles * tile - out_width, tile + columns - 1
    (top, bottom), (left, right) = padding
    x = jnp.pad(inputs, ((0, 0), (top, bottom), (left, right + beyond), (0, 0)))
    x = jnp.stack([x[:, :, i * tile : i * tile + under].reshape(batch, height, -1) for i in range(tiles)], axis=2)
    x = jnp.concatenate([x[:, i : i + out_height] for i in range(rows)], axis=-1)
    y = jnp.matmul(x.reshape(batch * out_height * tiles, -1), _band(kernel, tile), precision=precision)
    return y.reshape(batch, out_height, tiles * tile, features)[:, :, :out_width]


def _band(kernel: jax.Array, tile: int) -> jax.Array:
    """(h * (tile + w - 1) * C, tile * O): from what lies under a tile to its pixels, zero but for a band."""
    rows, columns, channels, features = kernel.shape
    under = tile + columns - 1
    # A row of zeros after the kernel, repeated and cut one short each time, shifts it by one each time.
    row = jnp.pad(kernel, ((0, 0), (0, tile), (0, 0), (0, 0)))[:, None]
    band = jnp.broadcast_to(row, (rows, tile, under + 1, channels, features))
    band = band.reshape(rows, tile * (under + 1), channels, features)[:, : tile * under]
    band = band.reshape(rows, tile, under, channels, features).transpose(0, 2, 3, 1, 4)
    return band.reshape(rows * under * channels, tile * features)
