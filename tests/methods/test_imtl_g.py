"""IMTL-G against the paper's closed form in 50 digits, and the equal projections that define it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles_linear
import pytest
from marks import mostly_slow
from samplers import conflicting, gaussian

from mtljax.methods.imtl_g import imtl_g


@functools.cache
def updates(**hyperparameters):
    tx = imtl_g(**hyperparameters)
    return jax.jit(jax.vmap(lambda jacobian: tx.update(jacobian, tx.init(jacobian[0]))[0]))


def gradients(jacobians, dtype=jnp.float64, **hyperparameters):
    return np.asarray(updates(**hyperparameters)(jnp.asarray(jacobians, dtype)), np.float64)


def relative_errors(found, expected):
    return np.linalg.norm(found - expected, axis=-1) / np.linalg.norm(expected, axis=-1)


@pytest.mark.parametrize("num_tasks", mostly_slow([2, 3, 5, 10], quick=[2, 10]))
def test_imtl_g_equals_the_closed_form_of_the_paper(num_tasks):
    jacobians = np.stack(
        [sampler(num_tasks, 2 * num_tasks, seed) for sampler in (gaussian, conflicting) for seed in range(5)]
    )
    expected = np.stack([oracles_linear.imtl_g(jacobian) for jacobian in jacobians])
    with jax.enable_x64(True):
        assert relative_errors(gradients(jacobians), expected).max() < 1e-6
    assert relative_errors(gradients(jacobians, jnp.float32), expected).max() < 1e-3


def test_gradients_of_all_scales_are_projected_on_equally():
    jacobians = np.stack([gaussian(5, 10, seed) for seed in range(10)])
    scales = np.array([np.random.default_rng(seed).permutation(np.logspace(-6, 6, 5)) for seed in range(10)])
    jacobians *= scales[:, :, None]
    expected = np.stack([oracles_linear.imtl_g(jacobian) for jacobian in jacobians])
    with jax.enable_x64(True):
        found = gradients(jacobians)
    assert relative_errors(found, expected).max() < 1e-4
    projections = np.einsum("nkd,nd->nk", jacobians, found) / np.linalg.norm(jacobians, axis=2)
    np.testing.assert_allclose(projections, projections[:, :1].repeat(5, axis=1), rtol=1e-4)


def test_nearly_equal_gradients_are_told_apart():
    base = gaussian(4, 10)
    jacobians = np.stack([np.vstack([base, base[0] + 1e-5 * gaussian(1, 10, seed)[0]]) for seed in range(5)])
    expected = np.stack([oracles_linear.imtl_g(jacobian) for jacobian in jacobians])
    with jax.enable_x64(True):
        assert relative_errors(gradients(jacobians), expected).max() < 1e-4


def test_two_tasks_weigh_each_other_by_their_norms():
    jacobian = np.array([[3.0, 0.0], [-4.0, 3.0]])
    np.testing.assert_allclose(
        gradients(jacobian[None], jnp.float32)[0], (5 * jacobian[0] + 3 * jacobian[1]) / 8, rtol=1e-5
    )


def test_the_guard_turns_ascent_around_and_the_paper_ascends():
    """A short gradient that opposes the others makes the sum of the weights negative."""
    jacobians = np.stack([gaussian(3, 6, seed) * np.array([[1.0], [10.0], [100.0]]) for seed in range(200)])
    with jax.enable_x64(True):
        guarded, paper = gradients(jacobians), gradients(jacobians, guard=False)
    products = np.einsum("nkd,nd->nk", jacobians, paper)
    ascending = products.max(axis=1) < 0
    assert 0 < ascending.sum() < 40
    assert np.all(products[~ascending] > 0)
    np.testing.assert_allclose(guarded, np.where(ascending[:, None], -paper, paper), rtol=1e-9)
    expected = np.stack([oracles_linear.imtl_g(jacobian, guard=False) for jacobian in jacobians[ascending]])
    assert relative_errors(paper[ascending], expected).max() < 1e-6


@pytest.mark.parametrize("guard", [True, False])
def test_a_vanishing_sum_of_the_weights_is_finite(guard):
    # The first lies almost between the others: its y is negative, and this norm makes sum y / norm zero.
    units = np.array([[np.sqrt(0.99), 0.0, 0.1], [0.8, 0.6, 0.0], [0.8, -0.6, 0.0]])
    y = np.linalg.solve(units @ units.T, np.ones(3))
    assert y[0] < 0
    norms = np.array([-y[0] / (y[1] + y[2]), 1.0, 1.0])
    found = gradients((units * norms[:, None])[None], jnp.float32, guard=guard)[0]
    assert np.all(np.isfinite(found))
    assert 1e3 < np.linalg.norm(found) < 1e9


def test_zero_gradients_are_left_out_and_dependent_ones_share():
    jacobian = gaussian(3, 6)
    expected = gradients(jacobian[None], jnp.float32)[0]
    padded = np.vstack([jacobian[:1], np.zeros(6), jacobian[1:]])
    np.testing.assert_allclose(gradients(padded[None], jnp.float32)[0], expected, rtol=1e-4, atol=1e-5)
    duplicated = np.vstack([jacobian, jacobian[:1]])
    np.testing.assert_allclose(gradients(duplicated[None], jnp.float32)[0], expected, rtol=1e-3, atol=1e-4)


def test_without_a_common_direction_the_update_is_zero():
    turned = 2 * np.pi / 3 * np.arange(3)
    star = np.stack([np.cos(turned), np.sin(turned)], axis=1) * np.array([[1.0], [7.0], [0.2]])
    opposite = np.array([[1.0, 0.3], [-5.0, -1.5], [0.0, 0.0]])
    np.testing.assert_array_equal(gradients(np.stack([star, opposite]), jnp.float32), 0)
