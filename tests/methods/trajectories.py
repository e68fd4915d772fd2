"""Runs of fresh methods over sequences of Jacobians, in one compiled program a method and dtype."""

import functools
import types
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from evaluable import given
from samplers import gaussian

import mtljax as mtl

LENGTH = 4
BATCH = 32
LOSSES = np.array([0.5, 2.0, 1.0, 0.25, 3.0])
# So that what these methods do in epochs or hundreds of steps is seen within four updates.
OPTIONS: Mapping[str, dict[str, Any]] = types.MappingProxyType(
    {"dwa": {"window": 1}, "stch": {"warmup": 1, "window": 1}, "modo": {"gamma": 0.1}}
)


def losses_of(num_tasks: int) -> np.ndarray:
    """Losses that fall at different rates, (LENGTH, K)."""
    decay = np.linspace(0.7, 0.95, num_tasks) ** np.arange(LENGTH)[:, None]
    return np.resize(LOSSES, num_tasks) * decay


def histories(samplers: Any, num_tasks: int, size: int, seeds: int) -> np.ndarray:
    """Sequences of Jacobians from each sampler, (len(samplers) * seeds, LENGTH, K, d)."""
    return np.stack(
        [
            [sampler(num_tasks, size, LENGTH * seed + step) for step in range(LENGTH)]
            for sampler in samplers
            for seed in range(seeds)
        ]
    )


def ending_in(jacobian: np.ndarray) -> np.ndarray:
    """A sequence of ordinary Jacobians with this one last, (LENGTH, K, d)."""
    return np.stack([gaussian(*jacobian.shape, step) for step in range(LENGTH - 1)] + [jacobian])


@functools.cache
def _runner(name: str, num_tasks: int, size: int, dtype: str) -> Any:
    tx = mtl.methods.create(name, num_tasks=num_tasks, **OPTIONS.get(name, {}))

    def one(jacobians: jax.Array, losses: jax.Array) -> jax.Array:
        def step(state: Any, inputs: Any) -> Any:
            gradient, state = tx.update(given(name, *inputs), state, losses=inputs[1])
            return state, gradient

        return jax.lax.scan(step, tx.init(jnp.zeros(size, dtype)), (jacobians, losses))[1]

    return jax.jit(jax.vmap(one))


def run(name: str, jacobians: np.ndarray, losses: np.ndarray | None = None, dtype: str = "float32") -> np.ndarray:
    """The gradients a fresh method makes of each sequence.

    Args:
      name: the method.
      jacobians: (N, LENGTH, K, d).
      losses: (LENGTH, K) or (N, LENGTH, K); None for `losses_of(K)`.
      dtype: float32 or float64.

    Returns:
      (N, LENGTH, d), float64.
    """
    count, _, num_tasks, size = jacobians.shape
    losses = losses_of(num_tasks) if losses is None else losses
    losses = np.broadcast_to(losses, (count, LENGTH, num_tasks))
    found = []
    with jax.enable_x64(dtype == "float64"):
        for start in range(0, count, BATCH):
            rows = np.arange(start, start + BATCH) % count
            found.append(
                _runner(name, num_tasks, size, dtype)(jacobians[rows].astype(dtype), losses[rows].astype(dtype))
            )
    return np.concatenate(found)[:count].astype(np.float64)
