"""What the rules have in common: which tasks and losses count, how large a weight may be, averages."""

from typing import Any

import jax
import jax.numpy as jnp

from mtljax.solvers import finite


def present_tasks(
    num_tasks: int, told: jax.Array | None, losses: jax.Array | None = None, norms: jax.Array | None = None
) -> jax.Array:
    """The (K,) mask of the tasks that have a label in this batch.

    A task is absent where the mask `told` says so, or where its gradient is zero, and its loss too if that is known. A
    method that sees no gradients infers nothing: a loss of 0 may have a gradient. Subnormal numbers are zeros, as they
    are where a processor flushes them.
    """
    present = jnp.ones(num_tasks, bool) if told is None else told
    if norms is None:
        return present
    zero = [jnp.abs(values) < jnp.finfo(values.dtype).tiny for values in (losses, norms) if values is not None]
    return present & ~jnp.stack(zero).all(axis=0)


def waiting(present: jax.Array, new: Any, old: Any) -> Any:
    """The new memory, with the rows of the old one for tasks that are not present; scalars are new."""

    def kept(after: Any, before: jax.Array) -> Any:
        return jnp.where(present.reshape(-1, *(1,) * (before.ndim - 1)), after, before) if before.ndim else after

    return jax.tree.map(kept, new, old)


def mean_of_present(weights: jax.Array, present: jax.Array) -> jax.Array:
    """(K,) weights that are proportional to the mean over all tasks, with that over the present ones in its place."""
    return finite(weights * (len(weights) / jnp.maximum(jnp.sum(present), 1)))


def positive(losses: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Losses for rules on their logarithms or ratios.

    Args:
      losses: (K,).

    Returns:
      The losses with 1 in place of any that is not positive, normal and finite, and the (K,) mask of those that are.
      Rules give a masked task the weight 0.
    """
    live = (losses >= jnp.finfo(losses.dtype).tiny) & (losses < jnp.inf)  # the logarithm of a subnormal may be -inf
    return jnp.where(live, losses, 1), live


def loss_weights(weights: jax.Array, live: jax.Array | bool = True) -> jax.Array:
    """Weights of losses that leave the weighted sum of the gradients finite.

    They are cut, in size, at the square root of the dtype's largest number (1.8e19 in float32, 1.3e154 in float64). So
    Σ_k w_k g_k is finite for any losses where no coordinate of Σ_k |g_k| exceeds that root; longer gradients leave the
    range only where a weight is large enough.

    Args:
      weights: (K,), possibly infinite.
      live: (K,) mask of the tasks that count, True for all.

    Returns:
      The (K,) weights, 0 where a task does not count.
    """
    limit = jnp.sqrt(jnp.finfo(weights.dtype).max)
    return jnp.where(live, jnp.clip(weights, -limit, limit), 0)


def running_mean(mean: jax.Array, losses: jax.Array, count: jax.Array) -> jax.Array:
    """The mean of `count + 1` values, the last of which are `losses` and the others have the mean `mean`."""
    share = 1 / (count + 1).astype(mean.dtype)
    return (1 - share) * mean + share * losses


def safe_gradient(gradient: jax.Array, learned: jax.Array) -> jax.Array:
    """The gradient of what is learned from the losses, in its dtype, cut where its square would leave the range."""
    limit = jnp.sqrt(jnp.finfo(learned.dtype).max) / 2
    return jnp.clip(gradient.astype(learned.dtype), -limit, limit)
