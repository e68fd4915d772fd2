"""What compilers make of a step: the network's products at their default, ours in float32, or no products at all."""

from collections import Counter

import jax
import jax.numpy as jnp
import pytest
from marks import needs_cuda_compiler, needs_tpu_compiler

import mtljax as mtl
from mtljax.gradients.backend import Backend, assumed
from mtljax.planning.compiler import compile_for
from mtljax.planning.targets import parse

pytestmark = pytest.mark.compilers
MACHINES = [pytest.param("v5e", marks=needs_tpu_compiler), pytest.param("h100", marks=needs_cuda_compiler)]
FEW = ("aligned_mtl", "cagrad", "mgda", "nash_mtl", "pcgrad", "upgrad")
ALL = tuple(name for name in mtl.methods.names() if mtl.methods.describe(name).needs in ("gramian", "jacobian"))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MTLJAX_CACHE", str(tmp_path))


def losses_fn(params, x):
    """A network without a word on precision."""
    with jax.named_scope("network"):
        z = jnp.tanh(jnp.tanh(x @ params["first"] + params["bias"]) @ params["last"])
        return {f"{k:02}": jnp.mean((z @ head - k) ** 2) for k, head in enumerate(params["heads"])}


def step_of(names, num_tasks):
    """One step of several methods, which share its backward passes where the compiler sees that."""

    def step(params, x):
        gradients = []
        for name in names:
            batches = mtl.methods.describe(name).batches
            batch = x if batches == 1 else mtl.IndependentBatches(*[x[i::batches] for i in range(batches)])
            gradient_fn = mtl.value_and_grad(losses_fn, mtl.methods.create(name, num_tasks=num_tasks))
            with jax.named_scope(name):
                gradients.append(gradient_fn(params, gradient_fn.init(params), batch)[0][1])
        return gradients

    return step


@pytest.mark.parametrize(("names", "num_tasks"), [(FEW, 3), (ALL, 12)], ids=["few", "all"])
@pytest.mark.parametrize("machine", MACHINES)
def test_all_but_the_networks_products_are_in_float32(machine, names, num_tasks):
    """Three tasks' Gramians may become sums of products of elements; so do most of the solvers' products."""
    target = parse(machine)
    shapes = {"first": (256, 128), "bias": (128,), "last": (128, 128), "heads": [(128, 8)] * num_tasks}
    arguments = jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32), (shapes, (96, 256)), is_leaf=_is_shape
    )
    with assumed(Backend({"cuda": "gpu"}.get(target.platform, target.platform), target.memory)):
        found = compile_for(step_of(names, num_tasks), arguments, target)
    network = [each for each in found.products if "network" in each.name]
    ours = [each for each in found.products if "network" not in each.name]
    assert {each.precision for each in network} == {"default"}  # or nothing would be seen here
    assert Counter(each.precision for each in ours).keys() == {"highest"}, [
        each for each in ours if each.precision != "highest"
    ]
    assert all(operand.startswith("f32") for each in ours for operand in each.operands)
    if num_tasks == 12:
        assert any(each.result.startswith(("f32[12,12", "f32[128,12,12")) for each in ours)  # a Gramian's


def _is_shape(node):
    return isinstance(node, tuple) and all(isinstance(side, int) for side in node)
