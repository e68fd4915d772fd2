"""The plain gradient that comes out of `value_and_grad`, in the loops people have."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from marks import mostly_slow
from optax.experimental import aggregating

import mtljax as mtl

NAMES = mtl.methods.names()
QUICK = ("adatask", "famo", "fs_mtl", "graddrop", "nash_mtl", "pcgrad", "uw")
TASKS = ("a", "b")


def params_of(dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 3)
    heads = {task: jax.random.normal(key, (4,), dtype) for task, key in zip(TASKS, keys[1:], strict=True)}
    return {"body": jax.random.normal(keys[0], (3, 4), dtype), **heads}


X = jax.random.normal(jax.random.key(1), (16, 3))


def losses_fn(params, x, *, shift=0.0):
    z = jnp.tanh(x.astype(params["body"].dtype) @ params["body"])
    return {"a": jnp.mean((z @ params["a"] - 1 - shift) ** 2), "b": jnp.mean((z @ params["b"] + 2) ** 2)}


def assert_close(actual, expected, rtol=1e-6, atol=1e-30):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, e, rtol=rtol, atol=rtol * float(np.abs(e).max()) + atol)


def chained(method, params, *args, steps=1, **kwargs):
    """What the chain spelling gives after some updates at the same parameters."""
    state = method.init(params)
    for _ in range(steps):
        losses, grads = mtl.task_gradients(losses_fn, params, *args, **kwargs)
        gradient, state = method.update(grads, state, params, losses=losses)
    return losses, gradient, state


@pytest.mark.parametrize("name", mostly_slow(NAMES, QUICK))
def test_every_method_gives_the_gradient_of_the_chain(name):
    params, method = params_of(), mtl.methods.create(name, num_tasks=2)
    gradient_fn = mtl.value_and_grad(losses_fn, method)

    @jax.jit
    def both(params):
        state = gradient_fn.init(params)
        for _ in range(2):
            (losses, grads), state = gradient_fn(params, state, X)
        return (losses, grads, state), chained(method, params, X, steps=2)

    door, chain = both(params)
    assert_close(door, chain)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_gradient_has_the_form_of_the_parameters_and_the_state_keeps_its_own(name, dtype):
    params = params_of(dtype)
    gradient_fn = mtl.value_and_grad(losses_fn, mtl.methods.create(name, num_tasks=2))
    state = gradient_fn.init(params)
    (_, grads), after = jax.eval_shape(gradient_fn, params, state, X)
    assert jax.tree.structure(grads) == jax.tree.structure(params)
    for one, other in ((grads, params), (after, state)):
        assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), one) == jax.tree.map(
            lambda leaf: (leaf.shape, leaf.dtype), other
        )


@pytest.mark.parametrize("mode", ["loop", "jacrev", "two_pass"])
def test_keyword_arguments_and_auxiliary_outputs_pass_through(mode):
    params = params_of()

    def with_aux(params, x, *, shift):
        return losses_fn(params, x, shift=shift), {"mean": jnp.mean(x) + shift}

    gradient_fn = mtl.value_and_grad(with_aux, mtl.mgda(), has_aux=True, mode=mode)
    ((losses, aux), grads), _ = jax.jit(lambda p: gradient_fn(p, gradient_fn.init(p), X, shift=0.5))(params)
    expected = chained(mtl.mgda(), params, X, shift=0.5)
    assert_close((losses, grads), expected[:2], rtol=1e-5)
    np.testing.assert_allclose(aux["mean"], jnp.mean(X) + 0.5, rtol=1e-6)


def test_split_losses_take_keyword_arguments_in_every_mode_and_in_microbatches():
    params = params_of()
    whole = mtl.split(
        lambda p, x, *, shift: jnp.tanh(x @ p["body"]),
        lambda p, z, x, *, shift: {"a": jnp.mean((z @ p["a"] - 1 - shift) ** 2), "b": jnp.mean((z @ p["b"] + 2) ** 2)},
    )
    expected = chained(mtl.ew(), params, X, shift=0.5)
    for some in (whole, mtl.accumulate(whole, 4), mtl.accumulate(losses_fn, 4)):
        for mode in ("loop", "features") if isinstance(some, mtl.gradients.SplitLosses) else ("loop",):
            gradient_fn = mtl.value_and_grad(some, mtl.ew(), mode=mode)
            (losses, grads), _ = gradient_fn(params, gradient_fn.init(params), X, shift=0.5)
            assert_close((losses, grads), expected[:2], rtol=1e-5)


def test_arguments_of_the_method_reach_it():
    """`solve` of a Gramian method, the losses after of FAMO, and which tasks are present."""
    params = params_of()
    kept = mtl.value_and_grad(losses_fn, mtl.mgda(num_tasks=2, update_every=5))
    (_, summed), state = kept(params, kept.init(params), X, method_args={"solve": False})
    assert_close(summed["body"], chained(mtl.ew(), params, X)[1]["body"], rtol=1e-5)
    (_, solved), state = kept(params, state, X, method_args={"solve": True})
    assert_close(solved, chained(mtl.mgda(), params, X)[1], rtol=1e-5)

    learned = mtl.value_and_grad(losses_fn, mtl.famo(num_tasks=2))
    _, state = learned(params, learned.init(params), X)
    later = jax.tree.map(lambda leaf: 0.9 * leaf, params)
    told = learned(later, state, X + 1, method_args={"losses_after": losses_fn(later, X)})[1]
    as_pairs = {task: (16.0 * loss, 16) for task, loss in losses_fn(later, X).items()}
    same = learned(later, state, X + 1, method_args={"losses_after": as_pairs})[1]
    np.testing.assert_allclose(same.memory.logits, told.memory.logits, rtol=1e-6)
    untold = learned(later, state, X + 1)[1]
    assert np.any(np.asarray(told.memory.logits) != np.asarray(untold.memory.logits))

    _, state = learned(params, learned.init(params), X, method_args={"present": {"a": True, "b": False}})
    np.testing.assert_array_equal(state.seen, [1, 0])


@pytest.mark.parametrize("name", ["modo", "sdmgrad"])
def test_independent_batches_are_those_of_a_tuple_of_gradients(name):
    params, batches = params_of(), [X[:5], X[5:10], X[10:]]
    method = mtl.methods.create(name, num_tasks=2)
    gradient_fn = mtl.value_and_grad(losses_fn, method)

    @jax.jit
    def door(params, batches):
        return gradient_fn(params, gradient_fn.init(params), batches, shift=0.25)

    (losses, grads), state = door(params, mtl.IndependentBatches(*batches))
    every = [mtl.task_gradients(losses_fn, params, each, shift=0.25) for each in batches]
    means = {task: sum(losses[task] for losses, _ in every) / 3 for task in TASKS}
    expected, after = method.update(tuple(g for _, g in every), method.init(params), params, losses=means)
    assert_close((losses, grads, state), (means, expected, after), rtol=1e-5)
    three, two = mtl.IndependentBatches(*batches), mtl.IndependentBatches(*batches[:2])
    of_both = mtl.value_and_grad(lambda p, x, y: losses_fn(p, x), method)
    with pytest.raises(ValueError, match=r"IndependentBatches of different lengths in one call: \[2, 3\]"):
        of_both(params, state, three, two)


def test_a_regularizer_acts_behind_the_method():
    params = params_of()
    gradient_fn = mtl.value_and_grad(losses_fn, mtl.nash_mtl(), regularizer=lambda p: sum(map(jnp.sum, p.values())))
    (_, grads), _ = gradient_fn(params, gradient_fn.init(params), X)
    plain = chained(mtl.nash_mtl(), params, X)[1]
    assert_close(grads, jax.tree.map(lambda leaf: leaf + 1, plain))
    heads = {"body": False, "a": True, "b": True}
    frozen = mtl.value_and_grad(
        losses_fn, mtl.nash_mtl(), regularizer=lambda p: sum(map(jnp.sum, p.values())), trainable=heads
    )
    (_, grads), _ = frozen(params, frozen.init(params), X)
    np.testing.assert_array_equal(grads["body"], 0)
    module = Module(nnx.Rngs(0))
    of_module = mtl.value_and_grad(module_losses, mtl.ew(), regularizer=lambda m: jnp.sum(m.dense.kernel[...]))
    plain = mtl.value_and_grad(module_losses, mtl.ew())
    (_, grads), _ = of_module(module, of_module.init(module), X)
    (_, without), _ = plain(Module(nnx.Rngs(0)), plain.init(module), X)
    difference = jax.tree.map(jnp.subtract, nnx.to_pure_dict(grads), nnx.to_pure_dict(without))
    np.testing.assert_allclose(difference["dense"]["kernel"], 1, rtol=1e-5)
    np.testing.assert_allclose(difference["norm"]["scale"], 0, atol=1e-6)


def test_what_is_not_trainable_is_a_constant():
    """MGDA's weights are those of the Gramian without it, and its gradient is 0; freezing behind would differ."""
    params = params_of() | {"first": jnp.eye(3)}

    def deeper(p, x):
        return losses_fn(p, jnp.tanh(x @ p["first"]))

    method = mtl.mgda(num_tasks=2)
    trained = {"first": False, "body": True, "a": True, "b": True}
    results = []
    for trainable in (trained, lambda path: path[0].key != "first"):
        gradient_fn = mtl.value_and_grad(deeper, method, trainable=trainable)
        (_, grads), state = gradient_fn(params, gradient_fn.init(params), X)
        np.testing.assert_array_equal(grads["first"], 0)
        results.append(state.weights)
    rest = {name: leaf for name, leaf in params.items() if name != "first"}
    argument = mtl.value_and_grad(lambda p, first, x: deeper(p | {"first": first}, x), method)
    (_, expected), state = argument(rest, argument.init(rest), params["first"], X)
    behind = mtl.value_and_grad(deeper, method)
    _, other = behind(params, behind.init(params), X)
    for weights in results:
        np.testing.assert_allclose(weights, state.weights, rtol=1e-6)
        assert np.abs(np.asarray(weights - other.weights)).max() > 1e-3
    assert_close({name: leaf for name, leaf in grads.items() if name != "first"}, expected)


@pytest.mark.parametrize("devices", ["pmap", "shard_map", "jit"])
def test_eight_devices_equal_one(devices):
    params = params_of()
    gradient_fn = mtl.value_and_grad(losses_fn, mtl.upgrad(), axis_name=None if devices == "jit" else "i")
    one = mtl.value_and_grad(losses_fn, mtl.upgrad())
    expected = one(params, one.init(params), X)

    def evaluate(params, x):
        return gradient_fn(params, one.init(params), x)

    mesh = jax.make_mesh((8,), ("i",), axis_types=(AxisType.Auto,))
    if devices == "pmap":
        found = jax.pmap(evaluate, axis_name="i", in_axes=(None, 0))(params, X.reshape(8, 2, 3))
        found = jax.tree.map(lambda leaf: leaf[5], found)
    elif devices == "shard_map":
        found = jax.jit(jax.shard_map(evaluate, mesh=mesh, in_specs=(P(), P("i")), out_specs=P()))(params, X)
    else:
        spread = jax.device_put(X, jax.sharding.NamedSharding(mesh, P("i")))
        found = jax.jit(evaluate)(params, spread)
    assert_close(found, expected, rtol=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# flax and equinox


def test_a_flax_train_state_and_wrappers_of_one_gradient_take_it():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            z = nn.tanh(nn.Dense(8)(x))
            return {task: nn.Dense(1, name=task)(z)[:, 0] for task in TASKS}

    net = Net()

    def net_losses(params, x):
        outputs = net.apply({"params": params}, x)
        return {"a": jnp.mean((outputs["a"] - x[:, 0]) ** 2), "b": jnp.mean((outputs["b"] - x[:, 1]) ** 2)}

    gradient_fn = mtl.value_and_grad(net_losses, mtl.cagrad())
    tx = optax.MultiSteps(
        optax.chain(optax.clip_by_global_norm(1.0), optax.apply_if_finite(optax.adam(3e-2), 5)), every_k_schedule=2
    )
    state = TrainState.create(apply_fn=net.apply, params=net.init(jax.random.key(0), X)["params"], tx=tx)
    method_state = gradient_fn.init(state.params)

    @jax.jit
    def step(state, method_state):
        (losses, grads), method_state = gradient_fn(state.params, method_state, X)
        return state.apply_gradients(grads=grads), method_state, losses

    state, method_state, first = step(state, method_state)
    for _ in range(40):
        state, method_state, losses = step(state, method_state)
    assert sum(losses.values()) < 0.5 * sum(first.values())


class Module(nnx.Module):
    """Batch statistics, dropout, two heads."""

    def __init__(self, rngs):
        self.dense, self.norm, self.drop = (
            nnx.Linear(3, 4, rngs=rngs),
            nnx.BatchNorm(4, rngs=rngs),
            nnx.Dropout(0.5, rngs=rngs),
        )
        self.heads = nnx.Dict({task: nnx.Linear(4, 1, rngs=rngs) for task in TASKS})

    def __call__(self, x):
        z = self.drop(nnx.relu(self.norm(self.dense(x))))
        return {task: head(z)[:, 0] for task, head in self.heads.items()}


def module_losses(module, x):
    outputs = module(x)
    return {"a": jnp.mean((outputs["a"] - 1) ** 2), "b": jnp.mean((outputs["b"] + 2) ** 2)}


@pytest.mark.parametrize("method", [mtl.ew(), mtl.fs_mtl(mtl.ew(), 0.0)], ids=["ew", "fs_mtl"])
def test_an_nnx_module_gets_what_nnx_value_and_grad_gives(method):
    """For the sum of the losses: the same gradient, batch statistics and dropout stream, moved once."""
    ours, theirs = Module(nnx.Rngs(0)), Module(nnx.Rngs(0))
    gradient_fn = mtl.value_and_grad(module_losses, method)

    @nnx.jit
    def step(module, state):
        return gradient_fn(module, state, X)

    state = gradient_fn.init(ours)
    for _ in range(2):
        (losses, grads), state = step(ours, state)
        total, expected = nnx.value_and_grad(lambda module: sum(module_losses(module, X).values()))(theirs)
        np.testing.assert_allclose(sum(losses.values()), total, rtol=1e-5)
        # A bias before batch normalisation has a gradient of rounding errors.
        assert_close(nnx.to_pure_dict(grads), nnx.to_pure_dict(expected), rtol=1e-4, atol=1e-6)
        assert jax.tree.structure(grads) == jax.tree.structure(expected)
    for filter_type in (nnx.BatchStat, nnx.RngCount):
        assert_close(
            nnx.to_pure_dict(nnx.state(ours, filter_type)), nnx.to_pure_dict(nnx.state(theirs, filter_type)), rtol=1e-5
        )
    assert int(ours.drop.rngs.count.get_value()) == 2


def test_a_module_is_evaluated_again_without_a_trace():
    """FS-MTL runs the module three times a step; its statistics and streams move as by one."""
    flat, once = Module(nnx.Rngs(0)), Module(nnx.Rngs(0))
    gradient_fn = mtl.value_and_grad(module_losses, mtl.fs_mtl(mtl.mgda(), 0.5))
    gradient_fn(flat, gradient_fn.init(flat), X)
    module_losses(once, X)
    for filter_type in (nnx.BatchStat, nnx.RngCount):
        pairs = (nnx.to_pure_dict(nnx.state(module, filter_type)) for module in (flat, once))
        assert_close(*pairs, rtol=1e-6)


def test_a_filter_says_which_variables_of_a_module_have_a_gradient():
    module = Module(nnx.Rngs(0))
    heads = nnx.All(nnx.Param, lambda path, _: "heads" in path)
    gradient_fn = mtl.value_and_grad(lambda m, x: (module_losses(m, x), 3), mtl.ew(), wrt=heads, has_aux=True)
    optimizer = nnx.Optimizer(module, optax.sgd(0.1), wrt=heads)
    before = nnx.to_pure_dict(nnx.state(module, nnx.Param))
    ((_, aux), grads), _ = gradient_fn(module, gradient_fn.init(module), X)
    optimizer.update(module, grads)
    after = nnx.to_pure_dict(nnx.state(module, nnx.Param))
    assert aux == 3
    assert_close(after["dense"], before["dense"])
    assert np.any(after["heads"]["a"]["kernel"] != before["heads"]["a"]["kernel"])


def test_a_module_that_is_shared_by_predicate():
    """Paths are those of nested dicts, without the variables' own level."""
    module, paths = Module(nnx.Rngs(0)), []

    def shared(path):
        paths.append(jax.tree_util.keystr(path, simple=True, separator="/"))
        return "heads" not in paths[-1]

    gradient_fn = mtl.value_and_grad(module_losses, mtl.mgda(), shared=shared)
    gradient_fn(module, gradient_fn.init(module), X)
    assert {"dense/kernel", "heads/a/bias", "norm/scale"} <= set(paths)


class Fields(eqx.Module):
    """Arrays, a function, floats and booleans, as equinox's own modules have them."""

    body: eqx.nn.MLP
    drop: eqx.nn.Dropout
    heads: dict
    scale: float

    def __init__(self, key):
        keys = jax.random.split(key, 3)
        self.body = eqx.nn.MLP(3, 4, 4, depth=1, key=keys[0])
        self.drop = eqx.nn.Dropout(0.0, inference=True)
        self.heads = {task: eqx.nn.Linear(4, "scalar", key=k) for task, k in zip(TASKS, keys[1:], strict=True)}
        self.scale = 2.0

    def __call__(self, x):
        z = self.drop(self.body(x) * self.scale)
        return {task: head(z) for task, head in self.heads.items()}


def fields_losses(module, x):
    outputs = jax.vmap(module)(x)
    return {"a": jnp.mean((outputs["a"] - 1) ** 2), "b": jnp.mean((outputs["b"] + 2) ** 2)}


@pytest.mark.parametrize("name", ["ew", "moco", "fs_mtl"])
def test_fields_of_an_equinox_module_that_are_no_arrays_are_left_alone(name):
    module = Fields(jax.random.key(0))
    gradient_fn = mtl.value_and_grad(fields_losses, mtl.methods.create(name, num_tasks=2))
    optimizer = optax.adam(1e-2)

    @eqx.filter_jit
    def step(module, state, opt_state):
        (losses, grads), state = gradient_fn(module, state, X)
        updates, opt_state = optimizer.update(grads, opt_state, eqx.filter(module, eqx.is_inexact_array))
        return eqx.apply_updates(module, updates), state, opt_state, losses, grads

    state = gradient_fn.init(module), optimizer.init(eqx.filter(module, eqx.is_inexact_array))
    after, *_, losses, grads = step(module, *state)
    assert grads.body.activation is None
    assert grads.scale is None
    if name == "ew":
        total = eqx.filter_grad(lambda m: sum(fields_losses(m, X).values()))(module)
        assert_close(grads, eqx.filter(total, eqx.is_array), rtol=1e-5)
    assert after.scale == 2.0
    assert np.any(np.asarray(after.heads["a"].weight) != np.asarray(module.heads["a"].weight))
    assert mtl.explain(fields_losses, module, X).startswith("mode loop")
    del losses


# ---------------------------------------------------------------------------------------------------------------------
# What parameters may be


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"w": jnp.ones(2), "n": jnp.int32(0)}, r"\['n'\] has dtype int32, expected floating point"),
        ({"w": jnp.ones(2), "c": [jnp.ones(1, complex)]}, r"\['c'\]\[0\] has dtype complex64"),
        ({"w": jnp.ones(2), "k": 3}, r"\['k'\] has type int"),
        ({"w": jnp.ones(2), "f": jnp.tanh}, r"\['f'\] has type"),
        (eqx.tree_at(lambda m: m.layers[0].bias, eqx.nn.MLP(2, 1, 2, 1, key=jax.random.key(0)), jnp.arange(2)), "bias"),
    ],
)
def test_what_has_no_gradient_is_named_by_its_path(bad, message):
    gradient_fn = mtl.value_and_grad(lambda p: {"a": jnp.ones(())}, mtl.ew())
    with pytest.raises(ValueError, match=f"parameter .*{message}"):
        gradient_fn.init(bad)
    with pytest.raises(ValueError, match=f"parameter .*{message}"):
        gradient_fn(bad, mtl.ew().init(jnp.ones(2)))


def test_names_of_keywords_and_masks_of_modules_are_free():
    def named(params, x, *, mode, shared):
        return losses_fn(params, x, shift=shared) if mode == "train" else {}

    params = params_of()
    gradient_fn = mtl.value_and_grad(named, mtl.ew())
    (_, grads), _ = gradient_fn(params, gradient_fn.init(params), X, mode="train", shared=0.5)
    assert_close(grads, chained(mtl.ew(), params, X, shift=0.5)[1], rtol=1e-5)
    loose = mtl.value_and_grad(lambda p, x, **kwargs: losses_fn(p, x, shift=kwargs["present"]), mtl.ew())
    (_, grads), _ = loose(params, loose.init(params), X, present=0.5)
    assert_close(grads, chained(mtl.ew(), params, X, shift=0.5)[1], rtol=1e-5)
    arrays = {"body": jnp.bool_(False), "a": np.bool_(True), "b": True}
    gradient_fn = mtl.value_and_grad(losses_fn, mtl.ew(), trainable=arrays)
    (_, grads), _ = gradient_fn(params, gradient_fn.init(params), X)
    np.testing.assert_array_equal(grads["body"], 0)
    module = Fields(jax.random.key(0))
    trainable = jax.tree.map(eqx.is_inexact_array, module)
    trainable = eqx.tree_at(lambda m: m.body.layers[0].weight, trainable, replace=False)
    gradient_fn = mtl.value_and_grad(fields_losses, mtl.mgda(), trainable=trainable)
    (_, grads), _ = gradient_fn(module, gradient_fn.init(module), X)
    np.testing.assert_array_equal(grads.body.layers[0].weight, 0)
    assert np.any(grads.body.layers[0].bias)


def rule_of(weigh):
    return mtl.methods.weighting("mine", weigh, needs="losses")


def test_an_optimizer_inside_the_method_is_told():
    params = params_of()
    for chain in (optax.chain(mtl.ew(), optax.adam(1e-2)), optax.chain(mtl.ew(), optax.sgd(1e-2, momentum=0.9))):
        with pytest.warns(UserWarning, match="the method's chain holds an optimizer"):
            mtl.value_and_grad(losses_fn, chain).init(params)
    for chain in (mtl.adatask(num_tasks=2), optax.chain(mtl.per_task(optax.scale_by_adam(), 2), mtl.uw(num_tasks=2))):
        mtl.value_and_grad(losses_fn, optax.chain(chain, optax.clip_by_global_norm(1.0))).init(params)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda f, p: f(mtl.ew())(p, mtl.ew().init(p), X, method_args={"loses_after": 1}),
            "did you mean 'losses_after'",
        ),
        (lambda f, p: f(mtl.ew())(p, mtl.ew().init(p), X, method_args={"losses": 1}), "losses is known already"),
        (lambda f, p: f(mtl.ew())(p, None, X), "the second argument is the state of the method"),
        (lambda f, p: f(mtl.ew())(p, {"x": X}), "the second argument is the state of the method.*got dict"),
        (lambda f, p: f(mtl.ew())(p, (), X), "ew: the state must be that of init"),
        (lambda f, p: f(mtl.uw(num_tasks=2))(p, mtl.ew(num_tasks=2).init(p), X), "uw: the state is that of another"),
        (lambda f, p: f(mtl.ew())(p, mtl.ew().init(p), X, present={"a": True}), "pass method_args={'present': ...}"),
        (lambda f, p: mtl.accumulate(f(mtl.ew()), 4), "accumulate takes losses_fn, not the gradient"),
        (lambda f, p: mtl.value_and_grad(losses_fn, mtl.ew(), regularizer=1e-4), "regularizer must be a function"),
        (lambda f, p: mtl.methods.weighting("m", lambda m, s: (s.losses, m), needs="loss"), "needs must be one of"),
        (
            lambda f, p: mtl.value_and_grad(losses_fn, rule_of(lambda m, s: s.losses))(p, mtl.ew().init(p), X),
            r"mine: the rule must return \(weights, memory\) with weights of shape \(2,\)",
        ),
        (
            lambda f, p: f(mtl.per_task(optax.scale(1.0), 2))(p, mtl.per_task(optax.scale(1.0), 2).init(p), X),
            "the method returned the gradients of several tasks",
        ),
        (
            lambda f, p: f(mtl.mgda())(p, mtl.mgda().init(p), mtl.IndependentBatches(X, X)),
            "mgda: takes the gradients of one batch, got those of 2: independent batches are for modo and sdmgrad",
        ),
        (lambda f, p: mtl.IndependentBatches(), "at least one batch"),
        (
            lambda f, p: mtl.value_and_grad(losses_fn, mtl.ew(), has_aux=True)(p, mtl.ew().init(p), X),
            "with has_aux=True",
        ),
        (
            lambda f, p: mtl.value_and_grad(lambda p, x: (losses_fn(p, x), 1), mtl.ew())(p, mtl.ew().init(p), X),
            "or with has_aux=True a pair",
        ),
        (
            lambda f, p: mtl.value_and_grad(mtl.accumulate(losses_fn, 4), mtl.ew())(p, mtl.ew().init(p), x=X),
            "accumulate cuts positional arguments",
        ),
        (
            lambda f, p: mtl.value_and_grad(mtl.accumulate(module_losses, 4), mtl.ew())(
                Module(nnx.Rngs(0)), mtl.ew().init(p), X
            ),
            "accumulate repeats a function of parameters",
        ),
        (
            lambda f, p: mtl.value_and_grad(module_losses, mtl.ew(), mode="features")(
                Module(nnx.Rngs(0)), mtl.ew().init(p), X
            ),
            "not an nnx.Module",
        ),
    ],
)
def test_what_does_not_fit_the_door_is_one_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call(lambda method: mtl.value_and_grad(losses_fn, method), params_of())


def test_a_python_float_is_a_parameter():
    gradient_fn = mtl.value_and_grad(lambda p: {"a": p["w"] ** 2, "b": (p["w"] - 1) ** 2}, mtl.adatask(num_tasks=2))
    (_, grads), _ = gradient_fn({"w": 3.0}, gradient_fn.init({"w": 3.0}))
    assert grads["w"].shape == ()
    np.testing.assert_allclose(grads["w"], 2.0, rtol=1e-5)
    for name in NAMES:
        mtl.methods.create(name, num_tasks=2).init({"w": 3.0})
    assert mtl.explain(module_losses, Module(nnx.Rngs(0)), X).startswith("mode loop")


def test_a_method_by_its_name_is_refused_with_the_cure():
    with pytest.raises(ValueError, match=r"method must be an optax transformation.*got 'cagrad': mtl\.methods\.create"):
        mtl.value_and_grad(losses_fn, "cagrad")


# ---------------------------------------------------------------------------------------------------------------------
# optax's own protocol for gradients with a leading axis


@pytest.mark.parametrize("name", mostly_slow(mtl.methods.names(plain_jacobian=True), QUICK))
def test_a_method_is_an_aggregator_of_optax(name):
    params, method = params_of(), mtl.methods.create(name, num_tasks=2)
    jacobian = jax.jacrev(lambda p: jnp.stack([losses_fn(p, X)[task] for task in TASKS]))(params)
    before, behind = map(optax.with_extra_args_support, (optax.identity(), optax.sgd(0.5)))
    tx = aggregating.process(before, method, behind)
    losses = jnp.array([2.0, 0.5])
    updates, _ = jax.jit(lambda j: tx.update(j, tx.init(params), params, losses=losses))(jacobian)
    expected, _ = method.update(jacobian, method.init(params), params, losses=losses)
    assert_close(updates, jax.tree.map(lambda leaf: -0.5 * leaf, expected), rtol=1e-5)


def test_a_jacobian_by_hand_counts_heads_as_shared_unless_told():
    params = params_of()
    jacobian = jax.jacrev(lambda p: jnp.stack([losses_fn(p, X)[task] for task in TASKS]))(params)
    expected = chained(mtl.mgda(), params, X)[1]
    shared = {"body": True, "a": False, "b": False}
    for told in (shared, lambda path: path[0].key == "body"):
        by_hand, _ = mtl.mgda().update(jacobian, mtl.mgda().init(params), params, shared=told)
        assert_close(by_hand, expected, rtol=1e-5)
        wrapped = mtl.TaskGradients.from_jacobian(jacobian, shared=told)
        assert_close(mtl.mgda().update(wrapped, mtl.mgda().init(params), params)[0], expected, rtol=1e-5)
    untold, _ = mtl.mgda().update(jacobian, mtl.mgda().init(params), params)
    assert np.abs(untold["a"] - expected["a"]).max() > 0.1 * np.abs(expected["a"]).max()
    _, grads = mtl.task_gradients(losses_fn, params, X)
    with pytest.raises(ValueError, match="shared= goes with a plain Jacobian"):
        mtl.mgda().update(grads, mtl.mgda().init(params), params, shared=shared)
