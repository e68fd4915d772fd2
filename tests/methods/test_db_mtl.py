"""DB-MTL against a plain loop, and its two balances."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import two_heads
from samplers import DEGENERATE, gaussian

from mtljax.methods.db_mtl import db_mtl

LOSSES = np.random.default_rng(5).uniform(0.1, 4.0, (12, 3))


def by_loop(jacobians, losses, beta, sigma):
    """Averages with weights written out, the sum of which is one: no start, no correction."""
    logs = jacobians / losses[:, :, None]
    for t in range(1, len(logs) + 1):
        rates = beta / np.arange(1, t + 1) ** sigma
        shares = np.array([(1 - rates[i]) * np.prod(rates[i + 1 :]) for i in range(t)])
        average = np.tensordot(shares / shares.sum(), logs[:t], axes=1)
        lengths = np.linalg.norm(average, axis=1)
        yield (lengths.max() / lengths) @ average, lengths.max() / lengths


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_db_mtl_equals_the_loop(dtype):
    """Its hyperparameters are traced here."""
    hyperparameters = [{"beta": b, "sigma": s} for b, s in ((0.9, 0.0), (0.9, 0.5), (0.0, 0.0), (0.3, 1.0))]
    jacobians = two_heads.sequence(steps=12)
    with jax.enable_x64(dtype == "float64"):
        found = two_heads.run_all(functools.partial(db_mtl, num_tasks=3), hyperparameters, jacobians, LOSSES, dtype)
    tolerance = {"float32": 2e-5, "float64": 1e-11}[dtype]
    for each, gradients, weights in zip(hyperparameters, *found, strict=True):
        expected = list(by_loop(jacobians, LOSSES, **each))
        np.testing.assert_allclose(weights, [w for _, w in expected], rtol=tolerance)
        np.testing.assert_allclose(gradients, [d for d, _ in expected], atol=tolerance * np.abs(gradients).max())


def test_the_defaults_are_those_documented():
    jacobians = two_heads.sequence(steps=12)
    gradients, _ = two_heads.run(db_mtl(num_tasks=3), jacobians, LOSSES, dtype=jnp.float32)
    expected = np.array([d for d, _ in by_loop(jacobians, LOSSES, 0.9, 0.0)])
    np.testing.assert_allclose(gradients, expected, atol=2e-5 * np.abs(expected).max())


def test_the_first_update_does_not_depend_on_beta():
    jacobians = two_heads.sequence(steps=1)
    hyperparameters = [{"beta": beta} for beta in (0.0, 0.9, 0.9999)]
    build = functools.partial(db_mtl, num_tasks=3)
    found, _ = two_heads.run_all(build, hyperparameters, jacobians, LOSSES[:1], jnp.float32)
    (expected, _), *_ = by_loop(jacobians, LOSSES[:1], 0.0, 0.0)
    np.testing.assert_allclose(found[:, 0], [expected] * 3, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("powers", [(-90, 0, 40), (30, -30, 3)])
def test_the_unit_of_a_loss_does_not_matter(powers):
    jacobians, scale = two_heads.sequence(steps=12), np.exp2(powers)
    plain = two_heads.run(db_mtl(num_tasks=3), jacobians, LOSSES, dtype=jnp.float32)[0]
    scaled = two_heads.run(db_mtl(num_tasks=3), jacobians * scale[:, None], LOSSES * scale, dtype=jnp.float32)[0]
    np.testing.assert_allclose(scaled, plain, atol=1e-5 * np.abs(plain).max())


def test_orthogonal_tasks_move_equally_far_and_as_the_longest():
    jacobian = np.diag([5.0, 0.01, 3.0])
    gradients, _ = two_heads.run(db_mtl(num_tasks=3), jacobian[None], np.array([[2.0, 1.0, 0.5]]), dtype=jnp.float32)
    np.testing.assert_allclose(gradients[0], [6.0, 6.0, 6.0], rtol=1e-6)


@pytest.mark.parametrize("bad", [0.0, -1.0])
def test_a_task_without_a_log_loss_is_left_out_of_that_update_only(bad):
    jacobians, losses = two_heads.sequence(steps=8), LOSSES[:8].copy()
    absent = [2, 5]
    losses[absent, 1] = bad
    gradients, weights = two_heads.run(db_mtl(num_tasks=3), jacobians, losses, dtype=jnp.float32)
    assert np.all(np.isfinite(gradients))
    np.testing.assert_array_equal(weights[:, 1] == 0, np.isin(np.arange(8), absent))
    # Where it is left out, the others do as without it.
    expected = [d for d, _ in by_loop(jacobians[:, [0, 2]], losses[:, [0, 2]], 0.9, 0.0)]
    for t in absent:
        np.testing.assert_allclose(gradients[t], expected[t], atol=1e-5 * np.abs(expected[t]).max())
    # Afterwards its average is that of the updates it took part in.
    averages = []
    for k in range(3):
        present = [t for t in range(8) if k != 1 or t not in absent]
        logs = jacobians[present, k] / losses[present, k, None]
        averages.append(np.average(logs, axis=0, weights=0.9 ** np.arange(len(present))[::-1]))
    lengths = np.linalg.norm(averages, axis=1)
    last = (lengths.max() / lengths) @ np.array(averages)
    np.testing.assert_allclose(gradients[-1], last, atol=1e-5 * np.abs(last).max())


def test_heads_get_the_gradient_of_their_log_loss():
    gradients, _, jacobians, losses = two_heads.run_heads(db_mtl(num_tasks=2), two_heads.SCALES)
    np.testing.assert_allclose(gradients["a"], jacobians["a"][:, 0] / losses[:, :1], rtol=1e-5)
    np.testing.assert_allclose(gradients["b"], jacobians["b"][:, 1] / losses[:, 1], rtol=1e-5)
    expected = [d for d, _ in by_loop(jacobians["shared"], losses, 0.9, 0.0)]
    np.testing.assert_allclose(gradients["shared"], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_degenerate_gradients_and_losses_give_finite_updates(dtype):
    losses = np.array([[1e-30, 1.0, 1e15], [1.0, 0.0, -1.0], [1e15, 1e-45, 1e-30], [0.5, 2.0, 1.0], [0.0, 0.0, 0.0]])
    with jax.enable_x64(dtype == "float64"):
        tx = db_mtl(num_tasks=3)

        def two_updates(jacobian, losses):
            state, found = tx.init(jacobian[0]), []
            for factor in (1.0, -2.0):
                gradient, state = tx.update(factor * jacobian, state, losses=losses)
                found.append((gradient, state))
            return found

        jacobians = {**DEGENERATE, "1e38": np.sign(gaussian(3, 6)) * 1e38}
        stacked = jnp.asarray(np.stack(list(jacobians.values())), dtype)
        both = jax.vmap(jax.vmap(two_updates, (None, 0)), (0, None))
        found = jax.tree.map(np.asarray, jax.jit(both)(stacked, jnp.asarray(losses, dtype)))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(found))
    first = found[0][0]
    np.testing.assert_array_equal(first[list(jacobians).index("all zero")], 0)
    np.testing.assert_array_equal(first[:, 4], 0)


def test_bad_hyperparameters_are_one_clear_sentence():
    with pytest.raises(ValueError, match=r"db_mtl: beta must be in \[0, 1\), got 1\.0"):
        db_mtl(1.0, num_tasks=2)
    with pytest.raises(ValueError, match=r"db_mtl: sigma must be >= 0 and finite, got -1"):
        db_mtl(sigma=-1, num_tasks=2)
    with pytest.raises(ValueError, match="db_mtl remembers something of every task; pass num_tasks=K"):
        db_mtl()
    tx = db_mtl(num_tasks=2)
    with pytest.raises(ValueError, match="db_mtl weighs by the losses: pass them"):
        tx.update(jnp.ones((2, 3)), tx.init(jnp.zeros(3)))
