"""UPGrad against nonnegative least squares on the gradients themselves, and the properties of its projections."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from running import updates
from samplers import conflicting, gaussian, nearly_equal, nearly_opposite, wide_conflicting

from mtljax.gradients import scaled_gramian
from mtljax.methods.pcgrad import pcgrad
from mtljax.methods.upgrad import upgrad
from mtljax.solvers import quadratic, upgrad_weights


@pytest.mark.parametrize("num_tasks", [3, 10])
def test_upgrad_is_the_mean_of_the_projections(num_tasks):
    samplers = (gaussian, conflicting, wide_conflicting, nearly_equal, nearly_opposite)
    jacobians = [sampler(num_tasks, 2 * num_tasks) for sampler in samplers]
    expected = np.stack([oracles.upgrad(jacobian) for jacobian in jacobians])
    lengths = np.linalg.norm(expected, axis=1)
    errors = np.linalg.norm(updates(upgrad, jacobians) - expected, axis=1) / lengths
    assert errors[:4].max() < 1e-10  # measured 1e-13
    assert errors[4] < 1e-4  # the Gramian rounds what is left of the opposite rows, 5e-11, by 2e-6; measured 1e-5
    errors = np.linalg.norm(updates(upgrad, jacobians, np.float32) - expected, axis=1) / lengths
    assert errors[:4].max() < 1e-3  # measured 1e-5


def test_forty_tasks_in_float32():
    for jacobian in (gaussian(40, 80), conflicting(40, 50)):
        gramian = scaled_gramian([jnp.asarray(jacobian, jnp.float32)], 40)
        found = np.asarray(upgrad_weights(*gramian), np.float64) @ jacobian
        expected = oracles.upgrad(jacobian)
        assert np.linalg.norm(found - expected) < 1e-3 * np.linalg.norm(expected)  # measured 1e-5


def test_what_pivoting_cannot_solve_the_interior_point_method_does(monkeypatch):
    unsolved = (jnp.full((5, 5), jnp.nan), jnp.zeros((), bool))
    monkeypatch.setattr(quadratic, "_by_pivoting", lambda cosines: unsolved)
    jacobian = conflicting(5, 8)
    gramian = scaled_gramian([jnp.asarray(jacobian, jnp.float32)], 5)
    found = np.asarray(upgrad_weights.__wrapped__(*gramian), np.float64) @ jacobian
    np.testing.assert_allclose(found, oracles.upgrad(jacobian), atol=1e-4 * np.linalg.norm(found))


def test_pivoting_knows_when_it_has_not_solved_a_problem():
    """Rows that only nearly obey a linear relation, so that pivots vanish to rounding."""
    solved = jax.jit(quadratic._by_pivoting)
    for seed in range(5):
        jacobian = gaussian(8, 3, seed)
        jacobian[4:] = -jacobian[:4]
        gramian = scaled_gramian([jnp.asarray(jacobian, jnp.float32)], 8)
        excess, ok = solved(gramian.cosines)
        slack = (np.eye(8) + np.asarray(excess, np.float64)) @ np.asarray(gramian.cosines, np.float64)
        assert np.isfinite(slack).all()
        if ok:  # what it claims to have solved satisfies the optimality conditions to rounding
            assert slack.min() > -1e-4
            assert np.abs(slack * np.asarray(excess)).max() < 1e-3


def test_with_two_tasks_upgrad_is_half_of_pcgrad():
    jacobians = np.stack(
        [sampler(2, 4, seed) for sampler in (gaussian, conflicting, wide_conflicting) for seed in range(4)]
    )
    expected = updates(pcgrad, jacobians) / 2
    scale = np.linalg.norm(jacobians, axis=(1, 2))[:, None]
    found = updates(upgrad, jacobians)
    np.testing.assert_allclose(found / scale, expected / scale, rtol=0, atol=1e-15)


def test_upgrad_is_linear_in_the_length_of_each_gradient():
    jacobian = conflicting(3, 8)
    first, second = np.random.default_rng(0).uniform(0.01, 100, (2, 3, 1))
    one, other, both = updates(upgrad, [first * jacobian, second * jacobian, (first + 3 * second) * jacobian])
    np.testing.assert_allclose(both, one + 3 * other, rtol=1e-12, atol=1e-12 * np.linalg.norm(both))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_upgrad_never_conflicts(dtype):
    jacobians = np.stack(
        [sampler(3, 8, seed) for sampler in (gaussian, conflicting, wide_conflicting) for seed in range(5)]
    )
    found = updates(upgrad, jacobians, dtype)
    cosines = np.einsum("bkd,bd->bk", jacobians, found) / np.linalg.norm(jacobians, axis=2)
    # conflicting rows leave about 0.05 of each gradient, so rounding counts twentyfold and more
    assert (cosines / np.linalg.norm(found, axis=1, keepdims=True)).min() > -1e3 * np.finfo(dtype).eps


def test_without_conflict_upgrad_is_the_mean():
    jacobian = np.abs(gaussian(3, 8))
    np.testing.assert_allclose(updates(upgrad, [jacobian])[0], jacobian.mean(axis=0), rtol=1e-15)


def test_small_gradients_are_not_mistaken_for_zero():
    """A library with an absolute threshold returns the mean here."""
    jacobian = 1e-12 * np.array([[1.0, 0.0], [-1.0, 0.1], [0.0, 0.01]])
    found = updates(upgrad, [jacobian], np.float32)[0]
    np.testing.assert_allclose(found, oracles.upgrad(jacobian), rtol=1e-4)


def test_at_stationary_points_the_update_vanishes():
    one, other, third = gaussian(3, 6)
    found = updates(upgrad, [np.array([one, other, -one - other]), np.array([one, -one, 2 * one])])
    assert np.linalg.norm(found, axis=1).max() < 1e-12
    opposite = updates(upgrad, [np.array([one, -2 * one, third])])[0]
    np.testing.assert_allclose(opposite, (third - (third @ one) / (one @ one) * one) / 3, rtol=1e-10)


def test_zero_gradients_do_not_count():
    jacobian = conflicting(3, 6)
    padded = np.insert(jacobian, [0, 2, 2, 2, 2, 3, 3], 0, axis=0)
    np.testing.assert_allclose(updates(upgrad, [padded])[0], updates(upgrad, [jacobian])[0], rtol=1e-12)
