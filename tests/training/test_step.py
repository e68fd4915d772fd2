"""The train step: equal on many devices, compiled once for all hyperparameters."""

import dataclasses
import itertools
from typing import Any, cast

import jax
import numpy as np
import optax
import pytest

import mtljax as mtl
from mtljax.tasks import mean_loss
from mtljax.training import MethodConfig, ModelConfig, OptimizerConfig, parallel
from mtljax.training.loop import load_data
from mtljax.training.program import (
    build_model,
    build_program,
    build_transformation,
    data_key,
    init_state,
    structure,
)
from mtljax.training.step import make_step


def advanced(config, steps, data=None):
    """The state after some steps, on one device."""
    data = data or load_data(config)
    program = build_program(config, data)
    split = parallel.place(data.splits["train"], program.devices)
    permutation = parallel.place(program.shuffle(data_key(config), 0), program.devices)
    state = parallel.place(init_state(config, data, program), program.devices)
    for _ in range(steps):
        state, metrics = program.advance(state, split, permutation, None)
    return parallel.fetch(state, program.devices), metrics, program


MLP = ModelConfig("mlp", {"features": (16,)})
RESNET = ModelConfig("resnet18", {"width": 2, "blocks": (1,), "features": 8, "small_stem": True})


@pytest.mark.parametrize(
    ("model", "method"),
    [
        pytest.param(MLP, "ew", marks=pytest.mark.slow),
        pytest.param(MLP, "famo", marks=pytest.mark.slow),
        (RESNET, "pcgrad"),
    ],
    ids=lambda value: getattr(value, "encoder", value),
)
def test_eight_devices_equal_one(tiny, model, method):
    # sgd, because Adam's first steps turn rounding errors of tiny gradients into updates of full size.
    config = tiny(model=model, method=MethodConfig(method), optimizer=OptimizerConfig("sgd", learning_rate=0.1))
    one, one_metrics, _ = advanced(config, 3)
    many, many_metrics, program = advanced(dataclasses.replace(config, devices=8), 3)
    assert len(program.devices.every) == 8
    for a, b in zip(
        jax.tree.leaves((one.params, one.model_state)), jax.tree.leaves((many.params, many.model_state)), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * max(1.0, float(np.abs(a).max())))
    for task, loss in one_metrics["losses"].items():
        np.testing.assert_allclose(many_metrics["losses"][task][0], loss, rtol=1e-5)


def test_famo_gets_the_losses_of_the_last_batch_at_the_new_parameters(tiny):
    config = tiny(model=MLP, method=MethodConfig("famo"), optimizer=OptimizerConfig("sgd", learning_rate=0.1))
    data = load_data(config)
    state, _, program = advanced(config, 2, data)
    second = np.asarray(program.shuffle(data_key(config), 0))[config.batch_size : 2 * config.batch_size]
    outputs, _ = program.model.apply(state.params, state.model_state, data.splits["train"].inputs[second])
    expected = [
        mean_loss(data.tasks[task], outputs[task], data.splits["train"].targets[task][second])
        for task in sorted(data.tasks)
    ]
    np.testing.assert_allclose(state.losses_after, expected, rtol=1e-5)
    assert advanced(tiny(), 1)[0].losses_after is None


def test_a_method_that_wants_independent_batches_gets_thirds_of_the_batch(tiny):
    config = tiny(model=MLP, method=MethodConfig("modo", {"gamma": 1.0}), optimizer=OptimizerConfig("sgd"))
    data = load_data(config)
    state, _, program = advanced(config, 1, data)
    start = init_state(config, data, program)
    train = data.splits["train"]
    indices = np.asarray(program.shuffle(data_key(config), 0))[: config.batch_size]
    cuts = [config.batch_size * i // 3 for i in range(4)]

    def losses_fn(params, rows):
        outputs, _ = program.model.apply(params, {}, train.inputs[rows], train=True)
        return {name: mean_loss(task, outputs[name], train.targets[name][rows]) for name, task in data.tasks.items()}

    thirds = [indices[a:b] for a, b in itertools.pairwise(cuts)]
    gradients = tuple(mtl.task_gradients(losses_fn, start.params, rows)[1] for rows in thirds)
    tx = build_transformation(config, data)
    updates, _ = tx.update(cast(Any, gradients), start.opt_state, start.params)
    expected = optax.apply_updates(start.params, updates)
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"cuts each device's batch into 3 independent ones.*use at least 24"):
        build_program(dataclasses.replace(config, batch_size=16, devices=8), load_data(config))


def test_batch_statistics_change_only_by_training(tiny):
    config = tiny(model=RESNET)
    before, _, _ = advanced(config, 1)
    after, _, program = advanced(config, 2)
    changed = [
        np.any(a != b)
        for a, b in zip(jax.tree.leaves(before.model_state), jax.tree.leaves(after.model_state), strict=True)
    ]
    assert all(changed)
    inputs = load_data(config).splits["test"].inputs[:8]
    _, unchanged = program.model.apply(after.params, after.model_state, inputs)
    assert unchanged is after.model_state


def test_cells_that_differ_in_numbers_share_one_compiled_step(tiny):
    base = tiny(method=MethodConfig("cagrad", {"c": 0.4}))
    data = load_data(base)
    program = build_program(base, data)
    results = []
    for seed, rate, c in ((0, 1e-3, 0.4), (1, 1e-3, 0.4), (0, 1e-2, 0.4), (0, 1e-3, 0.9)):
        optimizer = dataclasses.replace(base.optimizer, learning_rate=rate)
        config = dataclasses.replace(base, seed=seed, optimizer=optimizer, method=MethodConfig("cagrad", {"c": c}))
        assert structure(config) == structure(base)
        split = parallel.place(data.splits["train"], program.devices)
        state = parallel.place(init_state(config, data, program), program.devices)
        for _ in range(3):
            state, _ = program.advance(state, split, program.shuffle(data_key(config), 0), None)
        own, _, _ = advanced(config, 3, data)
        for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(own.params), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
        results.append(np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(state.params)]))
    assert program.advance._cache_size() == 1
    assert all(np.abs(results[0] - other).max() > 1e-4 for other in results[1:])


def test_structural_differences_do_not_share(tiny):
    base = tiny()
    for other in (
        tiny(method=MethodConfig("mgda")),
        tiny(optimizer=OptimizerConfig("sgd")),
        tiny(batch_size=32),
        tiny(tasks=("left",)),
        tiny(method=MethodConfig("pcgrad", {"shuffle": False})),
        tiny(method=MethodConfig("pcgrad", {"update_every": 2})),
    ):
        assert structure(other) != structure(base)


def test_losses_and_heads_must_name_the_same_tasks(tiny):
    data = load_data(tiny())
    model = build_model(tiny(), data.select(["left"]).spec)
    with pytest.raises(ValueError, match=r"losses are for \['left', 'right'\], but the model has heads for \['left'\]"):
        make_step(model, data.tasks, mtl.ew())


def test_a_batch_that_devices_cannot_share_is_refused(tiny):
    config = tiny(devices=8, batch_size=60)
    with pytest.raises(ValueError, match="batch_size=60 is not divisible by 8 devices: use 56 or 64"):
        build_program(config, load_data(config))
    with pytest.raises(ValueError, match="devices=9, but there are 8"):
        build_program(tiny(devices=9), load_data(config))


def test_a_batch_larger_than_the_data_is_refused(tiny):
    config = tiny(batch_size=1000)
    with pytest.raises(ValueError, match="1000 is larger than the data, 512 examples"):
        build_program(config, load_data(config))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": MethodConfig("cagard")}, "unknown method 'cagard': did you mean 'cagrad'"),
        ({"method": MethodConfig("cagrad", {"C": 1.0})}, "unknown option of method cagrad 'C': did you mean 'c'"),
        ({"method": MethodConfig("cagrad", {"c": -1.0})}, "cagrad: c must be >= 0 and finite, got -1.0"),
        ({"optimizer": OptimizerConfig("adem")}, "unknown optimizer 'adem': did you mean 'adam'"),
        (
            {"optimizer": OptimizerConfig("sgd", options={"momentun": 0.9})},
            "option of optimizer sgd 'momentun'.*'momentum'",
        ),
        ({"method": MethodConfig("cagrad", {"c": "abc"})}, "option c of method cagrad must be a number, got 'abc'"),
        ({"method": MethodConfig("cagrad", {"num_tasks": 2})}, "unknown option of method cagrad 'num_tasks'"),
        (
            {"optimizer": OptimizerConfig("sgd", options={"momentum": "x"})},
            "option momentum of optimizer sgd must be a number",
        ),
        ({"optimizer": OptimizerConfig("sgd", options={"learning_rate": 1.0})}, "unknown option of optimizer sgd"),
        ({"model": ModelConfig("mlp", {"features": 3})}, r"option features of encoder mlp must be a sequence.*got 3"),
        ({"model": ModelConfig("lennet")}, "unknown encoder 'lennet': did you mean 'lenet'"),
        ({"model": ModelConfig("mlp", {"feature": (3,)})}, "option of encoder mlp 'feature': did you mean 'features'"),
        ({"model": ModelConfig("lenet")}, "the image has shrunk to 0 x 0 before pooling: use smaller kernels"),
    ],
)
def test_unknown_names_and_bad_values_are_one_clear_sentence(tiny, changes, message):
    config = tiny(**changes)
    data = load_data(config)
    with pytest.raises(ValueError, match=message):
        init_state(config, data, build_program(config, data))


@pytest.mark.parametrize("schedule", ["cosine", "step"])
def test_schedules_end_lower_than_they_begin(tiny, schedule):
    """With sgd on a frozen batch the size of an update is the learning rate's."""
    from mtljax.training.optimizers import transformation

    config = OptimizerConfig("sgd", learning_rate=0.5, schedule=schedule, warmup_steps=2)
    tx = transformation(MethodConfig("ew"), config, num_tasks=1, steps_per_epoch=18, epochs=1, seed=0)
    params = np.zeros(1, np.float32)
    state, sizes = tx.init(params), []
    for _ in range(18):
        update, state = tx.update(np.ones((1, 1), np.float32), state, params)
        sizes.append(-float(update[0]))
    assert sizes[0] == 0.0
    assert sizes[2] == pytest.approx(0.5)
    assert sizes[-1] < 0.15
