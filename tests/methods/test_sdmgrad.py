"""SDMGrad against a plain recurrence, and the quadratic program its steps approach."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles_linear
import pytest
import quadprog
from samplers import conflicting, gaussian, mixed_scales

from mtljax.methods.sdmgrad import sdmgrad

DEFAULTS = {"lam": 0.3, "iterations": 20, "learning_rate": 5.0, "momentum": 0.5}


def by_loop(first, second, third, lam, iterations, learning_rate, momentum):
    num_tasks = len(first)
    products = first @ second.T
    matrix = products / np.sqrt(np.maximum(np.diag(products), 0)).mean() ** 2
    mean = np.full(num_tasks, 1 / num_tasks)
    weights, velocity = mean.copy(), np.zeros(num_tasks)
    for _ in range(iterations):
        velocity = momentum * velocity + matrix @ weights + lam * matrix @ mean
        weights = oracles_linear.nearest_on_simplex(weights - learning_rate * velocity)
    return (weights @ third + lam * third.mean(axis=0)) / (1 + lam)


@jax.jit
def update_all(batches, hyperparameters):
    """Every hyperparameter is a tracer here."""
    tx = sdmgrad(**hyperparameters)
    return jax.vmap(lambda *grads: tx.update(grads, tx.init(grads[0][0]))[0])(*batches)


def updates(batches, dtype=jnp.float64, **hyperparameters):
    found = update_all([jnp.asarray(batch, dtype) for batch in batches], DEFAULTS | hyperparameters)
    return np.asarray(found, np.float64)


@pytest.mark.parametrize("num_tasks", [2, 8])
@pytest.mark.parametrize(
    ("hyperparameters", "single"),
    [
        # Steps this long do not converge, and their bouncing magnifies the rounding of float32; more on that below.
        ({}, 0.05),
        ({"lam": 0.6, "learning_rate": 0.1}, 1e-3),
        ({"momentum": 0.9, "iterations": 7, "learning_rate": 1.0}, 1e-3),
    ],
)
def test_updates_on_three_batches_equal_the_recurrence(num_tasks, hyperparameters, single):
    size = 2 * num_tasks
    cases = []
    for sampler in (gaussian, conflicting, mixed_scales):
        for seed in range(4):
            base = sampler(num_tasks, size, seed)
            scale = np.linalg.norm(base, axis=1, keepdims=True) / size**0.5
            cases.append([base + 0.3 * scale * gaussian(num_tasks, size, 10 * seed + i) for i in range(3)])
    expected = np.stack([by_loop(*case, **DEFAULTS | hyperparameters) for case in cases])
    batches = [np.stack(batch) for batch in zip(*cases, strict=True)]
    with jax.enable_x64(True):
        found = updates(batches, **hyperparameters)
    error = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert error.max() < 1e-6
    found = updates(batches, jnp.float32, **hyperparameters)
    error = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert error.max() < single


def test_the_default_steps_magnify_a_change_of_the_gradients_and_no_more_than_that():
    """In exact arithmetic, too: the error of float32 is the condition of the map, not the way it is computed."""
    num_tasks, size, change = 8, 16, 1e-10
    rng = np.random.default_rng(0)
    cases = []
    for seed in range(12):
        base = conflicting(num_tasks, size, seed)
        cases.append([(base + 0.3 * gaussian(num_tasks, size, 10 * seed + i)).astype(np.float32) for i in range(3)])
    exact = [[batch.astype(np.float64) for batch in case] for case in cases]
    expected = np.stack([by_loop(*case, **DEFAULTS) for case in exact])

    def errors(found):
        return np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)

    moved = [[[b * (1 + change * rng.uniform(-1, 1, b.shape)) for b in case] for case in exact] for _ in range(2)]
    condition = np.max([errors(np.stack([by_loop(*c, **DEFAULTS) for c in each])) for each in moved], axis=0) / change
    assert condition.max() > 1e4
    found = errors(updates([np.stack(batch) for batch in zip(*cases, strict=True)], jnp.float32))
    tame = condition < 1e3
    assert tame.any()
    assert found[tame].max() < 1e-3
    assert np.all(found < 100 * np.finfo(np.float32).eps * np.maximum(condition, 1))


def test_many_short_steps_find_the_smallest_vector_pulled_to_the_mean():
    num_tasks, lam = 4, 0.5
    jacobian = conflicting(num_tasks, 8) * np.array([[0.5], [1.0], [1.0], [2.0]])
    products, mean = jacobian @ jacobian.T, np.full(num_tasks, 1 / num_tasks)
    constraints = np.hstack([np.ones((num_tasks, 1)), np.eye(num_tasks)])
    bounds = np.r_[1.0, np.zeros(num_tasks)]
    weights = quadprog.solve_qp(products, -lam * products @ mean, constraints, bounds, meq=1)[0]
    expected = (weights + lam * mean) / (1 + lam) @ jacobian
    found = updates([jacobian[None]] * 3, jnp.float32, lam=lam, learning_rate=0.1, iterations=2000)[0]
    np.testing.assert_allclose(found, expected, atol=1e-3 * np.linalg.norm(expected))


def test_fewer_batches_are_reused():
    a, b = (jnp.asarray(gaussian(3, 6, seed), jnp.float32) for seed in range(2))
    tx = sdmgrad()
    state = tx.init(a[0])
    np.testing.assert_array_equal(tx.update(a, state)[0], tx.update((a, a, a), state)[0])
    np.testing.assert_array_equal(tx.update((a, b), state)[0], tx.update((a, b, b), state)[0])


def test_a_task_without_a_gradient_does_not_take_all_the_weight():
    jacobian = gaussian(3, 6)
    padded = np.vstack([jacobian[:1], np.zeros(6), jacobian[1:]])
    # With lam = 0 nothing but the weights on the other tasks is left.
    expected = updates([jacobian[None]] * 3, jnp.float32, lam=0.0)
    np.testing.assert_allclose(updates([padded[None]] * 3, jnp.float32, lam=0.0), expected, rtol=1e-4, atol=1e-5)


def test_batches_that_disagree_and_extreme_scales_are_finite():
    jacobian = gaussian(3, 6)
    first = np.stack([jacobian, jacobian, 1e15 * jacobian, jacobian * np.array([[1e15], [1.0], [1e-30]])])
    second = np.stack([-jacobian, 0 * jacobian, -1e15 * jacobian, jacobian * np.array([[1e-30], [1.0], [1e15]])])
    assert np.all(np.isfinite(updates([first, second, first], jnp.float32)))


@pytest.mark.parametrize(
    ("hyperparameters", "message"),
    [
        ({"lam": -1.0}, r"sdmgrad: lam must be >= 0 and finite, got -1\.0"),
        ({"iterations": -1}, "sdmgrad: iterations must be a whole number >= 0, got -1"),
        ({"learning_rate": float("inf")}, "sdmgrad: learning_rate must be >= 0 and finite, got inf"),
        ({"momentum": 1.0}, r"sdmgrad: momentum must be in \[0, 1\), got 1\.0"),
    ],
)
def test_bad_hyperparameters_are_one_clear_sentence(hyperparameters, message):
    with pytest.raises(ValueError, match=message):
        sdmgrad(**hyperparameters)
