"""Runs a method on a batch of Jacobians with as few compilations as possible."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_BATCH, _SIZE = 16, 20  # every call has these shapes; further columns of zeros change no Gramian


@functools.cache
def _compiled(method: Callable[..., Any], hyperparameters: tuple[tuple[str, Any], ...]) -> Callable[..., Any]:
    tx = method(**dict(hyperparameters))
    return jax.jit(jax.vmap(lambda jacobian: tx.update(jacobian, tx.init(jacobian[0]))[0]))


def updates(
    method: Callable[..., Any], jacobians: Iterable[np.ndarray], dtype: Any = np.float64, **hyperparameters: Any
) -> np.ndarray:
    """The updates of a method that sees only the Gramian, for at most 16 Jacobians (K, size <= 20) of one shape."""
    stacked = np.stack(list(jacobians)).astype(dtype)
    count, num_tasks, size = stacked.shape
    batch = np.zeros((_BATCH, num_tasks, _SIZE), dtype)
    batch[:, :, :size] = stacked[np.arange(_BATCH) % count]
    with jax.enable_x64(dtype == np.float64):
        found = _compiled(method, tuple(sorted(hyperparameters.items())))(jnp.asarray(batch))
    return np.asarray(found, np.float64)[:count, :size]
