"""MGDA against an active-set solver and its optimality conditions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles_linear
import pytest
from marks import mostly_slow
from samplers import conflicting, gaussian, mixed_scales

from mtljax.methods.mgda import mgda


@functools.partial(jax.jit, static_argnames="normalize")
def _update(jacobian, normalize, losses):
    tx = mgda(normalize)
    return tx.update(jacobian, tx.init(jacobian[0]), losses=losses)[0]


def gradient(jacobian, dtype=jnp.float64, normalize="none", losses=None):
    losses = None if losses is None else jnp.asarray(losses, dtype)
    return np.asarray(_update(jnp.asarray(jacobian, dtype), normalize, losses), np.float64)


@pytest.mark.parametrize("num_tasks", mostly_slow([2, 5, 20], quick=[2, 5]))
@pytest.mark.parametrize("sampler", [gaussian, conflicting])
def test_mgda_finds_the_shortest_vector_of_the_hull(num_tasks, sampler):
    jacobian = sampler(num_tasks, 2 * num_tasks)
    expected = oracles_linear.mgda(jacobian)
    with jax.enable_x64(True):
        np.testing.assert_allclose(gradient(jacobian), expected, atol=1e-6 * np.linalg.norm(expected))
    np.testing.assert_allclose(gradient(jacobian, jnp.float32), expected, atol=1e-3 * np.linalg.norm(expected))


@pytest.mark.parametrize("sampler", [gaussian, conflicting, mixed_scales])
def test_mgda_never_conflicts(sampler):
    jacobian = sampler(5, 10)
    with jax.enable_x64(True):
        found = gradient(jacobian)
    assert np.all(jacobian @ found >= found @ found * (1 - 1e-6))


@pytest.mark.parametrize("num_tasks", mostly_slow([2, 5, 20], quick=[5]))
@pytest.mark.parametrize("normalize", ["l2", "loss", "loss+"])
def test_normalisers_find_the_weights_and_leave_the_gradients_alone(num_tasks, normalize):
    jacobian = conflicting(num_tasks, 2 * num_tasks)
    losses = np.random.default_rng(num_tasks).uniform(0.1, 3.0, num_tasks)
    expected = oracles_linear.mgda(jacobian, normalize, losses)
    assert np.linalg.norm(expected - oracles_linear.mgda(jacobian)) > 0.05 * np.linalg.norm(expected)
    with jax.enable_x64(True):
        found = gradient(jacobian, jnp.float64, normalize, losses)
    np.testing.assert_allclose(found, expected, atol=1e-6 * np.linalg.norm(expected))
    found = gradient(jacobian, jnp.float32, normalize, losses)
    np.testing.assert_allclose(found, expected, atol=1e-3 * np.linalg.norm(expected))


@pytest.mark.parametrize("normalize", ["loss", "loss+"])
def test_only_the_ratios_of_the_losses_matter(normalize):
    jacobian, losses = conflicting(5, 8), np.array([1.0, 0.3, 5.0, 0.8, 2.0])
    found = [gradient(jacobian, jnp.float32, normalize, scale * losses) for scale in (1.0, 1e-30, 1e30)]
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("normalize", ["loss", "loss+"])
@pytest.mark.parametrize("loss", [0.0, -1.0])
def test_a_task_without_a_positive_loss_is_left_out_where_losses_are_read(normalize, loss):
    jacobian, losses = conflicting(5, 10), np.array([1.0, loss, 5.0, 0.8, 2.0])
    others = [0, 2, 3, 4]
    expected = oracles_linear.mgda(jacobian[others], normalize, losses[others])
    np.testing.assert_allclose(gradient(jacobian, jnp.float32, normalize, losses), expected, rtol=1e-4, atol=1e-5)
    none_left = gradient(jacobian, jnp.float32, normalize, np.full(5, loss))
    np.testing.assert_allclose(none_left, jacobian.mean(axis=0), atol=1e-6)


def test_a_task_without_a_gradient_does_not_stop_the_others():
    jacobian, losses = conflicting(4, 8), np.array([1.0, 2.0, 3.0, 0.5])
    padded = np.vstack([jacobian[:1], np.zeros(8), jacobian[1:]])
    for normalize in ("none", "l2", "loss", "loss+"):
        expected = oracles_linear.mgda(jacobian, normalize, losses)
        found = gradient(padded, jnp.float32, normalize, np.insert(losses, 1, 9.0))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_at_a_pareto_stationary_point_the_update_vanishes():
    jacobian = np.array([[1.0, 0.0, 0.0], [-1.0, 1.0, 0.0], [0.0, -1.0, 0.0]])
    assert np.linalg.norm(gradient(jacobian, jnp.float32)) < 1e-3


def test_bad_hyperparameters_are_one_clear_sentence():
    with pytest.raises(ValueError, match=r"mgda: normalize must be one of 'none', 'l2', 'loss', 'loss\+', got 'L2'"):
        mgda("L2")
    with pytest.raises(ValueError, match="mgda weighs by the losses: pass them"):
        gradient(gaussian(2, 3), jnp.float32, "loss")
