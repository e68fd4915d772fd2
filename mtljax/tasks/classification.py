"""Classification: one of several classes, softmax cross-entropy, accuracy."""

import functools

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from mtljax.tasks.task import Task, mean_metric


def classification(num_classes: int) -> Task:
    """Makes a task that picks one of `num_classes` classes.

    The head is one dense layer, the loss softmax cross-entropy, the primary metric accuracy (higher is better).
    Outputs are logits `(B, num_classes)`, targets integers `(B,)` in `0 .. num_classes - 1`; -1, or any negative
    number, marks a missing label.

    Args:
      num_classes: Number of classes, at least 2.

    Returns:
      The task, with spec `{"kind": "classification", "num_classes": num_classes}`.

    Raises:
      ValueError: If `num_classes` is not an integer of at least 2; at trace time, if the shapes do not fit.
    """
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 2:
        raise ValueError(f"classification: num_classes must be an integer of at least 2, got {num_classes!r}")
    return Task(
        kind="classification",
        head=functools.partial(nn.Dense, num_classes),
        loss=functools.partial(_cross_entropy, num_classes),
        valid=_labelled,
        metrics=(mean_metric("accuracy", _correct, higher_is_better=True),),
        spec={"kind": "classification", "num_classes": num_classes},
    )


def _labelled(targets: jax.Array) -> jax.Array:
    return (jnp.asarray(targets) >= 0).astype(jnp.float32)


def _cross_entropy(num_classes: int, logits: jax.Array, targets: jax.Array) -> jax.Array:
    logits, targets = jnp.asarray(logits), jnp.asarray(targets)
    if logits.shape != (*targets.shape, num_classes):
        raise ValueError(
            f"classification: logits must have the shape of the targets {targets.shape} and an axis of "
            f"{num_classes} classes, got {logits.shape}"
        )
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(targets, 0))


def _correct(logits: jax.Array, targets: jax.Array) -> jax.Array:
    return (jnp.argmax(logits, axis=-1) == targets).astype(jnp.float32)
