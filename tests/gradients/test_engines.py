"""The engines against plain Jacobians: two-pass, features, subset, scattered, microbatches, and how one is chosen."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from marks import mostly_slow

import mtljax as mtl
from mtljax.gradients import backward, choice, evaluate, held, inspection
from mtljax.gradients.backend import Backend, assumed

GRAMIAN_METHODS = [name for name in mtl.methods.names() if mtl.methods.describe(name).needs == "gramian"]
WEIGHTS = jnp.array([0.5, 2.0, -1.0])


@pytest.fixture(autouse=True)
def few_are_written_out(monkeypatch):
    """With three tasks "jacrev" is mapped, or looped over where there are convolutions, as with eleven elsewhere."""
    monkeypatch.setattr(choice, "MOST_WRITTEN_OUT", 2)
    monkeypatch.setattr(choice, "MOST_OPERATIONS", 0)


def params_of(dtype=jnp.float32):
    keys = jax.random.split(jax.random.PRNGKey(0), 5)
    heads = {name: jax.random.normal(key, (8,), dtype) for name, key in zip("abc", keys[:3], strict=True)}
    shared = {"first": jax.random.normal(keys[3], (6, 8), dtype), "last": jax.random.normal(keys[4], (8, 8), dtype)}
    return {"heads": heads, "shared": shared}


def batch_of(size=32, dtype=jnp.float32):
    return jax.random.normal(jax.random.PRNGKey(1), (size, 6), dtype)


def encode(params, x):
    return jnp.tanh(jnp.tanh(x @ params["shared"]["first"]) @ params["shared"]["last"])


def heads(params, z, x):
    del x
    return {
        "a": jnp.mean((z @ params["heads"]["a"]) ** 2),
        "b": jnp.mean(jnp.abs(z @ params["heads"]["b"] - 1)),
        "c": jnp.mean(-z @ params["heads"]["c"]),
    }


split_losses = mtl.split(encode, heads)


def assert_close(actual, expected, rtol=1e-5):
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, e, rtol=rtol, atol=rtol * float(np.abs(e).max() + 1e-30))


def rows_of(jacobian):
    return np.concatenate([np.reshape(leaf, (3, -1)) for leaf in jax.tree.leaves(jacobian)], axis=1)


def peak_bytes(function, *args):
    return jax.jit(function).lower(*args).compile().memory_analysis().temp_size_in_bytes


def flops(function, *args):
    return jax.jit(function).lower(*args).compile().cost_analysis()["flops"]


@pytest.mark.parametrize("num_tasks", [2, backward.MOST_SEPARATE["cpu"], backward.MOST_SEPARATE["cpu"] + 1])
@pytest.mark.parametrize("scale", mostly_slow([1.0, 1e-30, 1e15], quick=[1e-30]))
def test_separate_gradients_give_what_a_jacobian_gives(num_tasks, scale):
    params = {"shared": params_of()["shared"], "heads": jnp.ones((num_tasks, 8))}
    factors = jnp.ones(num_tasks).at[0].set(scale)
    weights = jnp.arange(1.0, num_tasks + 1)

    def losses_fn(params, x):
        z = encode(params, x)
        return {f"t{k}": factors[k] * jnp.mean((z @ params["heads"][k] - k) ** 2) for k in range(num_tasks)}

    @functools.partial(jax.jit, static_argnums=2)
    def both(params, x, mode):
        grads = mtl.task_gradients(losses_fn, params, x, mode=mode)[1].with_gramian()
        return grads.scaled_gramian(), grads.combine(weights / factors)

    assert_close(both(params, batch_of(), "loop"), both(params, batch_of(), "jacrev"), rtol=2e-5)


@pytest.mark.parametrize("passes", ["looped", "unrolled"])
def test_two_pass_gives_the_gramian_and_the_gradient_of_the_jacobian(passes, monkeypatch):
    if passes == "unrolled":  # as with convolutions on a CPU
        monkeypatch.setattr(evaluate, "contains_convolution", lambda jaxpr: True)
    params, x = params_of(), batch_of()

    @functools.partial(jax.jit, static_argnums=2)
    def evaluated(params, x, mode):
        losses, grads = mtl.task_gradients(split_losses, params, x, mode=mode)
        if mode == "two_pass":
            assert grads.choice is not None
            assert grads.choice.passes == passes
        return losses, grads.gramian(), grads.with_gramian().combine(WEIGHTS)

    assert_close(evaluated(params, x, "two_pass"), evaluated(params, x, "jacrev"))


@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1e15])
def test_two_pass_keeps_tiny_and_huge_gradients_apart(scale):
    def losses_fn(p, x):
        losses = split_losses(p, x)
        return {"a": losses["a"] * scale, "b": losses["b"] * 0, "c": losses["c"]}

    params, x = params_of(), batch_of()
    expected = mtl.task_gradients(losses_fn, params, x, mode="loop")[1].scaled_gramian()
    actual = mtl.task_gradients(losses_fn, params, x, mode="two_pass")[1].scaled_gramian()
    assert_close(actual, expected)
    assert actual.norms[1] == 0


@pytest.mark.parametrize("name", mostly_slow(GRAMIAN_METHODS, quick=("gradvac", "mgda", "upgrad")))
def test_every_gramian_method_gets_the_same_from_two_pass(name):
    with jax.enable_x64(True):
        params, x = params_of(jnp.float64), batch_of(dtype=jnp.float64)
        tx = mtl.methods.create(name, num_tasks=3)
        state = tx.init(params)

        @jax.jit
        def update(params, x):
            updates = []
            for mode in ("loop", "two_pass"):
                losses, grads = mtl.task_gradients(split_losses, params, x, mode=mode)
                updates.append(tx.update(grads, state, params, losses=losses)[0])
            return updates

        exact, found = update(params, x)
        assert_close(found, exact, rtol=1e-8)


def deep_losses(num_tasks, mode):
    """A step on a network whose activations and parameters weigh alike."""

    def losses_fn(p, x):
        for _ in range(3):
            x = jnp.tanh(x @ p["shared"])
        return {f"{k}": jnp.mean((x @ p["heads"][f"{k}"]) ** 2) for k in range(num_tasks)}

    def step(params, x):
        grads = mtl.task_gradients(losses_fn, params, x, mode=mode)[1].with_gramian()
        return grads.combine(1 / jnp.sqrt(jnp.sum(jnp.abs(grads.gramian()), axis=0)))

    heads = {f"{k}": jnp.ones((256, 1)) * k for k in range(num_tasks)}
    return step, {"shared": jnp.ones((256, 256)), "heads": heads}, jnp.ones((256, 256))


@pytest.mark.usefixtures("optimised")
def test_two_pass_takes_less_than_half_the_memory():
    peaks = {mode: peak_bytes(*deep_losses(10, mode)) for mode in ("jacrev", "loop", "two_pass")}
    assert peaks["two_pass"] < 0.5 * min(peaks["jacrev"], peaks["loop"]), peaks


def test_features_are_the_gradients_at_the_representation():
    params, x = params_of(), batch_of()
    z = encode(params, x)
    rows = rows_of(jax.jacrev(lambda z: jnp.stack([heads(params, z, x)[k] for k in "abc"]))(z))
    grads = mtl.task_gradients(split_losses, params, x, mode="features")[1]
    assert_close(grads.gramian(), rows @ rows.T)
    exact = mtl.task_gradients(split_losses, params, x, mode="loop")[1]
    for own in (False, True, jnp.array([3.0, 1.0, 0.5])):
        combined = jax.jit(lambda w, own=own: grads.with_gramian().combine(w, scale_own=own))(WEIGHTS)
        assert_close(combined, exact.combine(WEIGHTS, scale_own=own))
    assert_close(grads.jacobian(), exact.jacobian())


@pytest.mark.usefixtures("optimised")
def test_features_cost_the_summed_loss():
    wide = 512
    params = {"shared": jnp.ones((wide, wide)), "heads": jnp.ones((3, wide))}
    losses_fn = mtl.split(
        lambda p, x: jnp.tanh(x @ p["shared"]),
        lambda p, z, x: {name: jnp.mean(z @ p["heads"][k]) for k, name in enumerate("abc")},
    )
    tx = mtl.mgda(num_tasks=3)

    def ours(params, x):
        losses, grads = mtl.task_gradients(losses_fn, params, x, mode="features", shared=lambda path: True)
        return tx.update(grads, tx.init(params), params, losses=losses)[0]

    def plain(params, x):
        return jax.grad(lambda p: sum(losses_fn(p, x).values()))(params)

    x = jnp.ones((64, wide))
    assert flops(ours, params, x) <= 1.1 * flops(plain, params, x)


def test_the_representation_may_carry_state_and_integers_and_the_encoder_own_parameters():
    def encoder(p, x):
        z = jnp.tanh(x @ p["shared"]["first"])
        return {"z": z, "a": z * p["heads"]["a"], "seen": x.mean(), "step": 3}

    def decoder(p, z, x):
        shift = jnp.sum(p["shared"]["last"])  # shared parameters the heads read themselves
        losses = {
            "a": jnp.mean(z["a"] + z["z"]) * shift,
            "b": jnp.mean(z["z"] @ p["heads"]["b"]),
            "c": jnp.mean(z["z"] ** 2) * shift,
        }
        return losses, {"seen": z["seen"], "step": z["step"]}

    params, x = params_of(), batch_of()
    del params["heads"]["c"]
    found = {}
    for mode in ("loop", "features"):
        (losses, aux), grads = mtl.task_gradients(mtl.split(encoder, decoder), params, x, mode=mode, has_aux=True)
        found[mode] = losses, aux, grads.with_gramian().combine(WEIGHTS)
    assert_close(found["features"], found["loop"])
    assert found["features"][1]["step"] == 3


def run_with_effects(function, *args):
    jax.block_until_ready(function(*args))
    jax.effects_barrier()


BLIND = "compares tasks example by example, and the tasks 'a' and 'b' have no example in common"


@pytest.mark.parametrize("case", ["inputs of their own", "labels on other examples"])
def test_features_warn_of_tasks_that_have_no_example_in_common(case):
    """There PCGrad is equal weighting to the bit, whatever the conflict in the parameters."""

    def encoder(p, x):
        z = jnp.tanh(x @ p["body"])
        return {"a": z[:16], "b": z[16:]} if case == "inputs of their own" else {"a": z, "b": z}

    def decoder(p, z, x):
        errors = {task: (z[task] @ p[task] - x[: len(z[task]), 0]) ** 2 for task in "ab"}
        if case == "inputs of their own":
            return {task: jnp.mean(error) for task, error in errors.items()}
        first = jnp.arange(32) < 16
        return {"a": (jnp.sum(errors["a"] * first), 16.0), "b": (jnp.sum(errors["b"] * ~first), 16.0)}

    losses_fn, x = mtl.split(encoder, decoder), batch_of()
    params = {"body": jnp.ones((6, 4)), "a": jnp.ones(4), "b": -jnp.ones(4)}

    def cosine(params, x, mode):
        grads = mtl.task_gradients(losses_fn, params, x, mode=mode)[1]
        return grads.scaled_gramian().cosines[0, 1]

    assert abs(float(cosine(params, x, "loop"))) > 0.1
    with pytest.warns(UserWarning, match=BLIND):
        assert float(cosine(params, x, "features")) == 0
    with pytest.warns(UserWarning, match=BLIND):
        run_with_effects(jax.jit(cosine, static_argnums=2), params, x, "features")


def test_two_pass_is_never_chosen_where_the_losses_cannot_be_run_forward(monkeypatch):
    @jax.custom_vjp
    def reversed_gradient(x):
        return x

    reversed_gradient.defvjp(lambda x: (x, None), lambda _, g: (-g,))

    def losses_fn(p, x, deep):
        z = encode(p, x)
        if deep:
            z = jax.lax.scan(lambda carry, _: (reversed_gradient(carry), None), z, None, length=1)[0]
        else:
            z = reversed_gradient(z)
        return heads(p, z, x)

    monkeypatch.setattr(choice, "device_memory", lambda: 4096)
    for deep in (False, True):
        with pytest.raises(ValueError, match=r'mode="two_pass" pushes.*jax.custom_vjp.*use mode="loop" or "jacrev"'):
            mtl.task_gradients(losses_fn, params_of(), batch_of(), deep, mode="two_pass")
        _, grads = mtl.task_gradients(losses_fn, params_of(), batch_of(), deep)
        assert 'a jax.custom_vjp in the losses rules out "two_pass"' in grads.explanation()
        assert grads.with_gramian().combine(WEIGHTS)["shared"]["first"].shape == (6, 8)
    assert 'rules out "two_pass"' in mtl.explain(losses_fn, params_of(), batch_of(), deep=True)
    plain = mtl.explain(split_losses, params_of(), batch_of())
    assert plain.startswith("mode two_pass: the Jacobian takes more than a quarter")


@pytest.mark.parametrize("jit", [False, True])
def test_a_trunk_run_anew_for_each_task_is_told(jit):
    params, x = params_of(), batch_of()
    model = jax.jit(encode) if jit else encode

    def anew(p, x):
        return {task: jnp.mean((model(p, x) @ p["heads"][task]) ** 2) for task in "abc"}

    def once(p, x):
        z = model(p, x)
        return {task: jnp.mean((z @ p["heads"][task]) ** 2) for task in "abc"}

    line = mtl.explain(anew, params, x)
    assert "['shared']['first'], ['shared']['last'] enter one alike product for each task" in line
    assert "run the shared part once" in line
    assert "alike product" not in mtl.explain(once, params, x)


def test_a_subset_of_the_parameters_decides_and_all_are_combined():
    params, x = params_of(), batch_of()
    exact = mtl.task_gradients(split_losses, params, x)[1]
    last = rows_of(exact.jacobian()["shared"]["last"])
    as_tree = jax.tree.map(lambda _: True, params) | {"shared": {"first": False, "last": True}}
    for subset in (lambda path: "last" in jax.tree_util.keystr(path), as_tree):
        for mode in ("loop", "jacrev", "two_pass"):
            grads = mtl.task_gradients(split_losses, params, x, subset=subset, mode=mode)[1]
            assert_close(grads.gramian(), last @ last.T)
            assert_close(grads.with_gramian().combine(WEIGHTS), exact.combine(WEIGHTS))
            assert_close(grads.materialize().gramian(), last @ last.T)


@pytest.mark.usefixtures("optimised")
def test_a_subset_of_the_last_layers_shortens_the_backward_passes():
    params = params_of()
    params["shared"]["first"] = jnp.ones((64, 8)) / 64  # what the short passes leave out

    def step(subset):
        def ours(params, x):
            grads = mtl.task_gradients(split_losses, params, x, subset=subset, mode="loop")[1].with_gramian()
            return grads.combine(jnp.sum(grads.gramian(), axis=0))

        return flops(ours, params, jnp.tile(batch_of(256), (1, 11))[:, :64])

    assert step(lambda path: "last" in jax.tree_util.keystr(path)) < 0.7 * step(None)


@pytest.mark.parametrize("mode", ["loop", "jacrev", "two_pass", "features"])
def test_microbatches_equal_the_whole_batch(mode):
    params, x = params_of(), batch_of()
    at = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf, -leaf]), params)

    @jax.jit
    def evaluate(params, x, at):
        results = []
        for losses_fn in (split_losses, mtl.accumulate(split_losses, 4)):
            losses, grads = mtl.task_gradients(losses_fn, params, x, mode=mode)
            held = grads.with_gramian()
            results.append((losses, held.gramian(), held.combine(WEIGHTS), grads.combine(WEIGHTS), grads.at(at).losses))
        return results

    exact, parts = evaluate(params, x, at)
    assert_close(parts, exact, rtol=1e-6)
    assert set(parts[0]) == set("abc")


@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("mode", ["loop", "jacrev", "features"])
def test_microbatches_have_the_memory_of_one(mode):
    def encoder(p, x):
        for _ in range(6):
            x = jnp.tanh(x @ p)
        return jnp.mean(x, axis=1)

    losses_fn = mtl.split(encoder, lambda p, z, x: {"a": jnp.mean(z), "b": jnp.mean(z**2)})

    def peak(count):
        def ours(p, x):
            grads = mtl.task_gradients(mtl.accumulate(losses_fn, count), p, x, mode=mode)[1].with_gramian()
            return grads.combine(1 + grads.gramian()[0])

        return peak_bytes(ours, jnp.ones((32, 32)), jnp.ones((4096, 32)))

    assert peak(8) < 0.3 * peak(1)


def test_microbatches_average_what_the_losses_return_besides():
    def losses_fn(p, scale, x):
        return {"a": jnp.mean(x @ p) * scale}, {"mean": jnp.mean(x), "size": x.shape[0]}

    x = batch_of()
    parts = mtl.accumulate(losses_fn, 8, argnums=(1,))
    (losses, aux), _ = mtl.task_gradients(parts, jnp.ones(6), 2.0, x, has_aux=True)
    assert_close(losses["a"], 2 * jnp.mean(x @ jnp.ones(6)))
    assert_close(aux["mean"], jnp.mean(x))
    assert aux["size"] == 4
    with pytest.raises(ValueError, match=r"cannot cut an array of shape \(32, 6\) into 5 microbatches"):
        mtl.accumulate(losses_fn, 5)(jnp.ones(6), 2.0, x)
    with pytest.raises(ValueError, match="the number of microbatches must be a positive int, got 0"):
        mtl.accumulate(losses_fn, 0)


@pytest.mark.parametrize("transform", ["pmap", "shard_map"])
def test_devices_that_hold_parts_of_the_jacobian_agree_with_one(transform):
    params, x = params_of(), batch_of()
    params["shared"]["odd"] = jnp.ones(5)  # does not divide among the devices

    def losses_fn(p, x):
        return jax.tree.map(lambda loss: loss * jnp.sum(p["shared"]["odd"] ** 2), split_losses(p, x))

    def evaluate(params, x):
        grads = mtl.task_gradients(losses_fn, params, x, axis_name="i", reduce="scatter")[1].with_gramian()
        return grads.scaled_gramian(), grads.combine(WEIGHTS), grads.jacobian()

    if transform == "pmap":
        parts = x.reshape(8, 4, 6)
        result = jax.tree.map(lambda leaf: leaf[3], jax.pmap(evaluate, "i", in_axes=(None, 0))(params, parts))
    else:
        mesh = jax.make_mesh((8,), ("i",), axis_types=(AxisType.Auto,))
        mapped = jax.shard_map(evaluate, mesh=mesh, in_specs=(P(), P("i")), out_specs=P(), check_vma=False)
        result = jax.jit(mapped)(params, x)
    exact = mtl.task_gradients(losses_fn, params, x)[1]
    assert_close(result, (exact.scaled_gramian(), exact.combine(WEIGHTS), exact.jacobian()))


@pytest.mark.usefixtures("optimised")
def test_between_solves_a_step_costs_one_backward_pass():
    """Compiled: no more than the summed loss but for the heads, which get their own gradient unscaled."""
    _, params, x = deep_losses(3, "loop")
    tx = mtl.cagrad(num_tasks=3, update_every=10)

    def losses_fn(p, x):
        for _ in range(3):
            x = jnp.tanh(x @ p["shared"])
        return {f"{k}": jnp.mean((x @ p["heads"][f"{k}"]) ** 2) for k in range(3)}

    def ours(solve):
        def update(params, state, x):
            losses, grads = mtl.task_gradients(losses_fn, params, x)
            return tx.update(grads, state, params, losses=losses, solve=solve)

        return flops(update, params, tx.init(params), x)

    plain = flops(jax.value_and_grad(lambda p, x: sum(losses_fn(p, x).values())), params, x)
    assert ours(False) <= 1.05 * plain
    assert ours(True) > 1.5 * plain


def test_auto_goes_by_backend_and_memory(monkeypatch):
    params, x = params_of(), batch_of()
    assert mtl.explain(split_losses, params, x).startswith("mode loop: on a CPU unrolled passes are fastest; 3 tasks")
    monkeypatch.setattr(choice, "MOST_WRITTEN_OUT", 10)
    with assumed(Backend("gpu", None)):
        line = mtl.explain(split_losses, params, x)
        assert line.startswith("mode loop: backward passes written out take a gpu the least time")
        many = {"num_tasks": 11, "shared_bytes": 4096}
        assert choice.choose("auto", **many, convolutions=False)[::3] == ("jacrev", "mapped")
        assert choice.choose("auto", **many, convolutions=True)[::3] == ("jacrev", "looped")
        monkeypatch.setattr(choice, "MOST_OPERATIONS", 2000)
        assert choice.choose("auto", **many, convolutions=True, operations=2000)[::3] == ("loop", "unrolled")
        assert choice.choose("jacrev", **many, convolutions=False, operations=2001)[::3] == ("jacrev", "mapped")
    with assumed(Backend("gpu", 4096)):
        line = mtl.explain(split_losses, params, x)
        assert line.startswith("mode two_pass: the Jacobian takes more than a quarter of the 4 KiB of memory")
        _, grads = mtl.task_gradients(split_losses, params, x)
        assert grads.choice is not None
        assert grads.choice.mode == "two_pass"
        assert choice.choose("auto", num_tasks=3, shared_bytes=4096, convolutions=False, scatter=True).mode == "loop"
        assert mtl.explain(split_losses, params, x, mode="features").startswith("mode features: asked for")


def test_convolutions_are_found_inside_other_functions():
    def convolve(x, w):
        return jax.lax.conv(x, w, (1, 1), "SAME")

    x, w = jnp.ones((1, 1, 4, 4)), jnp.ones((1, 1, 3, 3))
    nested = jax.jit(lambda x, w: jax.lax.cond(x.sum() > 0, jax.checkpoint(convolve), convolve, x, w))
    assert inspection.contains_convolution(jax.make_jaxpr(nested)(x, w).jaxpr)
    assert not inspection.contains_convolution(jax.make_jaxpr(lambda x, w: x * w.sum())(x, w).jaxpr)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "features", "plain": True}, r'mode="features" needs losses that are split.*pass mtl.split'),
        ({"mode": "features", "subset": lambda path: True}, 'subset chooses among parameters, but mode="features"'),
        ({"subset": lambda path: "heads" in str(path)}, r"subset chooses no shared parameter.*'first'"),
        ({"subset": [True]}, "subset has the structure"),
        ({"reduce": "scatter"}, "pass axis_name, or use"),
        ({"reduce": "gather"}, "reduce='gather' is unknown"),
        ({"reduce": "scatter", "axis_name": "i", "mode": "two_pass"}, 'that mode="two_pass" never holds'),
    ],
)
def test_what_does_not_go_together_is_refused(options, message):
    losses_fn = (lambda p, x: split_losses(p, x)) if options.pop("plain", False) else split_losses
    with pytest.raises(ValueError, match=message):
        mtl.task_gradients(losses_fn, params_of(), batch_of(), **options)


@pytest.mark.parametrize("materialized", [False, True])
@pytest.mark.parametrize(("mode", "most"), [("loop", 4), ("loop", 2), ("jacrev", 4), ("two_pass", 4)])
def test_changes_are_those_of_the_moved_gradients(mode, most, materialized, monkeypatch):
    monkeypatch.setitem(backward.MOST_SEPARATE, "cpu", most)
    params, x = params_of(), batch_of()

    def move(rows, moved=True):
        points = jax.tree.map(lambda leaf, row: leaf + 0.1 * row, params, rows)
        return points, jnp.full(len(jax.tree.leaves(rows)[0]), moved)

    grads = mtl.task_gradients(split_losses, params, x, mode=mode)[1]
    grads = grads.materialize() if materialized else grads
    jacobian = jax.jit(jax.jacrev(lambda p: jnp.stack([split_losses(p, x)[name] for name in "abc"])))
    before = jacobian(params)
    found = jax.jit(lambda: grads.changes(move).jacobian())()
    for k in range(3):
        there = jax.tree.map(lambda leaf, row, k=k: leaf + 0.1 * row[k], params, before)
        expected = jax.tree.map(lambda a, b, k=k: a[k] - b[k], jacobian(there), before)
        assert_close(jax.tree.map(lambda leaf, k=k: leaf[k], found), expected, 1e-4)
    assert grads.changes(move).changed
    stays = grads.changes(lambda rows: move(rows, moved=False))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(stays.jacobian()))


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_the_rows_of_a_convolution_agree_in_every_form(platform):
    """On a CPU they are written out, on a TPU looped over; `at` and `changes` go the same way."""
    kernel = jax.random.normal(jax.random.key(0), (3, 3, 2, 4))
    params = {"kernel": kernel, "heads": jax.random.normal(jax.random.key(1), (3, 4))}
    x = jax.random.normal(jax.random.key(2), (5, 6, 6, 2))

    def losses_fn(p, x):
        layout = ("NHWC", "HWIO", "NHWC")
        images = jax.lax.conv_general_dilated(x, p["kernel"], (1, 1), "SAME", dimension_numbers=layout)
        z = jnp.tanh(images).mean((1, 2))
        return {name: jnp.mean((z @ p["heads"][k] - k) ** 2) for k, name in enumerate("abc")}

    expected = jax.jacrev(lambda p: jnp.stack([losses_fn(p, x)[name] for name in "abc"]))(params)
    moved = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf, 3 * leaf]), params)
    loop = mtl.task_gradients(losses_fn, params, x, mode="loop")[1]
    with assumed(Backend(platform, None)):
        grads = mtl.task_gradients(losses_fn, params, x, mode="jacrev")[1]
        assert grads.choice is not None
        assert grads.choice.passes == {"cpu": "unrolled", "tpu": "looped"}[platform]
        assert_close(grads.jacobian(), expected)
        assert_close(grads.at(moved).jacobian(), loop.at(moved).jacobian(), 1e-5)
        assert_close(grads.with_gramian().combine(WEIGHTS), loop.combine(WEIGHTS))


def test_few_gradients_held_in_a_loop_are_separate_and_agree_with_a_jacobian():
    params, x = params_of(), batch_of()
    separate, whole = (mtl.task_gradients(split_losses, params, x, mode=m)[1].materialize() for m in ("loop", "jacrev"))
    assert isinstance(separate.engine, held.Separate)
    assert isinstance(whole.engine, held.Stacked)
    assert_close(separate.jacobian(), whole.jacobian())
    np.testing.assert_allclose(separate.gramian(), whole.gramian(), rtol=1e-5)
    assert_close(separate.combine(WEIGHTS, scale_own=True), whole.combine(WEIGHTS, scale_own=True))
    moved = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf, 3 * leaf]), params)
    assert_close(separate.at(moved).jacobian(), whole.at(moved).jacobian())
    assert isinstance(separate.materialize(whole=True).engine, held.Stacked)
    doubled = separate.map(lambda jacobian: jax.tree.map(lambda leaf: 2 * leaf, jacobian))
    np.testing.assert_allclose(doubled.gramian(), 4 * whole.gramian(), rtol=1e-5)
