"""BMTL: the gradient of Σ exp(L / T)."""

import jax.numpy as jnp
import numpy as np
import pytest
from loss_sequences import (
    BAD,
    LOSSES,
    assert_gradient_of,
    assert_needs_losses,
    bad_losses,
    run,
    run_eagerly,
    run_traced,
)

from mtljax.methods.bmtl import bmtl


@pytest.mark.parametrize("temperature", [0.7, 50])
def test_bmtl_is_the_gradient_of_the_sum_of_exponentials(temperature):
    assert_gradient_of(bmtl(temperature), lambda losses: jnp.exp(losses / temperature).sum())


def test_the_default_temperature_is_fifty_and_it_may_be_traced():
    expected = np.exp(LOSSES / 50) / 50
    np.testing.assert_allclose(run(bmtl(), LOSSES)[0], expected, rtol=1e-14)
    np.testing.assert_allclose(run_eagerly(bmtl(num_tasks=3)), expected, rtol=1e-14)
    traced = run_traced(bmtl, [0.5, 50.0])
    np.testing.assert_allclose(traced, [np.exp(LOSSES / t) / t for t in (0.5, 50)], rtol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_weights_are_cut(dtype):
    weights = bad_losses(bmtl(), dtype)
    largest = np.sqrt(np.finfo(dtype).max)
    np.testing.assert_allclose(weights[1], np.exp(BAD[1] / 50) / 50, rtol=1e-6)
    np.testing.assert_allclose(weights[7], [largest, 0, largest], rtol=1e-6)


def test_one_task():
    np.testing.assert_allclose(run(bmtl(2.0, num_tasks=1), [[3.0]])[0], [[np.exp(1.5) / 2]], rtol=1e-14)


def test_bad_arguments_are_one_clear_sentence():
    with pytest.raises(ValueError, match=r"bmtl: temperature must be > 0 and finite, got 0"):
        bmtl(0)
    assert_needs_losses(bmtl(), "bmtl")
