"""Plans of steps and runs, for the CPU, whose compiler is always at hand."""

import json
import re
import sys
from importlib import metadata

import jax.numpy as jnp
import optax
import pytest
from jax.sharding import PartitionSpec as P

import mtljax as mtl
from mtljax.cli import main
from mtljax.planning import compiler, runs, steps, table
from mtljax.planning.hlo import Collective, Estimate
from mtljax.planning.results import Compiled, Memory
from mtljax.planning.targets import parse
from mtljax.training import parallel
from mtljax.training.config import MethodConfig, ModelConfig, TrainConfig
from mtljax.training.loop import load_data
from mtljax.training.program import build_program, data_key, init_state

PARAMS = {"shared": jnp.ones((6, 8)) / 8, "heads": {"a": jnp.ones(8), "b": -jnp.ones(8)}}
X = jnp.ones((16, 6))


def losses_fn(params, x):
    z = jnp.tanh(x @ params["shared"])
    return {task: jnp.mean((z @ head - 1) ** 2) for task, head in params["heads"].items()}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MTLJAX_CACHE", str(tmp_path / "cache"))


def rows(plan):
    return {row.name: row for row in plan.rows}


def test_losses_are_planned_by_every_engine():
    plan = mtl.plan(losses_fn, (PARAMS, X), target="cpu", method=mtl.pcgrad(), modes=("all",))
    found = rows(plan)
    assert list(found) == ["summed loss", "auto", "jacrev", "loop", "two_pass"]
    assert plan.batch == 16
    assert found["auto"].choice.startswith("mode loop: on a CPU")
    assert found["auto"].parts["parameters"] == 4 * (48 + 16)
    assert found["auto"].parts["optimizer state"] == 2 * 4 * (48 + 16) + 4

    def flops(row):
        return sum(each.times * each.flops for each in row.compiled.products)

    assert flops(found["loop"]) > 1.2 * flops(found["summed loss"])
    assert "summed loss" in str(plan)
    assert "no estimate of time is made for a CPU" in str(plan)


def test_losses_with_an_auxiliary_output_and_pairs():
    def with_aux(params, x):
        losses = losses_fn(params, x)
        return {"a": losses["a"], "b": (losses["b"] * 3, jnp.array(3.0))}, x.sum()

    plan = mtl.plan(with_aux, (PARAMS, X), target="cpu", method=mtl.mgda(), optimizer=optax.sgd(0.1))
    assert [row.name for row in plan.rows if row.compiled is not None] == ["summed loss", "auto"]


def test_a_step_of_ones_own_is_planned_as_it_is():
    plan = mtl.plan(lambda p, x: jnp.sum(x @ p), (jnp.ones((6, 2)), X), target="cpu", batch_argnums=(1,))
    assert [row.name for row in plan.rows] == [steps.AS_GIVEN]
    assert plan.batch == 16


def test_a_step_that_returns_losses_and_its_new_state_is_no_function_of_losses():
    def step(state, x):
        return {"loss": jnp.mean(x) * state["w"]}, {**state, "count": state["count"] + 1}

    state = {"w": jnp.ones(()), "count": jnp.zeros((), jnp.int32)}
    assert [row.name for row in mtl.plan(step, (state, X), target="cpu").rows] == [steps.AS_GIVEN]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": mtl.ew()}, "fn must return a dict of scalar losses"),
        ({"modes": ("loop",)}, "fn must return a dict of scalar losses"),
        ({"modes": ("all", "bogus")}, "mode 'bogus' is unknown"),
        ({"target": "cpux2", "specs": [P("data")]}, "specs has 1 entries for 2 arguments"),
        ({"target": "cpux2", "specs": [P("data"), None]}, "name an axis 'data', but the mesh has devices"),
        ({"batch_argnums": (2,)}, r"batch_argnums=\(2,\) for 2 arguments"),
        ({"batch_argnums": (0, 1)}, r"have first axes \[6, 16\]"),
        ({"target": "cpux2", "mesh": {"a": 3}}, "the mesh a=3 has 3 places, but cpux2 has 2 devices"),
    ],
)
def test_wrong_arguments_are_one_sentence(options, message):
    with pytest.raises(ValueError, match=message):
        mtl.plan(lambda p, x: [x @ p], (jnp.ones((6, 2)), X), **{"target": "cpu", **options})
    if "donate" not in options:
        with pytest.raises(ValueError, match="donate is for a step of your own"):
            mtl.plan(losses_fn, (PARAMS, X), target="cpu", donate=(0,))


def test_arguments_without_the_batch_stay_whole_on_every_device():
    """A scalar, and a key of two numbers."""

    def scaled(params, x, rate, key):
        return {task: rate * loss + key[0] for task, loss in losses_fn(params, x).items()}

    key = jnp.zeros(2, jnp.uint32)
    plan = mtl.plan(scaled, (PARAMS, X, jnp.ones(()), key), target="cpux4", method=mtl.pcgrad())
    assert plan.batch == 16
    assert all(row.compiled is not None for row in plan.rows)


def test_a_bare_spec_is_that_of_every_parameter_and_of_the_states_like_it():
    params = {"a": jnp.ones((8, 4)), "b": jnp.ones((8, 4))}

    def losses(p, x):
        return {task: jnp.mean((x @ w) ** 2) for task, w in p.items()}

    args = params, jnp.ones((16, 8))
    plan = mtl.plan(losses, args, target="cpux4", method=mtl.moco(num_tasks=2), specs=[P("devices"), P("devices")])
    whole = mtl.plan(losses, args, target="cpu", method=mtl.moco(num_tasks=2))
    for name in ("parameters", "optimizer state", "method state"):
        sharded, alone = (rows(each)["auto"].parts[name] for each in (plan, whole))
        assert sharded == pytest.approx(alone / 4, rel=0.1, abs=40), name


def test_a_compiler_that_dies_is_a_row_and_one_sentence(config, monkeypatch, capsys):
    command = [sys.executable, "-c", "import os; print('boom', flush=True); os.abort()"]
    monkeypatch.setattr(compiler, "_command", lambda directory: command)
    assert main(["plan", str(config), "--target", "cpu"]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error == "mtljax: the compiler for cpu died (signal 6): boom"


def test_a_batch_is_cut_for_the_devices_and_the_traffic_names_the_side():
    plan = mtl.plan(losses_fn, (PARAMS, X), target="cpux4", method=mtl.ew())
    assert "all-reduce" in str(plan)
    assert "over devices (4)" in str(plan)
    with pytest.raises(ValueError, match="a batch of 16 cannot be cut for 3 devices: use a multiple of 3"):
        mtl.plan(losses_fn, (PARAMS, X), target="cpux3")


def test_parameters_stay_as_their_user_lays_them_out():
    specs = [{"shared": P("data", None), "heads": {"a": P("data"), "b": P("data")}}, P("data")]
    params, x = {**PARAMS, "shared": jnp.ones((8, 8))}, jnp.ones((16, 8))
    plan = mtl.plan(losses_fn, (params, x), target="cpux4", method=mtl.ew(), mesh={"data": 4}, specs=specs)
    whole = mtl.plan(losses_fn, (params, x), target="cpu", method=mtl.ew())
    for name in ("parameters", "optimizer state"):
        assert rows(plan)["auto"].parts[name] == pytest.approx(rows(whole)["auto"].parts[name] / 4, abs=4)
    assert "all-gather" in str(plan)


def test_sides_of_a_mesh_are_told_from_the_groups():
    def sides(groups):
        return table._sides(Collective("all-reduce", 1, (), 0, len(groups[0]), groups, ""), {"data": 2, "model": 2})

    assert sides(((0, 1), (2, 3))) == "model (2)"
    assert sides(((0, 2), (1, 3))) == "data (2)"
    assert sides(((0, 1, 2, 3),)) == "data x model (4)"
    assert sides(((0, 3), (1, 2))) == "2 devices"


@pytest.mark.parametrize(("most", "first"), [(1000, 16), (1000, 5000), (8, 16), (0, 16)])
def test_the_largest_batch_is_found_by_bisection(most, first):
    """The machine has room for `most` examples beside the parameters; memory jumps a little, as compilers' do."""
    target = parse("h100x4")
    assert target.memory is not None
    calls = []

    def compiled(batch):
        calls.append(batch)
        needed = int(target.memory * (0.1 + 0.9 * (batch * (1 + 0.02 * (batch % 3)) + 0.5) / (most + 0.5)))
        memory = Memory(int(0.1 * target.memory), 0, needed - int(0.1 * target.memory), 0, 0)
        return Compiled(target, needed <= target.memory, needed, memory)

    found = steps._largest(compiled, compiled(first), first, target)
    assert found <= most
    assert found % 4 == 0
    assert found >= 0.9 * most - 4
    assert len(calls) <= 7


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.py"
    path.write_text(
        "from mtljax.ablation import StudyConfig\n"
        "from mtljax.training.config import MethodConfig, ModelConfig, TrainConfig\n"
        "def get_config():\n"
        "    model = ModelConfig('mlp', {'features': (8,)})\n"
        "    base = TrainConfig(model=model, batch_size=32, method=MethodConfig('pcgrad'), epochs=2)\n"
        "    return StudyConfig('tiny', base=base, weight_grid=0, seeds=(0, 1))\n"
    )
    return path


def test_the_command_prints_a_table_and_writes_json(config, tmp_path, capsys):
    out = tmp_path / "plan.json"
    words = ["plan", str(config), "--target", "cpux2", "--modes", "all", "--blocks", "1,2", "--json", str(out)]
    assert main(words) == 0
    text = capsys.readouterr().out
    for word in ("summed loss", "two_pass", "features", "training split", "over devices (2)", "the study has"):
        assert word in text
    found = json.loads(out.read_text())
    assert [row["name"] for row in found["rows"]] == ["summed loss", "auto", "jacrev", "loop", "two_pass", "features"]
    assert found["steps"] > 0
    assert set(found["blocks"]["by_size"]) == {"1", "2"}


def test_steps_that_reuse_weights_are_weighed_as_often_as_they_are_made():
    row = Compiled(parse("v5e"), True, 0, estimate=Estimate(1.5e6, ()))
    cheap = row._replace(estimate=Estimate(0.5e6, ()))
    plan = steps.Plan(
        parse("v5e"), 8, (steps.Row("auto", row, ""), steps.Row(steps.REUSED, cheap, "")), steps=100, solve_every=4
    )
    assert plan.seconds == pytest.approx((1e-3 + 3 * 1e-3 / 3) / 4)


def test_a_batch_beyond_the_data_is_refused_as_training_does(config, capsys):
    assert main(["plan", str(config), "--target", "cpu", "--batch_size", "100000"]) == 2
    assert "batch" in capsys.readouterr().err


def test_a_method_that_cannot_run_in_a_mode_is_a_row_that_says_why():
    config = TrainConfig(model=ModelConfig("mlp", {"features": (8,)}), batch_size=32, method=MethodConfig("fs_mtl"))
    plan = runs.plan_config(config, parse("cpu"), modes=("features", "loop"), largest_batch=False)
    found = rows(plan)
    assert found["features"].compiled is None
    assert 'which mode="features" saves' in found["features"].choice
    assert found["loop"].compiled is not None
    assert "cannot" in str(plan)


@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("style", ["pmap", "jit"])
def test_a_run_is_planned_as_it_trains(style):
    """The program of a plan has the flops of the one that trains, up to what pmap adds to carry its own axis along."""
    model = ModelConfig("mlp", {"features": (16,)})
    config = TrainConfig(model=model, batch_size=64, method=MethodConfig("pcgrad"), devices=2, parallel=style)
    plan = runs.plan_config(config, parse("cpux2"), largest_batch=False)
    compiled = rows(plan)["auto"].compiled
    data = load_data(config)
    program = build_program(config, data)
    placed = [
        parallel.place(tree, program.devices)
        for tree in (init_state(config, data, program), data.splits["train"], program.shuffle(data_key(config), 0))
    ]
    trained = program.advance.lower(*placed, None).compile()
    assert compiled.flops == pytest.approx(trained.cost_analysis()["flops"], rel=0.06)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--target", "v5e:3x3"], r"did you mean v5e:2x4 or v5e:4x4\?"),
        (["--target", "v5"], "did you mean 'v5[ep]'"),
        (["--target", "cpux3"], r"batch_size=32 is not divisible by 3 devices: use 30 or 33"),
        (["--target", "cpu", "--modes", "loops"], "'loops' is unknown: use auto"),
        (["--target", "cpu", "--blocks", "0"], "--blocks=0 must be numbers of cells"),
    ],
)
def test_bad_input_is_one_sentence(words, message, config, capsys):
    assert main(["plan", str(config), *words]) == 2
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1
    assert re.search(message, error), error


def test_a_missing_plug_in_names_the_install_line(config, capsys):
    try:
        metadata.version("libtpu")
    except metadata.PackageNotFoundError:
        assert main(["plan", str(config), "--target", "v5e"]) == 2
        assert 'pip install "mtljax[tpu]"' in capsys.readouterr().err
    else:
        pytest.skip("libtpu is installed")
