"""ExcessMTL against a plain loop, at every scale."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import two_heads
from samplers import DEGENERATE

from mtljax.methods.excess_mtl import excess_mtl


def by_loop(jacobians, rate):
    squares, initial, weights = 0.0, None, np.ones(jacobians.shape[1])
    for jacobian in jacobians:
        squares = squares + jacobian**2
        excess = (jacobian**2 / np.sqrt(squares)).sum(axis=1)
        if initial is None:
            initial = excess
        else:
            weights = weights * np.exp(rate * excess / initial)
            weights = len(weights) * weights / weights.sum()
        yield weights @ jacobian, weights


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_excess_mtl_equals_the_loop(dtype):
    """Its learning rate is traced here."""
    rates, jacobians = (0.01, 0.0, 2.0), two_heads.sequence(steps=12)
    with jax.enable_x64(dtype == "float64"):
        build = functools.partial(excess_mtl, num_tasks=3)
        found = two_heads.run_all(build, [{"learning_rate": rate} for rate in rates], jacobians, dtype=dtype)
    tolerance = {"float32": 2e-5, "float64": 1e-11}[dtype]
    for rate, gradients, weights in zip(rates, *found, strict=True):
        expected = list(by_loop(jacobians, rate))
        np.testing.assert_allclose(weights, [w for _, w in expected], rtol=tolerance)
        np.testing.assert_allclose(gradients, [d for d, _ in expected], atol=tolerance * np.abs(gradients).max())


def test_the_default_is_that_documented():
    jacobians = two_heads.sequence()
    _, weights = two_heads.run(excess_mtl(num_tasks=3), jacobians, dtype=jnp.float32)
    np.testing.assert_allclose(weights, [w for _, w in by_loop(jacobians, 0.01)], rtol=2e-5)


@pytest.mark.parametrize("powers", [(-100, -100, -100), (-100, 0, 60), (50, 50, 50)])
def test_the_weights_do_not_know_the_scale_of_any_task(powers):
    jacobians = two_heads.sequence()
    scaled = jacobians * np.exp2(powers)[:, None]
    plain, other = (two_heads.run(excess_mtl(0.3, num_tasks=3), j, dtype=jnp.float32)[1] for j in (jacobians, scaled))
    assert np.abs(plain[-1] - 1).max() > 0.05
    np.testing.assert_allclose(other, plain, rtol=1e-5)


def test_the_converged_task_loses_weight():
    jacobians = two_heads.sequence(steps=30)
    jacobians[:, 2] *= 0.8 ** np.arange(30)[:, None]
    _, weights = two_heads.run(excess_mtl(0.3, num_tasks=3), jacobians, dtype=jnp.float32)
    assert weights[-1, 2] < 0.5
    np.testing.assert_allclose(weights.sum(axis=1), 3, rtol=1e-5)


def test_a_task_starts_at_its_first_gradient():
    jacobians = two_heads.sequence(steps=10)
    jacobians[:4, 1] = 0
    _, weights = two_heads.run(excess_mtl(0.3, num_tasks=3), jacobians, dtype=jnp.float32)
    np.testing.assert_array_equal(weights[0], 1)
    ratios = weights[:, 1] / weights[:, 0]
    assert np.all(np.diff(ratios[:5]) < 0)  # waiting, while the others are pushed
    # From its second gradient on it is pushed as by the loop on those gradients alone.
    *_, (_, others) = by_loop(jacobians[:, [0, 2]], 0.3)
    np.testing.assert_allclose(weights[-1, 0] / weights[-1, 2], others[0] / others[1], rtol=1e-4)
    excess = [
        (j**2 / np.sqrt((jacobians[: t + 1, 1] ** 2).sum(0))).sum() for t, j in enumerate(jacobians[:, 1]) if t > 3
    ]
    first = [(j**2 / np.sqrt((jacobians[: t + 1, 0] ** 2).sum(0))).sum() for t, j in enumerate(jacobians[:, 0])]
    push = sum(excess[1:]) / excess[0] - sum(first[1:]) / first[0]
    np.testing.assert_allclose(ratios[-1], np.exp(0.3 * push), rtol=1e-4)


def test_huge_rates_give_all_weight_to_one_task_and_stay_finite():
    jacobians = two_heads.sequence()
    jacobians[1:, 0] *= 1e30
    jacobians[0] *= 1e-15
    gradients, weights = two_heads.run(excess_mtl(1e6, num_tasks=3), jacobians, dtype=jnp.float32)
    assert np.all(np.isfinite(gradients))
    np.testing.assert_allclose(weights[-1], [3, 0, 0], atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_degenerate_gradients_give_finite_weights(dtype):
    with jax.enable_x64(dtype == "float64"):
        tx = excess_mtl(0.5, num_tasks=3)

        def three_updates(jacobian):
            state, found = tx.init(jacobian[0]), []
            for factor in (1.0, 0.0, -2.0):
                gradient, state = tx.update(factor * jacobian, state)
                found.append((gradient, state.weights))
            return jax.tree.map(lambda *x: jnp.stack(x), *found)

        stacked = jnp.asarray(np.stack(list(DEGENERATE.values())), dtype)
        gradients, weights = map(np.asarray, jax.jit(jax.vmap(three_updates))(stacked))
    assert np.all(np.isfinite(gradients))
    assert np.all(weights > 0)
    np.testing.assert_allclose(weights.sum(axis=-1), 3, rtol=1e-6)
    zero = list(DEGENERATE).index("all zero")
    np.testing.assert_array_equal(gradients[zero], 0)
    np.testing.assert_array_equal(weights[zero], 1)


def test_the_state_stays_finite_for_the_largest_gradients():
    """Their sums and their lengths over time leave the range of float32; the other task is pushed as ever."""
    jacobian = np.stack([np.full(6, 3e38), [0.5, 1, -1, 2, 0.1, -3]])
    tx = excess_mtl(0.5, num_tasks=2)
    update, state = jax.jit(tx.update), tx.init(jnp.zeros(6))
    for _ in range(3):
        _, state = update(jnp.asarray(jacobian, jnp.float32), state)
        assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(state))
    small = jnp.asarray(jacobian * np.array([[1e-38], [1.0]]), jnp.float32)
    gradient, state = update(small, state)
    assert bool(jnp.all(jnp.isfinite(gradient)))
    push = sum(1 / np.sqrt(t) for t in (2, 3, 4))  # of the second task, E / E(0) for equal gradients
    ratio = state.memory.log_weights[1] - state.memory.log_weights[0]
    assert 0.5 * (push - 3) < ratio < 0.5 * push


def test_heads_are_scaled_by_the_weight_and_do_not_enter_it():
    gradients, weights, jacobians, _ = two_heads.run_heads(excess_mtl(1.0, num_tasks=2), two_heads.SCALES)
    expected = list(by_loop(jacobians["shared"], 1.0))
    assert np.abs(weights - 1).max() > 0.1
    np.testing.assert_allclose(weights, [w for _, w in expected], rtol=1e-4)
    np.testing.assert_allclose(gradients["shared"], [d for d, _ in expected], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(gradients["a"], weights[:, :1] * jacobians["a"][:, 0], rtol=1e-4)
    np.testing.assert_allclose(gradients["b"], weights[:, 1] * jacobians["b"][:, 1], rtol=1e-4)


def test_bad_hyperparameters_are_one_clear_sentence():
    with pytest.raises(ValueError, match=r"excess_mtl: learning_rate must be >= 0 and finite, got -0\.1"):
        excess_mtl(-0.1, num_tasks=2)
    with pytest.raises(ValueError, match="excess_mtl remembers something of every task; pass num_tasks=K"):
        excess_mtl()
