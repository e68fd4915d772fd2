"""How often tasks pull the shared parameters apart."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mtljax.gradients import Mode, PyTree, task_gradients


def cosines(losses_fn: Callable[..., Any], params: PyTree, *args: Any, mode: Mode = "auto") -> jax.Array:
    """Cosines between the gradients of the tasks over the shared parameters, on one batch.

    >>> import jax.numpy as jnp, mtljax as mtl
    >>> losses_fn = lambda p: {"left": p[0], "right": p[1] - p[0]}
    >>> round(float(mtl.analysis.cosines(losses_fn, jnp.zeros(2))[0, 1]), 4)
    -0.7071

    Args:
      losses_fn: as for `mtl.task_gradients`, without auxiliary outputs.
      params: where.
      *args: further arguments of `losses_fn`.
      mode: as for `mtl.task_gradients`.

    Returns:
      (K, K) in sorted order of the task names; 0 in the rows and columns of a zero gradient, its diagonal included.
    """
    return task_gradients(losses_fn, params, *args, mode=mode)[1].scaled_gramian().cosines


def conflict_share(cosines: Any) -> jax.Array:
    """The share of mini-batches on which two tasks conflict, that is, the cosine of their gradients is negative.

    Args:
      cosines: (N, K, K), the results of `cosines` on N mini-batches.

    Returns:
      (K, K) shares in [0, 1]; a batch on which a task has no gradient counts as one without conflict.

    Raises:
      ValueError: on another shape.
    """
    cosines = jnp.asarray(cosines)
    if cosines.ndim != 3 or cosines.shape[1] != cosines.shape[2] or not len(cosines):
        raise ValueError(f"conflict_share takes the cosines of N mini-batches, (N, K, K), got shape {cosines.shape}")
    return jnp.mean(cosines < 0, axis=0)
