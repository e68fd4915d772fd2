"""MGDA against an active-set solver and its optimality conditions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quadprog
from samplers import conflicting, gaussian, mixed_scales

import mtljax as mtl


def gradient(jacobian, dtype=jnp.float64):
    tx = mtl.mgda()
    jacobian = jnp.asarray(jacobian, dtype)
    return np.asarray(tx.update(jacobian, tx.init(jacobian[0]))[0], np.float64)


def by_active_set(jacobian):
    num_tasks = len(jacobian)
    gramian = jacobian @ jacobian.T
    constraints = np.hstack([np.ones((num_tasks, 1)), np.eye(num_tasks)])
    weights = quadprog.solve_qp(gramian, np.zeros(num_tasks), constraints, np.r_[1.0, np.zeros(num_tasks)], meq=1)[0]
    return weights @ jacobian


@pytest.mark.parametrize("num_tasks", [2, 3, 5, 10, 20])
@pytest.mark.parametrize("sampler", [gaussian, conflicting])
def test_mgda_finds_the_shortest_vector_of_the_hull(num_tasks, sampler):
    jacobian = sampler(num_tasks, 2 * num_tasks)
    expected = by_active_set(jacobian)
    with jax.enable_x64(True):
        np.testing.assert_allclose(gradient(jacobian), expected, atol=1e-6 * np.linalg.norm(expected))
    np.testing.assert_allclose(gradient(jacobian, jnp.float32), expected, atol=1e-3 * np.linalg.norm(expected))


@pytest.mark.parametrize("sampler", [gaussian, conflicting, mixed_scales])
def test_mgda_never_conflicts(sampler):
    jacobian = sampler(5, 10)
    with jax.enable_x64(True):
        found = gradient(jacobian)
    assert np.all(jacobian @ found >= found @ found * (1 - 1e-6))


def test_a_task_without_a_gradient_does_not_stop_the_others():
    jacobian = gaussian(3, 6)
    padded = np.vstack([jacobian[:1], np.zeros(6), jacobian[1:]])
    np.testing.assert_allclose(gradient(padded, jnp.float32), gradient(jacobian, jnp.float32), rtol=1e-4, atol=1e-5)


def test_at_a_pareto_stationary_point_the_update_vanishes():
    jacobian = np.array([[1.0, 0.0, 0.0], [-1.0, 1.0, 0.0], [0.0, -1.0, 0.0]])
    assert np.linalg.norm(gradient(jacobian, jnp.float32)) < 1e-3
