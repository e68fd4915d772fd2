"""Batches as functions of a key and a step, so that a checkpoint's step number is the position in the data.

Everything but `evaluation_batches` may run inside jit, on arrays that live on the device:

    epoch, batch = position(step, split.num_examples, batch_size)
    order = epoch_permutation(key, epoch, split.num_examples)  # once an epoch
    examples = take(split, batch_indices(order, batch, batch_size))
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtljax.data.multitask import Array, Split


class Batch(NamedTuple):
    """A batch of B examples, a pytree.

    Attributes:
      inputs: `(B, ...)`, dtype as in the split (images are uint8).
      targets: `{task: (B, ...)}`.
      mask: `(B,)` float32, 1 for examples and 0 for padding.
    """

    inputs: Array
    targets: dict[str, Array]
    mask: Array


def steps_per_epoch(num_examples: int, batch_size: int) -> int:
    """Counts the whole batches in an epoch; what is left over is dropped.

    Raises:
      ValueError: If the batch size is not a positive integer, or larger than the data.
    """
    _check(batch_size)
    if batch_size > num_examples:
        raise ValueError(
            f"batch size {batch_size} is larger than the data, {num_examples} examples: take a smaller one"
        )
    return num_examples // batch_size


def position(step: Any, num_examples: int, batch_size: int) -> tuple[Any, Any]:
    """Finds the place in the data of a step, counted from 0.

    Args:
      step: Number of batches taken so far, an int or an integer array.
      num_examples: N.
      batch_size: B.

    Returns:
      `(epoch, batch)`, both counted from 0, `batch` within the epoch.

    Raises:
      ValueError: If the batch is larger than the data.
    """
    steps = steps_per_epoch(num_examples, batch_size)
    return step // steps, step % steps


def epoch_permutation(key: jax.Array, epoch: Any, num_examples: int) -> jax.Array:
    """Draws the order of the examples in an epoch.

    Args:
      key: PRNG key of the data order, the same for the whole run.
      epoch: Which epoch, an int or an integer scalar array.
      num_examples: N, static.

    Returns:
      `(N,)` int32, a permutation of `0 .. N - 1` that depends on the key and the epoch only.
    """
    return jax.random.permutation(jax.random.fold_in(key, epoch), jnp.arange(num_examples, dtype=jnp.int32))


def batch_indices(permutation: jax.Array, batch: Any, batch_size: int) -> jax.Array:
    """Picks the examples of one batch.

    Args:
      permutation: `(N,)` from `epoch_permutation`.
      batch: Which batch of the epoch, from 0 to `steps_per_epoch - 1`, an int or an integer scalar array.
      batch_size: B, static.

    Returns:
      `(B,)` indices.

    Raises:
      ValueError: If the batch is larger than the data, or `batch` is a Python int beyond the epoch's end.
    """
    steps = steps_per_epoch(permutation.shape[0], batch_size)
    if isinstance(batch, int) and not 0 <= batch < steps:
        raise ValueError(f"batch {batch} is not in the epoch, which has the batches 0 to {steps - 1}")
    return jax.lax.dynamic_slice_in_dim(permutation, batch * batch_size, batch_size)


def take(split: Split, indices: Array, mask: Array | None = None) -> Batch:
    """Gathers a batch.

    Args:
      split: The split; inside jit its arrays must be JAX arrays (`jax.device_put(split)`, once) and arguments of the
        jitted function, lest they be copied into the compiled program.
      indices: `(B,)` integers.
      mask: `(B,)`, by default all ones.

    Returns:
      The batch, where the split is: NumPy arrays give NumPy arrays.
    """
    inputs, targets = jax.tree.map(lambda array: array[indices], tuple(split))
    return Batch(inputs, targets, np.ones(indices.shape[0], np.float32) if mask is None else mask)


def evaluation_batches(num_examples: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Cuts the data, in order, into batches of one size, the last one padded.

    Args:
      num_examples: N, at least 1.
      batch_size: B; may exceed N.

    Returns:
      Indices `(ceil(N / B), B)` int32 and a mask of that shape, float32, 0 for padding. Padding repeats example 0.
      Every example is counted once, so metrics from masked sums are exact.

    Raises:
      ValueError: If there is no example or the batch size is not a positive integer.
    """
    _check(batch_size)
    if num_examples < 1:
        raise ValueError("there are no examples to evaluate on")
    count = -(-num_examples // batch_size)
    indices = np.arange(count * batch_size, dtype=np.int32).reshape(count, batch_size)
    mask = indices < num_examples
    return np.where(mask, indices, 0).astype(np.int32), mask.astype(np.float32)


def _check(batch_size: int) -> None:
    if isinstance(batch_size, bool) or not isinstance(batch_size, int | np.integer) or batch_size < 1:
        raise ValueError(f"batch size must be an integer of at least 1, got {batch_size!r}")
