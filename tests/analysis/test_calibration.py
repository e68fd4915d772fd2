"""Calibration against counts by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mtljax as mtl


def test_the_error_of_a_forecaster_that_is_right_as_often_as_it_says_is_zero():
    probabilities = np.array([[0.75, 0.25]] * 4 + [[0.1, 0.9]] * 10)
    labels = np.array([0, 0, 0, 1] + [1] * 9 + [0])
    np.testing.assert_allclose(mtl.analysis.expected_calibration_error(probabilities, labels), 0, atol=1e-6)


def test_the_error_is_the_weighted_mean_of_the_gaps():
    """Two examples at 0.6, one right; six at 0.9, all wrong: (2 * 0.1 + 6 * 0.9) / 8, whatever lies between."""
    probabilities = np.array([[0.6, 0.4]] * 2 + [[0.9, 0.1]] * 6)
    labels = np.array([0, 1] + [1] * 6)
    found = mtl.analysis.expected_calibration_error(probabilities, labels, bins=10)
    np.testing.assert_allclose(found, 5.6 / 8, rtol=1e-6)
    one_bin = mtl.analysis.expected_calibration_error(probabilities, labels, bins=1)
    np.testing.assert_allclose(one_bin, abs(1 / 8 - (2 * 0.6 + 6 * 0.9) / 8), rtol=1e-6)


def test_it_agrees_with_a_loop_over_bins():
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(4), 500).astype(np.float32)
    labels = rng.integers(0, 4, 500)
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    expected = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence > low) & (confidence <= low + 1 / 15)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    found = jax.jit(mtl.analysis.expected_calibration_error)(probabilities, labels)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_the_brier_score_is_the_squared_distance_to_the_truth():
    probabilities = np.array([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])
    np.testing.assert_allclose(
        mtl.analysis.brier_score(probabilities, np.array([0, 1, 1])), (0 + 0.5 + 2) / 3, rtol=1e-6
    )


@pytest.mark.parametrize("score", [mtl.analysis.expected_calibration_error, mtl.analysis.brier_score])
def test_examples_without_a_label_are_left_out(score):
    rng = np.random.default_rng(1)
    probabilities, labels = rng.dirichlet(np.ones(3), 60), rng.integers(0, 3, 60)
    missing = np.where(np.arange(60) < 20, -1, labels)
    np.testing.assert_allclose(score(probabilities, missing), score(probabilities[20:], labels[20:]), rtol=1e-5)
    assert bool(jnp.isnan(score(probabilities[:2], missing[:2])))


def test_shapes_that_disagree_are_refused():
    with pytest.raises(ValueError, match=r"probabilities \(N, C\) and labels \(N,\), got shapes \(3,\) and \(3,\)"):
        mtl.analysis.brier_score(np.ones(3), np.ones(3, int))
