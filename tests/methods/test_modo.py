"""MoDo against a plain recurrence, and its simplex projection against bisection."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles_linear
import pytest
from samplers import conflicting, gaussian

from mtljax.gradients import task_gradients
from mtljax.methods._simplex import project_simplex
from mtljax.methods.modo import modo

K = 4


def test_ten_updates_on_three_batches_equal_the_recurrence():
    weights, moved = np.full(K, 1 / K), 0
    with jax.enable_x64(True):
        tx = modo(gamma=0.05, rho=0.2, num_tasks=K)
        state, update = tx.init(jnp.zeros(8, jnp.float64)), jax.jit(tx.update)
        for step in range(10):
            first, second, third = (gaussian(K, 8, 3 * step + i) + 0.5 * gaussian(K, 8) for i in range(3))
            slope = first @ (second.T @ weights) + 0.2 * weights
            weights = oracles_linear.nearest_on_simplex(weights - 0.05 * slope)
            found, state = update((jnp.asarray(first), jnp.asarray(second), jnp.asarray(third)), state)
            np.testing.assert_allclose(found, weights @ third, atol=1e-9)
            np.testing.assert_allclose(state.memory.weights, weights, atol=1e-9)
            moved += weights.min() == 0
    assert 0 < moved < 10  # the projection was at work, and not in a corner all the time


def test_fewer_batches_are_reused():
    a, b, c = (jnp.asarray(gaussian(K, 8, seed), jnp.float32) for seed in range(3))
    tx = modo(gamma=0.1, num_tasks=K)
    state = tx.init(a[0])

    def update(*batches):
        return tx.update(batches if len(batches) > 1 else batches[0], state)[0]

    np.testing.assert_array_equal(update(a), update(a, a, a))
    np.testing.assert_array_equal(update(a, b), update(a, b, b))
    assert jnp.abs(update(a, b, c) - update(a, c, c)).max() > 1e-3


def test_many_small_steps_find_the_weights_of_mgda():
    jacobian = conflicting(K, 8)
    tx = modo(gamma=0.02, rho=0.0, num_tasks=K)

    def step(state, _):
        found, state = tx.update(jnp.asarray(jacobian, jnp.float32), state)
        return state, found

    found = jax.lax.scan(step, tx.init(jnp.zeros(8)), length=2000)[1][-1]
    expected = oracles_linear.mgda(jacobian)
    np.testing.assert_allclose(found, expected, atol=1e-3 * np.linalg.norm(expected))


def test_rho_pulls_towards_equal_weights():
    jacobian = 1e-20 * jnp.eye(2, 3)
    tx = modo(gamma=1.0, rho=0.5, num_tasks=2)
    state = tx.init(jnp.zeros(3))
    state = state._replace(memory=state.memory._replace(weights=jnp.array([0.9, 0.1])))
    found, state = tx.update(jacobian, state)
    np.testing.assert_allclose(found, [0.7e-20, 0.3e-20, 0], rtol=1e-5)
    np.testing.assert_allclose(state.memory.weights, [0.7, 0.3], rtol=1e-5)


@pytest.mark.parametrize("scale", [1e-30, 1e15, 1e30])
def test_products_beyond_the_range_of_the_dtype_are_finite(scale):
    jacobian = jnp.asarray(scale * conflicting(K, 8), jnp.float32)
    tx = modo(num_tasks=K)
    found, state = tx.update(jacobian, tx.init(jnp.zeros(8)))
    assert bool(jnp.all(jnp.isfinite(found)))
    np.testing.assert_allclose(state.memory.weights.sum(), 1, rtol=1e-6)
    assert bool(jnp.all(state.memory.weights >= 0))


def test_the_projection_is_the_nearest_point_of_the_simplex():
    rng = np.random.default_rng(0)
    points = rng.standard_normal((200, 5)) * 10.0 ** rng.uniform(-3, 2, (200, 1))
    expected = np.stack([oracles_linear.nearest_on_simplex(point) for point in points])
    with jax.enable_x64(True):
        np.testing.assert_allclose(jax.vmap(project_simplex)(jnp.asarray(points)), expected, atol=1e-12)
    found = jax.vmap(project_simplex)(jnp.asarray(points, jnp.float32))
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("values", "live", "expected"),
    [
        ([3e38, -3e38, 3e38], [1, 1, 1], [0.5, 0.0, 0.5]),
        ([1e30, 1e30, 1e30], [1, 1, 1], [1 / 3, 1 / 3, 1 / 3]),
        ([5.0, 0.2, 0.4], [0, 1, 1], [0.0, 0.4, 0.6]),
        ([5.0, 0.2, 0.4], [0, 0, 1], [0.0, 0.0, 1.0]),
        ([5.0, 0.2, 0.4], [0, 0, 0], [1 / 3, 1 / 3, 1 / 3]),
    ],
)
def test_the_projection_of_huge_and_masked_values(values, live, expected):
    found = project_simplex(jnp.array(values, jnp.float32), jnp.array(live, bool))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_bad_input_is_one_clear_sentence():
    with pytest.raises(ValueError, match=r"modo: gamma must be >= 0 and finite, got -1"):
        modo(gamma=-1.0, num_tasks=2)
    with pytest.raises(ValueError, match=r"modo: rho must be >= 0 and finite, got -1"):
        modo(rho=-1.0, num_tasks=2)
    with pytest.raises(ValueError, match="pass num_tasks=K"):
        modo()
    with pytest.raises(ValueError, match="1, 2 or 3 independent batches, got 4"):
        modo(num_tasks=2).update((jnp.eye(2),) * 4, modo(num_tasks=2).init(jnp.zeros(2)))


def test_a_tuple_of_gradients_is_no_jacobian_of_parameters_that_are_a_tuple():
    params = (jnp.ones(2), jnp.ones(3))
    tx = modo(num_tasks=2)
    batches = tuple(
        task_gradients(lambda p, x=x: {"a": x * p[0].sum() + p[1].sum(), "b": p[0].sum() * p[1].sum()}, params)[1]
        for x in (1.0, 2.0)
    )
    gradient, _ = tx.update(batches, tx.init(params), params)
    assert jax.tree.map(jnp.shape, gradient) == ((2,), (3,))
