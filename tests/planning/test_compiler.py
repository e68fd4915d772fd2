"""Programs are compiled in another process, for the CPU here; what that process may do wrong is played."""

import functools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mtljax.planning import child, compiler
from mtljax.planning.compiler import compile_for
from mtljax.planning.targets import parse

W = {"a": jax.ShapeDtypeStruct((128, 256), jnp.float32), "b": jax.ShapeDtypeStruct((256, 64), jnp.float32)}
X = jax.ShapeDtypeStruct((32, 128), jnp.float32)
BYTES = 4 * (128 * 256 + 256 * 64)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MTLJAX_CACHE", str(tmp_path / "cache"))


def step(w, x):
    loss, grads = jax.value_and_grad(lambda w: jnp.mean(jnp.tanh(jnp.tanh(x @ w["a"]) @ w["b"]) ** 2))(w)
    return jax.tree.map(lambda p, g: p - 0.1 * g, w, grads), loss


def play(monkeypatch, script):
    """A child of another kind; `sys.argv[1]` is its directory."""
    monkeypatch.setattr(compiler, "_command", lambda directory: [sys.executable, "-c", script, str(directory)])


def result(**fields):
    return f"import pathlib, sys; (pathlib.Path(sys.argv[1]) / 'result.json').write_text({json.dumps(fields)!r})"


def test_one_device_compiles_what_jit_does():
    """With donation: the results take the place of the arguments."""
    found = compile_for(step, (W, X), parse("cpu"), donate=(0,), text=True)
    assert found.memory is not None
    assert found.memory.aliased == BYTES
    assert BYTES + 4 * X.size <= found.memory.arguments <= BYTES + 4 * X.size + 64
    assert found.needed == found.memory.total
    assert found.fits is None  # nothing is known of the CPU's memory
    assert found.estimate is None
    assert found.collectives == ()
    assert {each.name for each in found.largest} >= {"w['a']", "w['b']"}
    forward, backward = 2 * 32 * (128 * 256 + 256 * 64), 2 * 32 * (128 * 256 + 2 * 256 * 64)
    assert sum(each.times * each.flops for each in found.products) == forward + backward
    assert found.flops is not None
    assert found.flops > forward + backward
    assert found.text is not None
    assert "input_output_alias" in found.text
    assert not any("call_exported" in each.name for each in found.products)


def test_without_donation_nothing_is_aliased():
    found = compile_for(step, (W, X), parse("cpu"))
    assert found.memory is not None
    assert found.memory.aliased == 0
    assert found.text is None


def test_several_devices_share_a_batch():
    batch = PartitionSpec("devices")
    found = compile_for(step, (W, X), parse("cpux4"), specs=(None, batch), out_specs=PartitionSpec(), donate=(0,))
    assert found.memory is not None
    assert found.memory.aliased == BYTES
    assert found.memory.arguments < BYTES + 4 * X.size
    assert {(each.kind, each.group_size) for each in found.collectives} == {("all-reduce", 4)}
    assert sum(each.bytes for each in found.collectives) == BYTES + 4


def test_several_devices_share_a_model():
    layout = {"a": PartitionSpec(None, "model"), "b": PartitionSpec("model")}
    found = compile_for(
        step,
        (W, X),
        parse("cpux4"),
        mesh={"data": 2, "model": 2},
        specs=(layout, PartitionSpec("data")),
        out_specs=(layout, None),
        donate=(0,),
    )
    assert found.memory is not None
    assert found.memory.aliased == BYTES // 2
    assert {each.group_size for each in found.collectives} == {2}


def test_a_function_may_use_the_mesh():
    mesh = compiler.abstract_mesh({"devices": 4})
    rows = PartitionSpec("devices")
    mean = jax.shard_map(lambda x: jax.lax.pmean(x, "devices"), mesh=mesh, in_specs=rows, out_specs=PartitionSpec())

    def constrained(x):
        return jax.lax.with_sharding_constraint(mean(x) * 2, NamedSharding(mesh, PartitionSpec()))

    found = compile_for(constrained, (X,), parse("cpux4"), specs=(rows,))
    assert [(each.kind, each.group_size, each.bytes) for each in found.collectives] == [("all-reduce", 4, 4 * 8 * 128)]


def test_arguments_may_be_arrays_numbers_and_keys():
    def fn(key, x, rate):
        return x * rate + jax.random.normal(key, x.shape)

    found = compile_for(fn, (jax.random.key(0), jnp.ones((8, 8)), 0.5), parse("cpu"))
    assert found.memory is not None
    assert found.memory.outputs == 4 * 64


def test_what_was_compiled_is_read_back(monkeypatch):
    first = compile_for(step, (W, X), parse("cpux4"), specs=(None, PartitionSpec("devices")))
    play(monkeypatch, "raise SystemExit('compiled anew')")
    assert compile_for(step, (W, X), parse("cpux4"), specs=(None, PartitionSpec("devices"))) == first
    other = functools.partial(compile_for, step, (W, X))
    for again in (
        lambda: other(parse("cpux4")),
        lambda: other(parse("cpux2"), specs=(None, PartitionSpec("devices"))),
        lambda: other(parse("cpux4"), specs=(None, PartitionSpec("devices")), donate=(0,)),
        lambda: other(parse("cpux4"), specs=(None, PartitionSpec("devices")), text=True),
    ):
        with pytest.raises(RuntimeError, match="compiled anew"):
            again()


def test_a_program_with_other_numbers_is_another(monkeypatch):
    def multiply(numbers):
        return compile_for(lambda x: x * numbers, (jax.ShapeDtypeStruct((5000,), jnp.float32),), parse("cpu"))

    first = multiply(np.arange(5000.0, dtype=np.float32))
    play(monkeypatch, "raise SystemExit('compiled anew')")
    assert multiply(np.arange(5000.0, dtype=np.float32)) == first
    with pytest.raises(RuntimeError, match="compiled anew"):
        multiply(np.arange(5000.0, dtype=np.float32) + (np.arange(5000) == 2500))


def test_a_damaged_entry_is_compiled_again(tmp_path):
    first = compile_for(step, (W, X), parse("cpu"))
    (entry,) = (tmp_path / "cache" / "plan").glob("*.json")
    entry.write_text(entry.read_text()[:100])
    assert compile_for(step, (W, X), parse("cpu")).memory == first.memory
    json.loads(entry.read_text())


def test_without_a_place_to_write_it_compiles_as_ever(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MTLJAX_CACHE", str(tmp_path / "file"))
    assert compile_for(step, (W, X), parse("cpu")).memory is not None


def test_a_child_that_dies_is_an_error_with_its_last_words(monkeypatch):
    play(monkeypatch, "import os; print('first', flush=True); print('F0000 no such chip', flush=True); os.abort()")
    with pytest.raises(RuntimeError, match=r"the compiler for cpu died \(signal 6\): first \| F0000 no such chip"):
        compile_for(step, (W, X), parse("cpu"))
    play(monkeypatch, "raise SystemExit(3)")
    with pytest.raises(RuntimeError, match=r"died \(exit code 3\): it said nothing"):
        compile_for(step, (W, X), parse("cpu"))


def test_a_child_that_dies_when_it_is_done_has_done_its_work(monkeypatch):
    play(monkeypatch, result(needed=1, largest=[], message="no memory") + "; import os; os.abort()")
    assert compile_for(step, (W, X), parse("cpu")).message == "no memory"


def test_a_program_that_is_refused_is_an_error(monkeypatch, tmp_path):
    play(monkeypatch, result(error="UNIMPLEMENTED: no such operation"))
    with pytest.raises(RuntimeError, match="the compiler for cpu refused the program: UNIMPLEMENTED: no such"):
        compile_for(step, (W, X), parse("cpu"))
    assert not list(tmp_path.glob("cache/plan/*"))


def test_too_little_memory_is_a_result_and_kept(monkeypatch):
    play(monkeypatch, result(needed=2**31, largest=[], message="Ran out of memory on HBM"))
    found = compile_for(step, (W, X), parse("cpu"))
    assert (found.fits, found.needed, found.memory) == (False, 2**31, None)
    assert found.message == "Ran out of memory on HBM"
    assert found.largest[0][1:] == ("f32[128,256]", 4 * 128 * 256)  # of the program, where the compiler names none
    play(monkeypatch, "raise SystemExit('compiled anew')")
    assert compile_for(step, (W, X), parse("cpu"), text=True) == found


@pytest.mark.parametrize(
    ("message", "needed", "largest"),
    [
        (
            "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (33.74G) exceeds available HBM (15.75G). HLO module: jit_f.\nSee https://openxla.org",
            round(33.74 * 2**30),
            [],
        ),
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 20.00G "
            'of 15.75G hbm.\n\n  1. Size: 9.31G\n     Operator: op_name="jit(f)/mul" source_file="f.py"\n     Shape: '
            "f32[50000,50000]{1,0:T(8,128)}\n     Unpadded size: 9.31G\n",
            20 * 2**30,
            [{"name": "jit(f)/mul", "shape": "f32[50000,50000]", "bytes": round(9.31 * 2**30)}],
        ),
        ("RESOURCE_EXHAUSTED: Out of memory while trying to allocate", None, []),
    ],
)
def test_messages_of_too_little_memory_are_read(message, needed, largest):
    found = child.refusal(message)
    assert (found["needed"], found["largest"]) == (needed, largest)
    assert "\n" not in found["message"]
    assert not found["message"].startswith("RESOURCE")


def test_other_messages_are_errors():
    assert child.refusal("INVALID_ARGUMENT: what\nwhere") == {"error": "INVALID_ARGUMENT: what"}


@pytest.mark.parametrize(("name", "extra"), [("v5e", "tpu"), ("h100", "cuda")])
def test_a_missing_compiler_is_named_with_how_to_install_it(monkeypatch, name, extra):
    monkeypatch.setitem(compiler._PLUGINS, extra, ("no-such-plugin",))
    with pytest.raises(ModuleNotFoundError, match=rf'pip install "mtljax\[{extra}\]"'):
        compile_for(step, (W, X), parse(name))


def test_a_mesh_that_is_not_the_target_is_refused():
    with pytest.raises(ValueError, match="the mesh data=2 x model=3 has 6 places, but cpux4 has 4 devices"):
        compile_for(step, (W, X), parse("cpux4"), mesh={"data": 2, "model": 3})


def test_there_is_a_spec_for_each_argument():
    with pytest.raises(ValueError, match="specs has 1 entries for 2 arguments"):
        compile_for(step, (W, X), parse("cpux4"), specs=(None,))
