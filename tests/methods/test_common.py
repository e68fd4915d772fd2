"""What every method promises, checked on everything in the registry."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from evaluable import given
from marks import mostly_slow
from samplers import DEGENERATE, conflicting, gaussian
from trajectories import OPTIONS, ending_in, run

import mtljax as mtl
from mtljax.methods import MethodState

NAMES = mtl.methods.names()
GRAMIAN = [name for name in NAMES if mtl.methods.describe(name).needs == "gramian"]
# What comes from the lift, the same for all, is tested by default on these: one of each kind of rule, memory, solver.
ONE_OF_A_KIND = (
    *("adatask", "aligned_mtl", "dwa", "ew", "famo", "graddrop", "gradnorm", "mgda"),
    *("moco", "modo", "nash_mtl", "pcgrad", "rlw", "upgrad", "uw"),
)
REAL_OPTIONS = ("cagrad", "famo", "graddrop", "gradnorm", "scalarization", "sdmgrad", "stch")
# And what compiles much, on these.
FEW = ("adatask", "famo", "graddrop", "nash_mtl", "pcgrad", "rlw", "uw")
K = 3
LOSSES = np.array([0.5, 2.0, 1.0], np.float32)


@functools.cache
def compiled(name):
    """A method for K tasks with parameters of size 6, and its update in one program."""
    tx = mtl.methods.create(name, num_tasks=K, **OPTIONS.get(name, {}))
    return tx, jax.jit(
        lambda jacobian, state: tx.update(given(name, jacobian, LOSSES), state, losses=jnp.asarray(LOSSES))
    )


def tree_problem():
    """A Jacobian over a tree of parameters."""
    rng = np.random.default_rng(0)
    params = {"w": jnp.zeros((4, 2)), "b": [jnp.zeros(2), jnp.zeros(())]}
    jacobian = jax.tree.map(lambda p: jnp.asarray(rng.standard_normal((K, *p.shape)), jnp.float32), params)
    return params, jacobian


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_updates_are_like_the_parameters_and_the_state_keeps_its_form(name, dtype):
    with jax.enable_x64(True):
        params, jacobian = jax.tree.map(lambda leaf: leaf.astype(dtype), tree_problem())
        tx = mtl.methods.create(name, num_tasks=K)
        state = tx.init(params)

        def update(jacobian, state, params):
            return tx.update(given(name, jacobian, LOSSES), state, params, losses=jnp.asarray(LOSSES))

        gradient, after = jax.eval_shape(update, jacobian, state, params)
        assert jax.tree.structure(gradient) == jax.tree.structure(params)
        assert jax.tree.map(form, gradient) == jax.tree.map(form, params)
        assert jax.tree.map(form, after) == jax.tree.map(form, state)
        assert state.weights.dtype == jnp.promote_types(dtype, jnp.float32)


@pytest.mark.parametrize("name", mostly_slow(NAMES, FEW))
def test_jit_scan_and_vmap_equal_eager(name):
    jacobians = ending_in(gaussian(K, 6, seed=9))
    tx, update = compiled(name)
    losses = jnp.asarray(LOSSES)
    eager_state, jit_state = tx.init(jnp.zeros(6)), tx.init(jnp.zeros(6))
    scanned = run(name, jacobians[None], LOSSES)[0]
    for jacobian, from_scan in zip(jnp.asarray(jacobians, jnp.float32), scanned, strict=True):
        eager, eager_state = tx.update(given(name, jacobian, LOSSES), eager_state, losses=losses)
        jitted, jit_state = update(jacobian, jit_state)
        scale = float(jnp.abs(eager).max())
        np.testing.assert_allclose(jitted, eager, rtol=2e-5, atol=2e-5 * scale)  # fused float32 rounds differently
        np.testing.assert_allclose(from_scan, eager, rtol=2e-5, atol=2e-5 * scale)
    assert int(eager_state.step) == len(jacobians)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.slow)])
def test_degenerate_gradients_give_finite_updates(name, dtype):
    always = np.stack([np.stack([jacobian] * 4) for jacobian in DEGENERATE.values()])
    suddenly = np.stack([ending_in(jacobian) for jacobian in DEGENERATE.values()])
    for gradients in (run(name, always, dtype=dtype), run(name, suddenly, dtype=dtype)):
        for case, gradient in zip(DEGENERATE, gradients, strict=True):
            assert np.all(np.isfinite(gradient)), case
    np.testing.assert_array_equal(run(name, always, dtype=dtype)[list(DEGENERATE).index("all zero")], 0)


READS_LOSSES = {name for name in NAMES if mtl.methods.describe(name).family == "loss weighting"}
READS_LOSSES |= {"db_mtl", "emtl", "excess_mtl", "fs_mtl", "gradnorm", "imtl", "mgda", "moco", "modo", "sdmgrad"}
BAD_LOSSES = np.array([[0.0, 1.0, 2.0], [-1.0, 1.0, 2.0], [0.0, 0.0, 0.0], [1e-30, 1.0, 1e30], [-1e30, -1.0, -2.0]])


@pytest.mark.parametrize("name", mostly_slow(NAMES, READS_LOSSES))
def test_losses_that_are_not_positive_or_of_any_size_give_finite_updates(name):
    losses = np.concatenate(
        [np.stack([bad] * 4)[None] for bad in BAD_LOSSES] + [np.stack([LOSSES] * 3 + [bad])[None] for bad in BAD_LOSSES]
    )
    jacobians = np.stack([ending_in(gaussian(K, 6, seed=9))] * len(losses))
    assert np.all(np.isfinite(run(name, jacobians, losses)))


WEIGHED_BY_LOSSES = [(name, {}) for name in NAMES if mtl.methods.describe(name).family == "loss weighting"]
# Where these only come to after many updates.
WEIGHED_BY_LOSSES += [("uw", {"init": -80.0}), ("imtl_l", {"init": 80.0}), ("bmtl", {"temperature": 1e-30})]


@pytest.mark.parametrize(("name", "options"), WEIGHED_BY_LOSSES)
def test_tiny_losses_with_huge_gradients_give_finite_updates(name, options):
    """The weights are cut so that gradients of up to the root of the dtype's largest number stay in its range."""
    tx = mtl.methods.create(name, num_tasks=K, **OPTIONS.get(name, {}) | options)
    sizes = np.array([1e-37, 1e-30, 1e-20, 1.0])
    losses = np.array([(x, y, 1.0) for x in sizes for y in sizes] + [(x, x, x) for x in sizes], np.float32)
    rows = np.stack([np.broadcast_to(1e15 * gaussian(K, 6), (4, K, 6)), np.full((4, K, 6), 5e18)])

    def updates(jacobians, losses):
        def step(state, jacobian):
            return tx.update(given(name, jacobian, losses), state, losses=losses)[::-1]

        return jax.lax.scan(step, tx.init(jnp.zeros(6)), jacobians)[1]

    many = jax.jit(jax.vmap(jax.vmap(updates, (None, 0)), (0, None)))
    assert bool(jnp.all(jnp.isfinite(many(jnp.asarray(rows, jnp.float32), jnp.asarray(losses)))))


@pytest.mark.parametrize("name", mostly_slow(NAMES, ONE_OF_A_KIND))
def test_one_task_gets_its_own_direction(name):
    jacobian = gaussian(1, 6)
    tx = mtl.methods.create(name, num_tasks=1)
    update = jax.jit(lambda jacobian, state: tx.update(given(name, jacobian, LOSSES), state, losses=LOSSES[:1]))
    gradient, _ = update(jnp.asarray(jacobian, jnp.float32), tx.init(jnp.zeros(6)))
    if "row span" in mtl.methods.describe(name).properties:
        scale = gradient @ jacobian[0] / (jacobian[0] @ jacobian[0])
        assert scale > 0
        np.testing.assert_allclose(gradient, scale * jacobian[0], rtol=1e-5)
    else:
        assert gradient @ jacobian[0] > 0


@pytest.mark.parametrize("name", mostly_slow(mtl.methods.names(plain_jacobian=True), FEW))
def test_plain_jacobian_and_task_gradients_agree_when_everything_is_shared(name):
    matrix = jnp.asarray(gaussian(K, 6), jnp.float32)
    params = jnp.ones(6)

    def losses_fn(p):
        return {name: jnp.tanh(row @ p) for name, row in zip("abc", matrix, strict=True)}

    losses, grads = mtl.task_gradients(losses_fn, params)
    jacobian = jax.jacrev(lambda p: jnp.stack([losses_fn(p)[k] for k in "abc"]))(params)
    by_task = jax.jacrev(losses_fn)(params)
    tx = mtl.methods.create(name, num_tasks=K)
    results = [tx.update(g, tx.init(params), params, losses=losses)[0] for g in (grads, jacobian, by_task)]
    for other in results[1:]:
        np.testing.assert_allclose(other, results[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", mostly_slow(NAMES, FEW))
def test_a_checkpoint_in_the_middle_changes_nothing(name, tmp_path):
    import orbax.checkpoint as ocp

    jacobians = [jnp.asarray(gaussian(K, 6, seed), jnp.float32) for seed in range(8)]
    tx, update = compiled(name)

    def advance(state, some):
        gradients = []
        for jacobian in some:
            gradient, state = update(jacobian, state)
            gradients.append(gradient)
        return gradients, state

    expected, _ = advance(tx.init(jnp.zeros(6)), jacobians)
    _, state = advance(tx.init(jnp.zeros(6)), jacobians[:4])
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        template = jax.tree.map(jnp.zeros_like, state)
        restored = checkpointer.restore(tmp_path / "state", template)
    continued, _ = advance(restored, jacobians[4:])
    for a, b in zip(continued, expected[4:], strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", mostly_slow(NAMES, ONE_OF_A_KIND))
def test_methods_work_without_num_tasks_unless_they_say_why(name):
    jacobian = jnp.asarray(gaussian(K, 6), jnp.float32)
    try:
        tx = mtl.methods.describe(name).build()
    except ValueError as error:
        assert "num_tasks" in str(error)  # noqa: PT017
        return
    gradient, state = tx.update(given(name, jacobian, LOSSES), tx.init(jnp.zeros(6)), losses=LOSSES)
    assert state.weights is None
    counted, update = compiled(name)
    expected, _ = update(jacobian, counted.init(jnp.zeros(6)))
    np.testing.assert_allclose(gradient, expected, rtol=2e-5, atol=1e-5 * float(jnp.abs(expected).max()))


@pytest.mark.parametrize("name", NAMES)
def test_another_number_of_tasks_is_refused(name):
    tx = mtl.methods.create(name, num_tasks=2)
    with pytest.raises(ValueError, match=f"{name}: .*2.*3"):
        tx.update(given(name, jnp.ones((3, 4))), tx.init(jnp.zeros(4)), losses=LOSSES)


def form(leaf):
    """What scan, cond and orbax ask to stay as it is."""
    return leaf.shape, leaf.dtype, leaf.weak_type


def problem():
    """Two tasks with heads, and a step that composes a transformation with them."""
    key = jax.random.PRNGKey(1)
    params = {"shared": jax.random.normal(key, (4, 4)), "a": jnp.ones(4), "b": jnp.ones(4)}

    def losses_fn(p, x):
        z = jnp.tanh(x @ p["shared"])
        return {"a": jnp.mean((z @ p["a"] - 1) ** 2), "b": jnp.mean((z @ p["b"] + 2) ** 2)}

    def step(tx, params, state, x):
        losses, grads = mtl.task_gradients(losses_fn, params, x)
        updates, state = tx.update(grads, state, params, losses=losses)
        return optax.apply_updates(params, updates), state, losses

    return params, step


COMPOSITIONS = {
    "clipping and apply_if_finite": lambda method: optax.chain(
        method, optax.clip_by_global_norm(1.0), optax.apply_if_finite(optax.adam(1e-2), 5)
    ),
    "schedule": lambda method: optax.chain(method, optax.sgd(optax.linear_schedule(1e-2, 0.0, 20))),
    "multi_steps": lambda method: optax.chain(
        method, optax.MultiSteps(optax.adam(1e-2), every_k_schedule=2).gradient_transformation()
    ),
    "masked": lambda method: optax.chain(
        method,
        optax.adam(1e-2),
        optax.masked(optax.add_decayed_weights(1e-3), {"shared": True, "a": False, "b": False}),
    ),
}
# What follows a method sees one gradient whatever the method is: one composition for all, all for one of each kind.
COMPOSED = [
    pytest.param(name, composition, marks=() if name in ("ew", "pcgrad", "graddrop", "adatask") else pytest.mark.slow)
    for composition in COMPOSITIONS
    for name in (NAMES if composition == "clipping and apply_if_finite" else ("ew", "pcgrad", "graddrop"))
]


@pytest.mark.parametrize(("name", "composition"), COMPOSED)
def test_optax_wrappers_work_around_what_follows_the_method(name, composition):
    params, step = problem()
    x = jax.random.normal(jax.random.PRNGKey(2), (16, 4))
    tx = COMPOSITIONS[composition](mtl.methods.create(name, num_tasks=2))
    state = tx.init(params)
    jitted = jax.jit(functools.partial(step, tx))
    first = None
    for _ in range(20):
        params, state, losses = jitted(params, state, x)
        first = losses if first is None else first
    assert sum(losses.values()) < sum(first.values())
    assert mtl.task_weights(state).shape == (2,)


def injected(name):
    return optax.inject_hyperparams(mtl.methods.describe(name).build, static_args="num_tasks")(num_tasks=2)


@pytest.mark.parametrize("name", NAMES)
def test_hyperparameters_may_be_tracers(name):
    params, step = problem()
    tx = optax.chain(injected(name), optax.sgd(1e-2))
    after, state, _ = jax.eval_shape(functools.partial(step, tx), params, tx.init(params), jnp.ones((16, 4)))
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, params)
    assert jax.tree.map(form, state) == jax.tree.map(form, tx.init(params))


@pytest.mark.parametrize("name", mostly_slow(REAL_OPTIONS, ("famo", "gradnorm", "scalarization")))
def test_hyperparameters_in_the_state_are_those_of_the_constructor(name):
    params, step = problem()
    x = jax.random.normal(jax.random.PRNGKey(2), (16, 4))
    results = []
    for method in (injected(name), mtl.methods.create(name, num_tasks=2)):
        tx = optax.chain(method, optax.sgd(1e-2))
        results.append(jax.jit(functools.partial(step, tx))(params, tx.init(params), x)[0])
    for a, b in zip(jax.tree.leaves(results[0]), jax.tree.leaves(results[1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", mostly_slow(NAMES, ("famo", "graddrop", "pcgrad")))
def test_eight_devices_equal_one(name):
    params, step = problem()
    x = jax.random.normal(jax.random.PRNGKey(2), (16, 4))

    def losses_fn(p, x):
        z = jnp.tanh(x @ p["shared"])
        return {"a": jnp.mean((z @ p["a"] - 1) ** 2), "b": jnp.mean((z @ p["b"] + 2) ** 2)}

    tx = optax.chain(mtl.methods.create(name, num_tasks=2), optax.sgd(1e-2))

    def parallel(params, state, x):
        losses, grads = mtl.task_gradients(losses_fn, params, x, axis_name="i")
        updates, _ = tx.update(grads, state, params, losses=losses)
        return optax.apply_updates(params, updates)

    state = tx.init(params)
    many = jax.pmap(parallel, axis_name="i", in_axes=(None, None, 0))(params, state, x.reshape(8, 2, 4))
    one = jax.jit(functools.partial(step, tx))(params, state, x)[0]
    for a, b in zip(jax.tree.leaves(many), jax.tree.leaves(one), strict=True):
        np.testing.assert_allclose(a, np.broadcast_to(b, a.shape), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", mostly_slow(GRAMIAN, FEW))
def test_update_every_reuses_the_weights_in_between(name):
    jacobians = [jnp.asarray(conflicting(K, 6, seed), jnp.float32) for seed in range(5)]
    tx = mtl.methods.create(name, num_tasks=K, update_every=3, **OPTIONS.get(name, {}))
    inside, hosted = tx.init(jnp.zeros(6)), tx.init(jnp.zeros(6))
    update = jax.jit(functools.partial(tx.update, losses=jnp.asarray(LOSSES)), static_argnames="solve")
    weights = []
    for step, jacobian in enumerate(jacobians):
        gradient, inside = update(jacobian, inside)
        expected, hosted = update(jacobian, hosted, solve=step % 3 == 0)
        np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(gradient, inside.weights @ jacobian, rtol=1e-4, atol=1e-5)
        weights.append(np.asarray(inside.weights))
    np.testing.assert_array_equal(weights[0], weights[2])
    np.testing.assert_array_equal(weights[3], weights[4])
    assert np.abs(weights[0] - weights[3]).max() > 1e-3


# adatask and mtl_io step heads with their own optimizers; db_mtl and imtl scale their losses; fs_mtl perturbs heads.
OWN_RULE_FOR_HEADS = {"adatask", "db_mtl", "fs_mtl", "imtl", "mtl_io"}


@pytest.mark.parametrize("name", mostly_slow([name for name in NAMES if name not in OWN_RULE_FOR_HEADS], FEW))
def test_gradient_methods_leave_heads_unscaled_and_loss_weightings_scale_them(name):
    params = {"shared": jnp.ones(3), "a": jnp.ones(()), "b": jnp.ones(())}

    def losses_fn(p):
        return {"a": p["a"] * p["shared"][0], "b": p["b"] * p["shared"][1] * 5}

    losses, grads = mtl.task_gradients(losses_fn, params)
    weights = {"weights": {"a": 3.0, "b": 0.5}} if name == "scalarization" else {}
    tx = mtl.methods.create(name, num_tasks=2, **weights)
    gradient, state = tx.update(grads, tx.init(params), params, losses=losses)
    scale = state.weights if mtl.methods.describe(name).family == "loss weighting" else np.ones(2)
    np.testing.assert_allclose([gradient["a"], gradient["b"]], scale * np.array([1.0, 5.0]), rtol=1e-6)


def test_task_weights_are_found_anywhere_in_a_chain():
    tx = optax.chain(optax.inject_hyperparams(mtl.cagrad, static_args="num_tasks")(num_tasks=3), optax.adam(1e-3))
    np.testing.assert_array_equal(mtl.task_weights(tx.init(jnp.zeros(2))), np.ones(3))
    assert mtl.task_weights(optax.adam(1e-3).init(jnp.zeros(2))) is None
    assert isinstance(mtl.ew().init(jnp.zeros(2)), MethodState)


def test_unknown_methods_and_hyperparameters_name_the_nearest():
    with pytest.raises(ValueError, match="unknown method 'cagard': did you mean 'cagrad'"):
        mtl.methods.create("cagard", num_tasks=2)
    with pytest.raises(ValueError, match="unknown option of method cagrad 'rescal': did you mean 'rescale'"):
        mtl.methods.create("cagrad", num_tasks=2, rescal="none")


COUNTS = {"iterations", "seed", "warmup", "window"}


@pytest.mark.parametrize("name", NAMES)
def test_numeric_hyperparameters_take_fractions_by_name(name):
    parameters = inspect.signature(mtl.methods.describe(name).build).parameters.values()
    numbers = {p.name for p in parameters if isinstance(p.default, (int, float)) and not isinstance(p.default, bool)}
    for parameter in numbers - COUNTS:
        mtl.methods.create(name, num_tasks=2, **{parameter: 0.25})


def test_hyperparameters_of_each_task_may_be_a_sequence():
    mtl.methods.create("graddrop", num_tasks=2, leak=(0.1, 0.2))
    mtl.methods.create("famo", num_tasks=2, min_losses=[0.1, 0.2])
    with pytest.raises(ValueError, match="option c of method cagrad must be a number"):
        mtl.methods.create("cagrad", num_tasks=2, c=(0.1, 0.2))


@pytest.mark.parametrize("name", NAMES)
def test_losses_of_other_tasks_are_refused(name):
    losses, grads = mtl.task_gradients(lambda p: {"a": p.sum(), "b": -p.sum()}, jnp.ones(2))
    tx = mtl.methods.create(name, num_tasks=2)
    with pytest.raises(
        ValueError, match=r"losses: got the keys \['a', 'c'\], expected those of the tasks \['a', 'b'\]"
    ):
        tx.update(grads, tx.init(jnp.ones(2)), jnp.ones(2), losses={"a": losses["a"], "c": losses["b"]})


def test_a_tree_that_is_no_jacobian_is_refused():
    tx = mtl.ew()
    params = {"w": jnp.zeros(3)}
    with pytest.raises(ValueError, match="Jacobian with the structure of params"):
        tx.update({"x": jnp.ones((2, 3)), "y": jnp.ones((2, 3))}, tx.init(params), params)
