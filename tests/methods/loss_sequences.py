"""Sequences of losses through a loss weighting. With the identity as Jacobian, the gradient is the weights."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles_linear
import pytest

import mtljax as mtl

RNG = np.random.default_rng(0)
# Three losses of different sizes that fall at different rates, with noise, (T, K).
LOSSES = np.array([0.3, 2.0, 20.0]) * np.array([0.8, 0.9, 0.97]) ** np.arange(12)[:, None]
LOSSES = LOSSES * np.exp(0.2 * RNG.standard_normal(LOSSES.shape))

# What no loss should be, each followed by ordinary ones.
BAD = np.ones((12, 3), np.float32)
BAD[1] = [0, -1, 3]
BAD[3] = [np.inf, np.nan, -np.inf]
BAD[5] = [1e30, 1e-30, 1e-42]
BAD[7] = [3e38, -3e38, 3e38]
BAD[8] = [-3e38, 3e38, 0]


def scan(tx, losses, losses_after=None):
    """The (T, K) weights and the last state; inside or outside a trace, T = 1 and more."""
    num_tasks = losses.shape[1]

    def step(state, now):
        extra = {} if losses_after is None else {"losses_after": now[1]}
        gradient, state = tx.update(jnp.eye(num_tasks, dtype=losses.dtype), state, losses=now[0], **extra)
        return state, gradient

    after = losses if losses_after is None else losses_after
    state, weights = jax.lax.scan(step, tx.init(jnp.zeros(num_tasks, losses.dtype)), (losses, after))
    return weights, state


def run(tx, losses, losses_after=None, dtype="float64"):
    """The (T, K) weights of a fresh method, compiled once, and its last state."""
    with jax.enable_x64(dtype == "float64"):
        after = None if losses_after is None else jnp.asarray(losses_after, dtype)
        weights, state = jax.jit(lambda *sequences: scan(tx, *sequences))(jnp.asarray(losses, dtype), after)
        return np.asarray(weights, np.float64), jax.tree.map(np.asarray, state)


def run_traced(make, values, losses=LOSSES):
    """The weights (V, T, K) for each value of a hyperparameter, which is a tracer; float64."""
    with jax.enable_x64(True):
        one = jax.jit(jax.vmap(lambda value: scan(make(value), jnp.asarray(losses))[0]))
        return np.asarray(one(jnp.asarray(values)))


def run_eagerly(tx, losses=LOSSES):
    """The (T, K) weights without jit; float64."""
    with jax.enable_x64(True):
        state, found = tx.init(jnp.zeros(losses.shape[1], "float64")), []
        for row in losses:
            gradient, state = tx.update(jnp.eye(losses.shape[1], dtype="float64"), state, losses=jnp.asarray(row))
            found.append(np.asarray(gradient))
    return np.stack(found)


def bad_losses(tx, dtype):
    """The weights on `BAD`, checked to be finite where the losses are; and everything that steers later updates is."""
    weights, state = run(tx, BAD, dtype=dtype)
    np.testing.assert_array_equal(np.isfinite(weights).all(axis=1), np.isfinite(BAD).all(axis=1))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state))
    return weights


def learned_by_adam(gradient_of, start, rate, steps):
    """What is learned before each of `steps` steps of Adam, (steps, K)."""
    x, direction, path = np.array(start, float), oracles_linear.adam(), []
    for t in range(steps):
        path.append(x)
        x = x - rate * direction(gradient_of(t, x))
    return np.stack(path)


PARAMS = {"shared": np.array([0.5, -1.0, 2.0]), "a": np.array([1.0, 0.5, -0.5]), "b": np.array(0.8)}


def network(p):
    """Two positive losses of shared parameters and heads."""
    return {
        "a": (jnp.tanh(p["shared"]) @ p["a"] - 1.5) ** 2 + 0.1,
        "b": 20 * (p["b"] * p["shared"].sum() + 0.5) ** 2 + 0.2,
    }


def assert_gradient_of(tx, objective, state=None):
    """Whether the update is the gradient of `objective(losses)` of the network, its heads included."""
    with jax.enable_x64(True):
        params = jax.tree.map(jnp.asarray, PARAMS)
        losses, grads = mtl.task_gradients(network, params)
        found, _ = tx.update(grads, tx.init(params) if state is None else state, params, losses=losses)
        expected = jax.grad(lambda p: objective(jnp.stack([network(p)[name] for name in "ab"])))(params)
        for name in params:
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-12)


def assert_needs_losses(tx, name):
    with pytest.raises(ValueError, match=f"{name} weighs by the losses: pass them"):
        tx.update(jnp.eye(2), tx.init(jnp.zeros(2)))


def assert_needs_num_tasks(make, name):
    with pytest.raises(ValueError, match=f"{name} remembers something of every task; pass num_tasks=K"):
        make()
