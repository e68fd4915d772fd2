"""`task_gradients` and `TaskGradients` against plain jax.grad."""

import warnings
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.interpreters import partial_eval
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from marks import mostly_slow

import mtljax as mtl
from mtljax.gradients import TaskGradients

MODES = ("loop", "jacrev")


def params_of(seed: int = 0, dtype=jnp.float32):
    keys = jax.random.split(jax.random.PRNGKey(seed), 4)
    return {
        "heads": {
            "a": {"w": jax.random.normal(keys[0], (8, 2), dtype)},
            "b": {"w": jax.random.normal(keys[1], (8, 1), dtype)},
        },
        "shared": {
            "conv": jax.random.normal(keys[2], (3, 3, 1, 2), dtype),
            "w": jax.random.normal(keys[3], (32, 8), dtype),
        },
    }


def encode(params, x):
    x = jax.lax.conv_general_dilated(x, params["conv"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jnp.tanh(x.reshape(x.shape[0], -1) @ params["w"])


def losses_fn(params, x):
    z = encode(params["shared"], x)
    return {
        "b": jnp.mean((z @ params["heads"]["b"]["w"]) ** 2),
        "a": jnp.mean(jnp.abs(z @ params["heads"]["a"]["w"] - 1)),
    }


def batch_of(size: int = 16, dtype=jnp.float32):
    return jax.random.normal(jax.random.PRNGKey(9), (size, 4, 4, 1), dtype)


def vector_losses(params, x):
    losses = losses_fn(params, x)
    return jnp.stack([losses["a"], losses["b"]])


@jax.jit
def reference_jacobian(params, x):
    rows = [jax.grad(lambda p, k=k: losses_fn(p, x)[k])(params) for k in ("a", "b")]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)


def assert_close(actual, expected, rtol=1e-5):
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, e, rtol=rtol, atol=rtol * float(np.abs(e).max() + 1e-30))


def primitives(function, *args) -> Counter:
    """Counts the primitives a function executes, dead code left out, those of inner jaxprs included."""
    jaxpr = jax.make_jaxpr(function)(*args).jaxpr
    live, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return count(live)


def count(jaxpr) -> Counter:
    counts: Counter = Counter()
    for equation in jaxpr.eqns:
        inner = [getattr(p, "jaxpr", p) for p in equation.params.values() if hasattr(p, "eqns") or hasattr(p, "jaxpr")]
        if not inner:
            counts[equation.primitive.name] += 1
        for sub in inner:
            counts += count(sub)
    return counts


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("jit", [False, True])
def test_jacobian_equals_one_grad_a_task(mode, jit):
    params, x = params_of(), batch_of()

    def both(params, x):
        losses, grads = mtl.task_gradients(losses_fn, params, x, mode=mode)
        return losses, grads.jacobian(), grads.gramian()

    losses, jacobian, gramian = (jax.jit(both) if jit else both)(params, x)
    expected = reference_jacobian(params, x)
    assert_close(losses, losses_fn(params, x))
    assert_close(jacobian, expected)
    assert_close(jacobian, jax.jacrev(vector_losses)(params, x))
    rows = np.concatenate([np.reshape(leaf, (2, -1)) for leaf in jax.tree.leaves(expected["shared"])], axis=1)
    assert_close(gramian, rows.astype(np.float64) @ rows.T.astype(np.float64))


def test_modes_agree_to_float32_rounding():
    params, x = params_of(), batch_of()
    loop, jacrev = (mtl.task_gradients(losses_fn, params, x, mode=mode)[1].jacobian() for mode in MODES)
    assert_close(loop, jacrev)


def test_tasks_are_in_sorted_order():
    _, grads = mtl.task_gradients(losses_fn, params_of(), batch_of())
    assert grads.tasks == ("a", "b")
    expected = losses_fn(params_of(), batch_of())
    np.testing.assert_allclose(grads.losses, [expected["a"], expected["b"]], rtol=1e-6)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda f: f,
        jax.jit,
        jax.checkpoint,
        lambda f: lambda p, x: jax.lax.cond(True, lambda: f(p, x), lambda: f(p, 2 * x)),
        lambda f: lambda p, x: jax.lax.scan(lambda c, _: (c, f(p, x)), 0, None, length=1)[1],
    ],
    ids=["plain", "jit", "checkpoint", "cond", "scan"],
)
def test_shared_parameters_are_found_from_the_computation(wrap):
    wrapped = wrap(losses_fn)

    def scalar_losses(p, x):
        return jax.tree.map(jnp.sum, wrapped(p, x))

    _, grads = mtl.task_gradients(scalar_losses, params_of(), batch_of())
    assert grads.shared["shared"] == {"conv": True, "w": True}
    assert grads.shared["heads"] == {"a": {"w": False}, "b": {"w": False}}
    assert_close(grads.jacobian(), reference_jacobian(params_of(), batch_of()))


def test_side_effects_and_stop_gradient_make_no_parameter_shared():
    def printing(p, x):
        jax.debug.callback(lambda *_: None, p["heads"]["a"]["w"])
        losses = losses_fn(p, x)
        z = jax.lax.stop_gradient(encode(p["shared"], x))
        return losses | {"c": jnp.mean((z @ p["heads"]["a"]["w"]) ** 2)}

    _, grads = mtl.task_gradients(jax.jit(printing), params_of(), batch_of())
    assert grads.shared["shared"] == {"conv": True, "w": True}
    assert grads.shared["heads"] == {"a": {"w": True}, "b": {"w": False}}
    assert float(jnp.abs(grads.jacobian()["shared"]["w"][2]).max()) == 0.0


def test_custom_derivatives_are_followed():
    @jax.custom_vjp
    def clipped(x):
        return x

    clipped.defvjp(lambda x: (x, None), lambda _, g: (jnp.clip(g, -1e-3, 1e-3),))

    def clipping(p, x):
        return {"a": jnp.sum(clipped(p["w"]) * x), "b": jnp.sum(p["w"] ** 2) + p["b"]}

    params = {"w": jnp.ones(3), "b": jnp.ones(())}
    for mode in MODES:
        _, grads = mtl.task_gradients(clipping, params, jnp.array([5.0, -5.0, 0.0]), mode=mode)
        assert grads.shared == {"w": True, "b": False}
        np.testing.assert_allclose(grads.jacobian()["w"], [[1e-3, -1e-3, 0.0], [2.0, 2.0, 2.0]], rtol=1e-6)


def test_with_one_task_every_used_parameter_is_shared():
    _, grads = mtl.task_gradients(lambda p: {"only": jnp.sum(p["x"] ** 2)}, {"x": jnp.ones(2)})
    assert grads.shared == {"x": True}


@pytest.mark.parametrize("mode", MODES)
def test_shared_can_be_given_as_predicate_or_tree(mode):
    params, x = params_of(), batch_of()
    last_layer = jax.tree.map(lambda _: False, params)
    last_layer["shared"]["w"] = True
    _, by_tree = mtl.task_gradients(losses_fn, params, x, shared=last_layer, mode=mode)
    _, by_path = mtl.task_gradients(
        losses_fn, params, x, shared=lambda path: [k.key for k in path] == ["shared", "w"], mode=mode
    )
    rows = np.reshape(reference_jacobian(params, x)["shared"]["w"], (2, -1))
    for grads in (by_tree, by_path):
        assert_close(grads.gramian(), rows @ rows.T)
        # A leaf that is not shared but used by both tasks gets the plain sum.
        combined = grads.combine(jnp.array([3.0, 5.0]))
        assert_close(combined["shared"]["conv"], reference_jacobian(params, x)["shared"]["conv"].sum(0))


@pytest.mark.parametrize("materialize", [False, True])
@pytest.mark.parametrize("scale_own", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_combine_weighs_shared_parameters_and_heads_as_told(mode, scale_own, materialize):
    params, x, weights = params_of(), batch_of(), jnp.array([0.0, -2.5])
    _, grads = mtl.task_gradients(losses_fn, params, x, mode=mode)
    combined = (grads.materialize() if materialize else grads).combine(weights, scale_own=scale_own)
    expected = reference_jacobian(params, x)
    assert_close(combined["shared"], jax.tree.map(lambda leaf: jnp.tensordot(weights, leaf, 1), expected["shared"]))
    own = weights if scale_own else jnp.ones(2)
    assert_close(combined["heads"]["a"], jax.tree.map(lambda leaf: own[0] * leaf[0], expected["heads"]["a"]))
    assert_close(combined["heads"]["b"], jax.tree.map(lambda leaf: own[1] * leaf[1], expected["heads"]["b"]))


def test_a_loss_weighting_costs_exactly_the_summed_loss():
    """Counted in the jaxpr: as many convolutions and matrix products as jax.grad of the sum, and one forward pass."""
    params, x, tx = params_of(), batch_of(), mtl.ew(num_tasks=2)

    def ours(params, state, x):
        _, grads = mtl.task_gradients(losses_fn, params, x)
        return tx.update(grads, state, params)

    def plain(params, x):
        return jax.value_and_grad(lambda p: sum(losses_fn(p, x).values()))(params)

    counted = primitives(ours, params, tx.init(params), x)
    expected = primitives(plain, params, x)
    for name in ("conv_general_dilated", "dot_general", "tanh"):
        assert counted[name] == expected[name] > 0


@pytest.mark.usefixtures("optimised")
def test_a_loss_weighting_compiles_to_the_flops_of_the_summed_loss():
    params, x, tx = params_of(), batch_of(), mtl.ew()

    def ours(params, x):
        return tx.update(mtl.task_gradients(losses_fn, params, x)[1], tx.init(params), params)[0]

    def plain(params, x):
        return jax.grad(lambda p: sum(losses_fn(p, x).values()))(params)

    flops = [jax.jit(f).lower(params, x).compile().cost_analysis()["flops"] for f in (ours, plain)]
    assert flops[0] <= 1.01 * flops[1]


@pytest.mark.parametrize("mode", MODES)
def test_a_gramian_method_runs_the_forward_pass_once(mode):
    params, x, tx = params_of(), batch_of(), mtl.mgda()

    def ours(params, x):
        return tx.update(mtl.task_gradients(losses_fn, params, x, mode=mode)[1], tx.init(params), params)

    counted = primitives(ours, params, x)
    assert counted["tanh"] == 1
    # One convolution forward; backward (only to the kernel, the input is data) once a task.
    assert counted["conv_general_dilated"] == 3


def test_reused_weights_cost_one_backward_pass():
    params, x, tx = params_of(), batch_of(), mtl.mgda(num_tasks=2, update_every=10)

    def ours(params, x, solve):
        return tx.update(mtl.task_gradients(losses_fn, params, x)[1], tx.init(params), params, solve=solve)

    reused = primitives(lambda p, x: ours(p, x, False), params, x)
    assert reused["conv_general_dilated"] == 2


@pytest.mark.parametrize("mode", MODES)
def test_has_aux_passes_the_auxiliary_output_through(mode):
    params, x = params_of(), batch_of()
    (losses, aux), grads = mtl.task_gradients(
        lambda p, x: (losses_fn(p, x), {"mean": x.mean()}), params, x, has_aux=True, mode=mode
    )
    assert_close(aux["mean"], x.mean())
    assert_close(losses, losses_fn(params, x))
    assert_close(grads.jacobian(), reference_jacobian(params, x))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "devices", mostly_slow(["pmap", "shard_map", "unchecked shard_map", "vmap"], quick=["pmap", "shard_map"])
)
def test_averaging_over_an_axis_equals_the_whole_batch(mode, devices):
    params, x = params_of(), batch_of(16)
    weights = jnp.array([0.3, 2.0])

    def evaluate(params, x):
        losses, grads = mtl.task_gradients(losses_fn, params, x, axis_name="i", mode=mode)
        return losses, grads.jacobian(), grads.gramian(), grads.combine(weights)

    if devices in ("pmap", "vmap"):
        transform = jax.pmap if devices == "pmap" else jax.vmap
        result = transform(evaluate, axis_name="i", in_axes=(None, 0))(params, x.reshape(8, 2, *x.shape[1:]))
        result = jax.tree.map(lambda leaf: leaf[3], result)
    else:
        mesh = jax.make_mesh((8,), ("i",), axis_types=(AxisType.Auto,))
        check = devices == "shard_map"
        mapped = jax.shard_map(evaluate, mesh=mesh, in_specs=(P(), P("i")), out_specs=P(), check_vma=check)
        result = jax.jit(mapped)(params, x)
    losses, grads = mtl.task_gradients(losses_fn, params, x, mode=mode)
    assert_close(result, (losses, grads.jacobian(), grads.gramian(), grads.combine(weights)), rtol=2e-5)


@pytest.mark.parametrize("mode", MODES)
def test_each_task_can_be_evaluated_at_its_own_parameters(mode):
    x = batch_of()
    pair = [params_of(1), params_of(2)]
    _, grads = mtl.task_gradients(losses_fn, params_of(), x, mode=mode)
    moved = grads.at(jax.tree.map(lambda *leaves: jnp.stack(leaves), *pair))
    for k, task in enumerate("ab"):
        expected = jax.grad(lambda p, task=task: losses_fn(p, x)[task])(pair[k])
        assert_close(jax.tree.map(lambda leaf, k=k: leaf[k], moved.jacobian()), expected)
        assert_close(moved.losses[k], losses_fn(pair[k], x)[task])
    assert moved.shared == grads.shared


def test_losses_can_be_evaluated_at_other_parameters():
    _, grads = mtl.task_gradients(losses_fn, params_of(), batch_of())
    assert_close(grads.losses_at(params_of(5)), losses_fn(params_of(5), batch_of()))


def test_map_keeps_the_split_of_shared_and_own():
    _, grads = mtl.task_gradients(losses_fn, params_of(), batch_of())
    doubled = grads.map(lambda jacobian: jax.tree.map(lambda leaf: 2 * leaf, jacobian))
    assert_close(doubled.gramian(), 4 * grads.gramian())
    assert doubled.shared == grads.shared


def test_an_explicit_jacobian_cannot_be_evaluated_elsewhere():
    with pytest.raises(ValueError, match="explicit Jacobian"):
        TaskGradients.from_jacobian(jnp.ones((2, 3))).at(jnp.ones((2, 3)))


@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1.0, 1e15])
def test_the_gramian_of_tiny_and_huge_gradients_is_exact(scale):
    jacobian = np.array([[3.0, 4.0, 0.0], [0.0, -2.0, 1.0], [1e-3, 0.0, 2e-3]])
    cosines, norms = TaskGradients.from_jacobian(jnp.asarray(scale * jacobian, jnp.float32)).scaled_gramian()
    lengths = np.linalg.norm(jacobian, axis=1)
    np.testing.assert_allclose(norms, scale * lengths, rtol=1e-6)
    np.testing.assert_allclose(cosines, jacobian @ jacobian.T / np.outer(lengths, lengths), atol=1e-6)


def test_a_zero_gradient_has_no_direction():
    cosines, norms = TaskGradients.from_jacobian(jnp.array([[1.0, 1.0], [0.0, 0.0]])).scaled_gramian()
    np.testing.assert_array_equal(cosines, [[1, 0], [0, 0]])
    assert norms[1] == 0


def test_float64_gradients_have_a_float64_gramian():
    with jax.enable_x64(True):
        x = batch_of(dtype=jnp.float64)
        _, grads = mtl.task_gradients(losses_fn, params_of(dtype=jnp.float64), x)
        assert grads.gramian().dtype == jnp.float64
        assert jax.tree.leaves(grads.combine(jnp.ones(2)))[0].dtype == jnp.float64


def test_bfloat16_parameters_have_a_float32_gramian():
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params_of())
    _, grads = mtl.task_gradients(losses_fn, params, batch_of(dtype=jnp.bfloat16))
    assert grads.gramian().dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(grads.combine(jnp.ones(2)))} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda p: jnp.sum(p), "expected a dict"),
        (lambda p: {}, "empty dict"),
        (lambda p: {"a": p, "b": jnp.sum(p)}, r"task 'a' has shape \(3,\).*scalar"),
        (lambda p: {"a": jnp.sum(p), "b": jnp.int32(1)}, "task 'b'.*int32.*floating"),
        (lambda p: {1: jnp.sum(p)}, "task names must be strings"),
    ],
)
def test_bad_losses_are_one_clear_sentence(bad, message):
    with pytest.raises(ValueError, match=message):
        mtl.task_gradients(bad, jnp.ones(3))


def test_an_unknown_mode_names_the_valid_ones():
    with pytest.raises(ValueError, match=r"mode='fast' is unknown.*'loop'"):
        mtl.task_gradients(losses_fn, params_of(), batch_of(), mode="fast")


def test_a_mask_of_another_structure_is_refused():
    with pytest.raises(ValueError, match="shared has the structure"):
        mtl.task_gradients(losses_fn, params_of(), batch_of(), shared={"x": True})


def test_integer_parameters_are_refused():
    with pytest.raises(ValueError, match=r"\['n'\] has dtype int32"):
        mtl.task_gradients(lambda p: {"a": jnp.sum(p["w"])}, {"w": jnp.ones(2), "n": jnp.int32(0)})


def test_an_unused_parameter_is_reported_once_and_gets_zero():
    params = {"used": jnp.ones(2), "unused": jnp.ones(3)}

    @jax.jit
    def step(params):
        _, grads = mtl.task_gradients(lambda p: {"a": p["used"].sum(), "b": (p["used"] ** 2).sum()}, params)
        return grads.combine(jnp.ones(2))

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            combined = step(params)
    messages = [str(w.message) for w in caught]
    assert len(messages) == 1
    assert "no loss depends on the parameter ['unused']" in messages[0]
    np.testing.assert_array_equal(combined["unused"], np.zeros(3))


def test_leaves_that_disagree_on_the_tasks_are_refused():
    with pytest.raises(ValueError, match="same leading task axis"):
        TaskGradients.from_jacobian({"a": jnp.ones((2, 3)), "b": jnp.ones((3, 3))})


@pytest.mark.parametrize("tx", [optax.adam(1e-3), optax.sgd(1e-3)])
def test_a_chain_without_a_method_says_what_is_missing(tx):
    _, grads = mtl.task_gradients(losses_fn, params_of(), batch_of())
    with pytest.raises(TypeError, match=r"put a method, such as mtl\.ew\(\), before the other"):
        tx.update(grads, tx.init(params_of()), params_of())
