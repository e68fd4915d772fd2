"""What the rules on a whole Jacobian have in common: the split of shared and own parameters, memory and dtypes."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from mtljax.gradients import PyTree, TaskGradients
from mtljax.methods._base import jacobian_method
from mtljax.methods._signals import Signals
from mtljax.methods._state import state_dtype
from mtljax.methods.per_task import per_task


def zeros_per_task(num_tasks: int, params: PyTree) -> PyTree:
    """K copies of the parameters filled with zeros, in the dtype of states: what per-task averages start from."""
    dtype = state_dtype(params)
    return jax.tree.map(lambda leaf: jnp.zeros((num_tasks, *jnp.shape(leaf)), dtype), params)


def wide(grads: TaskGradients) -> PyTree:
    """The Jacobian in the dtype of states: float32 at least."""
    jacobian = grads.jacobian()
    dtype = state_dtype(jacobian)
    return jax.tree.map(lambda leaf: leaf.astype(dtype), jacobian)


def replace_shared(grads: TaskGradients, jacobian: PyTree) -> TaskGradients:
    """The gradients with other rows on the shared parameters; a task's own parameters keep their gradient."""
    return grads.map(
        lambda own: jax.tree.map(lambda shared, new, old: new if shared else old, grads.shared, jacobian, own)
    )


def cast_like(gradient: PyTree, grads: TaskGradients) -> PyTree:
    """A gradient in the dtypes of the Jacobian."""
    return jax.tree.map(lambda leaf, row: leaf.astype(row.dtype), gradient, grads.jacobian())


def per_row(values: jax.Array, leaf: jax.Array) -> jax.Array:
    """(K,) values shaped to multiply the rows of a leaf, (K, *shape)."""
    return values.reshape(-1, *(1,) * (leaf.ndim - 1)).astype(leaf.dtype)


def sum_of_per_task(
    name: str, transformation: optax.GradientTransformation, num_tasks: int | None
) -> optax.GradientTransformationExtraArgs:
    """The method that gives each task a transformation with its own state, and sums what comes out.

    Args:
      name: the method's name, for errors.
      transformation: what each task's gradient goes through, its own parameters included.
      num_tasks: K.

    Returns:
      The method; its memory is the state of `transformation` with a leading task axis.
    """

    def init_memory(num_tasks: int, params: PyTree) -> Any:
        dtype = state_dtype(params)
        return per_task(transformation, num_tasks).init(jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params))

    def rule(memory: Any, signals: Signals) -> Any:
        grads = signals.grads
        steps, memory = per_task(transformation, grads.num_tasks).update(wide(grads), memory)
        ones = jnp.ones(grads.num_tasks)
        return cast_like(grads.map(lambda _: steps).combine(ones), grads), ones, memory

    return jacobian_method(name, rule, num_tasks=num_tasks, init_memory=init_memory)
