"""The optax probe: the sums are those of NumPy, and what comes after it finds what it would find without it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mtljax as mtl
from mtljax.analysis import conflict_means, conflict_probe

TASKS, STEPS = 3, 6


def jacobians():
    """Gradients of three tasks at six steps, the second task's zero at the fourth."""
    rng = np.random.default_rng(0)
    found = [{"a": rng.normal(size=(TASKS, 4, 2)), "b": rng.normal(size=(TASKS, 3))} for _ in range(STEPS)]
    for leaf in found[3].values():
        leaf[1] = 0
    return [jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), each) for each in found]


def expected(steps):
    """Means by measure and pair over some steps, pair by pair in float64."""
    sums = {measure: np.zeros((TASKS, TASKS)) for measure in ("cosine", "magnitude", "sign_conflict")}
    pairs = np.zeros((TASKS, TASKS))
    for each in (jacobians()[step] for step in steps):
        rows = np.concatenate([np.reshape(each[name], (TASKS, -1)) for name in "ab"], axis=1).astype(np.float64)
        for i in range(TASKS):
            for j in range(TASKS):
                a, b = np.linalg.norm(rows[i]), np.linalg.norm(rows[j])
                if a > 0 and b > 0:
                    pairs[i, j] += 1
                    sums["cosine"][i, j] += rows[i] @ rows[j] / (a * b)
                    sums["magnitude"][i, j] += 2 * a * b / (a * a + b * b)
                    sums["sign_conflict"][i, j] += np.mean(rows[i] * rows[j] < 0)
    return {measure: total / pairs for measure, total in sums.items()}, pairs


@pytest.mark.parametrize("every", [1, 2])
def test_the_sums_are_those_of_numpy_for_each_pair_and_over_all(every):
    params = {"a": jnp.zeros((4, 2)), "b": jnp.zeros(3)}
    tx, overall = conflict_probe(TASKS, every=every), conflict_probe(every=every)
    update = jax.jit(
        lambda each, state: (tx.update(each, state[0], params)[1], overall.update(each, state[1], params)[1])
    )
    state = tx.init(params), overall.init(params)
    for each in jacobians():
        state = update(each, state)
    means, pairs = expected(range(0, STEPS, every))
    np.testing.assert_array_equal(state[0].pairs, pairs)
    upper = np.triu_indices(TASKS, 1)
    for measure, mean in means.items():
        np.testing.assert_allclose(conflict_means(state[0])[measure], mean, rtol=1e-5, atol=1e-6)
        pooled = np.sum((mean * pairs)[upper]) / np.sum(pairs[upper])
        assert conflict_means((None, {"inner": state[1]}))[measure] == pytest.approx(pooled, rel=1e-5)


def network(params, x):
    z = jnp.tanh(x @ params["body"])
    return {
        "left": jnp.mean((z @ params["left"] - x[:, 0]) ** 2),
        "right": jnp.mean((z @ params["right"] + x[:, 1]) ** 2),
    }


@pytest.mark.parametrize("method", ["cagrad", "ew"])
def test_methods_after_it_take_the_same_steps_bit_for_bit(method):
    rng = np.random.default_rng(1)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    start, x = {"body": draw(5, 8), "left": draw(8), "right": draw(8)}, draw(16, 5)
    ends = []
    for before in ((), (conflict_probe(2),)):
        tx = optax.chain(*before, mtl.methods.create(method, num_tasks=2), optax.adam(1e-2))

        @jax.jit
        def step(params, state, tx=tx):
            losses, grads = mtl.task_gradients(network, params, x)
            updates, state = tx.update(grads, state, params, losses=losses)
            return optax.apply_updates(params, updates), state

        params, state = start, tx.init(start)
        for _ in range(5):
            params, state = step(params, state)
        ends.append(params)
    for a, b in zip(*map(jax.tree.leaves, ends), strict=True):
        np.testing.assert_array_equal(a, b)
    assert conflict_means(state)["cosine"].shape == (2, 2)


def test_updates_pass_as_they_are_and_a_transformation_of_the_gradients_before_it_is_seen():
    params, rows = jnp.zeros(2), jnp.array([[5.0, -1.0], [0.1, 3.0]])
    tx = conflict_probe()
    assert tx.update(rows, tx.init(params), params)[0] is rows
    signs = optax.chain(mtl.per_task(optax.scale_by_sign(), num_tasks=2), conflict_probe(), mtl.ew())
    means = conflict_means(signs.update(rows, signs.init(params), params)[1])
    assert means == pytest.approx({"cosine": 0, "magnitude": 1, "sign_conflict": 0.5}, abs=1e-6)


def test_nothing_seen_is_nan():
    assert np.isnan(conflict_means(conflict_probe().init(jnp.zeros(2)))["cosine"])


def test_bad_input_is_one_sentence():
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        conflict_probe(every=0)
    with pytest.raises(ValueError, match="num_tasks must be at least 1 or None, got 0"):
        conflict_probe(0)
    tx = conflict_probe(3)
    with pytest.raises(ValueError, match="built with num_tasks=3, but got the gradients of 2"):
        tx.update(jnp.ones((2, 4)), tx.init(jnp.zeros(4)), jnp.zeros(4))
    with pytest.raises(ValueError, match=r"holds no conflict_probe; put one before the method, as in optax\.chain"):
        conflict_means(optax.adam(1e-3).init(jnp.zeros(2)))
