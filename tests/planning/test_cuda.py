"""Programs compiled for GPUs, by jax's CUDA plug-in: no GPU is needed."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec
from marks import needs_cuda_compiler

from mtljax.planning.compiler import compile_for
from mtljax.planning.targets import parse

pytestmark = [pytest.mark.compilers, needs_cuda_compiler]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MTLJAX_CACHE", str(tmp_path))


def f32(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def step(w, x):
    def loss(w):
        y = jax.lax.conv_general_dilated(
            x, w["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest"
        )
        return jnp.mean(jnp.dot(jax.nn.relu(y).reshape(len(x), -1), w["head"], precision="high") ** 2)

    value, grads = jax.value_and_grad(loss)(w)
    return jax.tree.map(lambda p, g: p - 0.1 * g, w, grads), value


W, COUNT = {"kernel": f32(3, 3, 16, 32), "head": f32(8 * 8 * 32, 64)}, 3 * 3 * 16 * 32 + 8 * 8 * 32 * 64


@pytest.mark.parametrize("chip", ["a100", "h100", "h200", "b200"])
def test_one_gpu_is_compiled_for(chip):
    found = compile_for(step, (W, f32(64, 8, 8, 16)), parse(chip), donate=(0,))
    assert found.fits
    assert found.memory.aliased == 4 * COUNT
    assert (found.flops, found.estimate) == (None, None)  # XLA says neither of GPUs
    assert found.bytes_moved > 4 * COUNT
    precisions = {(each.kind, each.precision) for each in found.products}
    assert precisions == {("convolution", "highest"), ("dot", "high")}


@pytest.mark.parametrize("name", ["h100x2", "h100x8", "b200x16"])
def test_several_gpus_share_a_batch(name):
    target = parse(name)
    batch = f32(8 * target.devices, 8, 8, 16)
    found = compile_for(step, (W, batch), target, specs=(None, PartitionSpec("devices")), out_specs=PartitionSpec())
    assert {(each.kind, each.group_size) for each in found.collectives} == {("all-reduce", target.devices)}
    assert sum(each.bytes for each in found.collectives) == 4 * (COUNT + 1)


def test_what_does_not_fit_is_a_result():
    found = compile_for(lambda x: jnp.sin(x) @ x, (f32(110000, 110000),), parse("a100"))
    assert found.fits is False
    assert found.needed > 2 * 4 * 110000**2 * 0.99
