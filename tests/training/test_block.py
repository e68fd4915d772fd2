"""Many runs in one program, over several devices: each has its own runs, and nothing to say to the others."""

import jax
import numpy as np
import pytest

from mtljax.planning import hlo
from mtljax.training import MethodConfig, OptimizerConfig, Result
from mtljax.training.block import build_block, train_block
from mtljax.training.loop import load_data
from mtljax.training.program import build_program, data_key, init_state

RUNS = 6  # two devices have two, one of which is padding


@pytest.fixture
def built(tiny):
    """`built(method)`: runs that differ in seed and rate; their data, program and states."""

    def build(method):
        optimizers = [OptimizerConfig("adam", learning_rate=1e-3 * 2**i) for i in range(RUNS)]
        configs = [tiny(seed=i, method=method, optimizer=each, epochs=2) for i, each in enumerate(optimizers)]
        data = load_data(configs[0])
        program = build_program(configs[0], data)
        return configs, data, program, [init_state(config, data, program) for config in configs]

    return build


def plain(result):
    assert isinstance(result, Result)
    records = [{key: value for key, value in record.items() if key != "seconds"} for record in result.records]
    return jax.tree.leaves((records, result.validation, result.test, result.params, result.best_step))


def test_on_four_devices_runs_are_what_they_are_on_one(built):
    configs, data, program, states = built(MethodConfig("ew"))
    one, four = (
        train_block(configs, states, data=data, block=build_block(program, jax.devices()[:count])) for count in (1, 4)
    )
    for mine, theirs in zip(four, one, strict=True):
        for a, b in zip(plain(mine), plain(theirs), strict=True):
            if isinstance(a, str):
                assert a == b
            else:  # another number of runs a device, so another product of matrices
                np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_devices_send_each_other_nothing(built):
    configs, data, program, states = built(MethodConfig("mgda", {"update_every": 3}))
    block = build_block(program, jax.devices()[:4])
    padded = [*states, *states[:2]]
    stacked = jax.device_put(jax.tree.map(lambda *leaves: np.stack(leaves), *padded), block.apart)
    split = jax.device_put(data.splits["train"], block.whole)
    keys = np.stack([data_key(config) for config in [*configs, *configs[:2]]])
    orders = block.shuffle(keys, 0)
    network = stacked.params, stacked.model_state
    better, indices, mask = np.zeros(8, bool), np.arange(100), np.ones(100, np.float32)
    programs = {
        "advance": block.advance.lower(stacked, split, orders, np.int32(3)),
        "shuffle": block.shuffle.lower(keys, 0),
        "evaluation": block.evaluation.batch.lower(*network, split, indices, mask),
        "keep": block.keep.lower(better, network, network),
    }
    for name, lowered in programs.items():
        text = lowered.compile().as_text()
        assert "num_partitions=4" in text, name
        assert hlo.collectives(text) == (), name
    assert len(jax.tree.leaves(stacked)[0].sharding.device_set) == 4
