"""`per_task`: one optimizer a task, kept apart."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from samplers import gaussian

import mtljax as mtl


def test_one_adam_a_task_equals_separate_adams():
    jacobians = [jnp.asarray(gaussian(3, 5, seed), jnp.float32) for seed in range(6)]
    tx = optax.chain(mtl.per_task(optax.scale_by_adam(), num_tasks=3), mtl.ew(), optax.scale(-0.1))
    adams = [optax.scale_by_adam() for _ in range(3)]
    state, states = tx.init(jnp.zeros(5)), [adam.init(jnp.zeros(5)) for adam in adams]
    for jacobian in jacobians:
        step, state = tx.update(jacobian, state)
        expected = jnp.zeros(5)
        for k, adam in enumerate(adams):
            own, states[k] = adam.update(jacobian[k], states[k])
            expected -= 0.1 * own
        np.testing.assert_allclose(step, expected, rtol=1e-5, atol=1e-7)


def test_heads_keep_their_own_gradient_and_stay_out_of_the_gramian():
    params = {"shared": jnp.ones(2), "a": jnp.ones(()), "b": jnp.ones(())}

    def losses_fn(p):
        return {"a": 3.0 * p["a"] * p["shared"].sum(), "b": -p["b"] * p["shared"][0]}

    losses, grads = mtl.task_gradients(losses_fn, params)
    doubled = mtl.per_task(optax.scale(2.0), num_tasks=2)
    changed, _ = doubled.update(grads, doubled.init(params), params, losses=losses)
    np.testing.assert_allclose(changed.gramian(), 4 * grads.gramian(), rtol=1e-6)
    combined = changed.combine(jnp.array([0.5, 0.5]))
    np.testing.assert_allclose([combined["a"], combined["b"]], [12.0, -2.0])


def test_adam_a_task_is_invariant_to_the_scale_of_each_loss():
    """Elich et al., App. A1: constant loss scales cancel in every task's own Adam."""
    jacobian = jnp.asarray(gaussian(2, 4), jnp.float32)
    tx = optax.chain(mtl.per_task(optax.scale_by_adam(eps=0.0), num_tasks=2), mtl.ew())
    plain, _ = tx.update(jacobian, tx.init(jnp.zeros(4)))
    scaled, _ = tx.update(jacobian * jnp.array([[100.0], [0.01]]), tx.init(jnp.zeros(4)))
    np.testing.assert_allclose(scaled, plain, rtol=1e-5)


def test_it_trains_inside_a_jitted_chain_and_refuses_other_tasks():
    tx = optax.chain(mtl.per_task(optax.clip_by_global_norm(1.0), num_tasks=2), mtl.mgda(), optax.sgd(0.1))
    params = jnp.array([3.0, -2.0])

    @jax.jit
    def step(params, state):
        losses, grads = mtl.task_gradients(lambda p: {"a": ((p - 1) ** 2).sum(), "b": ((p + 1) ** 2).sum()}, params)
        updates, state = tx.update(grads, state, params, losses=losses)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for _ in range(100):
        params, state = step(params, state)
    # The Pareto set is the segment between (1, 1) and (-1, -1).
    assert abs(params[0] - params[1]) < 0.05
    assert abs(params[0]) <= 1.0
    with pytest.raises(ValueError, match="per_task: built with num_tasks=2, but got the gradients of 3"):
        tx.update(jnp.ones((3, 2)), tx.init(params))
