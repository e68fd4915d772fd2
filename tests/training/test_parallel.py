"""Several devices compute what one computes, and send what they should."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from marks import mostly_slow

import mtljax as mtl
from mtljax.planning.hlo import collective_bytes
from mtljax.training import ModelConfig, OptimizerConfig, parallel, train
from mtljax.training.loop import load_data
from mtljax.training.program import build_program, data_key, init_state

DEVICES, TASKS, STEPS, BATCHES = 8, ("a", "b", "c"), 3, 3
GRAMIAN = [name for name in mtl.methods.names() if mtl.methods.describe(name).needs == "gramian"]
# So that what these do in epochs is seen within three updates.
OPTIONS = {"dwa": {"window": 1}, "stch": {"warmup": 1, "window": 1}, "modo": {"gamma": 0.1}}


def network(width=3, inputs=4, seed=0):
    """Parameters, and losses split at the representation, that conflict; all means over the batch."""
    rng = np.random.default_rng(seed)
    params = {
        "shared": jnp.asarray(rng.standard_normal((inputs, width))),
        "bias": jnp.zeros(width),
        "heads": {task: jnp.asarray(rng.standard_normal(width)) for task in TASKS},
    }
    goals = {task: rng.standard_normal(inputs) * 2.0**k for k, task in enumerate(TASKS)}
    losses_fn = mtl.split(
        lambda p, x: jnp.tanh(x @ p["shared"] + p["bias"]),
        lambda p, z, x: {task: jnp.mean((z @ p["heads"][task] - x @ goals[task]) ** 2) for task in TASKS},
    )
    return params, losses_fn


def updates(method, mode="auto", axis_name=None, reduce="mean"):
    """What a method makes of a sequence of batches (STEPS, BATCHES, n, inputs)."""
    params, losses_fn = network()
    tx = mtl.methods.create(method, num_tasks=len(TASKS), **OPTIONS.get(method, {}))
    count = mtl.methods.describe(method).batches

    def run(data):
        def step(carry, parts):
            p, state = carry
            pairs = [
                mtl.task_gradients(losses_fn, p, parts[i], mode=mode, axis_name=axis_name, reduce=reduce)
                for i in range(count)
            ]
            losses = pairs[0][0]
            after = jnp.stack([0.9 * losses[task] for task in TASKS])
            grads = pairs[0][1] if count == 1 else tuple(grads for _, grads in pairs)
            gradient, state = tx.update(grads, state, p, losses=losses, losses_after=after)
            p = jax.tree.map(lambda leaf, g: leaf - 0.01 * g, p, gradient)
            return (p, state), (gradient, losses, state.weights)

        return jax.lax.scan(step, (params, tx.init(params)), data)[1]

    return run


@functools.cache
def batches():
    """STEPS x BATCHES batches of 16 examples."""
    return np.random.default_rng(1).standard_normal((STEPS, BATCHES, 16, 4))


def on_one(method, mode="auto"):
    return jax.device_get(jax.jit(updates(method, mode))(batches()))


def on_eight(method, style, mode="auto"):
    data = batches()
    if style == "jit":
        mesh = Mesh(np.asarray(jax.devices()[:DEVICES]), ("devices",))
        sharding = NamedSharding(mesh, PartitionSpec(None, None, "devices"))
        return jax.device_get(jax.jit(updates(method, mode))(jax.device_put(data, sharding)))
    parts = np.moveaxis(data.reshape(STEPS, BATCHES, DEVICES, -1, 4), 2, 0)
    run = updates(method, mode, "devices", style.removeprefix("pmap "))
    found = jax.device_get(jax.pmap(run, axis_name="devices")(parts))
    for leaf in jax.tree.leaves(found):
        np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[:1], leaf.shape))  # the copies never part
    return jax.tree.map(lambda leaf: leaf[0], found)


def assert_close(found, expected, tolerance=1e-5):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * max(float(np.abs(b).max()), 1e-30))


STYLES = ("pmap mean", "pmap scatter", "jit")


# One of a kind by default; compiling the rest takes minutes.
@pytest.mark.parametrize("method", mostly_slow(mtl.methods.names(), quick=("graddrop",)))
def test_eight_devices_equal_one_on_the_full_batch(method):
    with jax.enable_x64(True):
        expected = on_one(method)
        for style in STYLES:
            assert_close(on_eight(method, style), expected)


@pytest.mark.parametrize("method", mostly_slow(("pcgrad", "cagrad", "mgda"), quick=("pcgrad",)))
@pytest.mark.parametrize("mode", mostly_slow(("features", "two_pass"), quick=("features",)))
def test_eight_devices_equal_one_in_every_mode(method, mode):
    with jax.enable_x64(True):
        expected = on_one(method, mode)
        for style in ("pmap mean", "jit"):
            assert_close(on_eight(method, style, mode), expected)


# ---------------------------------------------------------------------------------------------------------------------
# The whole training step


def trained(config, steps=3):
    """The state after some steps of `program.advance`."""
    data = load_data(config)
    program = build_program(config, data)
    split = parallel.place(data.splits["train"], program.devices)
    permutation = parallel.place(program.shuffle(data_key(config), 0), program.devices)
    state = parallel.place(init_state(config, data, program), program.devices)
    for _ in range(steps):
        state, _ = program.advance(state, split, permutation, None)
    return parallel.fetch(state, program.devices), state, program


MLP = ModelConfig("mlp", {"features": (16,)})
RESNET = ModelConfig("resnet18", {"width": 2, "blocks": (1,), "features": 8, "small_stem": True})


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        (MLP, {"parallel": "jit"}),
        (MLP, {"reduce": "scatter"}),
        pytest.param(RESNET, {"parallel": "jit"}, marks=pytest.mark.slow),
        pytest.param(MLP, {"parallel": "jit", "mode": "features"}, marks=pytest.mark.slow),
        pytest.param(RESNET, {"reduce": "scatter"}, marks=pytest.mark.slow),
        pytest.param(RESNET, {"mode": "features"}, marks=pytest.mark.slow),
    ],
    ids=lambda value: getattr(value, "encoder", "-".join(getattr(value, "values", str)())),
)
def test_the_whole_step_on_eight_devices_equals_one(tiny, model, changes):
    """Batch statistics, which only the ResNet has, are those of the whole batch."""
    config = tiny(model=model, optimizer=OptimizerConfig("sgd", learning_rate=0.1), mode=changes.get("mode", "auto"))
    one, _, _ = trained(config)
    many, placed, program = trained(dataclasses.replace(config, devices=DEVICES, **changes))
    assert len(program.devices.every) == DEVICES
    assert bool(jax.tree.leaves(one.model_state)) == (model is RESNET)
    assert_close((many.params, many.model_state), (one.params, one.model_state))
    assert all(len(leaf.sharding.device_set) == DEVICES for leaf in jax.tree.leaves(placed))
    if "parallel" in changes:
        assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(placed))


@pytest.mark.slow
@pytest.mark.parametrize("style", ["pmap", "jit"])
def test_a_checkpoint_of_eight_devices_resumes_on_one_and_back(tiny, tmp_path, style):
    config = tiny(optimizer=OptimizerConfig("sgd", learning_rate=0.1), epochs=3)
    whole = train(config)
    for epochs, devices in ((1, DEVICES), (2, 1), (3, DEVICES)):
        part = dataclasses.replace(config, epochs=epochs, devices=devices, parallel=style)
        result = train(part, workdir=tmp_path, resume=epochs > 1)
    assert_close(result.params, whole.params)
    assert [r["step"] for r in result.records] == [r["step"] for r in whole.records]
    for a, b in zip(result.records, whole.records, strict=True):
        if a["split"] == "train":
            assert_close(a["losses"], b["losses"])


# ---------------------------------------------------------------------------------------------------------------------
# Bytes


def traffic(mode, reduce, method="cagrad"):
    """Bytes of one step on a large shared layer, and the number of parameters, shared and in a head."""
    params, losses_fn = network(width=32, inputs=64)
    tx = mtl.methods.create(method, num_tasks=len(TASKS))

    def step(p, state, x):
        losses, grads = mtl.task_gradients(losses_fn, p, x, mode=mode, axis_name="devices", reduce=reduce)
        return tx.update(grads, state, p, losses=losses)[0]

    x = np.zeros((DEVICES, 2, 64), np.float32)
    copies = jax.tree.map(lambda leaf: jnp.stack([leaf] * DEVICES), (params, tx.init(params)))
    text = jax.pmap(step, axis_name="devices").lower(*copies, x).compile().as_text()
    return collective_bytes(text, DEVICES), 64 * 32 + 32, 32


@pytest.mark.usefixtures("optimised")
def test_a_step_sends_what_its_mode_promises():
    k = len(TASKS)
    small = 4 * 4 * (k * k + 4 * k)  # Gramian, norms, losses

    plain, shared, head = traffic("auto", "mean")
    rows, zeros = 2 * 4 * k * (shared + head), 2 * 4 * k * (k - 1) * head  # a head's gradients of the other tasks
    assert rows <= sum(plain.values()) <= rows + zeros + small

    lean, _, _ = traffic("auto", "scatter")
    padded = shared + -shared % DEVICES
    assert lean["reduce-scatter"] == 4 * k * padded
    assert lean["all-gather"] == 4 * padded
    own = 2 * 4 * k * head  # each head's gradient, averaged once
    assert own <= lean["all-reduce"] <= own + small

    features, _, _ = traffic("features", "mean")
    gradient = 2 * 4 * (shared + k * head)
    assert gradient <= sum(features.values()) <= gradient + small


def test_collectives_are_read_from_hlo():
    text = """
      %r = (f32[3,5]{1,0}, bf16[7]{0}) all-reduce(%a, %b), channel_id=1, replica_groups={{0,1}}
      %s = f32[3,2]{1,0} reduce-scatter(%c), dimensions={1}
      %g = (f32[4]{0}, f32[8]{0}) all-gather-start(%d), dimensions={0}
      %h = f32[8]{0} all-gather-done(%g)
      %u = f32[8]{0} add(%h, %all-reduce.7)
    """
    assert collective_bytes(text, 2) == {
        "all-reduce": 2 * (60 + 14),
        "reduce-scatter": 2 * 24,
        "all-gather": 32,
        "all-to-all": 0,
        "collective-permute": 0,
    }
