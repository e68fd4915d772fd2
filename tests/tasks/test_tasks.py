import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mtljax import tasks
from mtljax.errors import unknown

RNG = np.random.default_rng(0)
CLASSES = (tasks.classification(4), RNG.normal(size=(6, 4)), np.array([0, 3, -1, 2, 1, -1], np.int32))
BINARY = (tasks.binary(), RNG.normal(size=(5, 1)), np.array([0, 1, -1, 1, 0], np.int32))
SCALAR = (tasks.regression(loss="l1"), RNG.normal(size=(4, 1)), np.array([0.5, np.nan, -2, 1], np.float32))
VECTOR = (
    tasks.regression(size=2),
    RNG.normal(size=(4, 2)),
    np.array([[1, 2], [np.nan, 3], [np.nan, np.nan], [0, 1]], np.float32),
)
CASES = [pytest.param(*case, id=f"{case[0].kind}-{case[1].shape}") for case in (CLASSES, BINARY, SCALAR, VECTOR)]


@pytest.mark.parametrize(("task", "outputs", "targets"), CASES)
def test_spec_is_json_and_rebuilds_the_task(task, outputs, targets):
    rebuilt = tasks.from_spec(json.loads(json.dumps(task.spec)))
    assert rebuilt == task
    assert hash(rebuilt) == hash(task)
    assert [metric.name for metric in rebuilt.metrics] == [metric.name for metric in task.metrics]


def test_tasks_differ_when_their_specs_do():
    assert tasks.classification(3) != tasks.classification(4)
    assert tasks.regression(loss="l1") != tasks.regression(loss="l2")


@pytest.mark.parametrize(("task", "outputs", "targets"), CASES)
def test_head_makes_the_outputs(task, outputs, targets):
    made, _ = task.head().init_with_output(jax.random.key(0), jnp.ones((len(targets), 7)))
    assert made.shape == outputs.shape


@pytest.mark.parametrize(("task", "outputs", "targets"), CASES)
def test_mean_loss_and_metrics_ignore_missing_labels(task, outputs, targets):
    present = np.asarray(task.valid(targets)) > 0
    assert 0 < present.sum() < len(targets)
    np.testing.assert_allclose(
        tasks.mean_loss(task, outputs, targets), tasks.mean_loss(task, outputs[present], targets[present]), rtol=1e-6
    )
    every, some = (
        tasks.metric_values(task, tasks.metric_sums(task, o, t))
        for o, t in ((outputs, targets), (outputs[present], targets[present]))
    )
    for name, value in every.items():
        np.testing.assert_allclose(value, some[name], rtol=1e-6)


@pytest.mark.parametrize(("task", "outputs", "targets"), CASES)
def test_gradient_is_finite_and_zero_where_the_label_is_missing(task, outputs, targets):
    gradient = jax.grad(lambda o: tasks.mean_loss(task, o, targets))(jnp.asarray(outputs))
    assert np.isfinite(gradient).all()
    missing = np.asarray(task.valid(targets)) == 0
    np.testing.assert_array_equal(gradient[missing], 0)
    assert (np.abs(gradient[~missing]).sum(axis=1) > 0).all()


@pytest.mark.parametrize(("task", "outputs", "targets"), CASES)
def test_no_label_at_all_gives_loss_zero_gradient_zero_and_undefined_metrics(task, outputs, targets):
    nothing = np.full_like(targets, np.nan if task.kind == "regression" else -1)
    loss, gradient = jax.value_and_grad(lambda o: tasks.mean_loss(task, o, nothing))(jnp.asarray(outputs))
    assert loss == 0
    np.testing.assert_array_equal(gradient, 0)
    values = tasks.metric_values(task, tasks.metric_sums(task, outputs, nothing))
    assert all(np.isnan(value) for value in values.values())


@pytest.mark.parametrize(("task", "outputs", "targets"), CASES)
def test_padding_changes_nothing(task, outputs, targets):
    padded = np.concatenate([outputs, np.full_like(outputs[:2], 1e9)])
    repeated = np.concatenate([targets, targets[:2]])
    mask = np.r_[np.ones(len(targets)), 0, 0].astype(np.float32)
    np.testing.assert_allclose(
        tasks.mean_loss(task, padded, repeated, mask), tasks.mean_loss(task, outputs, targets), rtol=1e-6
    )
    sums = tasks.metric_sums(task, padded, repeated, mask)
    for name, expected in tasks.metric_sums(task, outputs, targets).items():
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), sums[name], expected)


@pytest.mark.parametrize(("task", "outputs", "targets"), CASES)
def test_sums_add_over_uneven_batches(task, outputs, targets):
    parts = [tasks.metric_sums(task, outputs[s], targets[s]) for s in (slice(0, 1), slice(1, None))]
    added = jax.tree.map(jnp.add, *parts)
    whole = tasks.metric_sums(task, outputs, targets)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), added, whole)


@pytest.mark.parametrize(("task", "outputs", "targets"), CASES)
def test_reductions_run_under_jit_and_in_half_precision(task, outputs, targets):
    loss = jax.jit(tasks.mean_loss, static_argnums=0)(task, jnp.asarray(outputs, jnp.bfloat16), targets)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, tasks.mean_loss(task, outputs, targets), rtol=0.05)  # bfloat16 has 8 bits


def test_classification_is_softmax_cross_entropy_and_accuracy():
    task, logits, labels = CLASSES
    kept = labels >= 0
    reference = optax.softmax_cross_entropy(logits[kept], np.eye(4)[labels[kept]]).mean()
    np.testing.assert_allclose(tasks.mean_loss(task, logits, labels), reference, rtol=1e-6)
    accuracy = (logits[kept].argmax(axis=1) == labels[kept]).mean()
    values = tasks.metric_values(task, tasks.metric_sums(task, logits, labels))
    assert values == {"accuracy": pytest.approx(accuracy)}
    assert task.metrics[0].higher_is_better


def test_binary_is_sigmoid_cross_entropy_and_accuracy():
    task, logits, labels = BINARY
    kept = labels >= 0
    p = 1 / (1 + np.exp(-logits[kept, 0]))
    reference = -np.where(labels[kept] == 1, np.log(p), np.log1p(-p)).mean()
    np.testing.assert_allclose(tasks.mean_loss(task, logits, labels), reference, rtol=1e-5)
    values = tasks.metric_values(task, tasks.metric_sums(task, logits, labels))
    assert values == {"accuracy": pytest.approx(((p > 0.5) == labels[kept]).mean())}


@pytest.mark.parametrize("loss", ["l1", "l2"])
def test_regression_metrics_and_which_comes_first(loss):
    task = tasks.regression(loss=loss)
    outputs, targets = np.array([[1.0], [2.0], [4.0]]), np.array([0.0, 2.0, 1.0])
    values = tasks.metric_values(task, tasks.metric_sums(task, outputs, targets))
    assert values == {"mae": pytest.approx(4 / 3), "rmse": pytest.approx(np.sqrt(10 / 3))}
    assert task.metrics[0].name == {"l1": "mae", "l2": "rmse"}[loss]
    assert not any(metric.higher_is_better for metric in task.metrics)
    expected = {"l1": 4 / 3, "l2": 10 / 3}[loss]
    np.testing.assert_allclose(tasks.mean_loss(task, outputs, targets), expected, rtol=1e-6)


def test_a_vector_target_averages_over_its_known_components():
    task, outputs, targets = VECTOR
    np.testing.assert_allclose(task.loss(outputs, targets)[1], (outputs[1, 1] - 3) ** 2, rtol=1e-5)
    np.testing.assert_allclose(task.loss(outputs, targets)[0], ((outputs[0] - [1, 2]) ** 2).mean(), rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tasks.from_spec({"kind": "clasification", "num_classes": 3}), "did you mean 'classification'"),
        (lambda: tasks.from_spec({"num_classes": 3}), "needs the key 'kind'"),
        (lambda: tasks.from_spec({"kind": "binary", "size": 3}), "unexpected keyword argument 'size'"),
        (lambda: tasks.classification(1), "num_classes must be an integer of at least 2, got 1"),
        (lambda: tasks.classification(2.0), "num_classes must be an integer"),
        (lambda: tasks.regression(size=0), "size must be an integer of at least 1, got 0"),
        (lambda: tasks.regression(loss="l3"), "unknown regression loss 'l3'"),
        (lambda: tasks.mean_loss(tasks.classification(3), np.zeros((2, 4)), np.zeros(2, int)), "axis of 3 classes"),
        (lambda: tasks.mean_loss(tasks.binary(), np.zeros((2, 2)), np.zeros(2, int)), r"must have shape \(2, 1\)"),
        (lambda: tasks.mean_loss(tasks.regression(), np.zeros(2), np.zeros(2)), r"must have shape \(2, 1\)"),
        (lambda: tasks.mean_loss(tasks.regression(3), np.zeros((2, 3)), np.zeros(2)), r"must have shape \(B, 3\)"),
    ],
)
def test_bad_input_is_one_clear_sentence(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_kinds_are_listed():
    assert tasks.kinds() == ("binary", "classification", "regression")


def test_unknown_names_the_nearest_whatever_the_case():
    assert str(unknown("method", "PCGrad", ["ew", "pcgrad"])) == (
        "unknown method 'PCGrad': did you mean 'pcgrad'? Valid: ew, pcgrad"
    )
    assert str(unknown("method", "zzz", ["ew", "pcgrad"])) == "unknown method 'zzz'; valid: ew, pcgrad"
    assert "none to choose from" in str(unknown("task", "a", []))
    assert str(unknown("thing", "n7", [f"n{k}0" for k in range(99)])).endswith("more")
