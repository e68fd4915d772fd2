import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtljax import data, tasks
from mtljax.data import Split


def test_an_epoch_holds_every_example_exactly_once():
    order = data.epoch_permutation(jax.random.key(0), 4, 103)
    assert order.dtype == jnp.int32
    assert sorted(order.tolist()) == list(range(103))


def test_order_depends_on_the_key_and_the_epoch_only():
    key = jax.random.key(1)
    order = data.epoch_permutation(key, 2, 50)
    np.testing.assert_array_equal(order, data.epoch_permutation(key, jnp.int32(2), 50))
    assert (order != data.epoch_permutation(key, 3, 50)).any()
    assert (order != data.epoch_permutation(jax.random.key(2), 2, 50)).any()


def test_batches_of_an_epoch_are_disjoint_and_drop_the_remainder():
    order = data.epoch_permutation(jax.random.key(0), 0, 23)
    batches = [data.batch_indices(order, batch, 5) for batch in range(data.steps_per_epoch(23, 5))]
    assert np.concatenate(batches).tolist() == order[:20].tolist()


def test_position_is_a_function_of_the_step_alone():
    assert [data.position(step, 23, 5) for step in (0, 3, 4, 9)] == [(0, 0), (0, 3), (1, 0), (2, 1)]
    assert tuple(map(int, data.position(jnp.int32(9), 23, 5))) == (2, 1)


def test_a_jitted_step_sees_what_the_host_would():
    split = Split(np.arange(60, dtype=np.uint8).reshape(20, 3), {"a": np.arange(20)})
    key = jax.random.key(0)

    @jax.jit
    def batch_at(split, step):
        epoch, batch = data.position(step, 20, 6)
        return data.take(split, data.batch_indices(data.epoch_permutation(key, epoch, 20), batch, 6))

    for step in (0, 2, 5):
        epoch, batch = divmod(step, 3)
        indices = np.asarray(data.epoch_permutation(key, epoch, 20))[6 * batch : 6 * batch + 6]
        found = batch_at(jax.device_put(split), step)
        assert found.inputs.dtype == jnp.uint8
        np.testing.assert_array_equal(found.inputs, split.inputs[indices])
        np.testing.assert_array_equal(found.targets["a"], indices)
        np.testing.assert_array_equal(found.mask, np.ones(6))


def test_take_leaves_numpy_data_on_the_host():
    split = Split(np.arange(6).reshape(3, 2), {"a": np.arange(3)})
    batch = data.take(split, np.array([2, 0]))
    assert isinstance(batch.inputs, np.ndarray)
    assert batch.targets["a"].tolist() == [2, 0]


@pytest.mark.parametrize(("examples", "batch_size"), [(10, 4), (8, 4), (3, 5), (1, 1)])
def test_evaluation_counts_every_example_once(examples, batch_size):
    indices, mask = data.evaluation_batches(examples, batch_size)
    assert indices.shape == mask.shape == (-(-examples // batch_size), batch_size)
    assert indices[mask > 0].tolist() == list(range(examples))
    assert indices.max() < examples


def test_accuracy_over_uneven_batches_equals_that_over_all_examples():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(37, 5)).astype(np.float32)
    split = Split(logits, {"a": rng.integers(-1, 5, 37).astype(np.int32)})
    task = tasks.classification(5)
    whole = tasks.metric_sums(task, logits, split.targets["a"])
    batches = [data.take(split, i, m) for i, m in zip(*data.evaluation_batches(37, 8), strict=True)]
    parts = [tasks.metric_sums(task, batch.inputs, batch.targets["a"], batch.mask) for batch in batches]
    added = jax.tree.map(lambda *leaves: sum(leaves), *parts)
    assert jax.tree.map(float, added) == jax.tree.map(float, whole)


def test_batch_larger_than_the_data_is_refused():
    with pytest.raises(ValueError, match="batch size 8 is larger than the data, 5 examples"):
        data.batch_indices(jnp.arange(5), 0, 8)
    with pytest.raises(ValueError, match="larger than the data"):
        data.position(0, 5, 8)


@pytest.mark.parametrize("batch_size", [0, -3, 2.0, True])
def test_senseless_batch_size_is_refused(batch_size):
    with pytest.raises(ValueError, match="batch size must be an integer of at least 1"):
        data.steps_per_epoch(10, batch_size)
    with pytest.raises(ValueError, match="batch size must be an integer of at least 1"):
        data.evaluation_batches(10, batch_size)


def test_batch_beyond_the_epoch_is_refused():
    with pytest.raises(ValueError, match="has the batches 0 to 1"):
        data.batch_indices(jnp.arange(10), 2, 4)


def test_evaluation_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no examples"):
        data.evaluation_batches(0, 4)
