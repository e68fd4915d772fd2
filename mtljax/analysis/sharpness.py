"""How sharp the minimum of each task is: how far its loss rises within a small ball."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mtljax.gradients import Mode, PyTree, task_gradients


def worst_case_rise(
    losses_fn: Callable[..., Any],
    params: PyTree,
    *args: Any,
    rho: float,
    adaptive: bool = False,
    steps: int = 1,
    mode: Mode = "auto",
) -> dict[str, jax.Array]:
    """How far each task's loss rises within distance ρ: a lower bound on max_{‖ε‖ ≤ ρ} L_k(θ + ε) - L_k(θ).

    The first step is that of SAM, ε = ρ g / ‖g‖ (arXiv:2010.01412), exact where the loss is linear or its curvature the
    same in all directions. Each further one goes ρ / 2 along the gradient found there and back into the ball; the
    largest rise counts. One norm runs over the shared parameters and the task's own. Cost: `steps` backward and
    `steps` + 1 forward passes for each task.

    >>> import jax.numpy as jnp, mtljax as mtl
    >>> losses_fn = lambda p: {"flat": 0.5 * jnp.sum(p**2), "sharp": 50 * jnp.sum(p**2)}
    >>> rises = mtl.analysis.worst_case_rise(losses_fn, jnp.array([0.0, 1.0]), rho=0.2)
    >>> {task: round(float(rise), 4) for task, rise in rises.items()}
    {'flat': 0.22, 'sharp': 22.0}

    Args:
      losses_fn: as for `mtl.task_gradients`, without auxiliary outputs.
      params: where.
      *args: further arguments of `losses_fn`, the batch for one.
      rho: ρ, the radius of the ball, positive.
      adaptive: whether the ball is ‖ε / |θ|‖ ≤ ρ, as in ASAM (arXiv:2102.11600), which no rescaling of layers changes.
      steps: ascent steps, at least 1.
      mode: as for `mtl.task_gradients`.

    Returns:
      The rise by task, at least 0.

    Raises:
      ValueError: if `rho` or `steps` is not positive.
    """
    if not rho > 0:
        raise ValueError(f"worst_case_rise: rho must be positive, got {rho}")
    if steps < 1:
        raise ValueError(f"worst_case_rise: steps must be at least 1, got {steps}")
    losses, grads = task_gradients(losses_fn, params, *args, mode=mode)
    start = jnp.stack([losses[task] for task in sorted(losses)])
    # In coordinates u = ε / scale the ball is round, and the gradient is scale * g.
    scale = jax.tree.map(lambda leaf: jnp.abs(leaf) if adaptive else jnp.ones_like(leaf), params)
    step = jax.tree.map(lambda leaf: jnp.zeros((grads.num_tasks, *leaf.shape), leaf.dtype), params)
    best, rows = jnp.zeros_like(start), grads.jacobian()
    for index in range(steps):
        uphill = _shortened(jax.tree.map(jnp.multiply, scale, rows), rho / 2 if index else rho, always=True)
        step = _shortened(jax.tree.map(jnp.add, step, uphill), rho)
        moved = grads.at(jax.tree.map(lambda leaf, s, u: leaf + s * u, params, scale, step))
        assert moved.losses is not None
        best, rows = jnp.maximum(best, moved.losses - start), moved.jacobian()
    return dict(zip(sorted(losses), best, strict=True))


def gradient_norms(
    losses_fn: Callable[..., Any], params: PyTree, *args: Any, mode: Mode = "auto"
) -> dict[str, jax.Array]:
    """The length of each task's gradient over the shared parameters.

    Args:
      losses_fn: as for `mtl.task_gradients`, without auxiliary outputs.
      params: where.
      *args: further arguments of `losses_fn`.
      mode: as for `mtl.task_gradients`.

    Returns:
      The norm by task.
    """
    losses, grads = task_gradients(losses_fn, params, *args, mode=mode)
    return dict(zip(sorted(losses), grads.scaled_gramian().norms, strict=True))


def _shortened(rows: PyTree, length: float, always: bool = False) -> PyTree:
    """K trees brought to a length, those that are shorter only `always`; zeros stay zero."""
    pieces = [leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(rows)]
    peaks = jnp.stack([jnp.max(jnp.abs(piece), axis=1, initial=0) for piece in pieces]).max(axis=0)
    peaks = jnp.where(peaks > 0, peaks, 1)  # so that no square leaves the dtype's range
    norms = jnp.sqrt(sum(jnp.sum(jnp.square(piece / peaks[:, None]), axis=1) for piece in pieces))
    factor = length / jnp.where(norms > 0, norms, 1)
    factor = factor if always else jnp.minimum(factor, peaks)

    def scaled(leaf: jax.Array) -> jax.Array:
        shape = (-1, *(1,) * (leaf.ndim - 1))
        return leaf / peaks.reshape(shape) * factor.reshape(shape)

    return jax.tree.map(scaled, rows)
