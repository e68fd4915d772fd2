"""Losses along random directions through a point, and their picture."""

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtljax.gradients import PyTree

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Surface(NamedTuple):
    """Losses on a grid.

    Attributes:
      coordinates: (n,) multiples of the directions, the same along each.
      losses: by task, (n,) along one direction or (n, n) along two, the first direction first.
    """

    coordinates: np.ndarray
    losses: dict[str, np.ndarray]


def random_direction(key: jax.Array, params: PyTree) -> PyTree:
    """A random direction in which every filter is as long as that of the parameters (Li et al., arXiv:1712.09913).

    So that rescaled layers, which compute the same, look the same. A filter is what makes one output: a slice along the
    last axis of a kernel. Leaves of fewer than two axes (biases, the scales of normalisation) stay where they are.

    Args:
      key: PRNG key.
      params: pytree of arrays whose last axis is that of the outputs, as in flax.

    Returns:
      A pytree like params.
    """
    leaves, treedef = jax.tree.flatten(params)

    def drawn(key: jax.Array, leaf: jax.Array) -> jax.Array:
        if leaf.ndim < 2:
            return jnp.zeros_like(leaf)
        normal = jax.random.normal(key, leaf.shape, leaf.dtype)
        axes = tuple(range(leaf.ndim - 1))
        lengths = [jnp.sqrt(jnp.sum(jnp.square(each), axis=axes, keepdims=True)) for each in (leaf, normal)]
        return normal * lengths[0] / jnp.where(lengths[1] > 0, lengths[1], 1)

    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(treedef, [drawn(key, leaf) for key, leaf in zip(keys, leaves, strict=True)])


def surface(
    losses_fn: Callable[..., Any],
    params: PyTree,
    *args: Any,
    directions: Sequence[PyTree],
    radius: float = 1.0,
    points: int = 21,
) -> Surface:
    """The losses on a grid around the parameters.

    Points are evaluated one after the other by one compiled program.

    Args:
      losses_fn: `losses_fn(params, *args)` returns a dict of scalar losses.
      params: the centre.
      *args: further arguments of `losses_fn`, the batch for one.
      directions: one or two pytrees like params, as from `random_direction`.
      radius: how far to go to each side, in lengths of the directions.
      points: grid points along each; with an odd number the centre is one of them.

    Returns:
      The losses.

    Raises:
      ValueError: if there are more than two directions, or none, or fewer than two points.
    """
    if not 1 <= len(directions) <= 2:
        raise ValueError(f"surface goes along one direction or two, got {len(directions)}")
    if points < 2:
        raise ValueError(f"surface needs at least 2 points along each direction, got {points}")
    coordinates = np.linspace(-radius, radius, points)

    @jax.jit
    def losses_at(steps: jax.Array) -> Any:
        def moved(leaf: jax.Array, *ways: jax.Array) -> jax.Array:
            return leaf + sum(step.astype(leaf.dtype) * way for step, way in zip(steps, ways, strict=True))

        return losses_fn(jax.tree.map(moved, params, *directions), *args)

    grid = itertools.product(coordinates, repeat=len(directions))
    losses = [jax.device_get(losses_at(jnp.asarray(steps))) for steps in grid]
    shape = (points,) * len(directions)
    return Surface(
        coordinates, {task: np.reshape([each[task] for each in losses], shape) for task in sorted(losses[0])}
    )


def plot_surface(surface: Surface, title: str = "") -> "Figure":
    """Draws a surface: lines along one direction, contours along two, a panel for each task.

    Args:
      surface: what `surface` returns.
      title: of the figure.

    Returns:
      A matplotlib figure; `figure.savefig(path)` writes it.
    """
    from matplotlib.figure import Figure

    tasks = list(surface.losses)
    lines = np.ndim(surface.losses[tasks[0]]) == 1
    columns = 1 if lines else len(tasks)
    figure = Figure(figsize=(4.2 * columns, 3.6), layout="constrained")
    panels = figure.subplots(1, columns, squeeze=False)[0]
    if lines:
        for task in tasks:
            panels[0].plot(surface.coordinates, surface.losses[task], label=task)
        panels[0].set(xlabel="step along the direction", ylabel="loss")
        panels[0].legend()
    else:
        for panel, task in zip(panels, tasks, strict=True):
            contours = panel.contour(surface.coordinates, surface.coordinates, surface.losses[task].T, levels=12)
            panel.clabel(contours, fontsize=7)
            panel.set(title=task, xlabel="first direction", ylabel="second direction", aspect="equal")
    figure.suptitle(title)
    return figure
