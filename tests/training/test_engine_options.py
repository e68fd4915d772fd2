"""The engines and microbatches inside the whole train step, as a config asks for them."""

import jax
import numpy as np
import pytest
from marks import mostly_slow

from mtljax.training import MethodConfig, ModelConfig, OptimizerConfig, parallel
from mtljax.training.loop import load_data, train
from mtljax.training.program import build_program, data_key, init_state, structure

DEEP = ModelConfig("mlp", {"features": (16, 16)})
SGD = OptimizerConfig("sgd", learning_rate=0.1)


def parameters_after(config, steps=3):
    data = load_data(config)
    program = build_program(config, data)
    split = parallel.place(data.splits["train"], program.devices)
    state = parallel.place(init_state(config, data, program), program.devices)
    for step in range(steps):
        solve = None if program.solve_every == 1 else step % program.solve_every == 0
        state, _ = program.advance(state, split, program.shuffle(data_key(config), 0), solve)
    return state.params, program


def assert_close(actual, expected, rtol):
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, e, rtol=rtol, atol=rtol * float(np.abs(e).max()))


@pytest.mark.parametrize(
    "changes",
    [{"mode": "jacrev"}, {"mode": "two_pass"}, {"accumulate": 4}],
    ids=str,
)
def test_every_exact_engine_trains_alike(tiny, changes):
    method = MethodConfig("pcgrad")
    expected, _ = parameters_after(tiny(model=DEEP, method=method, optimizer=SGD))
    actual, _ = parameters_after(tiny(model=DEEP, method=method, optimizer=SGD, **changes))
    assert_close(actual, expected, rtol=1e-5)


@pytest.mark.slow
def test_microbatches_equal_the_batch_for_a_loss_weighting_and_independent_batches(tiny):
    for method in ("famo", "modo"):
        whole = tiny(method=MethodConfig(method), optimizer=SGD, batch_size=48)
        expected, _ = parameters_after(whole)
        actual, _ = parameters_after(tiny(method=MethodConfig(method), optimizer=SGD, batch_size=48, accumulate=4))
        assert_close(actual, expected, rtol=1e-5)


@pytest.mark.parametrize(
    "changes", mostly_slow([{"mode": "features"}, {"subset": "shared/Dense_1/bias"}], [{"mode": "features"}]), ids=str
)
def test_approximations_train_and_differ(tiny, changes):
    method = MethodConfig("imtl_g")
    exact, _ = parameters_after(tiny(model=DEEP, method=method, optimizer=SGD))
    actual, _ = parameters_after(tiny(model=DEEP, method=method, optimizer=SGD, **changes))
    pairs = list(zip(jax.tree.leaves(actual["shared"]), jax.tree.leaves(exact["shared"]), strict=True))
    assert all(np.isfinite(a).all() for a, _ in pairs)
    assert max(float(np.abs(a - e).max()) for a, e in pairs) > 1e-6
    # The heads see the same inputs at the first step only, and their own gradient in any case.
    assert_close(
        parameters_after(tiny(model=DEEP, method=method, optimizer=SGD, **changes), 1)[0]["heads"],
        parameters_after(tiny(model=DEEP, method=method, optimizer=SGD), 1)[0]["heads"],
        rtol=1e-5,
    )


def test_the_host_chooses_between_solving_and_reusing_weights(tiny):
    config = tiny(method=MethodConfig("gradvac", {"update_every": 3}), epochs=1, log_every=1)
    result = train(config)
    weights = [tuple(r["weights"].values()) for r in result.records if r["split"] == "train"]
    assert [a == b for a, b in zip(weights[1:], weights[:-1], strict=True)] == [
        True,
        True,
        False,
        True,
        True,
        False,
        True,
    ]
    _, program = parameters_after(config, 4)
    assert program.advance._cache_size() == 2
    # What no host chooses, inside one program by lax.cond, is the same.
    data = load_data(config)
    split = parallel.place(data.splits["train"], program.devices)
    states = [init_state(config, data, program), init_state(config, data, program)]
    for step in range(4):
        for i, solve in enumerate((None, step % 3 == 0)):
            states[i], _ = program.advance(states[i], split, program.shuffle(data_key(config), 0), solve)
    assert_close(states[0].params, states[1].params, rtol=1e-6)


def test_a_run_that_scatters_goes_on_with_one_device(tiny):
    expected, _ = parameters_after(tiny(optimizer=SGD), 1)
    assert_close(parameters_after(tiny(optimizer=SGD, reduce="scatter"), 1)[0], expected, rtol=1e-6)


def test_engine_options_do_not_share_programs(tiny):
    base = structure(tiny())
    changes = [{"mode": "two_pass"}, {"accumulate": 2}, {"subset": "Dense"}, {"parallel": "jit"}, {"reduce": "scatter"}]
    assert all(structure(tiny(**change)) != base for change in changes)
    assert structure(tiny(model=ModelConfig("mlp", {"features": (32,)}, "bfloat16"))) != base


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accumulate": 5}, "cannot be cut into accumulate=5 microbatches on each of 1 devices: use a multiple of 5"),
        (
            {"accumulate": 4, "method": MethodConfig("modo")},
            "batch_size=64 cannot be cut into accumulate=4 .* for 3 independent batches: use a multiple of 12",
        ),
        ({"accumulate": 0}, "accumulate must be at least 1, got 0"),
        ({"reduce": "scatter", "parallel": "jit"}, 'reduce="scatter" needs parallel="pmap"'),
        ({"subset": "("}, r"subset='\(' is no regular expression"),
    ],
)
def test_options_that_cannot_be_are_one_sentence(tiny, changes, message):
    data = load_data(tiny())
    with pytest.raises(ValueError, match=message):
        build_program(tiny(**changes), data)


def test_a_subset_that_matches_nothing_names_the_shared_parameters(tiny):
    config = tiny(subset="conv")
    with pytest.raises(ValueError, match=r"subset chooses no shared parameter; the shared ones are .*Dense_0"):
        parameters_after(config, 1)


def test_parameters_that_are_not_trainable_stay_and_enter_no_gramian(tiny):
    """With weight decay, which moves parameters that have no gradient; the others are trained as if alone."""
    options = {"model": DEEP, "method": MethodConfig("mgda"), "optimizer": OptimizerConfig("adamw", 0.01)}
    before, _ = parameters_after(tiny(**options), steps=0)
    after, _ = parameters_after(tiny(**options, trainable="heads|Dense_1"))
    for (path, old), new in zip(jax.tree_util.tree_flatten_with_path(before)[0], jax.tree.leaves(after), strict=True):
        assert np.any(np.asarray(old) != np.asarray(new)) == ("Dense_0" not in jax.tree_util.keystr(path)), path
    subset, _ = parameters_after(tiny(**options, subset="Dense_1"), steps=1)  # the same weights, all trained
    first, _ = parameters_after(tiny(**options, trainable="heads|Dense_1"), steps=1)
    assert_close(first["shared"]["Dense_1"], subset["shared"]["Dense_1"], rtol=1e-6)
    with pytest.raises(ValueError, match=r"trainable='\(' is no regular expression"):
        tiny(trainable="(")
    with pytest.raises(ValueError, match=r"trainable chooses no parameter; there are .*Dense_0"):
        parameters_after(tiny(**options, trainable="conv"))
