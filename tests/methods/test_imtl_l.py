"""IMTL-L against its recurrence with Adam written out, and at its optimum."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from loss_sequences import (
    LOSSES,
    assert_gradient_of,
    assert_needs_losses,
    assert_needs_num_tasks,
    bad_losses,
    learned_by_adam,
    run,
    run_eagerly,
    run_traced,
)

from mtljax.methods.imtl_l import imtl_l
from mtljax.methods.uw import uw


def by_formulas(init, rate, losses=LOSSES):
    """Weights exp(s) with s from before the update, s by Adam on Σ (exp(s) L - s)."""
    path = learned_by_adam(lambda t, s: np.exp(s) * losses[t] - 1, np.full(losses.shape[1], init), rate, len(losses))
    return np.exp(path)


def test_imtl_l_equals_its_recurrence():
    np.testing.assert_allclose(run(imtl_l(num_tasks=3), LOSSES)[0], by_formulas(0, 0.025), rtol=1e-12)
    eager = run_eagerly(imtl_l(init=-0.5, learning_rate=0.1, num_tasks=3))
    np.testing.assert_allclose(eager, by_formulas(-0.5, 0.1), rtol=1e-12)


def test_hyperparameters_may_be_traced():
    rates = run_traced(lambda rate: imtl_l(init=0.3, learning_rate=rate, num_tasks=3), [0.01, 0.2])
    np.testing.assert_allclose(rates, [by_formulas(0.3, 0.01), by_formulas(0.3, 0.2)], rtol=1e-12)
    inits = run_traced(lambda init: imtl_l(init=init, num_tasks=3), [-0.5, 2.0])
    np.testing.assert_allclose(inits, [by_formulas(-0.5, 0.025), by_formulas(2.0, 0.025)], rtol=1e-12)


def test_imtl_l_is_the_gradient_of_its_objective():
    assert_gradient_of(imtl_l(init=0.7, num_tasks=2), lambda losses: (jnp.exp(0.7) * losses - 0.7).sum())


def test_constant_losses_are_all_scaled_to_one():
    losses = np.array([1e-2, 1.0, 50.0])
    weights, _ = run(imtl_l(learning_rate=0.05, num_tasks=3), np.tile(losses, (1500, 1)))
    np.testing.assert_allclose(weights[-1] * losses, 1, rtol=1e-3)


def test_with_gradient_descent_uw_is_half_of_it_with_the_opposite_sign():
    ours = run(imtl_l(optimizer=optax.sgd(0.02), num_tasks=3), LOSSES)[0]
    np.testing.assert_allclose(ours, 2 * run(uw(optimizer=optax.sgd(0.04), num_tasks=3), LOSSES)[0], rtol=1e-12)
    assert np.abs(ours - 1).max() > 0.1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_bad_losses_leave_everything_finite(dtype):
    weights = bad_losses(imtl_l(num_tasks=3), dtype)
    assert (weights[[0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11]] > 0).all()


def test_huge_losses_do_not_stop_the_learning():
    weights = run(imtl_l(num_tasks=2), np.tile([1e30, 1e38], (20, 1)), dtype="float32")[0]
    np.testing.assert_allclose(weights, np.exp(-0.025 * np.arange(20))[:, None] * [1, 1], rtol=1e-3)


def test_the_weight_of_a_loss_near_zero_is_cut_to_the_range():
    weights = run(imtl_l(learning_rate=10.0, num_tasks=2), np.tile([1e-37, -1.0], (20, 1)), dtype="float32")[0]
    np.testing.assert_allclose(weights[-1], np.sqrt(np.finfo(np.float32).max), rtol=1e-6)


def test_one_task():
    found = run(imtl_l(num_tasks=1), LOSSES[:, 1:2])[0]
    np.testing.assert_allclose(found, by_formulas(0, 0.025, LOSSES[:, 1:2]), rtol=1e-12)


def test_bad_arguments_are_one_clear_sentence():
    with pytest.raises(ValueError, match="imtl_l: learning_rate must be >= 0 and finite, got -1"):
        imtl_l(learning_rate=-1, num_tasks=2)
    with pytest.raises(ValueError, match="imtl_l: init must be finite, got inf"):
        imtl_l(init=np.inf, num_tasks=2)
    assert_needs_num_tasks(imtl_l, "imtl_l")
    assert_needs_losses(imtl_l(num_tasks=2), "imtl_l")
