"""Nash-MTL against a convex solver, high precision and the properties of the bargaining solution."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from running import updates
from samplers import conflicting, gaussian, nearly_opposite, wide

from mtljax.gradients import scaled_gramian
from mtljax.methods.nash_mtl import nash_mtl
from mtljax.solvers import fairness_weights


@pytest.mark.parametrize("num_tasks", [3, 10])
def test_nash_mtl_solves_its_equation(num_tasks):
    samplers = (gaussian, conflicting, wide, nearly_opposite)
    jacobians = [sampler(num_tasks, 2 * num_tasks) for sampler in samplers]
    expected = np.stack([oracles.nash_mtl(jacobian) for jacobian in jacobians])
    lengths = np.linalg.norm(expected, axis=1)
    np.testing.assert_allclose(lengths, np.sqrt(num_tasks), rtol=1e-6)
    errors = np.linalg.norm(updates(nash_mtl, jacobians) - expected, axis=1) / lengths
    assert errors[:3].max() < 1e-10  # measured 1e-13
    assert errors[3] < 1e-4  # the Gramian rounds what is left of the opposite rows, 5e-11, by 2e-6; measured 1e-5
    errors = np.linalg.norm(updates(nash_mtl, jacobians, np.float32) - expected, axis=1) / lengths
    assert errors[:3].max() < 1e-3  # measured 6e-5


def test_forty_tasks_in_float32():
    jacobian = conflicting(40, 80)
    gramian = scaled_gramian([jnp.asarray(jacobian, jnp.float32)], 40)
    found = np.asarray(fairness_weights(*gramian, 1.0), np.float64) @ jacobian
    assert np.linalg.norm(found - oracles.nash_mtl(jacobian)) < 1e-3 * np.sqrt(40)  # measured 1e-4


def test_the_weights_are_the_inverse_of_what_each_task_gains():
    tx = nash_mtl(num_tasks=5)
    with jax.enable_x64(True):
        jacobian = jnp.asarray(conflicting(5, 8))
        gradient, state = tx.update(jacobian, tx.init(jacobian[0]))
        np.testing.assert_allclose(state.weights * (jacobian @ gradient), 1, rtol=1e-10)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_multiplying_losses_changes_nothing(dtype):
    jacobian = gaussian(3, 8)
    # powers of two scale exactly
    factors = 2.0 ** np.array([[0, 0, 0], [20, -20, 3], [-30, -30, -30], [50, 0, -50]])
    found = updates(nash_mtl, factors[:, :, None] * jacobian, dtype)
    np.testing.assert_allclose(found, np.broadcast_to(found[0], found.shape), rtol=0, atol=20 * np.finfo(dtype).eps)


def test_two_tasks_meet_in_the_bisector():
    jacobian = np.array([[3.0, 1.0, 0.0], [-0.2, 0.5, 0.4]])
    unit = jacobian / np.linalg.norm(jacobian, axis=1, keepdims=True)
    bisector = unit.sum(axis=0)
    found = updates(nash_mtl, [jacobian])[0]
    np.testing.assert_allclose(found, np.sqrt(2) * bisector / np.linalg.norm(bisector), rtol=1e-12)


def test_max_norm_only_shortens():
    jacobians = [gaussian(3, 8), wide(3, 8), np.zeros((3, 8))]
    free = updates(nash_mtl, jacobians, np.float32)
    np.testing.assert_allclose(
        updates(nash_mtl, jacobians, np.float32, max_norm=1.0)[:2] * np.sqrt(3), free[:2], rtol=1e-5
    )
    np.testing.assert_array_equal(updates(nash_mtl, jacobians, np.float32, max_norm=10.0), free)
    np.testing.assert_array_equal(free[2], 0)


def test_max_norm_may_be_a_tracer():
    jacobian = jnp.asarray(gaussian(3, 6), jnp.float32)
    lengths = jax.jit(jax.vmap(lambda m: jnp.linalg.norm(nash_mtl(m).update(jacobian, nash_mtl().init(jacobian))[0])))
    np.testing.assert_allclose(lengths(jnp.array([0.5, 1.0, 9.0])), [0.5, 1.0, np.sqrt(3)], rtol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-2), (np.float64, 1e-6)])
def test_contradictory_gradients_are_let_be(dtype, tolerance):
    one, other, third = gaussian(3, 6)
    zero_sum = np.array([one, other, -one - other])
    opposite, stationary = updates(nash_mtl, [np.array([one, -2 * one, third]), zero_sum], dtype)
    rest = third - (third @ one) / (one @ one) * one
    np.testing.assert_allclose(opposite, rest / np.linalg.norm(rest), atol=tolerance)
    assert np.linalg.norm(stationary) < tolerance


def test_tasks_without_a_gradient_do_not_count():
    jacobian = gaussian(3, 6)
    padded = np.insert(jacobian, [0, 2, 2, 2, 2, 3, 3], 0, axis=0)
    np.testing.assert_allclose(updates(nash_mtl, [padded])[0], updates(nash_mtl, [jacobian])[0], rtol=1e-12)


def test_bad_hyperparameters_are_one_clear_sentence():
    with pytest.raises(ValueError, match=r"nash_mtl: max_norm must be > 0 and finite, got 0"):
        nash_mtl(max_norm=0)
    with pytest.raises(ValueError, match="pass num_tasks=K"):
        nash_mtl(update_every=2)
