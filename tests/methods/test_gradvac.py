"""Gradient Vaccine against the paper's loop over vectors."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles_linear
import pytest
from samplers import conflicting, gaussian, mixed_scales

import mtljax as mtl
from mtljax.methods.gradvac import gradvac


def relative_error(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("num_tasks", [2, 8])
@pytest.mark.parametrize("sampler", [gaussian, mixed_scales])
def test_ten_updates_in_task_order_equal_the_loop(num_tasks, sampler):
    target, bent, common = np.zeros((num_tasks, num_tasks)), 0, np.full(num_tasks + 3, 0.4)
    with jax.enable_x64(True):
        tx = gradvac(0.3, shuffle=False, num_tasks=num_tasks)
        update = jax.jit(tx.update)
        state, single = tx.init(jnp.zeros(1, jnp.float64)), tx.init(jnp.zeros(1, jnp.float32))
        for seed in range(10):
            jacobian = sampler(num_tasks, num_tasks + 3, seed)
            if seed % 2 == 0:  # the tasks agree, and conflict in the next update
                jacobian += np.linalg.norm(jacobian, axis=1, keepdims=True) * common
            expected = oracles_linear.gradvac(jacobian, target, beta=0.3)
            found, state = update(jnp.asarray(jacobian), state)
            assert relative_error(found, expected) < 1e-6
            np.testing.assert_allclose(state.memory.target, target, atol=1e-9)
            found, single = update(jnp.asarray(jacobian, jnp.float32), single)
            assert relative_error(np.asarray(found, np.float64), expected) < 1e-3
            bent += target.max() > 0.1 and relative_error(expected, jacobian.sum(axis=0)) > 0.01
    assert bent >= 2


def test_each_task_meets_the_others_in_an_order_of_its_own():
    jacobian, orders = conflicting(3, 5, seed=3), [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
    # What a task becomes depends on its own order alone: collect what each can become.
    possible = []
    for i in range(3):
        mine = []
        for order in orders:
            alone = np.zeros((3, 3), int) + np.arange(3)[:, None]  # the others meet nobody
            alone[i] = order
            mine.append(oracles_linear.gradvac(jacobian, order=alone) - np.delete(jacobian, i, axis=0).sum(axis=0))
        possible.append(mine)
    sums = np.array([a + b + c for a in possible[0] for b in possible[1] for c in possible[2]])
    shared = np.array([sum(mine[o] for mine in possible) for o in range(6)])
    update = jax.jit(jax.vmap(lambda seed: first_update(jacobian, seed)))
    found = np.asarray(update(jnp.arange(40)))
    nearest = np.abs(found[:, None] - sums).max(axis=2).min(axis=1)
    assert nearest.max() < 1e-5
    assert (np.abs(found[:, None] - shared).max(axis=2).min(axis=1) > 1e-3).any()


def first_update(jacobian, seed):
    tx = gradvac(seed=seed, num_tasks=len(jacobian))
    jacobian = jnp.asarray(jacobian, jnp.float32)
    return tx.update(jacobian, tx.init(jacobian[0]))[0]


def test_without_memory_it_is_pcgrad():
    tx, pcgrad = gradvac(0.0, shuffle=False, num_tasks=5), mtl.pcgrad(shuffle=False)
    update, project, state = jax.jit(tx.update), jax.jit(pcgrad.update), tx.init(jnp.zeros(8))
    for seed in range(3):
        jacobian = jnp.asarray(conflicting(5, 8, seed), jnp.float32)
        found, state = update(jacobian, state)
        expected, _ = project(jacobian, pcgrad.init(jacobian[0]))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_without_conflict_the_first_update_is_the_sum():
    jacobian = np.abs(gaussian(5, 8))
    found = jax.jit(lambda: first_update(jacobian, 0))()
    np.testing.assert_allclose(found, jacobian.sum(axis=0), rtol=1e-6)


def test_a_bent_gradient_reaches_its_target():
    """Two tasks that agreed and now do not: each is turned until the cosine is what it was."""
    tx = gradvac(1.0, num_tasks=2)
    update = jax.jit(tx.update)
    agreed = jnp.array([[1.0, 0.0], [0.8, 0.6]])
    _, state = update(agreed, tx.init(jnp.zeros(2)))
    np.testing.assert_allclose(state.memory.target, [[0.0, 0.8], [0.8, 0.0]], atol=1e-6)
    jacobian = np.array([[2.0, 0.0], [0.0, 1.0]])
    found, state = update(jnp.asarray(jacobian, jnp.float32), state)
    # p_1 = (2, 8/3) has cosine 0.8 with g_2, and p_2 = (4/3, 1) with g_1
    np.testing.assert_allclose(found, [2.0 + 4 / 3, 1.0 + 8 / 3], rtol=1e-5)
    np.testing.assert_allclose(state.memory.target, np.zeros((2, 2)), atol=1e-6)


def test_zero_and_opposite_gradients_leave_targets_alone_and_updates_finite():
    row = gaussian(1, 6)[0]
    tx = gradvac(0.5, num_tasks=3)
    update = jax.jit(tx.update)
    _, state = update(jnp.asarray(gaussian(3, 6), jnp.float32), tx.init(jnp.zeros(6)))
    target = np.asarray(state.memory.target)
    found, after = update(jnp.asarray([row, 0 * row, 2 * row], jnp.float32), state)
    np.testing.assert_array_equal(after.memory.target[1], target[1])
    np.testing.assert_array_equal(after.memory.target[:, 1], target[:, 1])
    for _ in range(60):  # until the targets are 1 to the last bit
        _, state = update(jnp.asarray([row, row, row], jnp.float32), state)
    for jacobian in ([row, -row, row], [row, -row, gaussian(1, 6, 1)[0]], [row, 1e-30 * row[::-1], 1e15 * row[::-1]]):
        found, after = update(jnp.asarray(jacobian, jnp.float32), state)
        assert bool(jnp.all(jnp.isfinite(found)))
        assert bool(jnp.all(jnp.abs(after.memory.target) <= 1))


@pytest.mark.parametrize("beta", [-0.1, 1.1])
def test_bad_hyperparameters_are_one_clear_sentence(beta):
    with pytest.raises(ValueError, match=rf"gradvac: beta must be in \[0, 1\], got {beta}"):
        gradvac(beta, num_tasks=2)
    with pytest.raises(ValueError, match="pass num_tasks=K"):
        gradvac()
