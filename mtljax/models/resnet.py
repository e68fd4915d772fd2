"""ResNet-18 with batch normalisation."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn


class ResNet18(nn.Module):
    """The 18-layer residual network of He et al., arXiv:1512.03385.

    The defaults are the stem of the original, a 7 x 7 convolution of stride 2 and max pooling, followed by a dense layer
    of 100 units as in the Multi-MNIST runs of FS-MTL (arXiv:2211.13723).

    Attributes:
      width: channels of the first stage; the stages have width, 2, 4 and 8 times as many.
      features: units of the dense layer after global average pooling, the size of the representation; 0 for none.
      small_stem: a 3 x 3 convolution of stride 1 without pooling instead, for images of about 32 x 32.
      axis_name: axis over which batch statistics are averaged in pmap or shard_map.
    """

    width: int = 64
    features: int = 100
    small_stem: bool = False
    axis_name: str | None = None

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool = False) -> jax.Array:
        """Maps images (B, H, W, C) to a representation (B, features), or (B, 8 width) with `features=0`."""
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, axis_name=self.axis_name)
        conv = partial(nn.Conv, use_bias=False, padding="SAME")
        if self.small_stem:
            x = conv(self.width, (3, 3))(inputs)
        else:
            x = conv(self.width, (7, 7), strides=(2, 2))(inputs)
        x = nn.relu(norm()(x))
        if not self.small_stem:
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")
        for stage, blocks in enumerate((2, 2, 2, 2)):
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
