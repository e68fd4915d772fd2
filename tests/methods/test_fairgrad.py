"""FairGrad against a convex solver, high precision and what its fairness means."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from marks import mostly_slow
from running import updates
from samplers import (
    DEGENERATE,
    aligned,
    conflicting,
    duplicated,
    gaussian,
    low_rank,
    mixed_scales,
    nearly_opposite,
    wide,
)

from mtljax.methods.fairgrad import fairgrad
from mtljax.methods.nash_mtl import nash_mtl

ALPHAS = (0.1, 0.5, 1.0, 2.0, 10.0)


@jax.jit
@jax.vmap
def _weighed(jacobian, alpha):
    tx = fairgrad(alpha, num_tasks=jacobian.shape[0])
    gradient, state = tx.update(jacobian, tx.init(jacobian[0]))
    return gradient, state.weights


def weighed(jacobians, alphas, dtype=np.float64):
    """Updates and weights for at most 20 Jacobians (K, size <= 20) with one alpha, a tracer, each or for all.

    Every call has the same shapes, to share compilations.
    """
    count, size = len(jacobians), jacobians[0].shape[1]
    batch = np.zeros((20, len(jacobians[0]), 20), dtype)
    batch[:, :, :size] = np.stack(jacobians).astype(dtype)[np.arange(20) % count]
    alphas = np.broadcast_to(np.asarray(alphas, dtype), count)[np.arange(20) % count]
    with jax.enable_x64(dtype == np.float64):
        gradients, weights = _weighed(jnp.asarray(batch), jnp.asarray(alphas))
    return np.asarray(gradients, np.float64)[:count, :size], np.asarray(weights, np.float64)[:count]


@pytest.mark.parametrize("num_tasks", mostly_slow([3, 10], quick=[3]))
def test_fairgrad_solves_its_equation(num_tasks):
    samplers = (gaussian, conflicting, wide, nearly_opposite)
    cases = [(sampler, sampler(num_tasks, 2 * num_tasks), alpha) for sampler in samplers for alpha in ALPHAS]
    kinds, jacobians, alphas = zip(*cases, strict=True)
    expected = np.stack([oracles.fairgrad(jacobian, alpha) for _, jacobian, alpha in cases])
    for dtype in (np.float64, np.float32):
        found, _ = weighed(jacobians, alphas, dtype)
        errors = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
        ordinary = np.array([kind is not nearly_opposite for kind in kinds])
        assert errors[ordinary].max() < (1e-10 if dtype == np.float64 else 1e-3)  # measured 2e-13 and 5e-5
        if dtype == np.float64:
            assert errors.max() < 1e-4  # the Gramian rounds what is left of opposite rows, 5e-11, by 2e-6


def test_the_residual_is_rounding():
    jacobians = [gaussian(3, 8), conflicting(3, 8)] * 5
    alphas = np.repeat(ALPHAS, 2)
    found, weights = weighed(jacobians, alphas)
    for jacobian, alpha, gradient, w in zip(jacobians, alphas, found, weights, strict=True):
        np.testing.assert_allclose(w * (jacobian @ gradient) ** alpha, 1, rtol=1e-9)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_alpha_one_is_nash_mtl(dtype):
    jacobian = conflicting(3, 8)
    expected = updates(nash_mtl, [jacobian], dtype)[0]
    np.testing.assert_allclose(weighed([jacobian], 1.0, dtype)[0][0], expected, rtol=0, atol=1e3 * np.finfo(dtype).eps)


def test_the_degree_in_the_gradients_depends_on_alpha():
    jacobian = gaussian(3, 8)
    small, _ = weighed([jacobian] * 5, ALPHAS)
    for scale in (1e-8, 1e8):
        large, _ = weighed([scale * jacobian] * 5, ALPHAS)
        for alpha, one, other in zip(ALPHAS, small, large, strict=True):
            np.testing.assert_allclose(other, one * scale ** ((1 - alpha) / (1 + alpha)), rtol=1e-10)


def test_the_limits_are_the_projected_sum_and_the_best_worst_case():
    jacobian = conflicting(3, 8)
    (small, less, much), _ = weighed([jacobian] * 3, [0.04, 0.01, 300.0])
    # w_k = y_k^-alpha for y_k = <g_k, d>: in the limit w_k is 1, or more where y_k is 0.
    limit = 3 * oracles.dualproj(jacobian)
    far, near = (np.linalg.norm(each - limit) / np.linalg.norm(limit) for each in (small, less))
    assert near < 0.06
    assert far / near == pytest.approx(4, rel=0.2)  # in proportion to alpha
    worst_case = oracles.mgda(jacobian)  # the direction with the largest min_k <g_k, d>
    cosine = much @ worst_case / np.linalg.norm(much) / np.linalg.norm(worst_case)
    assert cosine > 1 - 1e-4


def test_fairgrad_never_conflicts():
    jacobians = [conflicting(3, 8, seed) for seed in range(4) for _ in ALPHAS]
    found, _ = weighed(jacobians, ALPHAS * 4)
    assert np.einsum("bkd,bd->bk", jacobians, found).min() > 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dependent_gradients_with_a_solution_are_served_all(dtype):
    """Also where there are more tasks than parameters."""
    few = [sampler(3, 6, seed) for sampler in (low_rank, duplicated, mixed_scales) for seed in range(6)]
    few += [DEGENERATE["duplicates"], DEGENERATE["all equal"]]
    many = [sampler(20, 12, seed) for sampler in (low_rank, aligned) for seed in range(10)]
    for jacobians in (few, many):
        for alpha in ALPHAS:
            found, _ = weighed(jacobians, alpha, dtype)
            rows = np.stack(jacobians)
            lengths = np.linalg.norm(rows, axis=2) * np.linalg.norm(found, axis=1, keepdims=True)
            cosines = np.einsum("bkd,bd->bk", rows, found) / lengths
            assert cosines.min() > (-1e-5 if dtype == np.float32 else -1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_without_a_solution_what_is_left_is_as_short_as_documented(dtype):
    """Generic gradients, four times as many as parameters, contradict each other: the solution is d = 0."""
    jacobians = [gaussian(20, 5, seed) for seed in range(20)]
    jacobians = [jacobian / np.linalg.norm(jacobian, axis=1, keepdims=True) for jacobian in jacobians]
    for alpha in ALPHAS:
        found, _ = weighed(jacobians, alpha, dtype)
        level = np.finfo(dtype).eps ** (1 / (1 + alpha)) * 20**0.5
        assert np.linalg.norm(found, axis=1).max() < 10 * level


def test_contradictory_gradients_are_let_be():
    one, _, third = gaussian(3, 6)
    rest = third - (third @ one) / (one @ one) * one
    length = np.linalg.norm(rest)
    found, _ = weighed([np.array([one, -2 * one, third])] * 3, [0.1, 0.5, 1.0])
    for alpha, gradient in zip([0.1, 0.5, 1.0], found, strict=True):
        direction = rest / length * length ** ((1 - alpha) / (1 + alpha))
        assert abs(gradient @ one) < 1e-7 * np.linalg.norm(one) * np.linalg.norm(gradient)
        np.testing.assert_allclose(gradient, direction, atol=1e-7)


def test_tasks_without_a_gradient_do_not_count():
    jacobian = gaussian(3, 6)
    padded = np.insert(jacobian, [0, 2, 2, 2, 2, 3, 3], 0, axis=0)
    np.testing.assert_allclose(weighed([padded], 2.0)[0], weighed([jacobian], 2.0)[0], rtol=1e-12)


def test_bad_hyperparameters_are_one_clear_sentence():
    for bad in (0, -1.0, np.inf, np.nan):
        with pytest.raises(ValueError, match="fairgrad: alpha must be > 0 and finite, got"):
            fairgrad(bad)
    with pytest.raises(ValueError, match="pass num_tasks=K"):
        fairgrad(update_every=2)
