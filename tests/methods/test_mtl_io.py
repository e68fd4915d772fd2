"""MTL-IO: momentum's recurrence, once a task, and that it is plain momentum."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import two_heads
from samplers import DEGENERATE

from mtljax.methods.mtl_io import mtl_io


def momentum(gradients, decay=0.9):
    trace = np.zeros(np.shape(gradients)[1:])
    for gradient in gradients:
        trace = gradient + decay * trace
        yield trace


def test_mtl_io_is_the_sum_of_separate_traces():
    """Its momentum is traced here."""
    decays, jacobians = (0.9, 0.0, 0.5), two_heads.sequence(steps=12)
    with jax.enable_x64(True):
        build = functools.partial(mtl_io, num_tasks=3)
        found, weights = two_heads.run_all(build, [{"momentum": decay} for decay in decays], jacobians)
    for decay, gradients in zip(decays, found, strict=True):
        expected = sum(np.array(list(momentum(jacobians[:, k], decay))) for k in range(3))
        np.testing.assert_allclose(gradients, expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(weights, 1)


def test_by_default_it_equals_momentum_on_the_sum():
    gradients, _, jacobians, _ = two_heads.run_heads(mtl_io(num_tasks=2), two_heads.SCALES)
    trace = optax.trace(0.9)
    summed = jax.tree.map(lambda leaf: jnp.asarray(leaf.sum(axis=1), jnp.float32), jacobians)
    start = trace.init(two_heads.PARAMS)
    _, expected = jax.lax.scan(lambda state, gradient: trace.update(gradient, state)[::-1], start, summed)
    for leaf, gradient in gradients.items():
        np.testing.assert_allclose(gradient, expected[leaf], rtol=1e-4, atol=1e-5)


def test_every_head_has_the_trace_of_its_task():
    gradients, _, jacobians, _ = two_heads.run_heads(mtl_io(0.5, num_tasks=2), two_heads.SCALES)
    np.testing.assert_allclose(gradients["a"], list(momentum(jacobians["a"][:, 0], 0.5)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(gradients["b"], list(momentum(jacobians["b"][:, 1], 0.5)), rtol=1e-4, atol=1e-5)
    memory = mtl_io(0.5, num_tasks=2).init(two_heads.PARAMS).memory
    assert jax.tree.map(jnp.shape, memory.trace) == {"shared": (2, 3), "a": (2, 3), "b": (2,)}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_degenerate_gradients_give_their_sum(dtype):
    stacked = np.stack(list(DEGENERATE.values()))
    with jax.enable_x64(dtype == "float64"):
        tx = mtl_io(num_tasks=3)
        found = jax.vmap(lambda j: tx.update(j, tx.init(j[0]))[0])(jnp.asarray(stacked, dtype))
        found = np.asarray(found, np.float64)
    np.testing.assert_array_less(np.abs(found - stacked.sum(axis=1)), 1e-6 * np.abs(stacked).sum(axis=1) + 1e-300)


def test_bad_hyperparameters_are_one_clear_sentence():
    with pytest.raises(ValueError, match=r"mtl_io: momentum must be in \[0, 1\), got 1\.0"):
        mtl_io(1.0, num_tasks=2)
    with pytest.raises(ValueError, match="mtl_io remembers something of every task; pass num_tasks=K"):
        mtl_io()
