"""AdaTask: Adam's recurrence, once a task."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles_linear
import pytest
import two_heads
from samplers import DEGENERATE

import mtljax as mtl
from mtljax.methods.adatask import adatask


def adam(gradients, **hyperparameters):
    """Adam's directions on gradients (T, ...)."""
    return np.stack([*map(oracles_linear.adam(**hyperparameters), gradients)])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_adatask_is_the_sum_of_separate_adams(dtype):
    """Its hyperparameters are traced here."""
    keys = ("b1", "b2", "eps")
    values = ((0.9, 0.999, 1e-8), (0.5, 0.9, 0.1), (0.0, 0.0, 1e-8))
    hyperparameters = [dict(zip(keys, each, strict=True)) for each in values]
    jacobians = two_heads.sequence(steps=12)
    with jax.enable_x64(dtype == "float64"):
        build = functools.partial(adatask, num_tasks=3)
        found, weights = two_heads.run_all(build, hyperparameters, jacobians, dtype=dtype)
    tolerance = {"float32": 1e-4, "float64": 1e-10}[dtype]
    for each, gradients in zip(hyperparameters, found, strict=True):
        expected = sum(adam(jacobians[:, k], **each) for k in range(3))
        np.testing.assert_allclose(gradients, expected, rtol=10 * tolerance, atol=tolerance)
    np.testing.assert_array_equal(weights, 1)


def test_adatask_is_per_task_before_ew():
    jacobians = jnp.asarray(two_heads.sequence(steps=8), jnp.float32)
    chain = optax.chain(mtl.per_task(optax.scale_by_adam(), num_tasks=3), mtl.ew())

    def step(state, jacobian):
        gradient, state = chain.update(jacobian, state)
        return state, gradient

    _, expected = jax.lax.scan(step, chain.init(jnp.zeros(6)), jacobians)
    gradients, _ = two_heads.run(adatask(num_tasks=3), jacobians, dtype=jnp.float32)
    np.testing.assert_allclose(gradients, expected, rtol=1e-6, atol=1e-7)


def test_the_scale_of_a_loss_cancels_as_it_does_not_in_one_adam():
    """Elich et al., App. A1. With a small ε float32 shows it from 1e-8 to 1e8."""
    jacobians, scale = two_heads.sequence(), np.array([1e8, 1.0, 1e-8])[:, None]
    tx = adatask(eps=1e-20, num_tasks=3)
    plain, scaled = (two_heads.run(tx, j, dtype=jnp.float32)[0] for j in (jacobians, jacobians * scale))
    np.testing.assert_allclose(scaled, plain, rtol=1e-3, atol=1e-4)
    one = [adam(j.sum(axis=1)) for j in (jacobians, jacobians * scale)]
    assert np.abs(one[1] - one[0]).max() > 0.5


def test_one_task_gets_adam():
    jacobians = two_heads.sequence(num_tasks=1)
    gradients, _ = two_heads.run(adatask(num_tasks=1), jacobians, dtype=jnp.float32)
    np.testing.assert_allclose(gradients, adam(jacobians[:, 0]), rtol=1e-3, atol=1e-4)


def test_every_head_has_its_own_adam():
    gradients, _, jacobians, _ = two_heads.run_heads(adatask(num_tasks=2), two_heads.SCALES)
    np.testing.assert_allclose(gradients["a"], adam(jacobians["a"][:, 0]), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(gradients["b"], adam(jacobians["b"][:, 1]), rtol=1e-3, atol=1e-4)
    shared = [adam(jacobians["shared"][:, k]) for k in range(2)]
    np.testing.assert_allclose(gradients["shared"], sum(shared), rtol=1e-3, atol=1e-4)


def test_moments_of_short_floats_are_kept_in_float32():
    tx = adatask(num_tasks=2)
    state = tx.init(jnp.zeros(3, jnp.bfloat16))
    gradient, after = tx.update(jnp.ones((2, 3), jnp.bfloat16), state)
    assert gradient.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves((state.memory.mu, after.memory.nu))} == {jnp.dtype("float32")}
    assert state.memory.mu.shape == (2, 3)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_degenerate_gradients_give_finite_steps(dtype):
    with jax.enable_x64(dtype == "float64"):
        tx = adatask(num_tasks=3)

        def three_updates(jacobian):
            state, found = tx.init(jacobian[0]), []
            for factor in (1.0, 0.0, -2.0):
                gradient, state = tx.update(factor * jacobian, state)
                found.append(gradient)
            return jnp.stack(found)

        cases = {**DEGENERATE, "1e30": np.full((3, 6), 1e30)}
        found = np.asarray(jax.jit(jax.vmap(three_updates))(jnp.asarray(np.stack(list(cases.values())), dtype)))
    beyond = list(cases).index("1e30")  # its squares leave the range of float32: no step, and no trace in the moments
    assert np.all(np.isfinite(np.delete(found, beyond, axis=0)))
    np.testing.assert_array_equal(np.isfinite(found[beyond]).all(axis=1), dtype == "float64" or [False, True, False])
    np.testing.assert_array_equal(found[list(cases).index("all zero")], 0)
    assert np.nanmax(np.abs(found)) <= 3 * (1 + 1e-3) * np.sqrt(10)  # Adam's bound, (1 - b1) / √(1 - b2), a task


def test_bad_hyperparameters_are_one_clear_sentence():
    with pytest.raises(ValueError, match=r"adatask: b1 must be in \[0, 1\), got 1\.0"):
        adatask(1.0, num_tasks=2)
    with pytest.raises(ValueError, match=r"adatask: b2 must be in \[0, 1\), got -0\.1"):
        adatask(b2=-0.1, num_tasks=2)
    with pytest.raises(ValueError, match=r"adatask: eps must be > 0 and finite, got 0"):
        adatask(eps=0, num_tasks=2)
    with pytest.raises(ValueError, match="adatask remembers something of every task; pass num_tasks=K"):
        adatask()
