"""The LeNet of the Multi-MNIST papers."""

import jax
from flax import linen as nn

from mtljax.gradients.backend import platform
from mtljax.models.convolution import tiled_convolution
from mtljax.models.pooling import max_pool_2x2


class LeNet(nn.Module):
    """Two convolutions with max pooling and one dense layer (Sener & Koltun, arXiv:1810.04650, Multi-MNIST).

    The defaults are the papers' for 36 x 36 images: 10 filters of 9 x 9, 20 of 5 x 5, 50 units.

    Attributes:
      channels: filters of the two convolutions.
      kernels: their square sizes.
      padding: "VALID" as in the papers, or "SAME" for small images.
      features: units of the dense layer, the size of the representation.
      dropout: rate of dropout on the representation.
    """

    channels: tuple[int, int] = (10, 20)
    kernels: tuple[int, int] = (9, 5)
    padding: str = "VALID"
    features: int = 50
    dropout: float = 0.0

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool = False) -> jax.Array:
        """Maps images (B, H, W, C) to a representation (B, features)."""
        x = inputs
        # On a CPU matrix products, which are faster, in loops and under vmap most of all (docs/performance.md).
        convolution = tiled_convolution if platform() == "cpu" else None
        for channels, kernel in zip(self.channels, self.kernels, strict=True):
            size = (kernel, kernel)
            x = nn.Conv(channels, size, padding=self.padding, conv_general_dilated=convolution)(x)
            x = nn.relu(max_pool_2x2(x))
        x = nn.relu(nn.Dense(self.features)(x.reshape(x.shape[0], -1)))
        return nn.Dropout(self.dropout, deterministic=not train)(x) if self.dropout else x
