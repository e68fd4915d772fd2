"""IMTL against a plain recurrence: learned scales, and IMTL-G's closed form on the scaled gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles_linear
import pytest
from samplers import gaussian

import mtljax as mtl
from mtljax.methods.imtl import imtl
from mtljax.methods.imtl_g import imtl_g

K = 4
JACOBIANS = [gaussian(K, 8, seed) * np.logspace(-1, 1, K)[:, None] for seed in range(10)]
LOSSES = np.random.default_rng(0).uniform(0.1, 5.0, (10, K))


def test_ten_updates_equal_the_recurrence():
    direction, scales = oracles_linear.adam(), np.zeros(K)
    with jax.enable_x64(True):
        tx = imtl(learning_rate=0.1, num_tasks=K)
        state, update = tx.init(jnp.zeros(8, jnp.float64)), jax.jit(tx.update)
        for jacobian, losses in zip(JACOBIANS, LOSSES, strict=True):
            found, state = update(jnp.asarray(jacobian), state, losses=jnp.asarray(losses))
            expected = oracles_linear.imtl_g(np.exp(scales)[:, None] * jacobian)
            np.testing.assert_allclose(found, expected, atol=1e-6 * np.linalg.norm(expected))
            scales = scales - 0.1 * direction(np.exp(scales) * losses - 1)
            np.testing.assert_allclose(state.memory.log_scales, scales, rtol=1e-9)
    assert np.abs(scales).min() > 0.1


def test_the_scales_make_every_loss_one():
    losses = jnp.array([0.2, 1.0, 6.0])
    tx = imtl(learning_rate=0.1, num_tasks=3)
    update = jax.jit(tx.update)
    state = tx.init(jnp.zeros(5))
    for _ in range(200):
        _, state = update(jnp.asarray(gaussian(3, 5), jnp.float32), state, losses=losses)
    np.testing.assert_allclose(jnp.exp(state.memory.log_scales) * losses, 1, rtol=1e-2)


def test_heads_get_their_gradient_times_the_learned_scale():
    params = {"shared": jnp.ones(3), "a": jnp.ones(()), "b": jnp.ones(())}

    def losses_fn(p):
        return {"a": p["a"] * p["shared"][0], "b": p["b"] * p["shared"][1] * 5}

    losses, grads = mtl.task_gradients(losses_fn, params)
    tx = imtl(optimizer=optax.sgd(0.1), num_tasks=2)
    state = tx.init(params)
    first, state = tx.update(grads, state, params, losses=losses)
    np.testing.assert_allclose([first["a"], first["b"]], [1.0, 5.0], rtol=1e-6)
    second, _ = tx.update(grads, state, params, losses=losses)
    # s goes from 0 to -0.1 (L - 1): 0 for the loss 1 and -0.4 for the loss 5
    np.testing.assert_allclose([second["a"], second["b"]], [1.0, 5.0 * np.exp(-0.4)], rtol=1e-6)
    jacobian = np.array([[1.0, 0.0, 0.0], [0.0, 5.0 * np.exp(-0.4), 0.0]])
    np.testing.assert_allclose(second["shared"], oracles_linear.imtl_g(jacobian), rtol=1e-5)


def test_without_learning_it_is_imtl_g():
    tx, plain = imtl(learning_rate=0.0, num_tasks=K), imtl_g()
    jacobian = jnp.asarray(JACOBIANS[0], jnp.float32)
    update, state = jax.jit(tx.update), tx.init(jacobian[0])
    for _ in range(2):
        found, state = update(jacobian, state, losses=LOSSES[0])
        np.testing.assert_allclose(found, plain.update(jacobian, plain.init(jacobian[0]))[0], rtol=1e-5)


def test_extreme_losses_and_gradients_stay_finite():
    jacobian = jnp.asarray(gaussian(3, 5) * np.array([[1e-30], [1.0], [1e15]]), jnp.float32)
    tx = imtl(learning_rate=10.0, num_tasks=3)
    state, update = tx.init(jnp.zeros(5)), jax.jit(tx.update)
    for losses in ([1e-30, 1e30, -1.0], [0.0, 1e30, 1e-30], [1.0, 1.0, 1.0]):
        found, state = update(jacobian, state, losses=jnp.array(losses))
        assert bool(jnp.all(jnp.isfinite(found)))
        assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(state))


def test_huge_learned_scales_leave_the_gradients_of_the_range_finite():
    params = {"shared": jnp.ones(2), "a": jnp.ones(()), "b": jnp.ones(())}
    _, grads = mtl.task_gradients(
        lambda p: {"a": 1e15 * p["a"] * p["shared"][0], "b": 1e15 * p["b"] * p["shared"].sum()}, params
    )
    tx = imtl(num_tasks=2)
    state = tx.init(params)
    state = state._replace(memory=state.memory._replace(log_scales=jnp.array([85.0, 85.0])))
    found, _ = tx.update(grads, state, params, losses=jnp.full(2, 1e-37))
    assert all(bool(jnp.all(jnp.isfinite(leaf))) and bool(jnp.any(leaf > 1e33)) for leaf in jax.tree.leaves(found))


def test_bad_input_is_one_clear_sentence():
    with pytest.raises(ValueError, match="imtl: learning_rate must be >= 0 and finite, got -1"):
        imtl(learning_rate=-1.0, num_tasks=2)
    with pytest.raises(ValueError, match="pass num_tasks=K"):
        imtl()
