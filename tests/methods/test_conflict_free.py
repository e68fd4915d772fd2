"""ConFIG against the pseudo-inverse of the unit gradients, and the equal cosines that define it."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles_linear
import pytest
from marks import mostly_slow
from samplers import conflicting, gaussian

from mtljax.methods.conflict_free import conflict_free

TX = conflict_free()
UPDATES = jax.jit(jax.vmap(lambda jacobian: TX.update(jacobian, TX.init(jacobian[0]))[0]))


def gradients(jacobians, dtype=jnp.float64):
    return np.asarray(UPDATES(jnp.asarray(jacobians, dtype)), np.float64)


def relative_errors(found, expected):
    return np.linalg.norm(found - expected, axis=-1) / np.linalg.norm(expected, axis=-1)


def cosines(jacobians, found):
    products = np.einsum("nkd,nd->nk", jacobians, found)
    return products / (np.linalg.norm(jacobians, axis=2) * np.linalg.norm(found, axis=1, keepdims=True))


@pytest.mark.parametrize("num_tasks", mostly_slow([2, 3, 5, 10], quick=[2, 10]))
def test_conflict_free_equals_the_pseudo_inverse_of_the_paper(num_tasks):
    jacobians = np.stack(
        [sampler(num_tasks, 2 * num_tasks, seed) for sampler in (gaussian, conflicting) for seed in range(5)]
    )
    expected = np.stack([oracles_linear.conflict_free(jacobian) for jacobian in jacobians])
    with jax.enable_x64(True):
        assert relative_errors(gradients(jacobians), expected).max() < 1e-6
    assert relative_errors(gradients(jacobians, jnp.float32), expected).max() < 1e-3


def test_cosines_are_equal_and_positive_and_the_length_is_the_sum_of_the_projections():
    jacobians = np.stack([gaussian(5, 10, seed) for seed in range(10)])
    jacobians *= np.array([np.random.default_rng(seed).permutation(np.logspace(-6, 6, 5)) for seed in range(10)])[
        :, :, None
    ]
    expected = np.stack([oracles_linear.conflict_free(jacobian) for jacobian in jacobians])
    with jax.enable_x64(True):
        found = gradients(jacobians)
    assert relative_errors(found, expected).max() < 1e-4
    equal = cosines(jacobians, found)
    assert equal.min() > 0
    np.testing.assert_allclose(equal, equal[:, :1].repeat(5, axis=1), rtol=1e-4)
    lengths = np.linalg.norm(found, axis=1)
    np.testing.assert_allclose(lengths, np.einsum("nkd,nd->n", jacobians, found) / lengths, rtol=1e-9)


def test_nearly_equal_gradients_are_told_apart():
    base = gaussian(4, 10)
    jacobians = np.stack([np.vstack([base, base[0] + 1e-5 * gaussian(1, 10, seed)[0]]) for seed in range(5)])
    expected = np.stack([oracles_linear.conflict_free(jacobian) for jacobian in jacobians])
    with jax.enable_x64(True):
        assert relative_errors(gradients(jacobians), expected).max() < 1e-4


def test_it_is_linear_in_the_scales_of_the_losses():
    jacobian = conflicting(4, 8)
    a, b = np.array([1.0, 2.0, 0.1, 5.0]), np.array([3.0, 0.2, 1.0, 0.5])
    found = gradients(np.stack([scale[:, None] * jacobian for scale in (a, b, a + b)]), jnp.float32)
    np.testing.assert_allclose(found[0] + found[1], found[2], rtol=1e-4, atol=1e-4)


def test_dependent_gradients_are_met_in_the_least_squares_sense():
    """Five gradients in three dimensions: no direction has equal cosines with all."""
    jacobians = np.stack([gaussian(5, 3, seed) for seed in range(10)])
    expected = np.stack([oracles_linear.conflict_free(jacobian) for jacobian in jacobians])
    with jax.enable_x64(True):
        assert relative_errors(gradients(jacobians), expected).max() < 1e-6
    assert relative_errors(gradients(jacobians, jnp.float32), expected).max() < 1e-3


def test_zero_gradients_are_left_out():
    jacobian = gaussian(3, 6)
    padded = np.vstack([jacobian[:1], np.zeros(6), jacobian[1:]])
    expected = oracles_linear.conflict_free(jacobian)
    np.testing.assert_allclose(gradients(padded[None], jnp.float32)[0], expected, rtol=1e-4, atol=1e-5)


def test_without_a_common_direction_the_update_is_zero():
    turned = 2 * np.pi / 3 * np.arange(3)
    star = np.stack([np.cos(turned), np.sin(turned)], axis=1) * np.array([[1.0], [7.0], [0.2]])
    opposite = np.array([[1.0, 0.3], [-5.0, -1.5], [0.0, 0.0]])
    np.testing.assert_array_equal(gradients(np.stack([star, opposite]), jnp.float32), 0)
