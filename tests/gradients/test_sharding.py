"""Under plain jit, sharded as people shard: gradients keep the parameters' shardings, the batch stays spread."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from marks import mostly_slow

import mtljax as mtl
from mtljax.planning.hlo import collective_bytes

TASKS, MODES = "abc", ("loop", "jacrev", "two_pass")
K, WIDTH, HEADS, SIZE, HIDDEN, LENGTH, DEVICES = len(TASKS), 20, 2, 10, 28, 6, 4
ATTENTION = ("query", "key", "value")


def block_params(seed):
    rng = np.random.default_rng(seed)
    matrices = dict.fromkeys(ATTENTION, (WIDTH, HEADS, SIZE))
    matrices |= {"out": (HEADS, SIZE, WIDTH), "up": (WIDTH, HIDDEN), "down": (HIDDEN, WIDTH)}
    params = {name: rng.standard_normal(shape, np.float32) / 4 for name, shape in matrices.items()}
    return params | {"norm1": np.ones(WIDTH, np.float32), "norm2": np.ones(WIDTH, np.float32)}


def block(p, x):
    def norm(x, scale):
        return scale * (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)

    z = norm(x, p["norm1"])
    query, key, value = (jnp.einsum("btd,dhe->bhte", z, p[name]) for name in ATTENTION)
    attention = jax.nn.softmax(jnp.einsum("bhte,bhse->bhts", query, key) / np.sqrt(SIZE))
    x = x + jnp.einsum("bhts,bhse,hed->btd", attention, value, p["out"])
    return x + jax.nn.gelu(norm(x, p["norm2"]) @ p["up"]) @ p["down"]


def transformer(p, x):
    for layer in p:
        x = block(layer, x)
    return x.mean(1)


def losses_of(encode):
    def losses_fn(params, x, y):
        z = encode(params["shared"], x)
        return {task: jnp.mean((z @ params["heads"][task] - y[:, k]) ** 2) for k, task in enumerate(TASKS)}

    return losses_fn


def with_heads(shared, width):
    rng = np.random.default_rng(9)
    return {"shared": shared, "heads": {task: rng.standard_normal(width, np.float32) for task in TASKS}}


def batch_of(size, *shape):
    rng = np.random.default_rng(1)
    return rng.standard_normal((size, *shape), np.float32), rng.standard_normal((size, K), np.float32)


def mlp(p, x):
    return jnp.tanh(x @ p["w"])


def mlp_params():
    return with_heads({"w": np.random.default_rng(2).standard_normal((WIDTH, HIDDEN), np.float32) / 4}, HIDDEN)


def gradient(losses_fn, params, mode, method="pcgrad", **options):
    """params, x, y -> losses and one gradient."""
    fn = mtl.value_and_grad(losses_fn, mtl.methods.create(method), mode=mode, **options)
    state = fn.init(params)
    return lambda params, *batch: fn(params, state, *batch)[0]


def mesh_of(kind=AxisType.Auto, **axes):
    devices = jax.devices()[: math.prod(axes.values())]
    return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=(kind,) * len(axes), devices=devices)


def assert_close(found, expected, tolerance=5e-6):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * float(np.abs(b).max()))


def arrays(text):
    """(instruction, shape) of every array that a program computes."""
    for result, name in re.findall(r"= (\(.*?\)|\S+) ([\w-]+)\(", text):
        for dims in re.findall(r"\b[a-z]+\d*\w*\[([\d,]*)\]", result):
            yield name, tuple(int(n) for n in dims.split(",") if n)


# ---------------------------------------------------------------------------------------------------------------------
# Sharded parameters

SHARDINGS = {
    "fsdp": {**dict.fromkeys((*ATTENTION, "down", "norm1", "norm2"), P("data")), "up": P(None, "data")}
    | {"out": P(None, None, "data")},
    "tensor": {**dict.fromkeys(ATTENTION, P(None, "model")), "out": P("model"), "up": P(None, "model")}
    | {"down": P("model"), "norm1": P(), "norm2": P()},
    "both": {**dict.fromkeys(ATTENTION, P("data", "model")), "out": P("model", None, "data")}
    | {"up": P("data", "model"), "down": P("model", "data"), "norm1": P("data"), "norm2": P("data")},
}


@functools.cache
def on_one_device(method):
    params = with_heads([block_params(0)], WIDTH)
    return jax.jit(gradient(losses_of(transformer), params, "jacrev", method))(params, *batch_of(8, LENGTH, WIDTH))


@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("method", mostly_slow(("ew", "pcgrad", "cagrad", "nash_mtl"), quick=("pcgrad",)))
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", SHARDINGS)
def test_gradients_keep_the_shardings_of_the_parameters(kind, mode, method):
    """No device ever holds a matrix's whole Jacobian, nor a gradient of it laid out flat."""
    mesh, params = mesh_of(data=2, model=2), with_heads([block_params(0)], WIDTH)
    head = P() if kind == "tensor" else P("data")
    specs = {"shared": [SHARDINGS[kind]], "heads": dict.fromkeys(TASKS, head)}
    shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
    placed = jax.device_put(params, shardings)
    batch = jax.device_put(batch_of(8, LENGTH, WIDTH), NamedSharding(mesh, P("data")))
    # jax.grad too is given back replicated where only "data" is sharded, unless its sharding is asked for.
    out = {} if kind == "tensor" else {"out_shardings": (None, shardings)}
    compiled = jax.jit(gradient(losses_of(transformer), params, mode, method), **out).lower(placed, *batch).compile()
    found = compiled(placed, *batch)
    assert_close(found, on_one_device(method))
    for leaf, sharding in zip(jax.tree.leaves(found[1]), jax.tree.leaves(shardings), strict=True):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
    sizes = {leaf.size for leaf in jax.tree.leaves(params) if leaf.ndim > 1}
    flat, jacobians = {(n,) for n in sizes}, {K * n for n in sizes}
    whole = {(name, a) for name, a in arrays(compiled.as_text()) if a in flat or math.prod(a) in jacobians}
    assert not whole


# ---------------------------------------------------------------------------------------------------------------------
# jax.set_mesh


@pytest.mark.parametrize("weights", [P(), P("data"), P(None, "model")], ids=["replicated", "fsdp", "tensor"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_a_mesh_that_is_set_may_have_auto_or_explicit_axes(kind, mode, weights):
    params, batch = mlp_params(), batch_of(8, WIDTH)
    expected = jax.jit(gradient(losses_of(mlp), params, mode))(params, *batch)

    def losses_fn(params, x, y):  # explicit axes: a product over sharded features says what comes out
        z, out = mlp(params["shared"], x), P("data") if kind is AxisType.Explicit else None
        predictions = {task: jnp.dot(z, head, out_sharding=out) for task, head in params["heads"].items()}
        return {task: jnp.mean((predictions[task] - y[:, k]) ** 2) for k, task in enumerate(TASKS)}

    with jax.set_mesh(mesh_of(kind, data=2, model=2)):
        heads = P("model") if weights == P(None, "model") else P()
        placed = jax.device_put(params, {"shared": {"w": weights}, "heads": dict.fromkeys(TASKS, heads)})
        found = jax.jit(gradient(losses_fn, params, mode))(placed, *jax.device_put(batch, P("data")))
        if kind is AxisType.Explicit:
            assert jax.tree.map(jax.typeof, found[1]) == jax.tree.map(jax.typeof, placed)
    assert_close(found, expected)


@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("unroll", [True, False])
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_microbatches_stay_spread_over_the_devices(kind, unroll):
    """Each is a part of every device's examples, not all of a few devices': the others would idle."""
    params, batch = mlp_params(), batch_of(2 * DEVICES * 13, WIDTH)
    mesh, losses_fn = mesh_of(kind, data=DEVICES), losses_of(mlp)
    expected = jax.jit(gradient(losses_fn, params, "loop"))(params, *batch)
    parts = mtl.accumulate(losses_fn, 2, argnums=(0, 1), unroll=unroll)
    mapped = jax.shard_map(
        gradient(parts, params, "loop", axis_name="data"),
        mesh=mesh,
        in_specs=(P(), P("data"), P("data")),
        out_specs=P(),
    )
    with jax.set_mesh(mesh):
        args = (jax.device_put(params, P()), *jax.device_put(batch, P("data")))
        compiled, part = (jax.jit(f).lower(*args).compile() for f in (gradient(parts, params, "loop"), mapped))
        assert_close(compiled(*args), expected)
    assert compiled.cost_analysis()["flops"] <= 1.05 * part.cost_analysis()["flops"]


# ---------------------------------------------------------------------------------------------------------------------
# A sharded batch under jit, and shard_map


def network(name, size):
    """Parameters, encoder and inputs."""
    if name == "transformer":
        return [block_params(0), block_params(1)], transformer, batch_of(size, LENGTH, WIDTH)
    options, shape = {
        "mlp": ({"features": (16, 8)}, (WIDTH,)),
        "lenet": ({"channels": (3, 5), "kernels": (5, 3), "features": 8}, (12, 12, 1)),
        "resnet18": (
            {"width": 8, "blocks": (1, 1), "features": 0, "small_stem": True, "norm": "group"},
            (16, 16, 3),
        ),
    }[name]
    encoder, batch = mtl.models.encoder(name, **options), batch_of(size, *shape)
    shared = jax.jit(encoder.init)(jax.random.PRNGKey(0), batch[0][:1])["params"]
    return shared, lambda p, x: encoder.apply({"params": p}, x), batch


NETWORKS = [(name, mode) for name in ("mlp", "lenet", "resnet18", "transformer") for mode in MODES]
QUICK = [("mlp", "loop"), ("mlp", "two_pass"), ("lenet", "jacrev"), ("resnet18", "jacrev"), ("transformer", "jacrev")]


@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("case", mostly_slow(NETWORKS, QUICK), ids="-".join)
def test_a_sharded_batch_costs_a_device_what_its_part_of_it_costs(case):
    """Under jit as in shard_map; no array has all examples, be they the batch axis or folded with the tasks."""
    (name, mode), size, mesh = case, 13 * DEVICES, mesh_of(data=DEVICES)
    shared, encode, batch = network(name, size)
    params = with_heads(shared, jax.eval_shape(encode, shared, batch[0]).shape[1])
    step = functools.partial(gradient, losses_of(encode), params, mode)
    args = (
        jax.device_put(params, NamedSharding(mesh, P())),
        *jax.device_put(batch, NamedSharding(mesh, P("data"))),
    )
    compiled = jax.jit(step()).lower(*args).compile()
    mapped = jax.shard_map(step(axis_name="data"), mesh=mesh, in_specs=(P(), P("data"), P("data")), out_specs=P())
    part = jax.jit(mapped).lower(*args).compile()
    assert compiled.cost_analysis()["flops"] <= 1.05 * part.cost_analysis()["flops"]
    assert not {(name, a) for name, a in arrays(compiled.as_text()) if {size, K * size} & {*a}}


@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("reduce", ["mean", "scatter"])
def test_shard_map_sends_the_jacobian_once(reduce):
    params, batch = mlp_params(), batch_of(8, WIDTH)
    step = gradient(losses_of(mlp), params, "jacrev", axis_name="data", reduce=reduce)
    specs = {"in_specs": (P(), P("data"), P("data")), "out_specs": P(), "check_vma": reduce == "mean"}
    compiled = jax.jit(jax.shard_map(step, mesh=mesh_of(data=DEVICES), **specs)).lower(params, *batch).compile()
    sent = collective_bytes(compiled.as_text(), DEVICES)
    shared, heads, small = WIDTH * HIDDEN, K * HIDDEN, 2 * 4 * (K * K + K)  # losses and Gramian
    if reduce == "mean":
        # The rows of the shared parameters, and each head's gradient, with or without the zeros of the other tasks.
        assert 2 * 4 * (K * shared + heads) <= sent["all-reduce"] <= 2 * 4 * K * (shared + heads) + small
        assert sent["reduce-scatter"] == sent["all-gather"] == 0
    else:
        assert (sent["reduce-scatter"], sent["all-gather"]) == (4 * K * shared, 4 * shared)
        assert 2 * 4 * heads <= sent["all-reduce"] <= 2 * 4 * heads + 2 * small
