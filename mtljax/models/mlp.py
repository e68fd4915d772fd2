"""A multilayer perceptron."""

import jax
from flax import linen as nn

from mtljax.models.pooling import shrunk


class MLP(nn.Module):
    """Dense layers with ReLU on flattened inputs.

    Attributes:
      features: units of each layer; the last is the size of the representation.
      dropout: rate of dropout after each layer.
      shrink: side of the squares of pixels that are averaged first, for quick experiments on images (B, H, W, C); 1
        takes inputs as they are.
    """

    features: tuple[int, ...] = (128, 64)
    dropout: float = 0.0
    shrink: int = 1

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool = False) -> jax.Array:
        """Maps inputs (B, ...) to a representation (B, features[-1])."""
        x = inputs if self.shrink == 1 else shrunk(inputs, self.shrink)
        x = x.reshape(x.shape[0], -1)
        for features in self.features:
            x = nn.relu(nn.Dense(features)(x))
            if self.dropout:
                x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return x
