"""An encoder and one head a task."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import linen as nn

PyTree = Any


@dataclass(frozen=True)
class MultiTaskModel:
    """Hard parameter sharing: all tasks read one representation.

    Attributes:
      encoder: module called as `encoder(inputs, train=...)`; it may keep batch statistics and use dropout.
      heads: one module a task, from the representation to that task's outputs.
      compute_dtype: dtype of activations, "float32" or "bfloat16"; parameters, batch statistics, representation and
        outputs stay float32.
    """

    encoder: nn.Module
    heads: Mapping[str, nn.Module]
    compute_dtype: str = "float32"

    def init(self, key: jax.Array, inputs: jax.Array) -> tuple[PyTree, PyTree]:
        """Draws parameters.

        A head's parameters depend on the key and the task's name only, not on which other tasks there are.

        Args:
          key: PRNG key.
          inputs: a batch of inputs; only shape and dtype matter.

        Returns:
          `(params, model_state)`: `{"shared": ..., "heads": {task: ...}}`, and the collections that training updates
          outside the gradient, such as batch statistics ({} when there are none).
        """
        encoder_key, heads_key = jax.random.split(key)
        variables = dict(self.encoder.init({"params": encoder_key}, _as_float(inputs), train=False))
        shared = variables.pop("params")
        representation = self.encoder.apply({"params": shared, **variables}, _as_float(inputs), train=False)
        heads = {
            task: head.init(jax.random.fold_in(heads_key, _name_hash(task)), representation)["params"]
            for task, head in self.heads.items()
        }
        return {"shared": shared, "heads": heads}, variables

    def apply(
        self,
        params: PyTree,
        model_state: PyTree,
        inputs: jax.Array,
        *,
        train: bool = False,
        key: jax.Array | None = None,
    ) -> tuple[dict[str, jax.Array], PyTree]:
        """Runs the network.

        Args:
          params: as from `init`.
          model_state: as from `init`.
          inputs: (B, ...) batch; unsigned integers are images and are divided by their dtype's maximum.
          train: whether batch statistics are updated and dropout is on.
          key: PRNG key of dropout, needed when training with dropout.

        Returns:
          `(outputs, model_state)`: the outputs by task, and the model state (updated when training).
        """
        representation, model_state = self.encode(params, model_state, inputs, train=train, key=key)
        return self.decode(params, representation), model_state

    def encode(
        self,
        params: PyTree,
        model_state: PyTree,
        inputs: jax.Array,
        *,
        train: bool = False,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, PyTree]:
        """The first half of `apply`: the (B, ...) representation and the model state."""
        variables = {"params": self._cast(params["shared"]), **model_state}
        rngs = {} if key is None else {"dropout": key}
        representation, updated = self.encoder.apply(
            variables, self._cast(_as_float(inputs)), train=train, rngs=rngs, mutable=list(model_state) if train else []
        )
        representation = cast(jax.Array, representation).astype(_wide(representation))
        return representation, ({**model_state, **updated} if train else model_state)

    def decode(self, params: PyTree, representation: jax.Array) -> dict[str, jax.Array]:
        """The second half: the outputs by task."""
        representation = self._cast(representation)
        outputs = {
            task: head.apply({"params": self._cast(params["heads"][task])}, representation)
            for task, head in self.heads.items()
        }
        return jax.tree.map(lambda leaf: leaf.astype(_wide(leaf)), outputs)

    def _cast(self, tree: PyTree) -> PyTree:
        if self.compute_dtype == "float32":
            return tree
        return jax.tree.map(
            lambda leaf: leaf.astype(self.compute_dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, tree
        )


def _wide(array: Any) -> Any:
    """float32, or float64 where that is used; integers stay."""
    return jnp.promote_types(array.dtype, jnp.float32) if jnp.issubdtype(array.dtype, jnp.floating) else array.dtype


def _as_float(inputs: jax.Array) -> jax.Array:
    if jnp.issubdtype(inputs.dtype, jnp.unsignedinteger):
        return inputs.astype(jnp.float32) / jnp.iinfo(inputs.dtype).max
    return inputs.astype(jnp.promote_types(inputs.dtype, jnp.float32)) if inputs.dtype.kind in "ib" else inputs


def _name_hash(name: str) -> int:
    """A stable 31-bit hash (FNV-1a) of a task name; Python's own hash differs between processes."""
    value = 2166136261
    for byte in name.encode():
        value = ((value ^ byte) * 16777619) % 2**32
    return value % 2**31
