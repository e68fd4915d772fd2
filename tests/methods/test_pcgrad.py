"""PCGrad against the paper's loop over vectors."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles_linear import pcgrad as by_loop
from samplers import conflicting, gaussian, mixed_scales

import mtljax as mtl


def gradient(jacobian, dtype=jnp.float64, **hyperparameters):
    tx = mtl.pcgrad(**hyperparameters)
    jacobian = jnp.asarray(jacobian, dtype)
    return np.asarray(tx.update(jacobian, tx.init(jacobian[0]))[0], np.float64)


@pytest.mark.parametrize("num_tasks", [1, 2, 3, 5, 10, 40])
def test_pcgrad_in_task_order_equals_the_loop(num_tasks):
    tx = mtl.pcgrad(shuffle=False)
    update = jax.jit(lambda jacobian: tx.update(jacobian, tx.init(jacobian[0]))[0])
    for sampler in (gaussian, conflicting, mixed_scales):
        jacobian = sampler(num_tasks, num_tasks + 3)
        expected = by_loop(jacobian)
        scale = np.abs(expected).max()
        with jax.enable_x64(True):
            np.testing.assert_allclose(update(jnp.asarray(jacobian, jnp.float64)), expected, atol=1e-9 * scale)
        np.testing.assert_allclose(update(jnp.asarray(jacobian, jnp.float32)), expected, atol=1e-3 * scale)


def test_every_random_order_is_one_the_paper_allows_and_tasks_draw_their_own():
    jacobian = conflicting(3, 5, seed=3)
    possible = [by_loop(jacobian, orders) for orders in itertools.product(itertools.permutations(range(3)), repeat=3)]
    shared = [by_loop(jacobian, [order] * 3) for order in itertools.permutations(range(3))]
    tx = mtl.pcgrad(seed=1)
    state, outside_shared, update = tx.init(jnp.zeros(5)), 0, jax.jit(tx.update)
    for _ in range(30):
        found, state = update(jnp.asarray(jacobian, jnp.float32), state)
        assert min(np.abs(found - one).max() for one in possible) < 1e-5
        outside_shared += min(np.abs(found - one).max() for one in shared) > 1e-3
    assert outside_shared > 0


def test_with_two_tasks_pcgrad_rescales_the_losses():
    """Kurin et al., arXiv:2201.04122: weight 1 + [-cos ‖g_j‖ / ‖g_i‖]_+ on task i."""
    jacobian = np.array([[1.0, 0.0], [-2.0, 1.0]])
    lengths = np.linalg.norm(jacobian, axis=1)
    cosine = jacobian[0] @ jacobian[1] / lengths.prod()
    weights = 1 - cosine * lengths[::-1] / lengths
    np.testing.assert_allclose(gradient(jacobian, jnp.float32), weights @ jacobian, rtol=1e-5)


def test_exactly_opposite_gradients_vanish():
    np.testing.assert_allclose(gradient(np.array([[1.0, 2.0], [-2.0, -4.0]]), jnp.float32), 0, atol=1e-6)


def test_without_conflict_pcgrad_is_the_sum():
    jacobian = np.abs(gaussian(5, 8))
    np.testing.assert_allclose(gradient(jacobian, jnp.float32), jacobian.sum(axis=0), rtol=1e-6)


def test_the_seed_decides_the_orders():
    jacobian = conflicting(5, 8)
    runs = [gradient(jacobian, jnp.float32, seed=seed) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert np.abs(runs[0] - runs[2]).max() > 1e-3
