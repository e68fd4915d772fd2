"""STCH: the gradient of its objective, and its nadir against slices of the loss history."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from loss_sequences import (
    LOSSES,
    PARAMS,
    assert_gradient_of,
    assert_needs_losses,
    assert_needs_num_tasks,
    bad_losses,
    run,
    run_eagerly,
    run_traced,
)
from scipy.special import softmax

from mtljax.methods.stch import Nadir, stch


def by_slices(losses, mu, warmup, window):
    """The weights of every update, from the whole history."""
    end = (warmup + 1) * window
    nadir = losses[warmup * window : end].mean(axis=0)
    after = losses.shape[1] * softmax(np.log(losses / nadir) / mu, axis=1) / losses
    return np.where(np.arange(len(losses))[:, None] < end, 1 / losses, after)


def test_after_the_warm_up_stch_is_the_gradient_of_the_smooth_maximum():
    nadir, mu = np.array([0.5, 30.0]), 0.3
    with jax.enable_x64(True):
        tx = stch(mu, 1, window=2, num_tasks=2)
        state = tx.init(jax.tree.map(jnp.asarray, PARAMS))._replace(
            seen=jnp.full(2, 4, jnp.int32), memory=Nadir(jnp.asarray(nadir))
        )
    assert_gradient_of(tx, lambda losses: 2 * mu * jax.nn.logsumexp(jnp.log(losses / nadir) / mu), state)


def test_in_the_warm_up_stch_is_the_gradient_of_the_sum_of_logarithms():
    assert_gradient_of(stch(num_tasks=2), lambda losses: jnp.log(losses).sum())


@pytest.mark.parametrize(("warmup", "window"), [(0, 1), (2, 3), (1, 4)])
def test_stch_equals_the_formula_on_slices(warmup, window):
    weights, _ = run(stch(0.5, warmup, window=window, num_tasks=3), LOSSES)
    np.testing.assert_allclose(weights, by_slices(LOSSES, 0.5, warmup, window), rtol=1e-12)


def test_the_defaults_take_the_nadir_from_updates_100_to_124():
    losses = np.random.default_rng(1).uniform(0.5, 1.5, (130, 2))
    weights, _ = run(stch(num_tasks=2), losses)
    np.testing.assert_allclose(weights, by_slices(losses, 1, 4, 25), rtol=1e-12)
    assert np.abs(weights[125] * losses[125] - 1).max() > 0.01


def test_jit_eager_and_traced_hyperparameters_agree():
    expected = by_slices(LOSSES, 0.5, 1, 2)
    np.testing.assert_allclose(run_eagerly(stch(0.5, 1, window=2, num_tasks=3)), expected, rtol=1e-12)
    windows = run_traced(lambda window: stch(0.5, 1, window=window, num_tasks=3), [2, 3])
    np.testing.assert_allclose(windows, [expected, by_slices(LOSSES, 0.5, 1, 3)], rtol=1e-12)
    warmups = run_traced(lambda warmup: stch(0.5, warmup, window=2, num_tasks=3), [1, 3])
    np.testing.assert_allclose(warmups, [expected, by_slices(LOSSES, 0.5, 3, 2)], rtol=1e-12)
    mus = run_traced(lambda mu: stch(mu, 1, window=2, num_tasks=3), [0.5, 2.0])
    np.testing.assert_allclose(mus, [expected, by_slices(LOSSES, 2.0, 1, 2)], rtol=1e-12)


def test_small_mu_sees_the_worst_task_only_and_large_mu_is_si():
    weights = run_traced(lambda mu: stch(mu, 0, window=1, num_tasks=3), [1e-3, 1e9])
    worst = np.argmax(LOSSES[1:] / LOSSES[0], axis=1)
    np.testing.assert_allclose(weights[0, 1:] * LOSSES[1:], 3 * np.eye(3)[worst], atol=1e-6)
    np.testing.assert_allclose(weights[1], 1 / LOSSES, rtol=1e-8)


def test_the_unit_of_a_loss_does_not_matter():
    units = np.array([1e-6, 1.0, 1e6])
    tx = stch(0.5, 1, window=2, num_tasks=3)
    np.testing.assert_allclose(run(tx, units * LOSSES)[0] * units, run(tx, LOSSES)[0], rtol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("warmup", [0, 2, 8])
def test_losses_that_are_not_positive_are_left_out(dtype, warmup):
    weights = bad_losses(stch(0.5, warmup, window=1, num_tasks=3), dtype)
    assert (weights[1, :2] == 0).all()
    assert weights[1, 2] > 0


def test_losses_that_are_not_positive_count_as_the_mean_so_far_in_the_nadir():
    losses = np.array([[1.0, 2.0], [0.0, -1.0], [4.0, 8.0], [1.0, 1.0]])
    filled = losses.copy()
    filled[1] = losses[0]
    found = run(stch(0.5, 0, window=3, num_tasks=2), losses)[0][-1]
    np.testing.assert_allclose(found, by_slices(filled, 0.5, 0, 3)[-1], rtol=1e-12)


def test_huge_and_tiny_losses_and_one_task():
    losses = LOSSES[:6] * np.array([1e30, 1.0, 1e-15])
    found = run(stch(0.5, 0, window=2, num_tasks=3), losses, dtype="float32")[0]
    np.testing.assert_allclose(found * losses, by_slices(losses, 0.5, 0, 2) * losses, rtol=1e-3)
    one = run(stch(0.5, 0, window=2, num_tasks=1), LOSSES[:, :1])[0]
    np.testing.assert_allclose(one, 1 / LOSSES[:, :1], rtol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mu": 0}, "stch: mu must be > 0 and finite, got 0"),
        ({"warmup": -1}, "stch: warmup must be a whole number >= 0, got -1"),
        ({"window": 0}, "stch: window must be a whole number >= 1, got 0"),
    ],
)
def test_bad_arguments_are_one_clear_sentence(arguments, message):
    with pytest.raises(ValueError, match=message):
        stch(num_tasks=2, **arguments)


def test_stch_asks_for_what_it_needs():
    assert_needs_num_tasks(stch, "stch")
    assert_needs_losses(stch(num_tasks=2), "stch")
