"""Binary: yes or no, sigmoid cross-entropy, accuracy."""

import functools

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from mtljax.tasks.task import Task, mean_metric


def binary() -> Task:
    """Makes a yes-or-no task, such as one assay or one label of a multi-label set.

    The head is one dense layer of width 1, the loss sigmoid cross-entropy, the primary metric accuracy at the threshold
    one half (higher is better). Outputs are logits `(B, 1)`, targets `(B,)` with 0 for no and 1 for yes;
    -1, or any negative number or NaN, marks a missing label.

    Returns:
      The task, with spec `{"kind": "binary"}`.

    Raises:
      ValueError: At trace time, if the shapes do not fit.
    """
    return Task(
        kind="binary",
        head=functools.partial(nn.Dense, 1),
        loss=_cross_entropy,
        valid=_labelled,
        metrics=(mean_metric("accuracy", _correct, higher_is_better=True),),
        spec={"kind": "binary"},
    )


def _labelled(targets: jax.Array) -> jax.Array:
    return (jnp.asarray(targets) >= 0).astype(jnp.float32)


def _logit(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    outputs = jnp.asarray(outputs)
    if outputs.shape != (*jnp.shape(targets), 1):
        raise ValueError(
            f"binary: logits must have shape {(*jnp.shape(targets), 1)} for targets of shape {jnp.shape(targets)}, "
            f"got {outputs.shape}"
        )
    return outputs[..., 0].astype(jnp.promote_types(outputs.dtype, jnp.float32))


def _cross_entropy(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    logit = _logit(outputs, targets)
    known = jnp.where(jnp.asarray(targets) >= 0, targets, 0).astype(logit.dtype)
    return optax.sigmoid_binary_cross_entropy(logit, known)


def _correct(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    return ((_logit(outputs, targets) > 0) == (jnp.asarray(targets) > 0.5)).astype(jnp.float32)
