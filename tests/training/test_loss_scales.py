"""Factors on the losses: the method sees them, the log and the metrics do not, and no step is compiled for them."""

import dataclasses

import jax
import numpy as np
import pytest

from mtljax.training import MethodConfig, OptimizerConfig, TrainConfig, parallel
from mtljax.training.block import build_block, train_block
from mtljax.training.loop import load_data, train
from mtljax.training.overrides import override
from mtljax.training.program import build_program, data_key, init_state, structure

SCALES = ({}, {"right": 10.0}, {"left": 0.5, "right": 10})


def vector(params):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)])


@pytest.fixture
def sgd(tiny):
    """Plain SGD, to which a factor on a loss is a learning rate; two epochs of a few steps."""
    return tiny(method=MethodConfig("ew"), optimizer=OptimizerConfig("sgd", 0.05), epochs=2, checkpoints=False)


def advanced(config, data, program, steps=3):
    split = parallel.place(data.splits["train"], program.devices)
    state = parallel.place(init_state(config, data, program), program.devices)
    found = []
    for _ in range(steps):
        state, metrics = program.advance(state, split, program.shuffle(data_key(config), 0), None)
        found.append({name: float(loss) for name, loss in metrics["losses"].items()})
    return jax.device_get(state), found


def test_scales_are_weights_of_the_sum_and_share_its_program(sgd):
    data = load_data(sgd)
    program = build_program(sgd, data)
    states, losses = zip(
        *(advanced(dataclasses.replace(sgd, loss_scales=s), data, program) for s in SCALES), strict=True
    )
    assert program.advance._cache_size() == 1
    weighted = [
        dataclasses.replace(sgd, method=MethodConfig("scalarization", {"weights": {"left": 1, "right": 1, **scales}}))
        for scales in SCALES
    ]
    program = build_program(weighted[0], data)
    for config, state in zip(weighted, states, strict=True):
        expected, _ = advanced(config, data, program)
        np.testing.assert_allclose(vector(state.params), vector(expected.params), rtol=1e-5, atol=1e-7)
    for found in losses[1:]:  # before the first step the networks are one
        assert found[0] == pytest.approx(losses[0][0], rel=1e-6)
        assert found[2]["right"] != pytest.approx(losses[0][2]["right"], rel=1e-4)
    np.testing.assert_allclose(states[1].monitor.loss_sum[1], sum(found["right"] for found in losses[1]), rtol=1e-5)


@pytest.mark.slow
def test_an_adam_a_task_is_not_changed_by_them(tiny):
    config = tiny(method=MethodConfig("adatask", {"eps": 1e-16}), optimizer=OptimizerConfig("sgd", 0.01))
    data = load_data(config)
    program = build_program(config, data)
    plain, scaled = (advanced(dataclasses.replace(config, loss_scales=s), data, program, 2)[0] for s in SCALES[:2])
    np.testing.assert_allclose(vector(plain.params), vector(scaled.params), rtol=1e-3, atol=1e-4)


def test_runs_with_different_scales_train_in_one_block(sgd):
    configs = [dataclasses.replace(sgd, loss_scales=scales, seed=seed) for seed, scales in enumerate(SCALES)]
    data = load_data(sgd)
    program = build_program(sgd, data)
    states = [init_state(config, data, program) for config in configs]
    together = train_block(configs, states, data=data, block=build_block(program))
    for config, found in zip(configs, together, strict=True):
        alone = train(config, data=data, program=program)
        assert not isinstance(found, Exception)
        assert found.test["right"]["loss"] == pytest.approx(alone.test["right"]["loss"], rel=1e-3)
        np.testing.assert_allclose(vector(found.params), vector(alone.params), rtol=1e-3, atol=1e-5)
        for mine, theirs in zip(found.records, alone.records, strict=True):
            if mine["split"] == "train":
                assert mine["losses"] == pytest.approx(theirs["losses"], rel=1e-4)


def test_other_scales_are_no_other_structure(tiny):
    assert len({structure(tiny(loss_scales=scales)) for scales in SCALES}) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("--loss_scales.left=0", r"loss_scales.left must be a positive number \(from 1e-30 to 1e30\), got 0"),
        ("--loss_scales.left=-1", "loss_scales.left must be a positive number"),
        ("--loss_scales.left=1e400", "loss_scales.left must be a positive number .*, got inf"),
        ("--loss_scales.left=much", "loss_scales.left must be a positive number .*, got 'much'"),
        ("--loss_scales.left=true", "loss_scales.left must be a positive number .*, got True"),
        ("--loss_scales=10", "loss_scales must be a dict, got 10"),
        ("--loss_scale.left=10", "unknown config key 'loss_scale': did you mean 'loss_scales'"),
    ],
)
def test_bad_scales_are_one_clear_sentence(text, message):
    with pytest.raises(ValueError, match=message):
        override(TrainConfig(), [text])


def test_a_scale_for_no_task_names_the_nearest(tiny):
    with pytest.raises(ValueError, match="unknown task in loss_scales 'rigth': did you mean 'right'"):
        train(tiny(loss_scales={"rigth": 10.0}))
