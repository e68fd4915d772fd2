"""GLS: the gradient of the geometric mean."""

import jax.numpy as jnp
import numpy as np
import pytest
from loss_sequences import LOSSES, assert_gradient_of, assert_needs_losses, bad_losses, run, run_eagerly
from scipy.stats import gmean

from mtljax.methods.gls import gls


def test_gls_is_the_gradient_of_the_geometric_mean():
    assert_gradient_of(gls(), lambda losses: jnp.prod(losses) ** (1 / len(losses)))


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_forty_losses_do_not_leave_the_range_of_float32(size):
    losses = size * np.random.default_rng(0).uniform(0.1, 10, (1, 40))
    expected = gmean(losses / size, axis=1)[:, None] / (40 * losses / size)
    np.testing.assert_allclose(run(gls(), losses, dtype="float32")[0], expected, rtol=2e-5)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_losses_that_are_not_positive_are_left_out_of_the_mean_too(dtype):
    weights = bad_losses(gls(), dtype)
    np.testing.assert_allclose(weights[0], [1 / 3, 1 / 3, 1 / 3], rtol=1e-6)
    np.testing.assert_allclose(weights[1], [0, 0, 1], rtol=1e-6)
    np.testing.assert_allclose(weights[7], [0.5, 0, 0.5], rtol=1e-5)


def test_the_weights_change_as_the_product_of_the_units():
    units = np.array([8.0, 0.5, 0.25])  # of product 1: then the weights change as 1 / unit
    np.testing.assert_allclose(run(gls(), units * LOSSES)[0] * units, run(gls(), LOSSES)[0], rtol=1e-12)


def test_one_task_jit_and_eager():
    np.testing.assert_allclose(run(gls(num_tasks=1), LOSSES[:, :1])[0], 1, rtol=1e-14)
    np.testing.assert_allclose(run_eagerly(gls()), run(gls(), LOSSES)[0], rtol=1e-12)


def test_gls_asks_for_the_losses():
    assert_needs_losses(gls(), "gls")
