"""DWA against means of slices of the loss history."""

import numpy as np
import pytest
from loss_sequences import (
    BAD,
    LOSSES,
    assert_needs_losses,
    assert_needs_num_tasks,
    bad_losses,
    run,
    run_eagerly,
    run_traced,
)

from mtljax.methods.dwa import dwa


def by_slices(losses, window, temperature=2.0):
    """The weights of every update, from the whole history."""
    found = []
    for t in range(len(losses)):
        epoch = t // window
        if epoch < 2:
            found.append(np.ones(losses.shape[1]))
            continue
        means = [losses[e * window : (e + 1) * window].mean(axis=0) for e in (epoch - 1, epoch - 2)]
        powers = np.exp(means[0] / means[1] / temperature)
        found.append(losses.shape[1] * powers / powers.sum())
    return np.stack(found)


@pytest.mark.parametrize("window", [1, 3, 5])
def test_dwa_equals_the_means_of_slices(window):
    weights, _ = run(dwa(window=window, num_tasks=3), LOSSES)
    np.testing.assert_allclose(weights, by_slices(LOSSES, window), rtol=1e-12)
    np.testing.assert_allclose(weights.sum(axis=1), 3, rtol=1e-12)
    assert np.abs(weights[-1] - 1).max() > 0.01


def test_the_defaults_are_temperature_two_and_windows_of_twenty_five():
    losses = np.random.default_rng(1).uniform(0.5, 1.5, (80, 2))
    weights, _ = run(dwa(num_tasks=2), losses)
    np.testing.assert_allclose(weights, by_slices(losses, 25), rtol=1e-12)
    np.testing.assert_array_equal(weights[:50], 1)
    assert np.abs(weights[50] - 1).max() > 1e-4


def test_jit_eager_and_traced_hyperparameters_agree():
    expected = by_slices(LOSSES, 2, 0.5)
    np.testing.assert_allclose(run_eagerly(dwa(0.5, window=2, num_tasks=3)), expected, rtol=1e-12)
    windows = run_traced(lambda window: dwa(0.5, window=window, num_tasks=3), [2, 4])
    np.testing.assert_allclose(windows, [expected, by_slices(LOSSES, 4, 0.5)], rtol=1e-12)
    temperatures = run_traced(lambda t: dwa(t, window=2, num_tasks=3), [0.5, 1e9])
    np.testing.assert_allclose(temperatures, [expected, np.ones((12, 3))], rtol=1e-8)


def test_the_task_that_falls_least_gets_most():
    losses = np.array([0.5, 0.9, 1.0]) ** np.arange(4)[:, None]
    weights = run(dwa(window=1, num_tasks=3), losses)[0][-1]
    assert weights[0] < weights[1] < weights[2]
    np.testing.assert_allclose(run(dwa(window=1, num_tasks=3), np.ones((4, 3)))[0], 1, rtol=1e-14)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_bad_losses_leave_the_weights_finite_and_summing_to_the_number_of_tasks(dtype):
    for window in (1, 2):
        weights = bad_losses(dwa(window=window, num_tasks=3), dtype)
        np.testing.assert_allclose(weights[np.isfinite(BAD).all(axis=1)].sum(axis=1), 3, rtol=1e-6)


def test_a_mean_of_zero_counts_as_no_change():
    losses = np.array([[1.0, 0], [3, 0], [2, 1], [2, 1], [1, 1]])
    weights, _ = run(dwa(window=2, num_tasks=2), losses)
    powers = np.exp([1 / 2, 1 / 2])  # means 2 -> 2; 0 -> 1 counts as a ratio of 1
    np.testing.assert_allclose(weights[-1], 2 * powers / powers.sum(), rtol=1e-12)


def test_huge_losses_and_one_task():
    np.testing.assert_allclose(
        run(dwa(window=3, num_tasks=3), 1e37 * LOSSES / LOSSES.max(), dtype="float32")[0],
        by_slices(LOSSES, 3),
        rtol=1e-5,
    )
    np.testing.assert_array_equal(run(dwa(window=2, num_tasks=1), LOSSES[:, :1])[0], 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0}, "dwa: temperature must be > 0 and finite, got 0"),
        ({"window": 0}, "dwa: window must be a whole number >= 1, got 0"),
        ({"window": 2.5}, r"dwa: window must be a whole number >= 1, got 2\.5"),
    ],
)
def test_bad_arguments_are_one_clear_sentence(arguments, message):
    with pytest.raises(ValueError, match=message):
        dwa(num_tasks=2, **arguments)


def test_dwa_asks_for_what_it_needs():
    assert_needs_num_tasks(dwa, "dwa")
    assert_needs_losses(dwa(num_tasks=2), "dwa")
