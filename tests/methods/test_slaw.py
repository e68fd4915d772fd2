"""SLAW against moments of the whole loss history."""

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

from mtljax.methods.slaw import slaw


def by_moments(losses, decay):
    """The weights of every update from E[L²] - E[L]², each expectation a weighted sum over the history."""
    found = [np.ones(losses.shape[1])]
    start = min(round(1 / (1 - decay)) if decay < 1 else len(losses), len(losses))
    for t in range(2, len(losses) + 1):
        shares = np.full(t, 1.0 / t)
        if t > start:  # arithmetic mean of the first, then a moving average
            recent = (1 - decay) * decay ** np.arange(t - start)[::-1]
            shares = np.concatenate([np.full(start, decay ** (t - start) / start), recent])
        deviation = np.sqrt(shares @ losses[:t] ** 2 - (shares @ losses[:t]) ** 2)
        found.append(losses.shape[1] / deviation / (1 / deviation).sum())
    return np.stack(found)


@pytest.mark.parametrize("decay", [0.5, 0.75, 0.9, 0.99, 1])
def test_slaw_equals_the_moments_of_the_history(decay):
    weights, _ = run(slaw(decay, num_tasks=3), LOSSES)
    np.testing.assert_allclose(weights, by_moments(LOSSES, decay), rtol=1e-9)
    np.testing.assert_allclose(weights.sum(axis=1), 3, rtol=1e-12)
    np.testing.assert_array_equal(weights[0], 1)


def test_the_default_averages_over_a_hundred_updates():
    losses = np.random.default_rng(1).uniform(0.5, 1.5, (130, 2)) * [1, 10]
    np.testing.assert_allclose(run(slaw(num_tasks=2), losses)[0], by_moments(losses, 0.99), rtol=1e-9)


def test_jit_eager_and_a_traced_decay_agree():
    np.testing.assert_allclose(run_eagerly(slaw(0.75, num_tasks=3)), by_moments(LOSSES, 0.75), rtol=1e-9)
    traced = run_traced(lambda decay: slaw(decay, num_tasks=3), [0.75, 0.99])
    np.testing.assert_allclose(traced, [by_moments(LOSSES, decay) for decay in (0.75, 0.99)], rtol=1e-9)


def test_a_large_mean_does_not_hide_the_deviation_in_float32():
    noise = np.random.default_rng(2).standard_normal((60, 2)) * [1.0, 4.0]
    losses = (1e4 + noise).astype(np.float32).astype(float)
    expected = by_moments(losses, 0.9)
    # Two losses: the first deviations may nearly coincide with 0, where everything is sensitive.
    found = run(slaw(0.9, num_tasks=2), losses, dtype="float32")[0]
    np.testing.assert_allclose(found[10:], expected[10:], rtol=5e-3)
    single = losses[:10].astype(np.float32)
    naive = (single**2).mean(axis=0) - single.mean(axis=0) ** 2
    assert np.any(np.abs(naive - losses[:10].var(axis=0)) > 0.5 * losses[:10].var(axis=0))


def test_the_unit_of_a_loss_changes_the_length_only():
    """The weights times the units stay proportional to each other."""
    units = np.array([1e-6, 1.0, 1e6])
    scaled = run(slaw(num_tasks=3), units * LOSSES)[0][1:] * units
    plain = run(slaw(num_tasks=3), LOSSES)[0][1:]
    np.testing.assert_allclose(scaled / scaled[:, :1], plain / plain[:, :1], rtol=1e-9)


def test_a_constant_loss_keeps_the_weight_one():
    losses = np.stack([LOSSES[:, 0], np.full(12, 7.0), LOSSES[:, 2]], axis=1)
    weights, _ = run(slaw(num_tasks=3), losses)
    np.testing.assert_array_equal(weights[:, 1], 1)
    np.testing.assert_allclose(weights[:, [0, 2]], by_moments(losses[:, [0, 2]], 0.99), rtol=1e-9)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_bad_losses_leave_the_weights_finite_and_summing_to_the_number_of_tasks(dtype):
    weights = bad_losses(slaw(num_tasks=3), dtype)
    np.testing.assert_allclose(weights[np.isfinite(BAD).all(axis=1)].sum(axis=1), 3, rtol=1e-6)


def test_huge_losses_and_one_task():
    weights = run(slaw(num_tasks=3), 1e37 * LOSSES / LOSSES.max(), dtype="float32")[0]
    np.testing.assert_allclose(weights, by_moments(LOSSES, 0.99), rtol=1e-4)
    np.testing.assert_array_equal(run(slaw(num_tasks=1), LOSSES[:, :1])[0], 1)


def test_bad_arguments_are_one_clear_sentence():
    with pytest.raises(ValueError, match=r"slaw: decay must be in \[0, 1\], got 1\.5"):
        slaw(1.5, num_tasks=2)
    assert_needs_num_tasks(slaw, "slaw")
    assert_needs_losses(slaw(num_tasks=2), "slaw")
