"""FS-MTL inside the train step: the losses are evaluated again there."""

import dataclasses

import jax
import numpy as np
import pytest

from mtljax.training import MethodConfig, ModelConfig, OptimizerConfig, parallel, train
from mtljax.training.loop import load_data
from mtljax.training.program import build_program, data_key, init_state, structure

RESNET = ModelConfig("resnet18", {"width": 2, "blocks": (1,), "features": 8, "small_stem": True})
# The bases are those that compile fastest.
FLAT = {"base": "imtl_g", "rho": 0.5, "adaptive": True, "norm": "joint"}
DROP = {**FLAT, "base": "graddrop", "base_options": {"leak": 0.3}}


@pytest.fixture
def run(tiny):
    """`run("fs_mtl", {...}, ...)` is a run with that method, with sgd, because Adam blows up rounding."""
    return lambda method="fs_mtl", options=None, **changes: tiny(
        method=MethodConfig(method, FLAT if options is None else options),
        optimizer=OptimizerConfig("sgd", learning_rate=0.1),
        **changes,
    )


def trained(config, steps=2):
    data = load_data(config)
    program = build_program(config, data)
    split = parallel.place(data.splits["train"], program.devices)
    permutation = parallel.place(program.shuffle(data_key(config), 0), program.devices)
    state = parallel.place(init_state(config, data, program), program.devices)
    for step in range(steps):
        solve = None if program.solve_every == 1 else step % program.solve_every == 0
        state, _ = program.advance(state, split, permutation, solve)
    return parallel.fetch(state, program.devices)


def assert_close(found, expected, tolerance=1e-5):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * max(float(np.abs(b).max()), 1e-30))


@pytest.mark.slow
def test_batch_statistics_are_those_of_the_base_and_eight_devices_equal_one(run):
    """A perturbed pass leaves no trace in the statistics, eight devices compute what one does."""
    flat = trained(run(model=RESNET), steps=1)
    base = trained(run("imtl_g", {}, model=RESNET), steps=1)
    assert_close(flat.model_state, base.model_state)
    assert (
        max(np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (flat.params, base.params)), strict=True)) > 1e-4
    )
    many = trained(run(model=RESNET, devices=8), steps=1)
    assert_close((many.params, many.model_state), (flat.params, flat.model_state), 1e-4)


@pytest.mark.slow
def test_microbatches_give_the_step_of_the_whole_batch(run):
    assert_close(trained(run(accumulate=4)).params, trained(run()).params, 1e-4)


@pytest.mark.slow
def test_shardings_and_scattered_gradients_give_the_step_of_one_device(run):
    one = trained(run()).params
    for changes in ({"parallel": "jit"}, {"reduce": "scatter"}):
        assert_close(trained(run(devices=8, **changes)).params, one, 1e-4)


def test_rho_zero_is_the_run_of_the_base(run):
    flat, base = run(options={**DROP, "rho": 0.0}), run("graddrop", {"leak": 0.3})
    assert structure(flat) == structure(base)
    data = load_data(flat)
    program = build_program(base, data)
    jax.tree.map(np.testing.assert_array_equal, *(init_state(config, data, program) for config in (flat, base)))


def test_runs_that_differ_in_numbers_share_a_program(run):
    config, other = run(options=DROP), run(options={**DROP, "rho": 2, "base_options": {"leak": 1}})
    data = load_data(config)
    program = build_program(config, data)
    assert structure(config) == structure(other)
    assert structure(config) != structure(run(options={**DROP, "adaptive": False}))
    assert structure(config) != structure(run(options=FLAT))
    split, order = data.splits["train"], program.shuffle(data_key(config), 0)
    found = []
    for each in (config, other):
        state = parallel.place(init_state(each, data, program), program.devices)
        found.append(program.advance(state, split, order, None)[0].params)
    assert program.advance._cache_size() == 1
    for head, (a, b) in {k: [p["heads"][k]["kernel"] for p in found] for k in found[0]["heads"]}.items():
        assert np.abs(a - b).max() > 1e-5, head


def test_constants_where_pairs_are_aggregated(run):
    """There the base is built for two in place of K, from the numbers in the config."""
    options = {**FLAT, "base": "cagrad", "aggregate": "second", "base_options": {"c": 0.3}}
    config = run(options=options)
    assert structure(config) != structure(run(options={**options, "base_options": {"c": 0.7}}))
    init_state(config, load_data(config), build_program(config, load_data(config)))


@pytest.mark.slow
@pytest.mark.parametrize("base", ["modo", "famo"])
def test_a_base_gets_the_batches_and_losses_it_asks_for(run, base):
    state = trained(run(options={"base": base, "rho": 0.1}))
    assert (state.losses_after is not None) == (base == "famo")
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state.params))


def test_bad_options_are_one_sentence(run):
    for options, message in (
        ({"base": "cagard"}, "unknown method 'cagard'"),
        ({"base": "fs_mtl"}, "the base must be another method"),
        ({"rho": -1.0}, "rho must be >= 0"),
        ({"base": "cagrad", "base_options": {"d": 1.0}}, "unknown option of method cagrad 'd'"),
    ):
        config = run(options=options)
        with pytest.raises(ValueError, match=message):
            build_program(config, load_data(config))


@pytest.mark.slow
def test_resume_is_bitwise_equal(run, tmp_path):
    config = run(options={**FLAT, "base": "pcgrad", "perturb_every": 3}, epochs=2)
    whole = train(config)
    train(dataclasses.replace(config, epochs=1), workdir=tmp_path)
    part = train(config, workdir=tmp_path, resume=True)
    jax.tree.map(np.testing.assert_array_equal, part.params, whole.params)
