"""Programs compiled for TPUs, by libtpu: no TPU is needed."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec
from marks import needs_tpu_compiler

from mtljax.planning.compiler import compile_for
from mtljax.planning.targets import parse

pytestmark = [pytest.mark.compilers, needs_tpu_compiler]
CHIPS = ("v4", "v5e", "v5p", "v6e", "tpu7x")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MTLJAX_CACHE", str(tmp_path))


def f32(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def step(w, x):
    loss, grads = jax.value_and_grad(lambda w: jnp.mean(jnp.tanh(x @ w) ** 2))(w)
    return w - grads, loss


@pytest.mark.parametrize("chip", CHIPS)
def test_the_clock_makes_cycles_of_a_loop_three_quarters_of_the_bandwidth(chip):
    target = parse(chip)
    found = compile_for(lambda x: x * 2 + 1, (f32(8192, 8192),), target)
    seconds = found.estimate.cycles / target.clock
    assert 0.65 < 2 * 4 * 8192**2 / seconds / target.bandwidth < 0.85


@pytest.mark.parametrize("chip", CHIPS)
def test_the_clock_makes_cycles_of_a_product_less_than_the_peak(chip):
    target, side = parse(chip), 8192
    matrix = jax.ShapeDtypeStruct((side, side), jnp.bfloat16)
    found = compile_for(jnp.matmul, (matrix, matrix), target)
    assert 0.65 < 2 * side**3 / (found.estimate.cycles / target.clock) / target.peak_flops < 1
    assert sum(each.flops for each in found.products) == 2 * side**3


@pytest.mark.parametrize("name", ["v5e:2x2", "v4:2x2x1", "tpu7x:2x1x1", "v5e:4x4"])
def test_a_slice_shares_a_batch(name):
    target = parse(name)
    found = compile_for(
        step, (f32(256, 256), f32(128, 256)), target, specs=(None, PartitionSpec("devices")), out_specs=PartitionSpec()
    )
    assert found.fits
    assert {(each.kind, each.group_size) for each in found.collectives} == {("all-reduce", target.devices)}
    assert sum(each.bytes for each in found.collectives) == 4 * (256 * 256 + 1)


def test_rounds_of_a_loop_are_counted():
    def fn(w, x):
        return jax.lax.fori_loop(0, 10, lambda _, y: jnp.tanh(y @ w), x)

    found = compile_for(fn, (f32(512, 512), f32(512, 512)), parse("v5e"))
    assert found.estimate.unknown_loops == ()
    assert sum(each.times * each.flops for each in found.products) == 10 * 2 * 512**3


@pytest.mark.parametrize("precision", ["default", "high", "highest"])
def test_precision_is_seen(precision):
    found = compile_for(lambda x: jnp.dot(x, x, precision=precision), (f32(256, 256),), parse("v5e"))
    assert {each.precision for each in found.products} == {precision}


def test_what_does_not_fit_is_a_result():
    found = compile_for(lambda x: jnp.sin(x) @ x, (f32(60000, 60000),), parse("v5e"))
    assert found.fits is False
    assert found.needed > 2 * 4 * 60000**2  # what comes in and what goes out
    assert found.largest[0].shape == "f32[60000,60000]"
    assert "Ran out of memory" in found.message


@pytest.mark.parametrize(
    "name", ["v5e:1x1", "v5e:2x1", "v5e:1x4", "v6e:6x4", "v5e:16x16", "v5p:1x1x2", "v4:2x4x4", "tpu7x:2x2x4"]
)
def test_libtpu_knows_the_slices_that_are_accepted(name):
    target = parse(name)
    found = compile_for(lambda x: x + 1, (f32(target.devices, 8),), target, specs=(PartitionSpec("devices"),))
    assert found.memory.arguments < 8192  # one row, in whole tiles


def test_it_is_the_program_that_jit_compiles():
    """Traced there and compiled here, or traced and compiled in one."""
    code = """
import jax, jax.numpy as jnp
from jax.experimental import topologies
from test_tpu import step, f32
from mtljax.planning import hlo
device = topologies.get_topology_desc(platform="tpu", topology_name="v5e:1x1").devices[0]
place = jax.sharding.SingleDeviceSharding(device)
args = [jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place) for a in (f32(256, 256), f32(128, 256))]
compiled = jax.jit(step, donate_argnums=0).lower(*args).compile()
memory = compiled.memory_analysis()
print(hlo.cycles(compiled.as_text()).cycles, memory.temp_size_in_bytes, memory.alias_size_in_bytes)
"""
    settings = {
        "PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *sys.path]),
        "JAX_PLATFORMS": "cpu",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_SKIP_MDS_QUERY": "1",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "0",
    }
    output = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **settings}, check=True, capture_output=True, text=True
    ).stdout
    cycles, temporaries, aliased = map(float, output.split()[-3:])
    found = compile_for(step, (f32(256, 256), f32(128, 256)), parse("v5e"), donate=(0,))
    assert found.estimate.cycles == cycles
    assert (found.memory.temporaries, found.memory.aliased) == (temporaries, aliased)
