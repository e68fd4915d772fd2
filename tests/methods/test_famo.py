"""FAMO against its recurrence with Adam written out."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from loss_sequences import (
    LOSSES,
    assert_gradient_of,
    assert_needs_losses,
    assert_needs_num_tasks,
    bad_losses,
    learned_by_adam,
    run,
    run_eagerly,
    run_traced,
)
from scipy.special import softmax

from mtljax.gradients import TaskGradients
from mtljax.methods.famo import famo

# The losses of the batch before at the current parameters: (T, K), the first row is not used.
AFTER = np.concatenate([np.full((1, 3), np.nan), LOSSES[:-1] * np.array([0.9, 0.97, 1.01])])


def logit_gradient(t, logits, losses, after, decay, minima=0.0):
    """Of the step after update t, at the start of update t + 1."""
    if t + 1 == len(losses):
        return np.zeros_like(logits)
    shares = softmax(logits)
    jacobian = np.diag(shares) - np.outer(shares, shares)
    improvement = np.log(losses[t] - minima) - np.log(after[t + 1] - minima)
    return jacobian.T @ improvement + decay * logits


def by_formulas(after, decay=1e-3, rate=0.025, minima=0.0, losses=LOSSES):
    start = np.zeros(losses.shape[1])
    logits = learned_by_adam(lambda t, x: logit_gradient(t, x, losses, after, decay, minima), start, rate, len(losses))
    ratios = softmax(logits, axis=1) / (losses - minima)
    return ratios / ratios.sum(axis=1, keepdims=True)


def test_famo_equals_its_recurrence():
    weights, _ = run(famo(num_tasks=3), LOSSES, AFTER)
    np.testing.assert_allclose(weights, by_formulas(AFTER), rtol=1e-10)
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-12)
    # The decay enters before Adam: decoupled it would not be felt by this much.
    decayed = run(famo(1.0, 0.1, num_tasks=3), LOSSES, AFTER)[0]
    np.testing.assert_allclose(decayed, by_formulas(AFTER, 1.0, 0.1), rtol=1e-10)


def test_without_losses_after_the_current_losses_stand_in():
    expected = by_formulas(LOSSES)
    np.testing.assert_allclose(run(famo(num_tasks=3), LOSSES)[0], expected, rtol=1e-10)
    np.testing.assert_allclose(run_eagerly(famo(num_tasks=3)), expected, rtol=1e-10)
    assert np.abs(expected - by_formulas(AFTER)).max() > 1e-4


@pytest.mark.parametrize("minima", [-1.0, [0.01, -2.0, 1.0]])
def test_minima_are_subtracted(minima):
    found = run(famo(min_losses=minima, num_tasks=3), LOSSES, AFTER)[0]
    np.testing.assert_allclose(found, by_formulas(AFTER, minima=np.array(minima)), rtol=1e-10)


def test_minima_by_name_follow_the_sorted_names_and_are_those_of_the_tasks():
    losses = {"b": jnp.array(3.0), "a": jnp.array(0.5)}
    rows = jnp.eye(2)
    found = []
    for minima in ({"b": 1.0, "a": -2.0}, [-2.0, 1.0]):
        tx = famo(min_losses=minima, num_tasks=2)
        grads = TaskGradients.from_jacobian(rows, losses)
        found.append(tx.update(grads, tx.init(jnp.zeros(2)))[0])
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_allclose(found[0], np.array([2.0, 2.5]) / 4.5, rtol=1e-6)
    tx = famo(min_losses={"a": 0.0, "c": 0.0}, num_tasks=2)
    with pytest.raises(ValueError, match=r"famo: got values for \['a', 'c'\], but the tasks are \['a', 'b'\]"):
        tx.update(TaskGradients.from_jacobian(rows, losses), tx.init(jnp.zeros(2)))


def test_hyperparameters_may_be_traced():
    decays = run_traced(lambda decay: famo(decay, num_tasks=3), [0.0, 0.5])
    np.testing.assert_allclose(decays, [by_formulas(LOSSES, decay) for decay in (0.0, 0.5)], rtol=1e-9)
    rates = run_traced(lambda rate: famo(0.1, rate, num_tasks=3), [0.01, 0.3])
    np.testing.assert_allclose(rates, [by_formulas(LOSSES, 0.1, rate) for rate in (0.01, 0.3)], rtol=1e-9)
    minima = run_traced(lambda least: famo(min_losses=least, num_tasks=3), [0.0, -1.0])
    np.testing.assert_allclose(minima, [by_formulas(LOSSES, minima=least) for least in (0.0, -1.0)], rtol=1e-9)


def test_the_first_update_is_the_gradient_of_the_mean_logarithm_over_its_constant():
    def objective(losses):
        constant = jax.lax.stop_gradient((0.5 / losses).sum())
        return (0.5 * jnp.log(losses)).sum() / constant

    assert_gradient_of(famo(num_tasks=2), objective)


def test_the_share_of_the_slower_task_grows():
    """Losses equal at every update, but the second improves less on its batch."""
    losses = np.ones((30, 2))
    weights = run(famo(num_tasks=2), losses, losses * [0.9, 0.95])[0]
    assert (np.diff(weights[:, 1]) > 0).all()
    assert weights[-1, 1] > 0.6


def test_another_optimizer_replaces_adam():
    logits, expected = np.zeros(3), []
    for t in range(12):
        ratios = softmax(logits) / LOSSES[t]
        expected.append(ratios / ratios.sum())
        logits = logits - 0.5 * logit_gradient(t, logits, LOSSES, AFTER, 0)
    found = run(famo(optimizer=optax.sgd(0.5), decay=9.0, num_tasks=3), LOSSES, AFTER)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_bad_losses_are_left_out(dtype):
    weights = bad_losses(famo(num_tasks=3), dtype)
    np.testing.assert_array_equal(weights[1], [0, 0, 1])
    live = [t for t in range(12) if t != 3]
    np.testing.assert_allclose(weights[live].sum(axis=1), 1, rtol=1e-6)


def test_a_loss_whose_distance_from_the_minimum_overflows_is_left_out():
    losses = np.ones((2, 3))
    losses[1, 0] = 3.4e38
    weights, state = run(famo(min_losses=-1e38, num_tasks=3), losses, dtype="float32")
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state))
    assert state.memory.gaps[0] == 0
    assert weights[1, 0] == 0


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_losses_after_of_a_batch_that_was_skipped_teach_nothing_and_learning_goes_on(bad):
    """The step of the broken batch is refused; its losses after, broken too, come at the next step."""
    broken, after = LOSSES.copy(), AFTER.copy()
    broken[4, 0], after[5] = bad, np.nan
    found, state = run(famo(num_tasks=3), broken, after)
    assert not np.isfinite(found[4]).any()
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state))
    calm = np.delete(AFTER, 4, axis=0)
    calm[4] = np.nan  # a run that never saw the batch, and was told nothing at the step after it
    expected, _ = run(famo(num_tasks=3), np.delete(LOSSES, 4, axis=0), calm)
    np.testing.assert_allclose(np.delete(found, 4, axis=0), expected, rtol=1e-10)


def test_bad_losses_after_teach_nothing():
    losses, after = np.tile([1.0, 2.0, 4.0], (3, 1)), np.tile([1.0, 2.0, 4.0], (3, 1))
    after[1] = [np.nan, np.inf, -1.0]
    after[2] = [0.5, 2.0, 4.0]
    weights = run(famo(num_tasks=3), losses, after)[0]
    np.testing.assert_allclose(weights[1], np.array([4, 2, 1]) / 7, rtol=1e-12)
    assert weights[2, 0] < 4 / 7


def test_huge_and_tiny_losses_and_one_task():
    units = np.array([1e30, 1.0, 1e-30])
    found = run(famo(num_tasks=3), units * LOSSES, dtype="float32")[0]
    np.testing.assert_allclose(found[:, 2], 1, rtol=1e-6)
    same = run(famo(num_tasks=3), 1e30 * LOSSES, dtype="float32")[0]  # a common unit cancels
    np.testing.assert_allclose(same, by_formulas(LOSSES), rtol=1e-4)
    np.testing.assert_array_equal(run(famo(num_tasks=1), LOSSES[:, :1])[0], 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"decay": -1}, "famo: decay must be >= 0 and finite, got -1"),
        ({"learning_rate": -1}, "famo: learning_rate must be >= 0 and finite, got -1"),
        ({"min_losses": [0.0, np.nan]}, "famo: min_losses must be finite"),
        ({"min_losses": [0.0, 0.0, 0.0]}, r"a dict by task name or \(2,\) numbers, got shape \(3,\)"),
        ({"min_losses": {"a": 0.0}}, r"a dict by task name or \(2,\) numbers, got shape \(1,\)"),
        ({"min_losses": {"a": 0.0, "b": np.inf}}, "famo: min_losses must be finite"),
    ],
)
def test_bad_arguments_are_one_clear_sentence(arguments, message):
    with pytest.raises(ValueError, match=message):
        famo(num_tasks=2, **arguments).init(jnp.zeros(2))


def test_famo_asks_for_what_it_needs():
    assert_needs_num_tasks(famo, "famo")
    assert_needs_losses(famo(num_tasks=2), "famo")
