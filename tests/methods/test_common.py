"""What every method promises, checked on everything in the registry."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from samplers import DEGENERATE, conflicting, gaussian, mixed_scales

import mtljax as mtl
from mtljax.methods import MethodState

NAMES = mtl.methods.names()
K = 3
LOSSES = np.array([0.5, 2.0, 1.0], np.float32)


def updated(name, jacobians, dtype=jnp.float32, **hyperparameters):
    """The gradients a fresh method makes of a stack of plain Jacobians (..., K, d), in one compiled program."""
    jacobians = jnp.asarray(jacobians, dtype)
    *batch, num_tasks, size = jacobians.shape
    tx = mtl.methods.create(name, num_tasks=num_tasks, **hyperparameters)
    losses = jnp.resize(jnp.asarray(LOSSES, dtype), num_tasks)

    def one(jacobian):
        return tx.update(jacobian, tx.init(jnp.zeros(size, dtype)), losses=losses)[0]

    found = jax.jit(jax.vmap(one))(jacobians.reshape(-1, num_tasks, size))
    return np.asarray(found, np.float64).reshape(*batch, size)


def tree_problem():
    """A Jacobian over a tree of parameters."""
    rng = np.random.default_rng(0)
    params = {"w": jnp.zeros((4, 2)), "b": [jnp.zeros(2), jnp.zeros(())]}
    jacobian = jax.tree.map(lambda p: jnp.asarray(rng.standard_normal((K, *p.shape)), jnp.float32), params)
    return params, jacobian


@pytest.mark.parametrize("name", NAMES)
def test_updates_have_the_structure_shapes_and_dtypes_of_the_parameters(name):
    params, jacobian = tree_problem()
    tx = mtl.methods.create(name, num_tasks=K)
    gradient, _ = tx.update(jacobian, tx.init(params), params, losses=LOSSES)
    assert jax.tree.structure(gradient) == jax.tree.structure(params)
    assert jax.tree.map(lambda g: (g.shape, g.dtype), gradient) == jax.tree.map(lambda p: (p.shape, p.dtype), params)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_dtypes_are_kept_and_the_state_is_at_least_float32(name, dtype):
    with jax.enable_x64(True):
        params = jnp.zeros(6, dtype)
        tx = mtl.methods.create(name, num_tasks=K)
        state = tx.init(params)
        gradient, state = tx.update(jnp.asarray(gaussian(K, 6), dtype), state, params, losses=LOSSES)
        assert gradient.dtype == jnp.dtype(dtype)
        assert state.weights.dtype == jnp.promote_types(dtype, jnp.float32)


@pytest.mark.parametrize("name", NAMES)
def test_jit_equals_eager(name):
    params, jacobian = tree_problem()
    tx = mtl.methods.create(name, num_tasks=K)
    eager = tx.update(jacobian, tx.init(params), params, losses=LOSSES)
    jitted = jax.jit(tx.update)(jacobian, tx.init(params), params, losses=LOSSES)
    for a, b in zip(jax.tree.leaves(eager), jax.tree.leaves(jitted), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)  # fused float32 arithmetic rounds differently


@pytest.mark.parametrize("name", NAMES)
def test_vmap_equals_a_loop(name):
    jacobians = jnp.asarray(np.stack([gaussian(K, 6, seed) for seed in range(4)]), jnp.float32)
    tx = mtl.methods.create(name, num_tasks=K)
    states = jax.vmap(lambda _: tx.init(jnp.zeros(6)))(jnp.arange(4))
    update = functools.partial(tx.update, losses=LOSSES)
    batched, _ = jax.vmap(update)(jacobians, states)
    looped = jnp.stack([update(jacobian, tx.init(jnp.zeros(6)))[0] for jacobian in jacobians])
    np.testing.assert_allclose(batched, looped, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_state_keeps_its_structure_shapes_and_dtypes_through_scan(name):
    jacobians = jnp.asarray(np.stack([gaussian(K, 6, seed) for seed in range(4)]), jnp.float32)
    tx = mtl.methods.create(name, num_tasks=K)

    def step(state, jacobian):
        gradient, state = tx.update(jacobian, state, losses=jnp.asarray(LOSSES))
        return state, gradient

    state, gradients = jax.lax.scan(step, tx.init(jnp.zeros(6)), jacobians)
    assert int(state.step) == 4
    assert bool(jnp.all(jnp.isfinite(gradients)))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_degenerate_gradients_give_finite_updates(name, dtype):
    with jax.enable_x64(dtype == "float64"):
        gradients = updated(name, np.stack(list(DEGENERATE.values())), dtype)
    for case, gradient in zip(DEGENERATE, gradients, strict=True):
        assert np.all(np.isfinite(gradient)), case
        if case == "all zero":
            np.testing.assert_array_equal(gradient, np.zeros(6))


SAMPLES = np.stack([sampler(K, 6, seed) for sampler in (gaussian, conflicting, mixed_scales) for seed in range(4)])


@pytest.mark.parametrize("name", [n for n in NAMES if mtl.methods.describe(n).homogeneous])
def test_scaling_all_gradients_scales_the_update(name):
    # Powers of two near 1e-8 .. 1e8 scale float32 exactly; what is left is rounding inside the solvers.
    scales = 2.0 ** np.round(np.log2([1e-8, 1e-4, 1.0, 1e4, 1e8]))[:, None]
    scaled = updated(name, scales[:, None, None] * SAMPLES) / scales[:, None]
    expected = scaled[2]
    error = np.linalg.norm(scaled - expected, axis=-1) / np.linalg.norm(expected, axis=-1)
    assert error.max() < 1e-4


@pytest.mark.parametrize("name", [n for n in NAMES if mtl.methods.describe(n).permutable])
def test_the_order_of_the_tasks_does_not_matter(name):
    orders = ([0, 1, 2], [2, 0, 1], [1, 0, 2])
    found = updated(name, np.stack([SAMPLES[:, order] for order in orders]))
    error = np.linalg.norm(found - found[0], axis=-1) / np.linalg.norm(found[0], axis=-1)
    assert error.max() < 1e-3  # what the float32 solvers promise


@pytest.mark.parametrize("name", NAMES)
def test_one_task_gets_its_own_direction(name):
    jacobian = gaussian(1, 6)
    gradient = updated(name, jacobian)
    scale = gradient @ jacobian[0] / (jacobian[0] @ jacobian[0])
    assert scale > 0
    np.testing.assert_allclose(gradient, scale * jacobian[0], rtol=1e-5)


@pytest.mark.parametrize("name", mtl.methods.names(plain_jacobian=True))
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


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_in_the_middle_changes_nothing(name, tmp_path):
    import orbax.checkpoint as ocp

    jacobians = [jnp.asarray(gaussian(K, 6, seed), jnp.float32) for seed in range(6)]
    tx = mtl.methods.create(name, num_tasks=K)
    update = jax.jit(tx.update)

    def run(state, some):
        gradients = []
        for jacobian in some:
            gradient, state = update(jacobian, state, losses=LOSSES)
            gradients.append(gradient)
        return gradients, state

    expected, _ = run(tx.init(jnp.zeros(6)), jacobians)
    _, state = run(tx.init(jnp.zeros(6)), jacobians[:3])
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        template = jax.tree.map(jnp.zeros_like, state)
        restored = checkpointer.restore(tmp_path / "state", template)
    continued, _ = run(restored, jacobians[3:])
    for a, b in zip(continued, expected[3:], strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", NAMES)
def test_methods_work_without_num_tasks_unless_they_say_why(name):
    jacobian = jnp.asarray(gaussian(K, 6), jnp.float32)
    try:
        tx = mtl.methods.describe(name).build()
    except ValueError as error:
        assert "num_tasks" in str(error)  # noqa: PT017
        return
    gradient, state = tx.update(jacobian, tx.init(jnp.zeros(6)), losses=LOSSES)
    assert state.weights is None
    np.testing.assert_allclose(gradient, updated(name, jacobian), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", NAMES)
def test_another_number_of_tasks_is_refused(name):
    tx = mtl.methods.create(name, num_tasks=2)
    with pytest.raises(ValueError, match=f"{name}: .*2.*3"):
        tx.update(jnp.ones((3, 4)), tx.init(jnp.zeros(4)), losses=LOSSES)


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
    "clipping": lambda method: optax.chain(method, optax.clip_by_global_norm(1.0), optax.adam(1e-2)),
    "schedule": lambda method: optax.chain(method, optax.sgd(optax.linear_schedule(1e-2, 0.0, 20))),
    "apply_if_finite": lambda method: optax.chain(method, optax.apply_if_finite(optax.adam(1e-2), 5)),
    "multi_steps": lambda method: optax.chain(
        method, optax.MultiSteps(optax.adam(1e-2), every_k_schedule=2).gradient_transformation()
    ),
    "masked": lambda method: optax.chain(
        method,
        optax.adam(1e-2),
        optax.masked(optax.add_decayed_weights(1e-3), {"shared": True, "a": False, "b": False}),
    ),
}


@pytest.mark.parametrize("composition", COMPOSITIONS)
@pytest.mark.parametrize("name", NAMES)
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


@pytest.mark.parametrize("name", NAMES)
def test_inject_hyperparams_works_around_the_method(name):
    params, step = problem()
    x = jax.random.normal(jax.random.PRNGKey(2), (16, 4))
    build = mtl.methods.describe(name).build
    injected = optax.inject_hyperparams(build, static_args="num_tasks")(num_tasks=2)
    plain = mtl.methods.create(name, num_tasks=2)
    results = []
    for method in (injected, plain):
        tx = optax.chain(method, optax.sgd(1e-2))
        results.append(jax.jit(functools.partial(step, tx))(params, tx.init(params), x)[0])
    for a, b in zip(jax.tree.leaves(results[0]), jax.tree.leaves(results[1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
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
    one = step(tx, params, state, x)[0]
    for a, b in zip(jax.tree.leaves(many), jax.tree.leaves(one), strict=True):
        np.testing.assert_allclose(a, np.broadcast_to(b, a.shape), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [n for n in NAMES if mtl.methods.describe(n).needs == "gramian"])
def test_update_every_reuses_the_weights_in_between(name):
    jacobians = [jnp.asarray(conflicting(K, 6, seed), jnp.float32) for seed in range(5)]
    tx = mtl.methods.create(name, num_tasks=K, update_every=3)
    inside, hosted = tx.init(jnp.zeros(6)), tx.init(jnp.zeros(6))
    weights = []
    for step, jacobian in enumerate(jacobians):
        gradient, inside = tx.update(jacobian, inside, losses=LOSSES)
        expected, hosted = tx.update(jacobian, hosted, losses=LOSSES, solve=step % 3 == 0)
        np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(gradient, inside.weights @ jacobian, rtol=1e-4, atol=1e-5)
        weights.append(np.asarray(inside.weights))
    np.testing.assert_array_equal(weights[0], weights[2])
    np.testing.assert_array_equal(weights[3], weights[4])
    assert np.abs(weights[0] - weights[3]).max() > 1e-3


def test_gradient_methods_leave_heads_unscaled_and_loss_weightings_scale_them():
    params = {"shared": jnp.ones(3), "a": jnp.ones(()), "b": jnp.ones(())}

    def losses_fn(p):
        return {"a": p["a"] * p["shared"][0], "b": p["b"] * p["shared"][1] * 5}

    losses, grads = mtl.task_gradients(losses_fn, params)
    for name in NAMES:
        weights = {"weights": {"a": 3.0, "b": 0.5}} if name == "scalarization" else {}
        tx = mtl.methods.create(name, num_tasks=2, **weights)
        gradient, state = tx.update(grads, tx.init(params), params, losses=losses)
        scale = np.ones(2) if mtl.methods.describe(name).needs == "gramian" else state.weights
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
