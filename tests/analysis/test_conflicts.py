"""Cosines between task gradients, and how often they are negative."""

import jax.numpy as jnp
import numpy as np
import pytest

import mtljax as mtl


def test_cosines_are_of_the_shared_parameters_alone():
    params = {"shared": jnp.zeros(2), "a": jnp.array(0.0), "b": jnp.array(0.0)}

    def losses_fn(p, x):
        return {"a": p["shared"] @ x[0] + 9 * p["a"], "b": p["shared"] @ x[1] + 9 * p["b"]}

    x = jnp.array([[1.0, 0.0], [-3.0, 4.0]])
    np.testing.assert_allclose(mtl.analysis.cosines(losses_fn, params, x), [[1, -0.6], [-0.6, 1]], rtol=1e-6)


def test_the_share_counts_the_batches_with_a_negative_cosine():
    values = np.array([-0.5, 0.2, -0.1, 0.0])
    batches = np.array([[[1, c], [c, 1]] for c in values])
    np.testing.assert_array_equal(mtl.analysis.conflict_share(batches), [[0, 0.5], [0.5, 0]])


def test_one_matrix_is_no_sequence_of_batches():
    with pytest.raises(ValueError, match=r"N mini-batches, \(N, K, K\), got shape \(2, 2\)"):
        mtl.analysis.conflict_share(np.eye(2))
