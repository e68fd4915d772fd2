"""GradDrop: where the tasks disagree on the sign of a coordinate, draw one sign and drop the others."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mtljax.methods._base import jacobian_method
from mtljax.methods._checks import Scalar, by_task, check_range
from mtljax.methods._jacobian import cast_like, per_row, replace_shared, wide
from mtljax.methods._signals import Signals
from mtljax.methods.registry import register


@register(needs="jacobian", paper="2010.06808", properties=("permutable", "homogeneous"))
def graddrop(
    leak: Scalar | Mapping[str, float] | Sequence[float] | np.ndarray = 0.0,
    *,
    seed: Scalar = 0,
    num_tasks: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Gradient sign dropout (Chen et al., arXiv:2010.06808).

    In each coordinate P = (1 + Σ_k g_k / Σ_k |g_k|) / 2 says how much of the gradient is positive, and one uniform draw
    U, the same for all tasks, keeps the positive entries if P > U and the negative ones otherwise:
    d = Σ_k (ℓ_k + (1 - ℓ_k) keep_k) g_k with leaks ℓ. With one leak for all tasks the expectation of d is the plain sum
    of the gradients, exactly: the method is equal weighting plus noise, of variance (1 - ℓ)² Σ_+ Σ_- per coordinate,
    where Σ_± are the sums of the positive entries and of the sizes of the negative ones.
    Cost: K backward passes, and K copies of the gradient while it combines them.

    The default, no leak, is the paper's. Its code applies the rule to the representation that enters the heads, its
    sign multiplied into the gradients; here it acts on the gradients of the shared parameters, as most
    reimplementations do. The scale is that of a sum (some return the mean). The draw is part of the state: replicas
    that start from one state draw alike. P comes from the gradients over their largest entry, so tiny ones lose
    nothing; where all are zero, d = 0. The weights in the state stay 1: this is no weighting of tasks.

    >>> import jax.numpy as jnp, mtljax as mtl
    >>> jacobian = jnp.array([[1.0, 3.0, 2.0], [-1.0, 1.0, -4.0]])
    >>> tx = mtl.graddrop()
    >>> gradient, _ = tx.update(jacobian, tx.init(jnp.zeros(3)))
    >>> gradient.tolist()
    [-1.0, 4.0, 2.0]

    Args:
      leak: part of a dropped entry that passes, in [0, 1]; one number, a dict by task name, or (K,) values in
        sorted order of the task names. May be a tracer.
      seed: seed of the PRNG key kept in the state.
      num_tasks: K; only needed to read the weights from the state.

    Returns:
      A transformation from K task gradients to one gradient; a task's own parameters get their own gradient, undropped.

    Raises:
      ValueError: if a leak is outside [0, 1], or on update their number or names are not those of the tasks.

    References:
      Chen et al., `Just Pick a Sign: Optimizing Deep Multitask Models with Gradient Sign Dropout
      <https://arxiv.org/abs/2010.06808>`_, NeurIPS 2020
    """
    values, names = by_task(leak)
    leaks = jnp.asarray(values, dtype=float)
    check_range("graddrop", "[0, 1]", leak=leaks)

    def rule(memory: Any, signals: Signals) -> Any:
        grads = signals.grads
        if leaks.shape not in ((), (grads.num_tasks,)):
            raise ValueError(f"graddrop: leak has shape {leaks.shape}, expected one number or one for each task")
        leaves, treedef = jax.tree.flatten(wide(grads))
        keys = jax.random.split(signals.key, len(leaves))
        per_task_leak = jnp.broadcast_to(leaks, (grads.num_tasks,))
        kept = [  # float32 draws in 64-bit mode too, so that a seed drops the same signs there
            _drop_signs(leaf, jax.random.uniform(k, leaf.shape[1:], jnp.float32), per_task_leak)
            for k, leaf in zip(keys, leaves, strict=True)
        ]
        ones = jnp.ones(grads.num_tasks)
        gradient = replace_shared(grads, jax.tree.unflatten(treedef, kept)).combine(ones)
        return cast_like(gradient, grads), ones, memory

    return jacobian_method("graddrop", rule, num_tasks=num_tasks, seed=seed, task_names=names)


def _drop_signs(rows: jax.Array, uniform: jax.Array, leak: jax.Array) -> jax.Array:
    """The rows (K, *shape) with one sign dropped in each coordinate, as `uniform` (shape) decides."""
    peak = jnp.max(jnp.abs(rows), axis=0)
    unit = rows / jnp.where(peak > 0, peak, 1)
    size = jnp.abs(unit).sum(axis=0)
    positive_part = (1 + unit.sum(axis=0) / jnp.where(size > 0, size, 1)) / 2
    keep = jnp.where(positive_part > uniform, rows > 0, rows < 0)
    return jnp.where(keep, rows, per_row(leak, rows) * rows)
