"""Losses along directions against a polynomial, and directions against their norms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mtljax as mtl

PARAMS = {"kernel": jnp.arange(24.0).reshape(2, 3, 4), "dense": jnp.ones((5, 2)), "bias": jnp.ones(2)}


def test_every_filter_of_a_direction_is_as_long_as_that_of_the_parameters():
    direction = mtl.analysis.random_direction(jax.random.PRNGKey(0), PARAMS)
    for name in ("kernel", "dense"):
        found, expected = (
            np.linalg.norm(tree[name].reshape(-1, tree[name].shape[-1]), axis=0) for tree in (direction, PARAMS)
        )
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_array_equal(direction["bias"], 0)
    other = mtl.analysis.random_direction(jax.random.PRNGKey(1), PARAMS)
    assert np.abs(other["kernel"] - direction["kernel"]).max() > 0.1


def losses_fn(p, x):
    return {"a": (p - x) @ (p - x), "b": jnp.sum(p)}


def test_the_surface_is_that_of_the_losses():
    p, x = jnp.array([1.0, 2.0]), jnp.array([0.5, 0.0])
    u, v = jnp.array([1.0, 0.0]), jnp.array([1.0, -1.0])
    found = mtl.analysis.surface(losses_fn, p, x, directions=[u, v], radius=2.0, points=5)
    np.testing.assert_array_equal(found.coordinates, [-2, -1, 0, 1, 2])
    s, t = np.meshgrid(found.coordinates, found.coordinates, indexing="ij")
    np.testing.assert_allclose(found.losses["a"], (0.5 + s + t) ** 2 + (2 - t) ** 2, rtol=1e-5)
    np.testing.assert_allclose(found.losses["b"], 3 + s, rtol=1e-6)
    line = mtl.analysis.surface(losses_fn, p, x, directions=[u], radius=2.0, points=5)
    np.testing.assert_allclose(line.losses["a"], found.losses["a"][:, 2], rtol=1e-6)


def test_pictures_have_a_panel_for_each_task_or_a_line():
    p, x = jnp.array([1.0, 2.0]), jnp.zeros(2)
    both = [jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])]
    contours = mtl.analysis.plot_surface(mtl.analysis.surface(losses_fn, p, x, directions=both, points=4), "bowl")
    assert [axes.get_title() for axes in contours.axes] == ["a", "b"]
    lines = mtl.analysis.plot_surface(mtl.analysis.surface(losses_fn, p, x, directions=both[:1], points=4))
    assert [line.get_label() for line in lines.axes[0].lines] == ["a", "b"]


def test_bad_grids_are_refused():
    with pytest.raises(ValueError, match="one direction or two, got 0"):
        mtl.analysis.surface(losses_fn, jnp.ones(2), jnp.ones(2), directions=[])
    with pytest.raises(ValueError, match="at least 2 points"):
        mtl.analysis.surface(losses_fn, jnp.ones(2), jnp.ones(2), directions=[jnp.ones(2)], points=1)
