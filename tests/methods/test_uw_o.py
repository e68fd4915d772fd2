"""UW-O: the gradient of Σ L / stop_gradient(L), which is SI's."""

import jax
import numpy as np
import pytest
from loss_sequences import LOSSES, assert_gradient_of, assert_needs_losses, bad_losses, run, run_eagerly
from scipy.optimize import minimize_scalar

from mtljax.methods.si import si
from mtljax.methods.uw_o import uw_o


def test_uw_o_is_the_gradient_of_losses_over_constants():
    assert_gradient_of(uw_o(), lambda losses: (losses / jax.lax.stop_gradient(losses)).sum())


def test_the_weights_are_those_of_the_best_uncertainties():
    """1 / σ at the minimum of L / σ + log σ, found numerically."""
    best = [minimize_scalar(lambda s, x=x: x * np.exp(-s) + s, tol=1e-12).x for x in LOSSES[0]]
    np.testing.assert_allclose(run(uw_o(), LOSSES[:1])[0][0], np.exp(-np.array(best)), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_weights_are_those_of_si_on_bad_losses_too(dtype):
    np.testing.assert_array_equal(bad_losses(uw_o(), dtype), bad_losses(si(), dtype))


def test_one_task_jit_and_eager():
    np.testing.assert_allclose(run_eagerly(uw_o()), run(uw_o(num_tasks=3), LOSSES)[0], rtol=1e-14)
    np.testing.assert_allclose(run(uw_o(), LOSSES[:, :1])[0], 1 / LOSSES[:, :1], rtol=1e-14)


def test_uw_o_asks_for_the_losses():
    assert_needs_losses(uw_o(), "uw_o")
