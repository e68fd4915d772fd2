"""Fixed weights: by name, by position, and refused when they do not fit."""

import jax.numpy as jnp
import numpy as np
import pytest
from samplers import gaussian

import mtljax as mtl

JACOBIAN = jnp.asarray(gaussian(3, 4), jnp.float32)
LOSSES = {"c": 1.0, "a": 2.0, "b": 3.0}


def gradient(tx, losses=None):
    return tx.update(JACOBIAN, tx.init(jnp.zeros(4)), losses=losses)[0]


def test_ew_is_the_sum():
    np.testing.assert_allclose(gradient(mtl.ew()), JACOBIAN.sum(0), rtol=1e-6)


def test_weights_by_name_follow_the_sorted_names():
    by_name = mtl.scalarization({"b": 2.0, "a": 1.0, "c": -3.0})
    expected = jnp.array([1.0, 2.0, -3.0]) @ JACOBIAN
    np.testing.assert_allclose(gradient(by_name, LOSSES), expected, rtol=1e-5)
    np.testing.assert_allclose(gradient(mtl.scalarization([1.0, 2.0, -3.0])), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mtl.scalarization([1.0, float("nan")]), "weights must be finite"),
        (lambda: mtl.scalarization([[1.0]]), "one number a task"),
        (lambda: mtl.scalarization([1.0, 2.0], num_tasks=3), "num_tasks=3 needs as many weights, got 2"),
        (lambda: gradient(mtl.scalarization([1.0, 2.0])), "built with num_tasks=2, but got the gradients of 3"),
        (
            lambda: gradient(mtl.scalarization({"a": 1, "b": 1, "d": 1}), LOSSES),
            r"\['a', 'b', 'd'\], but the tasks are",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
