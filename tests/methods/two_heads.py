"""A network of two tasks with a head each, and sequences of updates on Jacobians: what stateful rules are tested on."""

import jax
import jax.numpy as jnp
import numpy as np

import mtljax as mtl

SCALES = (1.0, 3.0, 0.3, -1.0, 0.7, 2.0, 1.0, 0.1)
PARAMS = {"shared": jnp.array([0.5, -1.0, 2.0]), "a": jnp.array([1.0, 0.5, -0.5]), "b": jnp.array(0.8)}


def losses_fn(p, scale):
    return {
        "a": (scale * jnp.tanh(p["shared"]) @ p["a"] - 1.5) ** 2 + 0.1,
        "b": (p["b"] * p["shared"].sum() + 0.5 * scale) ** 2 + 0.2,
    }


def run_heads(tx, scales):
    """All updates of a method on this network with other losses each time, in one compiled program.

    Returns the gradients, the weights (T, K), the Jacobians and the losses (T, K), all with a leading time axis.
    """

    def step(state, scale):
        losses, grads = mtl.task_gradients(losses_fn, PARAMS, scale)
        gradient, state = tx.update(grads, state, PARAMS, losses=losses)
        return state, (gradient, state.weights, grads.jacobian(), jnp.stack([losses["a"], losses["b"]]))

    _, found = jax.jit(lambda s, x: jax.lax.scan(step, s, x))(tx.init(PARAMS), jnp.asarray(scales))
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), found)


def run(tx, jacobians, losses=None, dtype=jnp.float64):
    """All gradients and weights of a method on a sequence (T, K, d) with losses (T, K), in one compiled program."""
    gradients, weights = run_all(lambda: tx, [{}], jacobians, losses, dtype)
    return gradients[0], weights[0]


def run_all(build, hyperparameters, jacobians, losses=None, dtype=jnp.float64):
    """The same for a list of hyperparameters, traced, with a leading axis for them."""
    jacobians = jnp.asarray(jacobians, dtype)
    losses = jnp.ones(jacobians.shape[:2], dtype) if losses is None else jnp.asarray(losses, dtype)

    def one(some):
        tx = build(**some)

        def step(state, now):
            gradient, state = tx.update(now[0], state, losses=now[1])
            return state, (gradient, state.weights)

        return jax.lax.scan(step, tx.init(jnp.zeros(jacobians.shape[2], dtype)), (jacobians, losses))[1]

    stacked = {key: jnp.asarray([some[key] for some in hyperparameters], dtype) for key in hyperparameters[0]}
    found = jax.jit(jax.vmap(one, axis_size=len(hyperparameters)))(stacked)
    return tuple(np.asarray(leaf, np.float64) for leaf in found)


def sequence(steps=10, num_tasks=3, size=6, seed=0):
    """Noisy gradients around fixed ones, rows of different lengths, (T, K, d)."""
    rng = np.random.default_rng([seed, steps, num_tasks])
    lengths = np.logspace(-1, 1, num_tasks)[:, None]
    return lengths * (rng.standard_normal((num_tasks, size)) + 0.7 * rng.standard_normal((steps, num_tasks, size)))
