"""Compiled programs are read as compilers for TPUs, GPUs and CPUs print them."""

import jax
import jax.numpy as jnp
import pytest

from mtljax.planning import hlo, hlo_text

# A loop as a TPU has it: its condition compares a counter with a number, and nothing else says how long it is.
LOOP = """HloModule jit_f, is_scheduled=true, num_partitions=4

%body (s.1: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %s.1 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%s.1), index=0
  %x.1 = f32[8,128]{1,0:T(8,128)} get-tuple-element(%s.1), index=1
  %one.1 = s32[]{:T(128)} constant(1)
  %next.1 = s32[]{:T(128)} add(%i.1, %one.1)
  %y.1 = f32[8,128]{1,0:T(8,128)} tanh(%x.1), backend_config={"window_config":{"estimated_cycles":"100"}}
  %r.1 = f32[8,128]{1,0:T(8,128)} all-reduce(%y.1), channel_id=1, replica_groups={{0,1},{2,3}}, to_apply=%add
  ROOT %t.1 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) tuple(%next.1, %r.1)
}

%condition (s.2: (s32[], f32[8,128])) -> pred[] {
  %s.2 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  %i.2 = s32[]{:T(128)} get-tuple-element(%s.2), index=0
  %n.2 = s32[]{:T(128)} constant(10)
  ROOT %lt.2 = pred[]{:T(512)} compare(%i.2, %n.2), direction=LT, backend_config={"flag_configs":[]}
}

ENTRY %main (x.3: f32[8,128]) -> f32[8,128] {
  %x.3 = f32[8,128]{1,0:T(8,128)} parameter(0), metadata={op_name="x"}
  %zero.3 = s32[]{:T(128)} constant(0)
  %zero.4 = s32[]{:T(128)} copy(%zero.3)
  %t.3 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) tuple(%zero.4, %x.3)
  %w.3 = (s32[], /*index=1*/f32[8,128]{1,0}) while(%t.3), condition=%condition, body=%body, metadata={op_name="while"}
  ROOT %y.3 = f32[8,128]{1,0:T(8,128)} get-tuple-element(%w.3), index=1, backend_config={"estimated_cycles":"7"}
}
"""


def test_a_loop_counts_its_rounds():
    assert hlo.cycles(LOOP) == (10 * 100 + 7, ())
    (reduce,) = hlo.collectives(LOOP)
    assert (reduce.kind, reduce.times, reduce.bytes) == ("all-reduce", 10, 4 * 8 * 128)
    assert (reduce.group_size, reduce.groups) == (2, ((0, 1), (2, 3)))
    assert hlo.collective_bytes(LOOP)["all-reduce"] == 10 * 2 * 4096


def test_a_loop_starts_where_it_starts():
    assert hlo.cycles(LOOP.replace("zero.3 = s32[]{:T(128)} constant(0)", "zero.3 = s32[]{:T(128)} constant(4)")) == (
        6 * 100 + 7,
        (),
    )


def test_a_loop_that_says_its_length_is_believed():
    known = 'metadata={op_name="while"}, backend_config={"known_trip_count":{"n":"3"}}'
    assert hlo.cycles(LOOP.replace('metadata={op_name="while"}', known)) == (307, ())


@pytest.mark.parametrize(
    ("written", "instead"),
    [
        ("direction=LT", "direction=NE"),
        ("%n.2 = s32[]{:T(128)} constant(10)", "%n.2 = s32[]{:T(128)} get-tuple-element(%s.2), index=0"),
        ("  ROOT %lt.2", "".join(f"  %a.{i} = s32[] add(%i.2, %n.2)\n" for i in range(3)) + "  ROOT %lt.2"),
    ],
)
def test_a_loop_of_unknown_length_counts_once_and_is_reported(written, instead):
    assert written in LOOP
    assert hlo.cycles(LOOP.replace(written, instead)) == (107, ("while",))


def test_of_branches_the_dearest_counts_and_calls_are_followed():
    text = """
%cheap (p.1: f32[2]) -> f32[2] {
  ROOT %a.1 = f32[2]{0} tanh(%p.1), backend_config={"estimated_cycles":"5"}
}

%dear (p.2: f32[2]) -> f32[2] {
  ROOT %a.2 = f32[2]{0} tanh(%p.2), backend_config={"estimated_cycles":"50"}
}

%called (p.3: f32[2]) -> f32[2] {
  ROOT %a.3 = f32[2]{0} tanh(%p.3), backend_config={"estimated_cycles":"500"}
}

%fused (p.4: f32[2]) -> f32[2] {
  ROOT %a.4 = f32[2]{0} tanh(%p.4), backend_config={"estimated_cycles":"9999"}
}

ENTRY %main (p: f32[2]) -> f32[2] {
  %p = f32[2]{0} parameter(0)
  %c = f32[2]{0} conditional(%i, %p, %p), branch_computations={%cheap, %dear}
  %d = f32[2]{0} conditional(%i, %p, %p), true_computation=%dear, false_computation=%cheap
  %e = f32[2]{0} call(%c), to_apply=%called
  %f = ((f32[2]{0}), f32[2]{0}, s32[]) async-start(%e), calls=%called
  ROOT %g = f32[2]{0} fusion(%e), kind=kLoop, calls=%fused, backend_config={"estimated_cycles":"5000"}
}
"""
    assert hlo.cycles(text) == (50 + 50 + 500 + 500 + 5000, ())


def test_without_estimates_there_is_none():
    assert hlo.cycles("%a = f32[2]{0} tanh(%b)") is None


@pytest.mark.parametrize(
    ("written", "size", "groups"),
    [
        ("replica_groups={{0,1},{2,3}}", 2, ((0, 1), (2, 3))),
        ("replica_groups={{0,1,2,3}}, dimensions={0}", 4, ((0, 1, 2, 3),)),
        ("replica_groups={}, dimensions={{0,1}}", 8, (tuple(range(8)),)),
        ("channel_id=1", 8, (tuple(range(8)),)),
        ("replica_groups=[2,4]<=[8]", 4, ((0, 1, 2, 3), (4, 5, 6, 7))),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", 2, ((0, 4), (1, 5), (2, 6), (3, 7))),
        ("replica_groups=mesh['data'=4,'model'=2] {'data'}", 4, ((0, 2, 4, 6), (1, 3, 5, 7))),
        ("replica_groups=mesh['data'=4,'model'=2] {'data','model'}", 8, (tuple(range(8)),)),
        ("replica_groups=mesh['a'=8] {'a':(2)2}", 2, ()),
    ],
)
def test_groups_are_read_in_every_notation(written, size, groups):
    assert hlo_text.groups(written, 8) == (size, groups)


def test_each_kind_of_collective_has_its_bytes():
    text = """HloModule m, replica_count=4

ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %a = (f32[8]{0}, bf16[6]{0}) all-reduce-start(%x, %z), channel_id=1
  %b = f32[2]{0} reduce-scatter(%x), channel_id=2, dimensions={0}
  %c = ((f32[2]{0}, f32[3]{0}), (f32[8]{0}, f32[12]{0})) all-gather-start(%b, %e), channel_id=3, dimensions={0}
  %d = f32[8]{0} all-to-all(%x), channel_id=4, replica_groups=[2,2]<=[4], dimensions={0}
  %e = (f32[8]{0}, f32[8]{0}, u32[], u32[]{:S(2)}) collective-permute-start(%x), source_target_pairs={{0,1},{1,0}}
  %f = f32[8]{0} collective-permute-done(%e)
  ROOT %g = f32[8]{0} add(%all-reduce.7, %f)
}
"""
    found = {each.kind: each for each in hlo.collectives(text)}
    assert {kind: (each.bytes, each.group_size) for kind, each in found.items()} == {
        "all-reduce": (32 + 12, 4),
        "reduce-scatter": (32, 4),  # the whole array
        "all-gather": (32 + 48, 4),
        "all-to-all": (32, 2),
        "collective-permute": (32, 2),
    }
    assert found["collective-permute"].groups == ((0, 1), (1, 0))
    assert found["all-gather"].shapes == ("f32[8]", "f32[12]")
    assert sum(hlo.collective_bytes(text).values()) == 2 * 44 + 32 + 80 + 32 + 32


def test_an_asynchronous_collective_of_a_tpu_is_one():
    """Begun in one fusion, carried on in others beside their own work, ended in a last."""
    text = """HloModule m, num_partitions=4

%begin (p.1: f32[2]) -> (f32[2], f32[8]) {
  %p.1 = f32[2]{0} parameter(0)
  %g.1 = f32[8]{0} all-gather(%p.1), channel_id=1, replica_groups=mesh['b'=4] {'b'}, dimensions={0}
  ROOT %c.1 = (f32[2]{0}, f32[8]{0}) custom-call(%g.1), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.1 (p.2: f32[2]) -> f32[8] {
  %p.2 = f32[2]{0} parameter(0)
  ROOT %g.2 = f32[8]{0} all-gather(%p.2), channel_id=1, replica_groups=mesh['b'=4] {'b'}, dimensions={0}
}

%end (p.3: f32[2]) -> f32[8] {
  %p.3 = f32[2]{0} parameter(0)
  %g.3 = f32[8]{0} all-gather(%p.3), channel_id=1, replica_groups=mesh['b'=4] {'b'}, dimensions={0}
  ROOT %c.3 = f32[8]{0} custom-call(%g.3), custom_call_target="AsyncCollectiveDone"
}

%wrapped (p.4: f32[8]) -> f32[2] {
  %p.4 = f32[8]{0} parameter(0)
  ROOT %s.4 = f32[2]{0} reduce-scatter(%p.4), channel_id=2, replica_groups=mesh['b'=4] {'b'}, dimensions={0}
}

ENTRY %main (x: f32[2]) -> f32[2] {
  %x = f32[2]{0} parameter(0)
  %a = (f32[2]{0}, f32[8]{0}) fusion(%x), kind=kCustom, calls=%begin
  %b = f32[8]{0} fusion(%x), kind=kCustom, calls=%async_collective_fusion.1
  %c = f32[8]{0} fusion(%x), kind=kCustom, calls=%end
  %d = ((f32[8]{0}), f32[2]{0}, s32[]) async-start(%c), calls=%wrapped
  %e = f32[2]{0} async-done(%d)
  %f = ((), (), (s32[1])) call-start(), async_execution_thread="sparsecore", to_apply=%wrapped
  %g = ((f32[8]{0}), f32[2]{0}) call-update(%f, %c)
  ROOT %h = f32[2]{0} call-done(%g)
}
"""
    kinds = ["all-gather", "reduce-scatter", "reduce-scatter"]
    assert [(each.kind, each.bytes) for each in hlo.collectives(text)] == [(kind, 32) for kind in kinds]


def test_large_arrays_have_names_and_the_padding_of_tiles():
    text = """
%inner (p.1: f32[9999]) -> f32[9999] {
  ROOT %p.1 = f32[9999]{0} parameter(0)
}

ENTRY %main (x: f32[3,10]) -> f32[3,10] {
  %x = f32[3,10]{1,0:T(8,128)} parameter(0), metadata={op_name="params[\\'w\\']"}
  %t = f32[3,10]{0,1:T(8,128)} copy(%x), metadata={op_name="jit(f)/transpose"}
  %b = (bf16[200]{0:T(256)(128)(2,1)}, f32[4096]{0:S(1)}) fusion(%t), calls=%inner, metadata={op_name="jit(f)/two"}
  %u = (bf16[200]{0:T(256)}, f32[3,10]{1,0}) tuple(%b, %x)
  ROOT %s = (f32[1024]{0:S(1)}, f32[1024]{0}, u32[]) copy-start(%x)
}
"""
    assert hlo.largest_arrays(text) == (
        ("jit(f)/transpose", "f32[3,10]", 4 * 16 * 128),  # 10 and 3 rounded up to 16 and 128
        ("params['w']", "f32[3,10]", 4 * 8 * 128),
        ("jit(f)/two", "bf16[200]", 2 * 256),
    )
    assert len(hlo.largest_arrays(text, 1)) == 1


NAME = 'metadata={op_name="jit(f)/dot_general"}'
PRECISION = "operand_precision={highest,highest}"
GEMM = (
    'backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],'
    '"rhs_contracting_dimensions":["0"]},"precision_config":{"operand_precision":["HIGHEST","HIGHEST"],'
    '"algorithm":"ALG_UNSET"}}}'
)
PRODUCTS = {
    "tpu": """
%fused (a: f32[512,64], b: f32[64,32]) -> f32[512,32] {
  %a = f32[512,64]{1,0:T(8,128)} parameter(0)
  %b = f32[64,32]{1,0:T(8,128)} parameter(1)
  ROOT %c = f32[512,32]{1,0:T(8,128)} convolution(%a, %b), dim_labels=bf_io->bf, PRECISION, NAME
}

ENTRY %main (x: f32[512,64], y: f32[64,32]) -> f32[512,32] {
  %x = f32[512,64]{1,0:T(8,128)} parameter(0)
  %y = f32[64,32]{1,0:T(8,128)} parameter(1)
  ROOT %f = f32[512,32]{1,0:T(8,128)} fusion(%x, %y), kind=kOutput, calls=%fused
}
""",
    "cublas": """
ENTRY %main (x: f32[512,64], y: f32[64,32]) -> f32[512,32] {
  %x = f32[512,64]{1,0} parameter(0)
  %y = f32[64,32]{1,0} parameter(1)
  ROOT %c = (f32[512,32]{1,0}, s8[4194304]{0}) custom-call(%x, %y), custom_call_target="__cublas$gemm", NAME, GEMM
}
""",
    "triton and cpu": """
ENTRY %main (x: f32[512,64], y: f32[64,32]) -> f32[512,32] {
  %x = f32[512,64]{1,0} parameter(0)
  %y = f32[64,32]{1,0} parameter(1)
  ROOT %c = f32[512,32]{1,0} dot(%x, %y), lhs_contracting_dims={1}, rhs_contracting_dims={0}, PRECISION, NAME
}
""",
}


def compiled_product(compiler, precision=PRECISION):
    return PRODUCTS[compiler].replace("NAME", NAME).replace("PRECISION", precision).replace("GEMM", GEMM)


@pytest.mark.parametrize("compiler", PRODUCTS)
def test_a_product_is_one_wherever_it_is_compiled(compiler):
    (product,) = hlo.products(compiled_product(compiler))
    assert product == (
        "jit(f)/dot_general",
        "dot",
        "highest",
        "",
        1,
        2 * 512 * 64 * 32,
        ("f32[512,64]", "f32[64,32]"),
        "f32[512,32]",
    )


@pytest.mark.parametrize(
    ("written", "read"), [("operand_precision={high,default}", "high"), ("channel_id=1", "default")]
)
def test_precision_is_that_of_the_finer_operand(written, read):
    text = compiled_product("triton and cpu", written)
    assert hlo.products(text)[0].precision == read


def test_a_named_algorithm_is_read():
    text = compiled_product("triton and cpu", "algorithm=dot_bf16_bf16_f32_x3")
    assert hlo.products(text)[0].algorithm == "dot_bf16_bf16_f32_x3"


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("wrt", [0, 1])
def test_flops_of_convolutions_are_xlas(stride, wrt):
    """Padding and dilation are not counted, forwards and for both gradients."""

    def out(x, k):
        y = jax.lax.conv_general_dilated(
            x, k, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="high"
        )
        return jnp.sum(y * y)

    x, k = jnp.ones((4, 9, 8, 3)), jnp.ones((3, 3, 3, 5))
    text = jax.jit(jax.grad(out, wrt)).lower(x, k).as_text(dialect="hlo")
    found = [each for each in hlo.products(text) if each.kind == "convolution"]
    outputs = {1: (9, 8), 2: (5, 4)}[stride]
    taps = 1
    for source, output in zip((9, 8), outputs, strict=True):
        before = max((output - 1) * stride + 3 - source, 0) // 2
        taps *= sum(0 <= o * stride + j - before < source for o in range(output) for j in range(3))
    assert [each.flops for each in found] == [2 * 4 * 3 * 5 * taps] * 2
    assert {each.precision for each in found} == {"high"}


def test_a_convolution_of_cudnn_is_counted_forwards():
    text = """
ENTRY %main (x: f32[64,8,8,16], y: f32[64,8,8,32]) -> f32[32,3,3,16] {
  %x = f32[64,8,8,16]{3,2,1,0} parameter(0)
  %y = f32[64,8,8,32]{3,2,1,0} parameter(1)
  %k = f32[32,3,3,16]{3,2,1,0} parameter(2)
  %f = (f32[64,8,8,32]{3,2,1,0}, u8[0]{0}) custom-call(%x, %k), WINDOW, custom_call_target="__cudnn$convForward"
  %i = (f32[64,8,8,16]{3,2,1,0}, u8[0]{0}) custom-call(%y, %k), WINDOW, custom_call_target="__cudnn$convBackwardInput"
  ROOT %b = (f32[32,3,3,16]{3,2,1,0}) custom-call(%x, %y), WINDOW, custom_call_target="__cudnn$convBackwardFilter"
}
"""
    text = text.replace("WINDOW", "window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f")
    taps = (3 * 8 - 2) ** 2
    assert [each.flops for each in hlo.products(text)] == [2 * 64 * 16 * 32 * taps] * 3


@pytest.mark.usefixtures("optimised")
def test_a_program_of_this_machine_is_read():
    def step(w, x):
        return jax.lax.fori_loop(0, 7, lambda _, y: jnp.tanh(jnp.dot(y, w, precision="highest")), x)

    text = jax.jit(step).lower(jnp.ones((64, 64)), jnp.ones((32, 64))).compile().as_text()
    found = hlo.products(text)
    assert sum(each.times * each.flops for each in found) == 7 * 2 * 32 * 64 * 64
    assert {each.operands for each in found} == {("f32[32,64]", "f32[64,64]")}
    assert hlo.cycles(text) is None


def test_bytes_are_counted_by_the_slices_that_are_read():
    text = """
%slices (p.1: f32[100,8], i.1: s32[]) -> f32[1,8] {
  %p.1 = f32[100,8]{1,0} parameter(0)
  %i.1 = s32[] parameter(1)
  ROOT %d.1 = f32[1,8]{1,0} dynamic-slice(%p.1, %i.1), dynamic_slice_sizes={1,8}
}

%updates (p.2: f32[100,8], u.2: f32[1,8], i.2: s32[]) -> f32[100,8] {
  %p.2 = f32[100,8]{1,0} parameter(0)
  %u.2 = f32[1,8]{1,0} parameter(1)
  %i.2 = s32[] parameter(2)
  ROOT %d.2 = f32[100,8]{1,0} dynamic-update-slice(%p.2, %u.2, %i.2)
}

ENTRY %main (x: f32[100,8], i: s32[]) -> f32[100,8] {
  %x = f32[100,8]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %a = f32[1,8]{1,0} fusion(%x, %i), kind=kLoop, calls=%slices
  %b = f32[100,8]{1,0} fusion(%x, %a, %i), kind=kLoop, calls=%updates
  %c = f32[100,8]{1,0:S(1)} copy(%b)
  ROOT %d = f32[100,8]{1,0} add(%c, %b)
}
"""
    row, whole, index = 32, 3200, 4
    assert hlo.bytes_moved(text) == (row + index + row) + (row + index + row) + whole + (whole + whole)


def test_the_branch_for_extreme_gradients_is_not_counted():
    branch = "%{0} (a: f32[8]) -> f32[8] {{\n ROOT %x{0} = f32[8] add(%a, %a), metadata={{op_name={1}}}{2}\n}}\n"
    cost = ', backend_config={{"estimated_cycles":"{0}"}}'
    rare = branch.format("rare", '"jit(step)/cond/branch_0_fun/out_of_range/add"', cost.format(1000))
    usual = branch.format("usual", '"jit(step)/cond/branch_1_fun/add"', cost.format(10))
    for order in ("%rare, %usual", "%usual, %rare"):
        call = f" ROOT %c = f32[8] conditional(%i, %p, %p), branch_computations={{{order}}}\n"
        text = rare + usual + "ENTRY %main (p: f32[8]) -> f32[8] {\n" + call + "}\n"
        found = hlo.cycles(text)
        assert found is not None
        assert found.cycles == 10


@pytest.mark.parametrize("made", ["f32[10]{0}", "((f32[10]{0}), f32[10]{0})"])
def test_an_asynchronous_all_reduce_is_counted_once_however_its_type_is_written(made):
    text = f"ENTRY %main (x: f32[10]) -> f32[10] {{\n %a = {made} all-reduce-start(%x), replica_groups={{{{0,1}}}}\n"
    text += " ROOT %b = f32[10]{0} all-reduce-done(%a)\n}\n"
    assert hlo.collective_bytes(text)["all-reduce"] == 2 * 40
