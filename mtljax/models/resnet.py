"""ResNet-18 with batch or group normalisation."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mtljax.models.pooling import max_pool_3x3_stride_2


class ResNet18(nn.Module):
    """The 18-layer residual network of He et al., arXiv:1512.03385.

    The defaults are the stem of the original, a 7 x 7 convolution of stride 2 and max pooling, and a dense layer of 100
    units as in the Multi-MNIST runs of FS-MTL (arXiv:2211.13723).

    Attributes:
      width: channels of the first stage; each further stage has twice as many at half the resolution.
      blocks: residual blocks of each stage.
      features: units of the dense layer after global average pooling, the size of the representation; 0 for none.
      small_stem: a 3 x 3 convolution of stride 1 without pooling instead, for images of about 32 x 32.
      norm: "batch", or "group" (8 groups; Wu & He, arXiv:1803.08494), which keeps no statistics and treats every
        example alone.
      axis_name: axis over which batch statistics are averaged in pmap or shard_map.
    """

    width: int = 64
    blocks: tuple[int, ...] = (2, 2, 2, 2)
    features: int = 100
    small_stem: bool = False
    norm: str = "batch"
    axis_name: str | None = None

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool = False) -> jax.Array:
        """Maps images (B, H, W, C) to a representation (B, features), with `features=0` (B, channels)."""
        if self.norm not in ("batch", "group"):
            raise ValueError(f"ResNet18: norm must be 'batch' or 'group', got {self.norm!r}")
        if self.norm == "batch":
            norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, axis_name=self.axis_name)
        else:
            norm = partial(nn.GroupNorm, num_groups=8)
        conv = partial(nn.Conv, use_bias=False, padding="SAME")
        kernel, stride = ((3, 3), (1, 1)) if self.small_stem else ((7, 7), (2, 2))
        x = nn.relu(norm()(conv(self.width, kernel, strides=stride)(inputs)))
        x = x if self.small_stem else max_pool_3x3_stride_2(x)
        for stage, blocks in enumerate(self.blocks):
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                x = _ResidualBlock(self.width * 2**stage, stride, conv, norm)(x)
        x = jnp.mean(x, axis=(1, 2))
        return nn.relu(nn.Dense(self.features)(x)) if self.features else x


class _ResidualBlock(nn.Module):
    channels: int
    stride: int
    conv: Any
    norm: Any

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        strides = (self.stride, self.stride)
        x = nn.relu(self.norm()(self.conv(self.channels, (3, 3), strides=strides)(inputs)))
        # The last scale starts at zero, so that each block starts as the identity.
        x = self.norm(scale_init=nn.initializers.zeros_init())(self.conv(self.channels, (3, 3))(x))
        if inputs.shape != x.shape:
            inputs = self.norm()(self.conv(self.channels, (1, 1), strides=strides)(inputs))
        return nn.relu(x + inputs)
