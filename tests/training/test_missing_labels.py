"""Labels that are missing unevenly, as in a table of assays: every mean is over the labels there are."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from marks import mostly_slow

import mtljax as mtl
from mtljax import tasks as task_kinds
from mtljax.data import MultiTaskData, Split
from mtljax.training import MethodConfig, ModelConfig, OptimizerConfig, TrainConfig, parallel
from mtljax.training.config import to_dict
from mtljax.training.overrides import from_dict
from mtljax.training.program import build_program, init_state

BATCH, STEPS, TASKS = 64, 4, ("common", "half", "rare")


def assays(rare_batches=range(STEPS), names=TASKS):
    """Yes-or-no tasks: one with all labels, one with half, one with two a batch, in some batches only.

    The examples lie in the order in which the run sees them.
    """
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((BATCH * STEPS, 12)).astype(np.float32)
    targets = {name: (inputs @ rng.standard_normal(12) > 0).astype(np.int32) for name in TASKS}
    targets["half"][rng.random(len(inputs)) < 0.5] = -1
    rare = np.full_like(targets["rare"], -1)
    for batch in rare_batches:
        rare[batch * BATCH : batch * BATCH + 2] = targets["rare"][batch * BATCH : batch * BATCH + 2]
    targets["rare"] = rare
    split = Split(inputs, {name: targets[name] for name in names})
    kinds = {name: task_kinds.binary() for name in names}
    return MultiTaskData("assays", kinds, dict.fromkeys(("train", "validation", "test"), split))


@functools.cache
def program_of(config, names):
    return build_program(from_dict(TrainConfig, json.loads(config)), assays(names=names))


def trained(config, data, steps=STEPS):
    """Parameters after each step over the examples in their order, and the state at the end."""
    program = program_of(json.dumps(to_dict(config)), tuple(data.tasks))
    split = parallel.place(data.splits["train"], program.devices)
    order = parallel.place(jnp.arange(BATCH * STEPS), program.devices)
    state = parallel.place(init_state(config, data, program), program.devices)
    history = []
    for _ in range(steps):
        state, _ = program.advance(state, split, order, None)
        history.append(parallel.fetch(state.params, program.devices))
    return history, parallel.fetch(state, program.devices)


@pytest.fixture
def run(tiny):
    """`run(method, **changes)` is a run on assays; with sgd, because Adam turns rounding into updates of full size."""
    return lambda method="ew", **changes: tiny(
        model=ModelConfig("mlp", {"features": (16,)}),
        method=MethodConfig(method),
        optimizer=OptimizerConfig("sgd", learning_rate=0.5),
        batch_size=BATCH,
        **changes,
    )


def assert_equal(found, expected, tolerance=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance * (1 + np.abs(b).max())), found, expected)


def test_the_gradient_is_that_of_the_mean_over_the_labels_there_are(run):
    data = assays()
    program = build_program(run(), data)
    params = init_state(run(), data, program).params
    inputs, targets = data.splits["train"].inputs[:BATCH], data.splits["train"].targets

    def total(p):
        outputs, _ = program.model.apply(p, {}, inputs)
        losses = 0.0
        for name in TASKS:
            labelled = np.flatnonzero(targets[name][:BATCH] >= 0)
            logits = outputs[name][labelled, 0]
            losses += optax.sigmoid_binary_cross_entropy(logits, targets[name][labelled]).mean()
        return losses

    expected = jax.tree.map(lambda p, g: p - 0.5 * g, params, jax.grad(total)(params))
    assert_equal(trained(run(), data, steps=1)[0][0], expected)


SPREADS = {
    "8 devices": {"devices": 8},
    "8 devices, jit": {"devices": 8, "parallel": "jit"},
    "8 devices, scattered": {"devices": 8, "reduce": "scatter"},
    "8 microbatches": {"accumulate": 8},
    "4 devices, 4 microbatches": {"devices": 4, "accumulate": 4},
    "8 microbatches, features": {"accumulate": 8, "mode": "features"},
}


# The rare task has no example in common with another: features say so, and the numbers count all the same.
@pytest.mark.filterwarnings("ignore:mode=.features. compares tasks example by example:UserWarning")
@pytest.mark.parametrize(
    ("method", "spread"),
    [("ew", "8 devices"), ("ew", "8 microbatches")]
    + [pytest.param("upgrad", spread, marks=pytest.mark.slow) for spread in SPREADS],
)
def test_labels_spread_unevenly_over_devices_and_microbatches_count_the_same(run, method, spread):
    """The two labels of the rare task lie in one part of eight."""
    whole = {key: value for key, value in SPREADS[spread].items() if key == "mode"}
    found, _ = trained(run(method, **SPREADS[spread]), assays())
    expected, _ = trained(run(method, **whole), assays())
    assert_equal(found, expected)


def test_the_mean_over_parts_of_the_means_would_be_another(run):
    """So that the test above can fail: with the rare labels in one of 8 parts, its gradient would be an eighth."""
    data = assays()
    first = data.splits["train"].targets["rare"][:BATCH].reshape(8, -1)
    np.testing.assert_array_equal(np.any(first >= 0, axis=1), [True] + [False] * 7)


METHODS = ("cagrad", "uw", "famo", "db_mtl", "adatask", "sdmgrad")


@pytest.mark.parametrize("method", mostly_slow(METHODS, quick=("uw", "adatask")))
def test_a_step_without_a_task_is_that_of_the_other_tasks(run, method):
    config = run(method)
    present = ("common", "half")
    (*_, found), state = trained(config, assays(rare_batches=()))
    (*_, expected), _ = trained(config, assays(names=present))
    assert_equal({name: found["heads"][name] for name in present}, expected["heads"], 1e-4)
    assert_equal(found["shared"], expected["shared"], 1e-4)
    start = init_state(config, assays(), build_program(config, assays())).params
    jax.tree.map(np.testing.assert_array_equal, found["heads"]["rare"], start["heads"]["rare"])
    assert state.monitor.bad_step < 0


# Not sdmgrad: its heads learn from the last third of a batch alone.
@pytest.mark.parametrize("method", mostly_slow(METHODS[:-1], quick=("uw", "adatask")))
def test_a_task_that_comes_and_goes_trains(run, method):
    history, state = trained(run(method), assays(rare_batches=(1, 3)))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(history))
    heads = [step["heads"]["rare"]["kernel"] for step in history]
    np.testing.assert_array_equal(heads[2], heads[1])
    assert np.any(heads[3] != heads[2])
    assert state.monitor.bad_step < 0
    assert np.all(np.isfinite(mtl.task_weights(state.opt_state)))
