"""CAGrad against a conic solver and its own optimality."""

import functools
import warnings

import cvxpy as cp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from marks import mostly_slow
from samplers import (
    DEGENERATE,
    aligned,
    conflicting,
    duplicated,
    gaussian,
    low_rank,
    mixed_scales,
    stationary,
)

import mtljax as mtl


@functools.partial(jax.jit, static_argnames="rescale")
def _update(jacobian, c, rescale):
    tx = mtl.cagrad(c, rescale=rescale)
    return tx.update(jacobian, tx.init(jacobian[0]))[0]


def gradient(jacobian, dtype=jnp.float32, c=0.4, rescale="none"):
    """The update, in one program for all c."""
    return np.asarray(_update(jnp.asarray(jacobian, dtype), jnp.asarray(c, dtype), rescale), np.float64)


def by_conic_program(jacobian, c):
    """The primal: the best worst case within the ball."""
    mean = jacobian.mean(axis=0)
    d, worst = cp.Variable(jacobian.shape[1]), cp.Variable()
    constraints = [jacobian @ d >= worst, cp.norm(d - mean) <= c * np.linalg.norm(mean)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Clarabel says when its tolerances end above 1e-12
        cp.Problem(cp.Maximize(worst), constraints).solve(
            solver=cp.CLARABEL, tol_gap_abs=1e-13, tol_gap_rel=1e-13, tol_feas=1e-13
        )
    return d.value


@pytest.mark.parametrize("num_tasks", mostly_slow([2, 3, 5, 10], quick=[10]))
@pytest.mark.parametrize("sampler", [gaussian, conflicting])
@pytest.mark.parametrize("c", [0.1, 0.4, 0.8])
def test_cagrad_solves_its_primal_problem(num_tasks, sampler, c):
    jacobian = sampler(num_tasks, 2 * num_tasks)
    expected = by_conic_program(jacobian, c)
    with jax.enable_x64(True):
        found = gradient(jacobian, jnp.float64, c=c)
    # The conic solver is right to 1e-7 of the scale in value and the square root of that in the point.
    np.testing.assert_allclose(found, expected, atol=3e-4 * np.linalg.norm(expected))
    assert (jacobian @ found).min() >= (jacobian @ expected).min() - 1e-6 * np.abs(jacobian @ expected).max()
    np.testing.assert_allclose(gradient(jacobian, c=c), found, atol=1e-3 * np.linalg.norm(found))


@pytest.mark.parametrize("c", [0.1, 0.4, 0.9, 1.5])
def test_cagrad_stays_in_its_ball_and_beats_the_mean(c):
    jacobian = conflicting(4, 8)
    mean = jacobian.mean(axis=0)
    found = gradient(jacobian, c=c)
    assert np.linalg.norm(found - mean) <= c * np.linalg.norm(mean) * (1 + 1e-4)
    assert (jacobian @ found).min() >= (jacobian @ mean).min() - 1e-6


def test_c_zero_is_the_mean():
    jacobian = gaussian(5, 8)
    np.testing.assert_allclose(gradient(jacobian, c=0.0), jacobian.mean(axis=0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_c_of_one_or_more_never_conflicts(seed):
    jacobian = gaussian(5, 8, seed)
    with jax.enable_x64(True):
        found = gradient(jacobian, jnp.float64, c=1.2)
    assert (jacobian @ found).min() >= -1e-6 * np.linalg.norm(found) * np.linalg.norm(jacobian, axis=1).max()


@pytest.mark.parametrize(("rescale", "divisor"), [("1+c", 1.5), ("1+c^2", 1.25)])
def test_rescale_divides(rescale, divisor):
    jacobian = gaussian(3, 6)
    np.testing.assert_allclose(
        gradient(jacobian, c=0.5, rescale=rescale), gradient(jacobian, c=0.5) / divisor, rtol=1e-5
    )


def test_small_gradients_are_not_mistaken_for_zero():
    """A library with an absolute tolerance returns zero here."""
    jacobian = np.array([[1.0, 0.0], [-1.0, 0.1]])
    expected = gradient(jacobian, jnp.float32)
    assert np.linalg.norm(expected) > 0.04
    np.testing.assert_allclose(gradient(5e-3 * jacobian, jnp.float32), 5e-3 * expected, rtol=1e-3)


def test_bad_hyperparameters_are_one_clear_sentence():
    with pytest.raises(ValueError, match=r"cagrad: c must be >= 0 and finite, got -0\.4"):
        mtl.cagrad(c=-0.4)
    with pytest.raises(ValueError, match=r"cagrad: rescale must be one of 'none', .*, got 'yes'"):
        mtl.cagrad(rescale="yes")
    with pytest.raises(ValueError, match="pass num_tasks=K"):
        mtl.cagrad(update_every=2)
    with pytest.raises(ValueError, match="update_every must be a positive Python int, got 0"):
        mtl.cagrad(update_every=0, num_tasks=2)


@pytest.mark.parametrize("c", [0.4, 1.0, 2.0])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_opposite_gradients_keep_the_promises_of_the_ball(c, dtype):
    jacobians = np.stack([gaussian(4, 8, seed) for seed in range(20)])
    jacobians[:, 0] = -3 * jacobians[:, 1]
    with jax.enable_x64(dtype == "float64"):
        found = np.asarray(_update_all(jnp.asarray(jacobians, dtype), jnp.asarray(c, dtype)), np.float64)
    mean, tolerance = jacobians.mean(axis=1), 1e-6 if dtype == "float64" else 1e-3
    assert np.all(np.linalg.norm(found - mean, axis=1) <= c * np.linalg.norm(mean, axis=1) * (1 + tolerance))
    worst, of_the_mean = (np.einsum("nkd,nd->nk", jacobians, d).min(axis=1) for d in (found, mean))
    assert np.all(worst >= of_the_mean - tolerance * np.linalg.norm(jacobians, axis=2).max() ** 2)
    if c >= 1:
        assert np.all(worst >= -tolerance * np.linalg.norm(jacobians, axis=2).max() ** 2)


SAMPLERS = (gaussian, conflicting, mixed_scales, aligned, low_rank, stationary, duplicated)
SAMPLES = [sampler(3, 6, seed) for sampler in SAMPLERS for seed in range(5)] + list(DEGENERATE.values())
COUNT = 64  # every batch is filled up to this many, to share a compilation for each dtype


@jax.jit
def _update_all(jacobians, c):
    tx = mtl.cagrad(c)
    return jax.vmap(lambda jacobian: tx.update(jacobian, tx.init(jacobian[0]))[0])(jacobians)


def check_the_promises(jacobians, c, dtype, tolerance=None):
    """In the ball, no worse for the worst task than the mean, without conflict for c >= 1; by the longest gradient."""
    jacobians = np.stack(jacobians).astype(dtype)
    filled = jacobians[np.arange(COUNT) % len(jacobians)]
    with jax.enable_x64(dtype == "float64"):
        found = np.asarray(_update_all(jnp.asarray(filled), jnp.asarray(c, dtype)), np.float64)[: len(jacobians)]
    assert np.all(np.isfinite(found))
    jacobians = jacobians.astype(np.float64)
    norms = np.linalg.norm(jacobians, axis=2)
    longest = np.where(norms.max(axis=1) > 0, norms.max(axis=1), 1)
    count = np.sum(norms >= np.finfo(dtype).tiny, axis=1)  # tasks without a gradient do not count
    mean = jacobians.sum(axis=1) / np.maximum(count, 1)[:, None]
    tolerance = tolerance or (1e-6 if dtype == "float64" else 1e-3)
    excess = np.linalg.norm(found - mean, axis=1) - c * np.linalg.norm(mean, axis=1)
    assert np.all(excess <= tolerance * longest)
    relative, unit = jacobians / longest[:, None, None], jacobians / np.where(norms > 0, norms, 1)[..., None]
    worst, of_the_mean = (np.einsum("nkd,nd->nk", relative, d / longest[:, None]).min(axis=1) for d in (found, mean))
    assert np.all(worst >= of_the_mean - tolerance)
    if c >= 1:
        size = np.maximum(np.linalg.norm(found, axis=1), longest)
        assert np.all(np.einsum("nkd,nd->nk", unit, found) >= -tolerance * size[:, None])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("c", [0.4, 1.0, 2.0])
def test_cagrad_keeps_its_promises_on_every_sample(c, dtype):
    # In float32 the weight of a gradient 1e-45 times as long as another is out of range.
    hopeless = DEGENERATE["beyond the range of ratios"] if dtype == "float32" else None
    # Rows at a distance of 1e-6 differ in the 13th digit of a cosine: what a Gramian of 16 digits says of them is worth
    # three.
    close = DEGENERATE["nearly opposite"]
    check_the_promises(
        [jacobian for jacobian in SAMPLES if jacobian is not hopeless and jacobian is not close], c, dtype
    )
    check_the_promises([close], c, dtype, tolerance=1e-3)


PAIRS = [jacobian[list(rows)] for jacobian in SAMPLES for rows in ((0, 1), (1, 2), (2, 0))]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("c", [0.4, 1.0, 2.0])
def test_two_tasks_keep_the_promises_too(c, dtype):
    hopeless = 1e30 if dtype == "float32" else 1e300  # a ratio of lengths whose weight is out of range
    lengths = np.array([np.sort(np.linalg.norm(jacobian, axis=1)) for jacobian in PAIRS])
    fitting = [pair for pair, (low, high) in zip(PAIRS, lengths, strict=True) if not low or high / low < hopeless]
    for start in range(0, len(fitting), COUNT):
        check_the_promises(fitting[start : start + COUNT], c, dtype, 1e-3)


@pytest.mark.parametrize("c", [0.05, 0.5, 1.0, 3.0])
def test_two_tasks_are_as_well_off_as_any_direction_makes_them(c):
    """A search over the angles of their plane; inside the ball nothing is better than its best."""
    samplers = (gaussian, conflicting, mixed_scales, aligned, stationary, duplicated)
    jacobians = np.stack([sampler(2, 6, seed) for sampler in samplers for seed in range(10)])
    angles = np.linspace(0, 2 * np.pi, 4001)
    with jax.enable_x64(True):
        filled = jacobians[np.arange(COUNT) % len(jacobians)]
        found = np.asarray(_update_all(jnp.asarray(filled), jnp.asarray(c, "float64")))[: len(jacobians)]
    for jacobian, d in zip(jacobians, found, strict=True):
        mean, longest = jacobian.mean(axis=0), np.linalg.norm(jacobian, axis=1).max()
        radius = c * np.linalg.norm(mean)
        assert np.linalg.norm(d - mean) <= radius + 1e-7 * longest
        plane = np.linalg.qr(jacobian.T)[0]
        searched = mean + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1) @ plane.T
        assert (jacobian @ d).min() >= (searched @ jacobian.T).min(axis=1).max() - 1e-7 * longest**2


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    jacobian=hnp.arrays(
        np.float64,
        (3, 6),
        elements=st.sampled_from([0.0, 1.0, -1.0, 2.0, -0.5, 1e-6, -1e6]) | st.floats(-10, 10, width=32),
    ),
    c=st.sampled_from([0.4, 1.0, 2.0]),
    dtype=st.sampled_from(["float32", "float64"]),
)
def test_cagrad_keeps_its_promises_on_generated_gradients(jacobian, c, dtype):
    check_the_promises([jacobian], c, dtype)


def test_a_gradient_shorter_by_24_decades_is_not_opposed():
    jacobian = DEGENERATE["tiny and huge"]
    found = gradient(jacobian, c=2.0)
    assert np.all(jacobian @ found >= 0)
