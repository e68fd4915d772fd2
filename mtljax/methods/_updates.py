"""What a method's `update` is given, checked and brought into one form."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mtljax.gradients import Mask, PyTree, TaskGradients, loss_vector
from mtljax.gradients.gramian import trailing


def as_task_gradients(
    name: str, updates: Any, params: PyTree | None, losses: Any = None, present: Any = None, shared: Mask = None
) -> TaskGradients:
    """What a method was given, as `TaskGradients`.

    Args:
      name: the method's name, for errors.
      updates: `TaskGradients`; or a Jacobian pytree like params with leading task axes; or a dict of gradients by task.
      params: the parameters, used to tell the last two apart and to check shapes.
      losses: dict or (K,) array of losses, which take the place of those in `updates`, or None to keep them.
      present: dict or (K,) array of bools, whether a task has a label; None to keep what `updates` knows.
      shared: which parameters of a plain Jacobian are shared; None for all.

    Returns:
      The gradients, with the losses attached.

    Raises:
      ValueError: if `updates` is none of these, in one sentence.
    """
    if isinstance(updates, TaskGradients):
        if shared is not None:
            raise ValueError(
                f"{name}: shared= goes with a plain Jacobian; here it is an argument of mtl.task_gradients"
            )
        grads = (
            updates if losses is None else updates.with_losses(loss_vector(losses, updates.tasks, updates.num_tasks))
        )
    else:
        if isinstance(updates, tuple) and any(isinstance(each, TaskGradients) for each in updates):
            raise ValueError(
                f"{name}: takes the gradients of one batch, got those of {len(updates)}: independent batches are for "
                "modo and sdmgrad, alone or inside fs_mtl"
            )
        if _is_by_task(updates, params, losses):
            by_task: Any = updates
            shapes = {task: jax.tree.map(jnp.shape, gradient) for task, gradient in by_task.items()}
            if any(shape != next(iter(shapes.values())) for shape in shapes.values()):
                raise ValueError(f"{name}: the gradients of a dict by task must have the same shapes, got {shapes}")
            rows = [by_task[task] for task in sorted(by_task)]
            updates = jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)
        elif params is not None:
            _check_jacobian(name, updates, params)
        try:
            grads = TaskGradients.from_jacobian(updates, losses, shared)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    if present is None:
        return grads
    return dataclasses.replace(grads, present=loss_vector(present, grads.tasks, grads.num_tasks, "present") != 0)


def _is_by_task(updates: Any, params: PyTree | None, losses: Any) -> bool:
    """Whether this is a dict {task: gradient}, and not a Jacobian of parameters in a dict."""
    if not isinstance(updates, Mapping) or not updates:
        return False
    if params is None:
        return isinstance(losses, Mapping) and set(losses) == set(updates)
    structure = jax.tree.structure(params)
    return jax.tree.structure(updates) != structure and all(
        jax.tree.structure(gradient) == structure for gradient in updates.values()
    )


def _check_jacobian(name: str, updates: PyTree, params: PyTree) -> None:
    """Refuses what is no Jacobian of these parameters, such as the gradient of one loss, which would broadcast."""
    if jax.tree.structure(updates) != jax.tree.structure(params):
        raise ValueError(
            f"{name}: expected TaskGradients, or a Jacobian with the structure of params, "
            f"{jax.tree.structure(params)}; got {jax.tree.structure(updates)}"
        )
    rows = jax.tree_util.tree_flatten_with_path(updates)[0]
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(params)]
    counts = {jnp.shape(row)[0] if jnp.ndim(row) else 0 for _, row in rows}
    for (path, row), shape in zip(rows, shapes, strict=True):
        if jnp.shape(row)[1:] == shape and len(counts) == 1 and jnp.ndim(row):
            continue
        where = jax.tree_util.keystr(path) or "params"
        hint = "this is the gradient of one loss; pass" if jnp.shape(row) == shape else "pass"
        expected = ", ".join(map(str, ("K", *shape)))
        raise ValueError(
            f"{name}: a Jacobian needs a leading task axis, the same K on every leaf, ({expected}) at {where}, got "
            f"{jnp.shape(row)}: {hint} the result of mtl.task_gradients(losses_fn, params, ...), or jax.jacrev of the "
            "(K,) losses, and only one method in a chain"
        )


def is_several(updates: Any, params: PyTree | None) -> bool:
    """Whether a tuple holds gradients on several batches, and is not one Jacobian of parameters in a tuple."""
    if not isinstance(updates, tuple):
        return False
    if params is None or any(isinstance(each, TaskGradients) for each in updates):
        return True
    return jax.tree.structure(updates) != jax.tree.structure(params)


def row_peaks(jacobian: PyTree) -> jax.Array:
    """The largest entry, in size, of each of the K gradients; NaN where there is one."""
    leaves = [leaf for leaf in jax.tree.leaves(jacobian) if leaf.size]
    return jnp.stack([jnp.max(jnp.abs(leaf), axis=trailing(leaf)) for leaf in leaves]).max(axis=0)
