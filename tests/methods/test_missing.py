"""Tasks without a label in a batch: their loss is 0 and so is their gradient, or the caller says so."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from evaluable import given
from marks import mostly_slow
from samplers import conflicting, gaussian
from trajectories import OPTIONS

import mtljax as mtl

NAMES = mtl.methods.names()
QUICK = ("adatask", "dwa", "famo", "graddrop", "gradnorm", "pcgrad", "upgrad", "uw")
STEPS, SIZE = 8, 6
EVERY = np.ones((STEPS, 3), bool)


def without(task, *steps):
    """Who is present: all, but this task at these steps."""
    present = EVERY.copy()
    present[list(steps), task] = False
    return present


CASES = {
    "never the last": without(2, *range(STEPS)),
    "not at first": without(2, 0, 1),
    "not in the middle": without(2, 3, 4),
    "in turns": np.stack([np.roll([True, False, True], step) for step in range(STEPS)]),
    "nobody at the end": np.concatenate([EVERY[:-2], ~EVERY[:2]]),
}
JACOBIANS = np.stack([conflicting(3, SIZE, step) if step % 2 else gaussian(3, SIZE, step) for step in range(STEPS)])
LOSSES = np.array([0.5, 2.0, 1.0]) * np.array([0.8, 0.9, 0.95]) ** np.arange(STEPS)[:, None]


@functools.cache
def runner(name, num_tasks, options=()):
    """Gradients, weights and memory after each update, for a batch of sequences."""
    tx = mtl.methods.create(name, num_tasks=num_tasks, **OPTIONS.get(name, {}) | dict(options))

    sees_losses_alone = mtl.methods.describe(name).family == "loss weighting"

    def one(jacobians, losses):
        def step(state, inputs):
            present = inputs[1] != 0 if sees_losses_alone else None
            gradient, state = tx.update(given(name, *inputs), state, losses=inputs[1], present=present)
            return state, (gradient, state.weights, getattr(state, "memory", None))

        return jax.lax.scan(step, tx.init(jnp.zeros(SIZE)), (jacobians, losses))[1]

    return jax.jit(jax.vmap(one))


@functools.cache
def all_cases(name, options=()):
    """The results by case, in float64."""
    present = np.stack(list(CASES.values()))
    with jax.enable_x64(True):
        found = runner(name, 3, options)(JACOBIANS * present[..., None], LOSSES * present)
    return {case: jax.tree.map(lambda leaf, i=i: np.asarray(leaf[i]), found) for i, case in enumerate(CASES)}


@pytest.mark.parametrize("name", mostly_slow(NAMES, QUICK))
def test_the_others_get_what_they_would_without_the_absent_task(name):
    gradients, weights, _ = all_cases(name)["never the last"]
    with jax.enable_x64(True):
        expected, expected_weights, _ = runner(name, 2)(JACOBIANS[None, :, :2], LOSSES[None, :, :2])
    np.testing.assert_allclose(weights[:, :2], expected_weights[0], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(gradients, expected[0], rtol=1e-6, atol=1e-7)
    assert np.abs(gradients).max() > 1e-3


@pytest.mark.parametrize("name", mostly_slow(NAMES, QUICK))
def test_updates_stay_finite_and_without_any_task_there_is_none(name):
    for case, (gradients, weights, memory) in all_cases(name).items():
        assert np.all(np.isfinite(gradients)), case
        assert np.all(np.isfinite(weights)), case
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(memory)), case
        assert np.all(np.any(gradients[:-2] != 0, axis=1)), case
    np.testing.assert_array_equal(all_cases(name)["nobody at the end"][0][-2:], 0)


@pytest.mark.parametrize("name", mostly_slow(NAMES, QUICK))
def test_the_memory_of_an_absent_task_waits(name):
    memory = all_cases(name)["not in the middle"][2]
    if name == "famo":
        memory = (memory.logits, memory.opt_state)
    for leaf in jax.tree.leaves(memory):
        if leaf.ndim > 1:
            np.testing.assert_array_equal(leaf[4, 2], leaf[2, 2])
    if memory is not None and name != "stch":  # and then it goes on; stch is done with its one window
        assert any(np.any(leaf[-1][2] != leaf[2][2]) for leaf in jax.tree.leaves(memory) if leaf.ndim > 1)


SGD = (("optimizer", optax.sgd(0.1)),)
ALONE = [(name, ()) for name in ("adatask", "db_mtl", "dwa", "mtl_io", "slaw", "stch")] + [("uw", SGD), ("imtl_l", SGD)]


@pytest.mark.parametrize(
    ("name", "options"),
    [pytest.param(*case, marks=() if case[0] in QUICK else pytest.mark.slow) for case in ALONE],
)
def test_what_a_task_remembers_is_that_of_the_updates_it_was_present_in(name, options):
    """For methods whose memory of a task reads no other task."""
    memory = all_cases(name, options)["not in the middle"][2]
    with jax.enable_x64(True):
        kept = np.r_[0:3, 5:STEPS, 0, 0]
        expected = runner(name, 3, options)(JACOBIANS[None, kept], LOSSES[None, kept])[2]
    for found, leaf in zip(jax.tree.leaves(memory), jax.tree.leaves(expected), strict=True):
        if found.ndim > 1:
            np.testing.assert_allclose(found[-1, 2], leaf[0, STEPS - 3, 2], rtol=1e-9)


def test_a_loss_of_zero_with_a_gradient_is_no_missing_label():
    tx = mtl.adatask(num_tasks=2)
    _, state = tx.update(jnp.eye(2), tx.init(jnp.zeros(2)), losses=jnp.array([0.0, 1.0]))
    np.testing.assert_array_equal(state.seen, 1)
    weighted = mtl.uw(num_tasks=2)
    _, state = weighted.update(jnp.eye(2), weighted.init(jnp.zeros(2)), losses=jnp.array([-1.0, 0.0]))
    np.testing.assert_array_equal(state.seen, 1)
    for build in (mtl.dwa, mtl.rlw):  # a surrogate loss has the value 0 and a gradient
        surrogate = build(num_tasks=2)
        gradient, _ = surrogate.update(jnp.eye(2), surrogate.init(jnp.zeros(2)), losses=jnp.array([1.0, 0.0]))
        assert float(gradient[1]) > 0


@pytest.mark.parametrize("name", ["dwa", "famo", "graddrop", "mgda", "rlw", "uw"])
def test_absence_is_told_by_a_mask_or_by_a_count_of_zero(name):
    params = {"body": jnp.array([1.0, 2.0]), "a": jnp.ones(()), "b": jnp.ones(())}

    def losses_fn(p, count):
        return {"a": jnp.sum(p["body"] * p["a"]) ** 2, "b": (count * jnp.sum(p["body"] ** 2 * p["b"]), count)}

    tx = mtl.methods.create(name, num_tasks=2)
    losses, grads = mtl.task_gradients(losses_fn, params, 0.0)
    by_count, state = tx.update(grads, tx.init(params), params, losses=losses)
    losses, grads = mtl.task_gradients(losses_fn, params, 1.0)
    told = tx.update(grads, tx.init(params), params, losses=losses, present={"a": True, "b": False})[1]
    for each in (state, told):
        if each.seen is not None:
            np.testing.assert_array_equal(each.seen, [1, 0])
    if name in ("dwa", "rlw"):
        assert [float(w) for w in state.weights] == [float(w) for w in told.weights]
        assert float(state.weights[1]) == 0
    np.testing.assert_array_equal(by_count["b"], 0)


@functools.cache
def told(name):
    """The last task is told to be absent, though it has a loss and a gradient; and the same without it."""
    first, second = (mtl.methods.create(name, num_tasks=k, **OPTIONS.get(name, {})) for k in (3, 2))

    def run(tx, jacobians, losses, present):
        def step(state, inputs):
            gradient, state = tx.update(given(name, *inputs), state, losses=inputs[1], present=present)
            return state, (gradient, state.weights)

        return jax.lax.scan(step, tx.init(jnp.zeros(SIZE, jacobians.dtype)), (jacobians, losses))[1]

    with jax.enable_x64(True):
        present = jnp.array([True, True, False])
        both = jax.jit(lambda rows, x: (run(first, rows, x, present), run(second, rows[:, :2], x[:, :2], present[:2])))
        return jax.tree.map(np.asarray, both(jnp.asarray(JACOBIANS), jnp.asarray(LOSSES)))


@pytest.mark.parametrize("name", NAMES)
def test_a_task_that_is_told_to_be_absent_steers_nothing_whatever_its_gradient(name):
    (gradients, weights), (expected, expected_weights) = told(name)
    np.testing.assert_allclose(weights[:, :2], expected_weights, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(gradients, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", mostly_slow(NAMES, QUICK))
def test_a_count_of_zero_is_absence_though_the_sum_has_a_gradient(name):
    params = {"body": jnp.array([1.0, 2.0]), "a": jnp.array(0.5), "b": jnp.array(2.0)}

    def losses_fn(p, count):
        error = jnp.sum(p["body"] ** 2 * p["b"])
        return {"a": jnp.sum(p["body"] * p["a"]) ** 2, "b": (count * error + jnp.sum(p["body"] ** 2), count)}

    results = []
    for names in ("ab", "a"):
        tx = mtl.methods.create(name, num_tasks=len(names))
        some = lambda p, names=names: {t: loss for t, loss in losses_fn(p, 0.0).items() if t in names}  # noqa: E731
        shared = {"body": True, "a": False, "b": False}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # alone, nothing depends on b
            losses, grads = mtl.task_gradients(some, params, shared=shared)
        results.append(tx.update(grads, tx.init(params), params, losses=losses)[0])
    for one, other in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    losses, grads = mtl.task_gradients(losses_fn, params, jnp.nan)
    assert np.isnan(losses["b"])
    tx = mtl.methods.create(name, num_tasks=2)
    gradient, _ = tx.update(grads, tx.init(params), params, losses=losses)
    assert not all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))


def test_per_task_transformations_wait_too():
    tx = mtl.per_task(optax.trace(0.5), 2)
    jacobian = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    _, state = tx.update(jacobian, tx.init(jnp.zeros(2)))
    steps, after = tx.update(jacobian.at[1].set(0), state)
    np.testing.assert_array_equal(steps, [[1.5, 3.0], [0, 0]])
    np.testing.assert_array_equal(after.trace, [[1.5, 3.0], [3, 4]])
