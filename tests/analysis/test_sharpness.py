"""Sharpness against closed forms on quadratics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mtljax as mtl

HESSIAN = np.diag([1.0, 4.0, 10.0])
POINT = np.array([1.0, -0.3, 0.05])


def quadratic(p, scale=1.0):
    return {"bowl": scale * 0.5 * p @ jnp.asarray(HESSIAN, p.dtype) @ p, "plane": scale * jnp.sum(p)}


def best_on_a_grid(rho, scale):
    """The largest rise on the sphere around the point, by brute force."""
    a, b = np.meshgrid(np.linspace(0, np.pi, 400), np.linspace(0, 2 * np.pi, 800))
    sphere = np.stack([np.sin(a) * np.cos(b), np.sin(a) * np.sin(b), np.cos(a)]).reshape(3, -1)
    moved = POINT[:, None] + rho * scale[:, None] * sphere
    return (0.5 * (moved * (HESSIAN @ moved)).sum(0)).max() - 0.5 * POINT @ HESSIAN @ POINT


def rises(rho, steps=1, adaptive=False, scale=1.0):
    with jax.enable_x64(True):
        found = mtl.analysis.worst_case_rise(
            quadratic, jnp.asarray(POINT), scale, rho=rho, steps=steps, adaptive=adaptive
        )
        return {task: float(value) for task, value in found.items()}


def test_one_step_rises_by_slope_and_curvature_along_the_gradient():
    gradient = HESSIAN @ POINT
    unit = gradient / np.linalg.norm(gradient)
    expected = 0.3 * np.linalg.norm(gradient) + 0.5 * 0.3**2 * unit @ HESSIAN @ unit
    found = rises(0.3)
    np.testing.assert_allclose(found["bowl"], expected, rtol=1e-12)
    np.testing.assert_allclose(found["plane"], 0.3 * np.sqrt(3), rtol=1e-12)


def test_more_steps_find_the_worst_point_of_the_ball():
    best = best_on_a_grid(0.3, np.ones(3))
    assert rises(0.3)["bowl"] < 0.9 * best
    np.testing.assert_allclose(rises(0.3, steps=40)["bowl"], best, rtol=1e-3)
    adaptive = rises(0.5, steps=40, adaptive=True)["bowl"]
    np.testing.assert_allclose(adaptive, best_on_a_grid(0.5, np.abs(POINT)), rtol=1e-3)


def test_a_scaled_loss_rises_in_proportion_and_tiny_ones_do_not_vanish():
    found, expected = rises(0.3, scale=1e-200), rises(0.3)
    np.testing.assert_allclose(found["plane"], 1e-200 * expected["plane"], rtol=1e-9)


def test_each_task_moves_its_own_head_and_the_shared_parameters():
    params = {"shared": jnp.array([3.0, 0.0]), "a": jnp.array(4.0), "b": jnp.array(1.0)}

    def losses_fn(p):
        return {"a": p["shared"][0] + p["a"], "b": p["shared"][1] - 2 * p["b"]}

    found = mtl.analysis.worst_case_rise(losses_fn, params, rho=0.1)
    np.testing.assert_allclose([found["a"], found["b"]], [0.1 * np.sqrt(2), 0.1 * np.sqrt(5)], rtol=1e-5)
    norms = mtl.analysis.gradient_norms(losses_fn, params)
    np.testing.assert_allclose([norms["a"], norms["b"]], [1, 1], rtol=1e-6)


def test_bad_values_are_refused():
    with pytest.raises(ValueError, match="rho must be positive, got 0"):
        rises(0)
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        rises(0.1, steps=0)
