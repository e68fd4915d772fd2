"""Regression: one or several real numbers, L1 or L2 loss, mean absolute and root mean squared error."""

import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from mtljax.errors import unknown
from mtljax.tasks.task import Task, mean_metric


def regression(size: int = 1, loss: Literal["l1", "l2"] = "l2") -> Task:
    """Makes a task that predicts `size` real numbers.

    The head is one dense layer. The loss is the absolute (`"l1"`) or the squared (`"l2"`) error, without a factor
    one half. The metrics are `mae` and `rmse`, lower is better, and the one that goes with the loss comes first.
    Outputs are `(B, size)`, targets `(B, size)`, or `(B,)` where size is 1, in floats; NaN marks a missing
    target. Where only some components of an example are missing, its error is the mean over the others.

    Args:
      size: How many numbers an example has, at least 1.
      loss: `"l1"` or `"l2"`.

    Returns:
      The task, with spec `{"kind": "regression", "size": size, "loss": loss}`.

    Raises:
      ValueError: If an argument is out of its range; at trace time, if the shapes do not fit.
    """
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"regression: size must be an integer of at least 1, got {size!r}")
    scores = {"l1": functools.partial(_error, size, jnp.abs), "l2": functools.partial(_error, size, jnp.square)}
    if loss not in scores:
        raise unknown("regression loss", loss, scores)
    mae = mean_metric("mae", scores["l1"], higher_is_better=False)
    rmse = mean_metric("rmse", scores["l2"], higher_is_better=False, finish=jnp.sqrt)
    return Task(
        kind="regression",
        head=functools.partial(nn.Dense, size),
        loss=scores[loss],
        valid=functools.partial(_labelled, size),
        metrics=(mae, rmse) if loss == "l1" else (rmse, mae),
        spec={"kind": "regression", "size": size, "loss": loss},
    )


def _columns(size: int, targets: jax.Array) -> jax.Array:
    """Targets as `(B, size)`."""
    targets = jnp.asarray(targets)
    if size == 1 and targets.ndim == 1:
        return targets[:, None]
    if targets.ndim != 2 or targets.shape[1] != size:
        raise ValueError(f"regression: targets must have shape (B, {size}), got {targets.shape}")
    return targets


def _labelled(size: int, targets: jax.Array) -> jax.Array:
    return jnp.any(~jnp.isnan(_columns(size, targets)), axis=1).astype(jnp.float32)


def _error(size: int, distance: Callable[[jax.Array], jax.Array], outputs: jax.Array, targets: jax.Array) -> jax.Array:
    outputs, targets = jnp.asarray(outputs), _columns(size, targets)
    if outputs.shape != targets.shape:
        raise ValueError(f"regression: outputs must have shape {targets.shape}, (B, size), got {outputs.shape}")
    known = ~jnp.isnan(targets)
    # NaN must leave before the subtraction: where() after it would still send 0 * NaN through the gradient.
    difference = outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32)) - jnp.where(known, targets, 0)
    errors = jnp.where(known, distance(difference), 0)
    return jnp.sum(errors, axis=1) / jnp.maximum(jnp.sum(known, axis=1), 1)
