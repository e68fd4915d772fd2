"""SI: the gradient of Σ log L."""

import jax.numpy as jnp
import numpy as np
import pytest
from loss_sequences import BAD, LOSSES, assert_gradient_of, assert_needs_losses, bad_losses, run, run_eagerly

from mtljax.methods.si import si


def test_si_is_the_gradient_of_the_sum_of_logarithms():
    assert_gradient_of(si(), lambda losses: jnp.log(losses).sum())


def test_si_does_not_feel_the_unit_of_a_loss():
    """Losses and gradients times the same constants, 2^-40 to 2^40: the update is the same to the last bit."""
    units = 2.0 ** np.array([-40, 3, 40])
    jacobian, losses = np.random.default_rng(0).standard_normal((3, 5)), np.array([0.3, 2.0, 7.0])
    tx = si()

    def update(units):
        rows = jnp.asarray(units[:, None] * jacobian, jnp.float32)
        return tx.update(rows, tx.init(jnp.zeros(5)), losses=jnp.asarray(units * losses, jnp.float32))[0]

    np.testing.assert_array_equal(update(units), update(np.ones(3)))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_losses_that_are_not_positive_are_left_out(dtype):
    weights = bad_losses(si(), dtype)
    np.testing.assert_allclose(weights[1], [0, 0, 1 / 3], rtol=1e-6)
    largest = np.sqrt(np.finfo(dtype).max)
    np.testing.assert_allclose(weights[5, :2], np.minimum(1 / BAD[5, :2].astype(float), largest), rtol=1e-6)
    np.testing.assert_array_equal(weights[8, [0, 2]], [0, 0])


def test_one_task_jit_and_eager():
    weights, _ = run(si(), LOSSES)
    np.testing.assert_allclose(weights, 1 / LOSSES, rtol=1e-14)
    np.testing.assert_allclose(run_eagerly(si()), weights, rtol=1e-14)
    np.testing.assert_allclose(run(si(num_tasks=1), LOSSES[:, :1])[0], 1 / LOSSES[:, :1], rtol=1e-14)


def test_si_asks_for_the_losses():
    assert_needs_losses(si(), "si")
