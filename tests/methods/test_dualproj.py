"""DualProj against nonnegative least squares on the gradients themselves, and the properties of a projection."""

import numpy as np
import oracles
import pytest
from running import updates
from samplers import conflicting, gaussian, nearly_opposite, wide_conflicting

from mtljax.methods.dualproj import dualproj


@pytest.mark.parametrize("num_tasks", [3, 10])
def test_dualproj_projects_the_mean(num_tasks):
    jacobians = [
        sampler(num_tasks, 2 * num_tasks) for sampler in (gaussian, conflicting, wide_conflicting, nearly_opposite)
    ]
    expected = np.stack([oracles.dualproj(jacobian) for jacobian in jacobians])
    lengths = np.linalg.norm(expected, axis=1)
    errors = np.linalg.norm(updates(dualproj, jacobians) - expected, axis=1) / lengths
    assert errors[:3].max() < 1e-6
    assert errors[3] < 1e-4
    errors = np.linalg.norm(updates(dualproj, jacobians, np.float32) - expected, axis=1) / lengths
    assert errors[:3].max() < 1e-3


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dualproj_never_conflicts_and_only_removes_conflict(dtype):
    jacobians = np.stack(
        [sampler(3, 8, seed) for sampler in (gaussian, conflicting, wide_conflicting) for seed in range(5)]
    )
    found = updates(dualproj, jacobians, dtype)
    rounding = 1e3 * np.finfo(dtype).eps
    lengths, size = np.linalg.norm(jacobians, axis=2), np.linalg.norm(found, axis=1, keepdims=True)
    assert (np.einsum("bkd,bd->bk", jacobians, found) / lengths / size).min() > -rounding
    # The way from the mean to its projection is orthogonal to the projection: a cone has its apex at 0.
    means = jacobians.mean(axis=1)
    away = np.einsum("bd,bd->b", found - means, found) / np.linalg.norm(means, axis=1) / size[:, 0]
    assert np.abs(away).max() < rounding


def test_without_conflict_dualproj_is_the_mean():
    jacobian = np.abs(gaussian(3, 8))
    np.testing.assert_allclose(updates(dualproj, [jacobian])[0], jacobian.mean(axis=0), rtol=1e-12)


def test_small_gradients_are_not_mistaken_for_zero():
    """A library with an absolute threshold returns the mean here."""
    jacobian = 1e-12 * np.array([[2.0, 0.0], [-1.0, 0.1], [0.0, 0.01]])
    np.testing.assert_allclose(updates(dualproj, [jacobian], np.float32)[0], oracles.dualproj(jacobian), rtol=1e-4)


def test_at_stationary_points_the_update_vanishes():
    one, other, third = gaussian(3, 6)
    found = updates(dualproj, [np.array([one, 2 * other, -one - other]), np.array([one, -one, 2 * one])])
    assert np.linalg.norm(found, axis=1).max() < 1e-7  # the square root of rounding, as the Gramian knows a length of 0
    opposite = updates(dualproj, [np.array([one, -2 * one, third])])[0]
    np.testing.assert_allclose(opposite, (third - (third @ one) / (one @ one) * one) / 3, rtol=1e-6)


def test_zero_gradients_do_not_count():
    jacobian = conflicting(3, 6)
    padded = np.insert(jacobian, [0, 2, 2, 2, 2, 3, 3], 0, axis=0)
    np.testing.assert_allclose(updates(dualproj, [padded])[0], updates(dualproj, [jacobian])[0], rtol=1e-9)
