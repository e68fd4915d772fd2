"""Convolution by matrix products, for CPUs, where XLA's own is slow in the gradient of a kernel and under vmap."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

_KNOWN = {"lhs_dilation", "rhs_dilation", "dimension_numbers", "feature_group_count"}


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
    to twice the arithmetic and copies the input about 2h times for a kernel of height h and width w, where patches copy
    it h * w times. It pays for few channels and large kernels (docs/performance.md).

    Args:
      inputs: (B, H, W, C).
      kernel: (h, w, C, O).
      window_strides: any but 1 are left to lax, like dilations, groups, negative padding, other options and images
        smaller than the kernel.
      padding: as in lax.
      precision: of the product.
      **options: as `flax.linen.Conv(conv_general_dilated=...)` passes them: dilations,
        `dimension_numbers` (NHWC, HWIO, NHWC) and `feature_group_count`.

    Returns:
      (B, H', W', O).
    """
    (batch, height, width, _), (rows, columns, _, features) = inputs.shape, kernel.shape
    pads = padding
    if isinstance(pads, str):
        pads = lax.padtype_to_pads((height, width), (rows, columns), window_strides, pads)
    height, width = (size + sum(sides) for size, sides in zip((height, width), pads, strict=True))
    out_height, out_width = height - rows + 1, width - columns + 1
    ones = [*window_strides, *(options.get("lhs_dilation") or ()), *(options.get("rhs_dilation") or ())]
    ones.append(options.get("feature_group_count", 1))
    fits = min(out_height, out_width, 1 + min(min(sides) for sides in pads)) > 0
    if set(ones) != {1} or not fits or not options.keys() <= _KNOWN:
        return lax.conv_general_dilated(inputs, kernel, window_strides, padding, precision=precision, **options)
    tiles = -(-out_width // columns)
    tile = -(-out_width // tiles)  # pixels of a tile; the last one may reach beyond the image, into zeros
    beyond, under = tiles * tile - out_width, tile + columns - 1
    (top, bottom), (left, right) = pads
    x = jnp.pad(inputs, ((0, 0), (top, bottom), (left, right + beyond), (0, 0)))
    x = jnp.stack([x[:, :, i * tile : i * tile + under].reshape(batch, height, -1) for i in range(tiles)], axis=2)
    x = jnp.concatenate([x[:, i : i + out_height] for i in range(rows)], axis=-1)
    y = jnp.matmul(x.reshape(batch * out_height * tiles, -1), _band(kernel, tile), precision=precision)
    return y.reshape(batch, out_height, tiles * tile, features)[:, :, :out_width]


def _band(kernel: jax.Array, tile: int) -> jax.Array:
    """(h * (tile + w - 1) * C, tile * O): from what lies under a tile to its pixels, zero but for a band."""
    rows, columns, channels, features = kernel.shape
    under = tile + columns - 1
    # A row of the kernel with zeros after it, repeated and cut one short each time, is shifted by one each time.
    row = jnp.pad(kernel, ((0, 0), (0, tile), (0, 0), (0, 0)))[:, None]
    band = jnp.broadcast_to(row, (rows, tile, under + 1, channels, features))
    band = band.reshape(rows, tile * (under + 1), channels, features)[:, : tile * under]
    band = band.reshape(rows, tile, under, channels, features).transpose(0, 2, 3, 1, 4)
    return band.reshape(rows * under * channels, tile * features)
