"""The stand-in for EMTL: equal contributions, and weights where there are none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samplers import gaussian

from mtljax.methods.emtl import emtl


def update(jacobian, losses, dtype=jnp.float32):
    tx = emtl(num_tasks=len(jacobian))
    jacobian = jnp.asarray(jacobian, dtype)
    gradient, state = jax.jit(tx.update)(jacobian, tx.init(jacobian[0]), losses=jnp.asarray(losses, dtype))
    return np.asarray(gradient, np.float64), np.asarray(state.weights, np.float64)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-12)])
def test_every_loss_is_equally_large_next_to_its_weighted_gradient(dtype, tolerance):
    jacobian = gaussian(5, 8) * np.logspace(-6, 6, 5)[:, None]
    losses = np.array([1e-6, 3.0, 0.2, 1e6, 40.0])
    with jax.enable_x64(dtype == "float64"):
        gradient, weights = update(jacobian, losses, dtype)
    contributions = losses / (weights * np.linalg.norm(jacobian, axis=1))
    np.testing.assert_allclose(contributions, contributions[0], rtol=tolerance)
    np.testing.assert_allclose(weights.sum(), 5, rtol=tolerance)
    np.testing.assert_allclose(gradient, weights @ jacobian, rtol=tolerance, atol=tolerance * np.abs(gradient).max())


def test_tasks_without_a_gradient_or_a_positive_loss_get_nothing():
    jacobian = gaussian(6, 8)
    jacobian[1] = 0
    losses = np.array([1.0, 1.0, 0.0, -2.0, -1e30, 3.0])
    gradient, weights = update(jacobian, losses)
    ratios = losses[[0, 5]] / np.linalg.norm(jacobian[[0, 5]], axis=1)
    np.testing.assert_allclose(weights[[0, 5]], 2 * ratios / ratios.sum(), rtol=1e-5)
    np.testing.assert_array_equal(weights[1:5], 0)
    assert np.all(np.isfinite(gradient))
    np.testing.assert_array_equal(update(jacobian, np.zeros(6))[0], 0)


def test_ratios_beyond_the_range_of_the_dtype_are_finite():
    jacobian = gaussian(3, 6) * np.array([[1e-30], [1.0], [1e15]])
    gradient, weights = update(jacobian, [1e30, 1.0, 1e-30])
    assert np.all(np.isfinite(gradient))
    np.testing.assert_allclose(weights, [3.0, 0.0, 0.0], atol=1e-5)


def test_the_first_line_says_that_it_is_a_stand_in():
    assert "stand-in" in emtl.__doc__.splitlines()[0]


def test_losses_are_required():
    with pytest.raises(ValueError, match="emtl weighs by the losses: pass them"):
        emtl().update(jnp.eye(2), emtl().init(jnp.zeros(2)))
