"""The projection on the simplex."""

import jax
import jax.numpy as jnp
import optax


def face(weights: jax.Array, live: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Weights on the simplex, (K,), as those of the live tasks alone, which sum to 1, and what they summed to."""
    mass = jnp.sum(jnp.where(live, weights, 0))
    even = live / jnp.maximum(jnp.sum(live), 1)
    return jnp.where(live, jnp.where(mass > 0, weights / jnp.where(mass > 0, mass, 1), even), 0), mass


def project_simplex(values: jax.Array, live: jax.Array | None = None) -> jax.Array:
    """The nearest point of the probability simplex.

    Args:
      values: (K,).
      live: (K,) mask, None for all: the others get 0, unless no entry is live; then the result is 1/K each.

    Returns:
      (K,), nonnegative, of sum 1.
    """
    live = jnp.ones(len(values), bool) if live is None else live
    # The projection does not feel a common shift, nor how far below the largest entry minus 1 another one lies: cut off
    # there, the rounding of huge values stays out of it.
    shifted = jnp.clip(values - jnp.max(jnp.where(live, values, -jnp.inf)), -1, 0)
    return optax.projections.projection_simplex(jnp.where(live, shifted, -2))
