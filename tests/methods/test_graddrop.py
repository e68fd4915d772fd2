"""GradDrop: one sign a coordinate, and the plain sum in expectation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import two_heads
from samplers import DEGENERATE, gaussian

from mtljax.gradients import TaskGradients
from mtljax.methods.graddrop import _drop_signs, graddrop

JACOBIANS = {
    "gaussian": gaussian(4, 7),
    "tiny": 1e-30 * gaussian(4, 7),
    "mixed": gaussian(4, 7) * np.logspace(-12, 12, 4)[:, None],
    "zeros": np.where(np.arange(7) % 2, gaussian(4, 7), 0),
    "one sign": np.abs(gaussian(4, 7)),
}


def moments(jacobian, leak):
    """Mean and variance of d over U, exactly: d jumps once as U grows, where bisection finds it."""
    with jax.enable_x64(True):
        combined = jax.jit(lambda u: _drop_signs(jnp.asarray(jacobian), u, jnp.asarray(leak)).sum(axis=0))
        below, above = np.zeros(jacobian.shape[1]), np.ones(jacobian.shape[1])
        first, last = np.asarray(combined(below)), np.asarray(combined(above))
        for _ in range(60):
            middle = (below + above) / 2
            same = np.asarray(combined(middle)) == first
            below, above = np.where(same, middle, below), np.where(same, above, middle)
    mean = above * first + (1 - above) * last
    return mean, above * (first - mean) ** 2 + (1 - above) * (last - mean) ** 2


@pytest.mark.parametrize("name", JACOBIANS)
@pytest.mark.parametrize("leak", [0.0, 0.3])
def test_the_expectation_is_the_sum_exactly_and_the_variance_as_stated(name, leak):
    jacobian = JACOBIANS[name]
    mean, variance = moments(jacobian, np.full(4, leak))
    size = np.abs(jacobian).sum(axis=0)
    np.testing.assert_array_less(np.abs(mean - jacobian.sum(axis=0)), 1e-13 * size + 1e-300)
    parts = np.maximum(jacobian, 0).sum(axis=0) * np.maximum(-jacobian, 0).sum(axis=0)
    np.testing.assert_array_less(np.abs(variance - (1 - leak) ** 2 * parts), 1e-12 * size**2 + 1e-300)


def test_unequal_leaks_bias_the_expectation_towards_the_leaky_task():
    jacobian, leak = gaussian(3, 5), np.array([1.0, 0.2, 0.0])
    mean, _ = moments(jacobian, leak)
    positive = np.maximum(jacobian, 0).sum(axis=0) / np.abs(jacobian).sum(axis=0)
    kept = np.where(jacobian > 0, positive, 1 - positive)
    np.testing.assert_allclose(mean, ((leak[:, None] + (1 - leak[:, None]) * kept) * jacobian).sum(axis=0), rtol=1e-12)


def test_the_mean_of_many_draws_is_the_sum():
    """Each draw lies in an interval of length Σ|g|; Hoeffding's bound fails with probability below 1e-9 in all."""
    jacobian, draws = gaussian(3, 6), 20_000
    tx = graddrop()
    matrix = jnp.asarray(jacobian, jnp.float32)

    def step(state, _):
        gradient, state = tx.update(matrix, state)
        return state, gradient

    _, gradients = jax.jit(lambda s: jax.lax.scan(step, s, length=draws))(tx.init(jnp.zeros(6)))
    size = np.abs(jacobian).sum(axis=0)
    bound = size * np.sqrt(np.log(2 * 6 / 1e-9) / (2 * draws))
    assert np.all(bound < 0.025 * size)
    found = np.asarray(gradients, np.float64)
    np.testing.assert_array_less(np.abs(found.mean(axis=0) - jacobian.sum(axis=0)), bound)
    # Every draw keeps one whole sign: one U for all tasks.
    signs = np.stack([np.maximum(jacobian, 0).sum(axis=0), np.minimum(jacobian, 0).sum(axis=0)])
    assert np.abs(found[:, None] - signs).min(axis=1).max() < 1e-5
    # The draws of different coordinates are independent; six binomial deviations.
    kept = (found > 0)[:, np.abs(signs).min(axis=0) > 0]
    correlation = np.corrcoef(kept.T) - np.eye(kept.shape[1])
    assert np.abs(correlation).max() < 6 / np.sqrt(draws)


def test_leaves_of_one_tree_draw_apart():
    params = {"a": jnp.zeros(50), "b": jnp.zeros(50)}
    row = jnp.asarray(np.array([[1.0], [-1.0]]) * np.ones(50), jnp.float32)
    tx = graddrop()
    gradient, _ = tx.update({"a": row, "b": row}, tx.init(params), params)
    assert 10 < int((gradient["a"] == gradient["b"]).sum()) < 40


@functools.cache
def updated(**hyperparameters):
    tx = graddrop(**hyperparameters)
    return jax.jit(lambda jacobian: tx.update(jacobian, tx.init(jacobian[0]))[0])


@pytest.mark.parametrize("power", [-100, -30, 30, 100])
def test_the_scale_of_the_gradients_does_not_change_what_is_kept(power):
    jacobian = jnp.asarray(gaussian(3, 6), jnp.float32)
    scale = np.float32(2.0**power)
    np.testing.assert_array_equal(updated()(scale * jacobian) / scale, updated()(jacobian))


def test_sums_beyond_the_range_of_float32_do_not_change_it_either():
    jacobian = jnp.outer(jnp.array([2.0, -3.0] * 4), jnp.ones(200))
    scale = np.float32(2.0**124)  # Σ|g|, 20 times this, overflows: P would be 1/2 in place of 2/5
    np.testing.assert_array_equal(updated()(scale * jacobian) / scale, updated()(jacobian))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_degenerate_gradients_keep_one_sign(dtype):
    with jax.enable_x64(dtype == "float64"):
        stacked = np.stack(list(DEGENERATE.values()))
        found = np.asarray(jax.vmap(lambda j: graddrop().update(j, graddrop().init(j[0]))[0])(stacked.astype(dtype)))
    signs = np.stack([np.maximum(stacked, 0).sum(axis=1), np.minimum(stacked, 0).sum(axis=1)])
    error = np.abs(found - signs).min(axis=0)
    np.testing.assert_array_less(error, 1e-6 * np.abs(stacked).sum(axis=1) + 1e-300)


def test_without_conflict_it_is_the_sum_and_full_leak_is_too():
    jacobian = jnp.asarray(gaussian(4, 6), jnp.float32)
    np.testing.assert_allclose(updated()(jnp.abs(jacobian)), jnp.abs(jacobian).sum(axis=0), rtol=1e-6)
    np.testing.assert_allclose(updated(leak=1.0)(jacobian), jacobian.sum(axis=0), rtol=1e-5, atol=1e-6)


def test_leaks_by_name_follow_the_sorted_names_and_are_those_of_the_tasks():
    grads = TaskGradients.from_jacobian(jnp.asarray(gaussian(2, 6), jnp.float32), {"b": 1.0, "a": 2.0})
    found = []
    for leak in ({"b": 0.9, "a": 0.2}, [0.2, 0.9]):
        tx = graddrop(leak)
        found.append(tx.update(grads, tx.init(jnp.zeros(6)))[0])
    np.testing.assert_array_equal(found[0], found[1])
    tx = graddrop({"a": 0.0, "c": 0.0})
    with pytest.raises(ValueError, match=r"graddrop: got values for \['a', 'c'\], but the tasks are \['a', 'b'\]"):
        tx.update(grads, tx.init(jnp.zeros(6)))
    with pytest.raises(ValueError, match=r"graddrop: leak must be in \[0, 1\]"):
        graddrop({"a": 0.5, "b": 1.5})


def test_the_seed_decides_and_every_update_draws_anew():
    jacobians = np.tile(gaussian(2, 60), (2, 1, 1))
    runs = [two_heads.run(graddrop(seed=seed, num_tasks=2), jacobians, dtype=jnp.float32)[0] for seed in (3, 3, 4)]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert np.any(runs[0][0] != runs[2][0])
    assert np.any(runs[0][0] != runs[0][1])


def test_heads_are_not_dropped():
    gradients, weights, jacobians, _ = two_heads.run_heads(graddrop(num_tasks=2), two_heads.SCALES)
    np.testing.assert_allclose(gradients["a"], jacobians["a"][:, 0], rtol=1e-6)
    np.testing.assert_allclose(gradients["b"], jacobians["b"][:, 1], rtol=1e-6)
    assert np.abs(gradients["shared"] - jacobians["shared"].sum(axis=1)).max() > 1e-3
    np.testing.assert_array_equal(weights, 1)


def test_bad_leaks_are_one_clear_sentence():
    with pytest.raises(ValueError, match=r"graddrop: leak must be in \[0, 1\], got -0.5"):
        graddrop(-0.5)
    with pytest.raises(ValueError, match=r"graddrop: leak must be in \[0, 1\]"):
        graddrop([0.5, 1.5])
    tx = graddrop(np.array([0.5, 0.1]))
    with pytest.raises(ValueError, match=r"graddrop: leak has shape \(2,\), expected one number or one for each task"):
        tx.update(jnp.ones((3, 4)), tx.init(jnp.zeros(4)))
