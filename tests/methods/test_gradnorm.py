"""GradNorm against a plain recurrence, and the balance it is for."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles_linear
import pytest
from samplers import gaussian

import mtljax as mtl
from mtljax.methods.gradnorm import gradnorm

K = 4


def batches(count=10):
    rng = np.random.default_rng(0)
    for seed in range(count):
        yield gaussian(K, 8, seed) * np.logspace(-2, 2, K)[:, None], rng.uniform(0.1, 5.0, K)


def slope_of(weights, jacobian, losses, initial, alpha):
    """The gradient of the L1 loss of the paper, in units of the mean norm."""
    norms = np.linalg.norm(jacobian, axis=1)
    norms = norms / norms.mean()
    rates = losses / initial
    target = (weights * norms).mean() * (rates / rates.mean()) ** alpha
    return np.sign(weights * norms - target) * norms


@pytest.mark.parametrize("alpha", [0.0, 1.5])
def test_ten_updates_equal_the_recurrence(alpha):
    with jax.enable_x64(True):
        tx = gradnorm(alpha, learning_rate=0.05, num_tasks=K)
        state, update = tx.init(jnp.zeros(8, jnp.float64)), jax.jit(tx.update)
        weights, initial, direction = np.ones(K), None, oracles_linear.adam()
        for jacobian, losses in batches():
            found, state = update(jnp.asarray(jacobian), state, losses=jnp.asarray(losses))
            np.testing.assert_allclose(found, weights @ jacobian, rtol=1e-9)
            initial = losses if initial is None else initial
            weights = weights - 0.05 * direction(slope_of(weights, jacobian, losses, initial, alpha))
            weights *= K / weights.sum()
            np.testing.assert_allclose(state.memory.weights, weights, rtol=1e-9)
            np.testing.assert_array_equal(state.memory.initial, initial)
    assert np.abs(weights - 1).max() > 0.1


def test_alpha_zero_learns_to_equalise_the_norms():
    jacobian = gaussian(3, 6) / np.linalg.norm(gaussian(3, 6), axis=1, keepdims=True) * np.array([[0.5], [1.0], [3.0]])
    tx = gradnorm(0.0, optimizer=optax.sgd(3e-3), num_tasks=3)
    update, state = jax.jit(tx.update), tx.init(jnp.zeros(6))
    for _ in range(800):
        _, state = update(jnp.asarray(jacobian, jnp.float32), state, losses=jnp.ones(3))
    lengths = np.asarray(state.memory.weights) * [0.5, 1.0, 3.0]
    np.testing.assert_allclose(lengths, lengths.mean(), rtol=0.05)


def test_the_task_that_lags_gains_weight():
    jacobian = jnp.eye(2)
    tx = gradnorm(num_tasks=2)
    update = jax.jit(tx.update)
    _, state = update(jacobian, tx.init(jnp.zeros(2)), losses=jnp.array([1.0, 1.0]))
    np.testing.assert_array_equal(state.memory.weights, [1.0, 1.0])
    for _ in range(5):
        _, state = update(jacobian, state, losses=jnp.array([0.1, 0.9]))
    assert state.memory.weights[1] > 1.05
    np.testing.assert_allclose(state.memory.weights.sum(), 2, rtol=1e-6)


def test_heads_are_scaled_by_the_weights():
    params = {"shared": jnp.ones(3), "a": jnp.ones(()), "b": jnp.ones(())}

    def losses_fn(p):
        return {"a": p["a"] * p["shared"][0], "b": p["b"] * p["shared"][1] * 5}

    losses, grads = mtl.task_gradients(losses_fn, params)
    tx = gradnorm(num_tasks=2)
    _, state = tx.update(grads, tx.init(params), params, losses=losses)
    found, state = tx.update(grads, state, params, losses=losses)
    np.testing.assert_allclose([found["a"], found["b"]], state.weights * np.array([1.0, 5.0]), rtol=1e-6)
    assert abs(float(state.weights[0]) - 1.025) < 1e-4


@pytest.mark.parametrize("loss", [-1.0, 0.0])
def test_tasks_without_a_gradient_or_a_positive_loss_count_in_no_mean(loss):
    rows = gaussian(3, 6)
    padded = np.vstack([rows, np.zeros(6), gaussian(1, 6)])
    losses = np.array([1.0, 0.5, 2.0])
    tx, other = gradnorm(optimizer=optax.sgd(0.1), num_tasks=3), gradnorm(optimizer=optax.sgd(0.1), num_tasks=5)
    state, other_state = tx.init(jnp.zeros(6)), other.init(jnp.zeros(6))
    update, other_update = jax.jit(tx.update), jax.jit(other.update)
    for factor in (1.0, np.array([0.5, 0.9, 0.1])):
        _, state = update(jnp.asarray(rows, jnp.float32), state, losses=jnp.asarray(losses * factor))
        extended = jnp.asarray([*(losses * factor), 1.0, loss])
        _, other_state = other_update(jnp.asarray(padded, jnp.float32), other_state, losses=extended)
    np.testing.assert_allclose(other_state.memory.initial, [*losses, 1.0, 0.0])
    weights, others = np.asarray(state.memory.weights), np.asarray(other_state.memory.weights)
    assert np.abs(weights - 1).max() > 0.05
    # The same steps, but the first division by the mean of all the weights leaves another scale to the second step.
    np.testing.assert_allclose(others[:3] / others[0], weights / weights[0], rtol=0.03)
    np.testing.assert_allclose(others[3], others[4], rtol=1e-6)


def test_weights_stay_positive_and_everything_finite_with_a_huge_learning_rate():
    jacobian = jnp.asarray(gaussian(3, 5) * np.array([[1e-30], [1.0], [1e15]]), jnp.float32)
    tx = gradnorm(80.0, learning_rate=1e3, num_tasks=3)
    update, state = jax.jit(tx.update), tx.init(jnp.zeros(5))
    for losses in ([1e-30, 1e30, 1.0], [1e30, 1e-30, 1.0], [0.0, 1.0, 1e30]):
        found, state = update(jacobian, state, losses=jnp.array(losses))
        assert bool(jnp.all(jnp.isfinite(found)))
        assert bool(jnp.all(state.memory.weights > 0))
        np.testing.assert_allclose(state.memory.weights.sum(), 3, rtol=1e-5)


def test_bad_input_is_one_clear_sentence():
    with pytest.raises(ValueError, match=r"gradnorm: alpha must be >= 0 and finite, got -1\.5"):
        gradnorm(-1.5, num_tasks=2)
    with pytest.raises(ValueError, match="pass num_tasks=K"):
        gradnorm()
    with pytest.raises(ValueError, match="gradnorm weighs by the losses: pass them"):
        gradnorm(num_tasks=2).update(jnp.eye(2), gradnorm(num_tasks=2).init(jnp.zeros(2)))


def test_one_task_without_a_positive_loss_beside_a_far_shorter_gradient_stays_finite():
    tx = gradnorm(num_tasks=2)
    state = tx.init(jnp.zeros(1))
    for _ in range(3):
        gradient, state = tx.update(jnp.array([[1e-30], [1e15]]), state, losses=jnp.array([1.0, -1.0]))
    assert bool(jnp.all(jnp.isfinite(gradient)) & jnp.all(jnp.isfinite(state.memory.weights)))
