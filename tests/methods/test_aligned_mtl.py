"""Aligned-MTL against singular value decompositions of the Jacobian, in high precision where rows differ by decades."""

import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from running import updates
from samplers import conflicting, gaussian, wide

from mtljax.gradients import scaled_gramian
from mtljax.methods.aligned_mtl import aligned_mtl
from mtljax.solvers import aligned_weights


def nearly_dependent(num_tasks, size, seed=0):
    jacobian = gaussian(num_tasks, size, seed)
    jacobian[0] = (-1) ** seed * 1.5 * jacobian[-1] + 1e-5 * jacobian[0]
    return jacobian


@pytest.mark.parametrize("num_tasks", [3, 10])
def test_aligned_mtl_is_the_sum_of_the_rows_of_the_polar_factor(num_tasks):
    jacobians = [sampler(num_tasks, 2 * num_tasks) for sampler in (gaussian, conflicting, wide)]
    jacobians += [nearly_dependent(num_tasks, 2 * num_tasks, seed) for seed in (0, 1)]
    expected = np.stack([oracles.aligned_mtl(jacobian) for jacobian in jacobians])
    lengths = np.linalg.norm(expected, axis=1)
    errors = np.linalg.norm(updates(aligned_mtl, jacobians) - expected, axis=1) / lengths
    assert errors[:3].max() < 1e-10  # measured 1e-13
    assert errors[3:].max() < 1e-4  # the Gramian rounds what is left of the row, 5e-11, by 2e-6; measured 2e-5
    errors = np.linalg.norm(updates(aligned_mtl, jacobians, np.float32) - expected, axis=1) / lengths
    assert errors[:3].max() < 1e-3  # measured 5e-5


def test_many_tasks_in_float32():
    jacobian = gaussian(64, 128)
    gramian = scaled_gramian([jnp.asarray(jacobian, jnp.float32)], 64)
    found = np.asarray(aligned_weights(*gramian, scale="min"), np.float64) @ jacobian
    expected = oracles.aligned_mtl(jacobian)
    assert np.linalg.norm(found - expected) < 1e-4 * np.linalg.norm(expected)  # measured 2e-6


@pytest.mark.parametrize("scale", ["min", "median", "rmse"])
def test_the_scale_is_a_singular_value(scale):
    jacobians = [gaussian(4, 8), wide(4, 8)]
    found = updates(aligned_mtl, jacobians, scale=scale)
    for jacobian, gradient in zip(jacobians, found, strict=True):
        expected = oracles.aligned_mtl(jacobian, scale)
        np.testing.assert_allclose(gradient, expected, atol=1e-10 * np.linalg.norm(expected))
    # K orthogonal rows of length sigma sum to sqrt(K) sigma: all singular values have become equal.
    values = np.linalg.svd(jacobians[0], compute_uv=False)
    sigma = {"min": values[3], "median": values[2], "rmse": np.sqrt(np.mean(values**2))}[scale]
    np.testing.assert_allclose(np.linalg.norm(found[0]), 2 * sigma, rtol=1e-12)


def test_orthogonal_gradients_become_equally_long():
    lengths = np.array([1e-6, 1.0, 1e3, 1e6])
    rotation = np.linalg.qr(gaussian(6, 6))[0][:4]
    found = updates(aligned_mtl, [lengths[:, None] * rotation], scale="min")[0]
    np.testing.assert_allclose(found, 1e-6 * rotation.sum(axis=0), rtol=1e-8, atol=1e-14)


def test_dependent_gradients_leave_out_a_direction():
    one, other = gaussian(2, 6)
    jacobians = [np.array([one, one, other]), np.array([one, -2 * one, 1e3 * other]), np.array([one, -one, 2 * one])]
    found = updates(aligned_mtl, jacobians)
    for jacobian, gradient in zip(jacobians, found, strict=True):
        left, values, right = np.linalg.svd(jacobian, full_matrices=False)
        kept = values > 1e-10 * values[0]
        expected = values[kept].min() * left[:, kept].sum(axis=0) @ right[kept]
        np.testing.assert_allclose(gradient, expected, atol=1e-10 * np.linalg.norm(values[kept].min()))


def test_equal_tasks_get_equal_weights():
    one, other = gaussian(2, 6)
    tx = aligned_mtl(num_tasks=3)
    jacobian = jnp.asarray(np.array([one, one, other]), jnp.float32)
    weights = tx.update(jacobian, tx.init(jacobian[0]))[1].weights
    np.testing.assert_allclose(weights[0], weights[1], rtol=1e-5)


def test_tasks_without_a_gradient_do_not_count():
    jacobian = gaussian(3, 6)
    padded = np.insert(jacobian, [0, 2, 2, 2, 2, 3, 3], 0, axis=0)
    np.testing.assert_allclose(updates(aligned_mtl, [padded])[0], updates(aligned_mtl, [jacobian])[0], rtol=1e-10)


def test_a_rotation_of_the_parameters_rotates_the_update():
    jacobian, rotation = gaussian(4, 6), np.linalg.qr(gaussian(6, 6, seed=1))[0]
    found = updates(aligned_mtl, [jacobian, jacobian @ rotation], scale="min")
    np.testing.assert_allclose(found[1], found[0] @ rotation, atol=1e-12)


def test_bad_hyperparameters_are_one_clear_sentence():
    with pytest.raises(ValueError, match="aligned_mtl: scale must be one of 'min', 'median', 'rmse', got 'max'"):
        aligned_mtl(scale="max")
    with pytest.raises(ValueError, match="pass num_tasks=K"):
        aligned_mtl(update_every=2)
