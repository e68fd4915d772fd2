"""MoCo against a plain loop, and where it tends to."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quadprog
import two_heads
from samplers import DEGENERATE, gaussian

from mtljax.methods.moco import moco

DEFAULTS = {"beta": 0.5, "beta_decay": 0.5, "gamma": 0.1, "gamma_decay": 0.5, "rho": 0.0}


def projected(x):
    """On the simplex, by bisection for the shift."""
    low, high = x.max() - 1, x.max()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.maximum(x - middle, 0).sum() > 1 else (low, middle)
    return np.maximum(x - high, 0)


def by_loop(jacobians, beta, beta_decay, gamma, gamma_decay, rho):
    tracked, weights = np.zeros(jacobians.shape[1:]), np.full(jacobians.shape[1], 1 / jacobians.shape[1])
    for t, jacobian in enumerate(jacobians, 1):
        tracked = tracked - beta / t**beta_decay * (tracked - jacobian)
        matrix = tracked @ tracked.T + rho * np.eye(len(weights))
        weights = projected(weights - gamma / t**gamma_decay * matrix @ weights)
        yield tracked.T @ weights, weights


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_moco_equals_the_loop(dtype):
    """Its hyperparameters are traced here."""
    changes = ({}, {"rho": 2.0, "gamma_decay": 0.1}, {"gamma": 0.0}, {"beta": 1.0, "beta_decay": 0.0}, {"gamma": 5.0})
    hyperparameters, jacobians = [DEFAULTS | each for each in changes], two_heads.sequence(steps=12)
    with jax.enable_x64(dtype == "float64"):
        found = two_heads.run_all(functools.partial(moco, num_tasks=3), hyperparameters, jacobians, dtype=dtype)
    tolerance = {"float32": 1e-4, "float64": 1e-12}[dtype]
    for each, gradients, weights in zip(hyperparameters, *found, strict=True):
        expected = list(by_loop(jacobians, **each))
        np.testing.assert_allclose(gradients, [d for d, _ in expected], atol=tolerance * np.abs(gradients).max())
        np.testing.assert_allclose(weights, [w for _, w in expected], atol=tolerance)


def test_the_defaults_are_those_documented():
    jacobians = two_heads.sequence()
    gradients, _ = two_heads.run(moco(num_tasks=3), jacobians, dtype=jnp.float32)
    expected = np.array([d for d, _ in by_loop(jacobians, **DEFAULTS)])
    np.testing.assert_allclose(gradients, expected, atol=1e-4 * np.abs(expected).max())


def test_weights_reach_the_faces_of_the_simplex():
    """A softmax never would."""
    _, weights = two_heads.run(moco(num_tasks=3), two_heads.sequence(steps=20), dtype=jnp.float32)
    assert np.any(weights == 0)
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize("num_tasks", [2, 4])
def test_on_constant_gradients_it_tends_to_mgda(num_tasks):
    jacobian = gaussian(num_tasks, 5)
    constraints = np.column_stack([np.ones(num_tasks), np.eye(num_tasks)])
    exact = quadprog.solve_qp(jacobian @ jacobian.T, np.zeros(num_tasks), constraints, np.eye(1 + num_tasks)[0], meq=1)[
        0
    ]
    with jax.enable_x64(True):
        tx = moco(1.0, 0.0, 0.1, 0.0, num_tasks=num_tasks)
        gradients, weights = two_heads.run(tx, np.tile(jacobian, (2000, 1, 1)))
    np.testing.assert_allclose(weights[-1], exact, atol=1e-6)
    np.testing.assert_allclose(gradients[-1], exact @ jacobian, atol=1e-5)


def test_heads_get_their_current_gradient():
    gradients, weights, jacobians, _ = two_heads.run_heads(moco(num_tasks=2), two_heads.SCALES)
    np.testing.assert_allclose(gradients["a"], jacobians["a"][:, 0], rtol=1e-6)
    np.testing.assert_allclose(gradients["b"], jacobians["b"][:, 1], rtol=1e-6)
    # Only the shared parameters enter the averages that are combined.
    expected = list(by_loop(jacobians["shared"], **DEFAULTS))
    np.testing.assert_allclose(gradients["shared"], [d for d, _ in expected], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(weights, [w for _, w in expected], atol=1e-4)


def test_a_task_without_a_gradient_waits_with_its_weight():
    jacobians = two_heads.sequence(steps=12)
    jacobians[:6, 1] = 0
    _, weights = two_heads.run(moco(num_tasks=3), jacobians, dtype=jnp.float32)
    np.testing.assert_array_equal(weights[:6, 1], 0)
    assert np.abs(weights[:6, 0] - 1 / 2).max() > 1e-3
    np.testing.assert_allclose(weights[6, 1], 1 / 3, atol=0.2)
    assert np.all(weights[6:, 1] != np.float32(1 / 3))
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_degenerate_gradients_leave_the_weights_on_the_simplex(dtype):
    with jax.enable_x64(dtype == "float64"):
        tx = moco(num_tasks=3)

        def three_updates(jacobian):
            state, found = tx.init(jacobian[0]), []
            for factor in (1.0, -0.5, 2.0):
                gradient, state = tx.update(factor * jacobian, state)
                found.append((gradient, state.weights))
            return jax.tree.map(lambda *x: jnp.stack(x), *found)

        largest = {"1e18": 1e18 * gaussian(3, 6), "equal 1e18": np.full((3, 6), 1e18)}
        stacked = jnp.asarray(np.stack([*DEGENERATE.values(), *largest.values()]), dtype)
        gradients, weights = map(np.asarray, jax.jit(jax.vmap(three_updates))(stacked))
    assert np.all(np.isfinite(gradients))
    assert np.all(weights >= 0)
    zero = list(DEGENERATE).index("all zero")
    np.testing.assert_allclose(np.delete(weights.sum(axis=-1), zero, axis=0), 1, rtol=1e-6)
    np.testing.assert_array_equal(weights[zero], 0)
    np.testing.assert_array_equal(gradients[zero], 0)


def test_the_task_with_all_the_weight_may_lose_its_gradient():
    jacobians = np.array([[[1e-3, 0.0], [0.0, 10.0]], [[0.0, 0.0], [0.0, 10.0]], [[1.0, 0.0], [0.0, 1e-3]]])
    gradients, weights = two_heads.run(moco(1.0, 0.0, 10.0, 0.0, num_tasks=2), jacobians, dtype=jnp.float32)
    np.testing.assert_array_equal(weights, [[1, 0], [0, 1], [0, 1]])
    np.testing.assert_allclose(gradients, [[1e-3, 0], [0, 10], [0, 1e-3]], rtol=1e-6)


@pytest.mark.parametrize("num_tasks", [1, 2])
def test_the_first_update_is_short(num_tasks):
    jacobian = gaussian(num_tasks, 5)
    gradients, _ = two_heads.run(moco(gamma=0.0, num_tasks=num_tasks), jacobian[None], dtype=jnp.float32)
    np.testing.assert_allclose(gradients[0], 0.5 * jacobian.mean(axis=0), rtol=1e-5)


def test_bad_hyperparameters_are_one_clear_sentence():
    with pytest.raises(ValueError, match=r"moco: beta must be in \[0, 1\], got 1\.5"):
        moco(1.5, num_tasks=2)
    with pytest.raises(ValueError, match=r"moco: rho must be >= 0 and finite, got -1"):
        moco(rho=-1, num_tasks=2)
    with pytest.raises(ValueError, match=r"moco: gamma_decay must be >= 0 and finite, got inf"):
        moco(gamma_decay=np.inf, num_tasks=2)
    with pytest.raises(ValueError, match="moco remembers something of every task; pass num_tasks=K"):
        moco()
