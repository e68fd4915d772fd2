"""FS-MTL against closed forms on quadratics, a plain re-implementation, and the promises of its options."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from marks import mostly_slow

import mtljax as mtl
from mtljax.methods.fs_mtl import FsMtlState

HESSIANS = {"a": np.diag([4.0, 1.0, 0.5]), "b": np.array([[1.0, 0.3, 0.0], [0.3, 2.0, -0.2], [0.0, -0.2, 3.0]])}
CENTRES = {"a": np.array([1.0, 0.0, 2.0]), "b": np.array([-1.0, 0.5, 0.0])}
HEADS = {"a": np.array([0.7, -2.0]), "b": np.array([0.3, 1.0])}
PARAMS = {"shared": jnp.array([0.4, -0.8, 1.5]), "a": jnp.asarray(HEADS["a"]), "b": jnp.asarray(HEADS["b"])}
RHO = 0.3


def quadratics(p):
    """Each task: a quadratic of the shared parameters, one of its head, and a product of both."""
    losses = {}
    for task in "ab":
        hessian, centre = (jnp.asarray(each[task], p["shared"].dtype) for each in (HESSIANS, CENTRES))
        away, head = p["shared"] - centre, p[task]
        losses[task] = 0.5 * away @ hessian @ away + 1.5 * head @ head + p["shared"][0] * head[0] + 0.1 * jnp.sum(head)
    return losses


def gradient_of(task, shared, head):
    """The same in NumPy: gradients over the shared parameters and the head."""
    of_shared = HESSIANS[task] @ (shared - CENTRES[task]) + np.array([head[0], 0, 0])
    of_head = 3 * head + 0.1 + np.array([shared[0], 0])
    return of_shared, of_head


def expected_rows(adaptive=False, joint=False, rho=RHO, rho_heads=None):
    """Gradients and SAM gradients of both tasks, by the formulas, in float64."""
    shared = np.asarray(PARAMS["shared"], float)
    rows = []
    for task in "ab":
        head = HEADS[task]
        g, h = gradient_of(task, shared, head)
        s, t = (np.abs(shared), np.abs(head)) if adaptive else (1, 1)
        norm_g, norm_h = np.linalg.norm(s * g), np.linalg.norm(t * h)
        if joint:
            norm_g = norm_h = np.hypot(norm_g, norm_h)
        rho_h = rho if rho_heads is None else rho_heads
        sam = gradient_of(task, shared + rho * s * s * g / norm_g, head + rho_h * t * t * h / norm_h)
        rows.append((g, h, *sam))
    return rows


def close(found, expected, rtol=2e-5):
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=rtol * np.abs(expected).max())


def updated(tx, losses_fn=quadratics, params=None, **options):
    """The first update and the state after it."""
    params = PARAMS if params is None else params

    @jax.jit
    def update(params):
        losses, grads = mtl.task_gradients(losses_fn, params, **options)
        return tx.update(grads, tx.init(params), params, losses=losses)

    return update(params)


def shared_of(base, rows):
    """What a base method makes of rows of the shared parameters."""
    jacobian = jnp.asarray(np.stack(rows), jnp.float32)
    return jax.jit(lambda rows: base.update(rows, base.init(rows[0]))[0])(jacobian)


# ---------------------------------------------------------------------------------------------------------------------
# The formulas


def test_the_flat_part_on_a_quadratic_is_rho_h_g_over_its_norm():
    """Exactly, for every length of the step: the gradient of a quadratic is linear."""
    with jax.enable_x64(True):
        params = jnp.array([1.0, -2.0, 0.5])
        hessian = jnp.asarray(HESSIANS["b"])
        for rho in (1e-3, 1.0, 30.0):
            _, grads = mtl.task_gradients(lambda p: {"a": 0.5 * p @ hessian @ p}, params)
            whole, _ = updated(mtl.fs_mtl(mtl.ew(), rho), lambda p: {"a": 0.5 * p @ hessian @ p}, params)
            g = grads.jacobian()[0]
            np.testing.assert_allclose(whole - g, rho * hessian @ g / jnp.linalg.norm(g), rtol=1e-9)


def test_the_flat_part_of_any_loss_is_that_to_first_order():
    with jax.enable_x64(True):
        params = jnp.array([0.3, -0.6, 1.1])

        def losses_fn(p):
            return {"a": jnp.sum(jnp.exp(p)) + jnp.prod(p)}

        g = jax.grad(lambda p: losses_fn(p)["a"])(params)
        first_order = jax.hessian(lambda p: losses_fn(p)["a"])(params) @ g / jnp.linalg.norm(g)
        errors = []
        for rho in (1e-2, 1e-3):
            flat = updated(mtl.fs_mtl(mtl.ew(), rho), losses_fn, params)[0] - g
            errors.append(float(jnp.linalg.norm(flat / rho - first_order)))
        assert errors[0] < 0.05
        np.testing.assert_allclose(errors[0] / errors[1], 10, rtol=0.05)


MORE_NORMS = [("separate", True), ("joint", False)]
NORMS = [("separate", False), ("joint", True), *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE_NORMS)]


@pytest.mark.parametrize(("norm", "adaptive"), NORMS)
def test_steps_have_the_length_of_their_norm_and_heads_get_their_sam_gradient(norm, adaptive):
    rows = expected_rows(adaptive, norm == "joint")
    base = mtl.imtl_g()
    gradient, _ = updated(mtl.fs_mtl(base, RHO, adaptive, norm=norm))
    for row, task in zip(rows, "ab", strict=True):
        close(gradient[task], row[3])
    expected = shared_of(base, [r[0] for r in rows]) + shared_of(base, [r[2] - r[0] for r in rows])
    close(gradient["shared"], expected)


def test_joint_and_separate_norms_differ_as_stated():
    separate, joint = expected_rows(), expected_rows(joint=True)
    found = [updated(mtl.fs_mtl(mtl.ew(), RHO, norm=norm))[0] for norm in ("separate", "joint")]
    for gradient, rows in zip(found, (separate, joint), strict=True):
        close(gradient["a"], rows[0][3])
    assert np.abs(found[0]["a"] - found[1]["a"]).max() > 0.1


def test_heads_may_have_a_radius_of_their_own():
    rows = expected_rows(rho_heads=0.05)
    gradient, _ = updated(mtl.fs_mtl(mtl.ew(), RHO, rho_heads=0.05))
    close(gradient["b"], rows[1][3])
    close(gradient["shared"], rows[0][2] + rows[1][2])
    only_heads, _ = updated(mtl.fs_mtl(mtl.ew(), 0, rho_heads=0.05))
    close(only_heads["a"], expected_rows(rho=0.0, rho_heads=0.05)[0][3])


def test_the_four_aggregations_are_those_of_the_paper():
    rows = expected_rows()
    losses, flats, sams = [r[0] for r in rows], [r[2] - r[0] for r in rows], [r[2] for r in rows]
    of = functools.partial(shared_of, mtl.imtl_g())
    expected = {
        "decomposed": of(losses) + of(flats),
        "direct": of(sams),
        "second": of([of(losses), of(flats)]),
        "each": of([of(pair) for pair in zip(losses, flats, strict=True)]),
    }
    for aggregate, gradient in expected.items():
        found, _ = updated(mtl.fs_mtl(mtl.imtl_g(), RHO, aggregate=aggregate, num_tasks=2))
        close(found["shared"], gradient)
        for row, task in zip(rows, "ab", strict=True):
            close(found[task], row[3])
    shared = np.stack([np.asarray(each) for each in expected.values()])
    assert all(np.abs(a - b).max() > 1e-3 for i, a in enumerate(shared) for b in shared[:i])


def test_plain_sam_for_each_task_is_direct_equal_weighting():
    """F-LS; and with one task F-STL, two backward passes and nothing else."""
    rows = expected_rows()
    for aggregate in ("direct", "decomposed"):  # the same for any base that is linear
        found, _ = updated(mtl.fs_mtl(mtl.ew(), RHO, aggregate=aggregate))
        close(found["shared"], rows[0][2] + rows[1][2])
    with jax.enable_x64(True):
        params = jnp.asarray(np.asarray(PARAMS["shared"], float))
        tx = mtl.fs_mtl(mtl.ew(), 0.1, aggregate="direct")
        calls = []

        def losses_fn(p):
            calls.append(None)
            return {"only": quadratics({**PARAMS, "shared": p})["a"]}

        gradient, _ = updated(tx, losses_fn, params)
        assert len(calls) == 2
        g = jax.grad(lambda p: losses_fn(p)["only"])(params)
        expected = jax.grad(lambda p: losses_fn(p)["only"])(params + 0.1 * g / jnp.linalg.norm(g))
        np.testing.assert_allclose(gradient, expected, rtol=1e-12)


@pytest.mark.slow
def test_optax_sam_takes_the_same_step():
    """Against optax.contrib.sam in its opaque mode, on a single task."""
    params = PARAMS["shared"]

    def loss(p):
        return quadratics({**PARAMS, "shared": p})["b"]

    opaque = optax.contrib.sam(optax.sgd(0.1), optax.chain(optax.contrib.normalize(), optax.sgd(0.2)), opaque_mode=True)
    expected, _ = opaque.update(
        jax.grad(loss)(params), opaque.init(params), params, grad_fn=lambda p, _: jax.grad(loss)(p)
    )
    tx = optax.chain(mtl.fs_mtl(mtl.ew(), 0.2, aggregate="direct"), optax.sgd(0.1))
    _, grads = mtl.task_gradients(lambda p: {"only": loss(p)}, params)
    close(tx.update(grads, tx.init(params), params)[0], expected)


# ---------------------------------------------------------------------------------------------------------------------
# Limits


def test_rho_zero_returns_the_base_method():
    base = mtl.cagrad(c=0.3)
    assert mtl.fs_mtl(base, 0).update is base.update
    assert mtl.fs_mtl(base, 0.0, rho_heads=0).init is base.init
    calls = []

    def losses_fn(p):
        calls.append(None)
        return quadratics(p)

    found, state = updated(mtl.fs_mtl(mtl.imtl_g(num_tasks=2), 0, num_tasks=2), losses_fn)
    assert len(calls) == 1
    assert not isinstance(state, FsMtlState)
    expected, _ = updated(mtl.imtl_g(num_tasks=2))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("base", ["imtl_g", "nash_mtl"])
def test_a_traced_rho_of_zero_aggregates_flat_parts_of_exactly_zero(base):
    """Rounding of the perturbed pass would have the full length √2 under Nash-MTL."""
    found, _ = jax.jit(lambda rho: updated(mtl.fs_mtl(mtl.methods.create(base), rho)))(0.0)
    expected, _ = updated(mtl.methods.create(base, num_tasks=2))
    jax.tree.map(functools.partial(close, rtol=1e-5), found, expected)


@pytest.mark.parametrize("aggregate", mostly_slow(["decomposed", "direct", "second", "each"], quick=["decomposed"]))
def test_all_gradients_zero_aggregate_to_zero(aggregate):
    params = {"shared": jnp.array([1.0, 2.0]), "a": jnp.ones(1), "b": jnp.ones(1)}

    def losses_fn(p):
        centred = {key: leaf - params[key] for key, leaf in p.items()}
        return {task: 1 + jnp.sum(centred["shared"] ** 2) + jnp.sum(centred[task] ** 2) for task in "ab"}

    for base in ("imtl_g", "nash_mtl") if aggregate == "decomposed" else ("imtl_g",):
        found, _ = updated(
            mtl.fs_mtl(mtl.methods.create(base), 0.5, aggregate=aggregate, num_tasks=2), losses_fn, params
        )
        jax.tree.map(lambda leaf: np.testing.assert_array_equal(leaf, 0), found)


def test_the_flat_part_of_nash_and_fairgrad_does_not_vanish_with_rho():
    """Nash-MTL's keeps its length, FairGrad's grows like ρ^((1 - α) / (1 + α)), that of the others is linear in ρ."""
    bases = {"nash_mtl": ({}, 0.0), "fairgrad": ({"alpha": 2.0}, -1 / 3), "imtl_g": ({}, 1.0)}
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf, np.float64)), PARAMS)
        for name, (options, power) in bases.items():
            base = mtl.methods.create(name, num_tasks=2, **options)

            def flat_length(rho, base=base):
                found, plain = (updated(tx, params=params)[0]["shared"] for tx in (mtl.fs_mtl(base, rho), base))
                return jnp.linalg.norm(found - plain)

            lengths = [float(length) for length in jax.jit(jax.vmap(flat_length))(jnp.array([1e-2, 1e-4]))]
            np.testing.assert_allclose(np.log10(lengths[0] / lengths[1]) / 2, power, atol=0.02, err_msg=name)
            if name == "nash_mtl":
                np.testing.assert_allclose(lengths, np.sqrt(2), rtol=1e-6)


def test_tiny_and_huge_gradients_are_perturbed_by_the_same_step():
    """ε does not depend on the scale of a loss, and no square of a gradient leaves float32."""
    for scale in (1e-30, 1e20):
        found, _ = updated(mtl.fs_mtl(mtl.ew(), RHO), lambda p, s=scale: jax.tree.map(lambda x: s * x, quadratics(p)))
        rows = expected_rows()
        close(found["shared"] / scale, rows[0][2] + rows[1][2], rtol=1e-4)


# ---------------------------------------------------------------------------------------------------------------------
# What it needs, and what it says otherwise


def test_a_plain_jacobian_is_refused_with_a_sentence():
    tx = mtl.fs_mtl(mtl.cagrad(), 0.1)
    with pytest.raises(ValueError, match="which an explicit Jacobian cannot: pass the result of mtl"):
        tx.update(jnp.eye(2), tx.init(jnp.zeros(2)))


def test_what_changes_gradients_goes_into_the_base():
    before = optax.chain(mtl.per_task(optax.clip_by_global_norm(0.5), 2), mtl.fs_mtl(mtl.ew(), RHO))
    with pytest.raises(ValueError, match="put it into the base, as in"):
        updated(before)
    inside = mtl.fs_mtl(optax.chain(mtl.per_task(optax.clip_by_global_norm(0.5), 2), mtl.ew()), RHO)
    found, _ = updated(inside)
    assert np.linalg.norm(found["shared"]) <= 4 * 0.5


def test_bad_options_are_refused():
    cases = {
        "rho must be >= 0 and finite, got -1": {"rho": -1.0},
        "rho_heads must be >= 0": {"rho_heads": -1.0},
        "leave out rho_heads": {"norm": "joint", "rho_heads": 0.1},
        "norm must be one of 'separate', 'joint', got 'both'": {"norm": "both"},
        "aggregate must be one of 'decomposed', 'direct', 'second', 'each'": {"aggregate": "sum"},
        'aggregate="each" remembers something of every task; pass num_tasks=K': {"aggregate": "each"},
        "perturb_every remembers something of every task; pass num_tasks=K": {"perturb_every": 2},
        "perturb_every must be a positive Python int, got 0": {"perturb_every": 0},
        "base must be an optax transformation, got 3": {"base": 3},
        "base must be an optax transformation, got 'cagrad': mtl.methods.create": {"base": "cagrad"},
    }
    for message, options in cases.items():
        with pytest.raises(ValueError, match=message):
            mtl.fs_mtl(**options)
    by_name = {
        "the base must be another method": {"base": "fs_mtl"},
        "unknown method 'cagard': did you mean 'cagrad'": {"base": "cagard"},
        "unknown option of method cagrad 'd'": {"base_options": {"d": 1}},
        "base_options go with a base given by name": {"base": mtl.ew(), "base_options": {}},
        "base_options must be a dict of the base's hyperparameters, got 3": {"base": "ew", "base_options": 3},
    }
    for message, options in by_name.items():
        with pytest.raises(ValueError, match=message):
            mtl.methods.create("fs_mtl", **options)
    with pytest.raises(ValueError, match="leave num_tasks out of it, or pass pair_base"):
        mtl.fs_mtl(mtl.cagrad(num_tasks=3), aggregate="second").init(jnp.zeros(2))


# ---------------------------------------------------------------------------------------------------------------------
# Engines, devices, missing labels


def network(seed=0, width=4):
    """Two tasks on a layer with batch statistics, and data."""
    keys = jax.random.split(jax.random.PRNGKey(seed), 4)
    params = {
        "shared": jax.random.normal(keys[0], (5, width)),
        "a": jax.random.normal(keys[1], (width,)),
        "b": jax.random.normal(keys[2], (width,)),
    }
    return params, jax.random.normal(keys[3], (16, 5))


def heads(p, z, x):
    return {"a": jnp.mean((z @ p["a"] - x[:, 0]) ** 2), "b": jnp.mean(jnp.abs(z @ p["b"] + x[:, 1]) ** 3)}


split_losses = mtl.split(lambda p, x: jnp.tanh(x @ p["shared"]), heads)


def one_step(tx, axis_name=None, **options):
    def step(params, state, x):
        losses, grads = mtl.task_gradients(split_losses, params, x, axis_name=axis_name, **options)
        return tx.update(grads, state, params, losses=losses)

    return step


@pytest.mark.parametrize("mode", mostly_slow(["jacrev", "two_pass", "microbatches"], quick=["two_pass"]))
def test_every_engine_gives_the_same(mode):
    params, x = network()
    tx = mtl.fs_mtl(mtl.imtl_g(), 0.2, norm="joint")
    state = tx.init(params)
    expected = jax.jit(one_step(tx, mode="loop"))(params, state, x)[0]
    assert (
        np.linalg.norm(expected["shared"] - one_step(mtl.imtl_g())(params, mtl.imtl_g().init(params), x)[0]["shared"])
        > 0.01
    )
    fn, mode = (mtl.accumulate(split_losses, 4), "auto") if mode == "microbatches" else (split_losses, mode)

    @jax.jit
    def step(params, state, x):
        losses, grads = mtl.task_gradients(fn, params, x, mode=mode)
        return tx.update(grads, state, params, losses=losses)[0]

    jax.tree.map(functools.partial(close, rtol=1e-4), step(params, state, x), expected)


@pytest.mark.slow
def test_two_pass_without_loops_gives_the_same(monkeypatch):
    """As with convolutions on a CPU."""
    monkeypatch.setattr("mtljax.gradients.evaluate.contains_convolution", lambda jaxpr: True)
    params, x = network()
    tx = mtl.fs_mtl(mtl.ew(), 0.2)
    found, expected = (one_step(tx, mode=mode)(params, tx.init(params), x)[0] for mode in ("two_pass", "loop"))
    jax.tree.map(functools.partial(close, rtol=1e-4), found, expected)


@pytest.mark.slow
def test_features_goes_with_one_shared_perturbation_alone():
    params, x = network()
    tx = mtl.fs_mtl(mtl.imtl_g(), 0.2)
    with pytest.raises(ValueError, match='which mode="features" saves: use another mode, or aggregate="direct"'):
        one_step(tx, mode="features")(params, tx.init(params), x)
    cheap = mtl.fs_mtl(mtl.imtl_g(), 0.2, aggregate="direct", shared_perturbation=True)
    found, _ = one_step(cheap, mode="features")(params, cheap.init(params), x)
    total = jax.grad(lambda p: sum(split_losses(p, x).values()))(params)
    own = np.sqrt(sum(np.sum(np.square(total[task])) for task in "ab"))
    norms = {"shared": np.linalg.norm(total["shared"]), "a": own, "b": own}
    moved = {key: params[key] + 0.2 * total[key] / norms[key] for key in params}
    expected, _ = one_step(mtl.imtl_g(), mode="features")(moved, mtl.imtl_g().init(params), x)
    jax.tree.map(functools.partial(close, rtol=1e-4), found, expected)


@pytest.mark.parametrize("reduce", mostly_slow(["mean", "scatter"], quick=["mean"]))
def test_eight_devices_equal_one(reduce):
    params, x = network()
    tx = mtl.fs_mtl(mtl.imtl_g(num_tasks=2), 0.2, adaptive=True, norm="joint", num_tasks=2)
    state = tx.init(params)
    expected = jax.jit(one_step(tx))(params, state, x)[0]
    step = jax.pmap(one_step(tx, axis_name="i", reduce=reduce), axis_name="i", in_axes=(None, None, 0))
    found = step(params, state, x.reshape(8, 2, 5))[0]
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, np.broadcast_to(a[:1], a.shape))
        close(a[0], b, rtol=1e-4)


def test_a_task_without_a_label_counts_in_neither_aggregation():
    params, x = network()

    def losses_fn(p, weight):
        losses = split_losses(p, x)
        return {**losses, "c": weight * jnp.sum(p["shared"] ** 4)}

    step = jax.jit(
        lambda weight: updated(mtl.fs_mtl(mtl.imtl_g(), 0.2), functools.partial(losses_fn, weight=weight), params)[0]
    )
    found = step(0.0)
    expected, _ = updated(mtl.fs_mtl(mtl.imtl_g(), 0.2), lambda p: split_losses(p, x), params)
    jax.tree.map(functools.partial(close, rtol=1e-4), found, expected)
    assert np.abs(step(1.0)["shared"] - found["shared"]).max() > 1e-3


def test_the_perturbed_pass_leaves_batch_statistics_alone():
    params, x = network()

    def losses_fn(p, statistics, x):
        z = x @ p["shared"]
        moved = 0.9 * statistics + 0.1 * z.mean(axis=0)
        return {"a": jnp.mean((z - z.mean(axis=0)) @ p["a"] ** 2), "b": jnp.mean((z @ p["b"]) ** 2)}, moved

    @functools.partial(jax.jit, static_argnums=0)
    def step(tx, params, statistics):
        (losses, moved), grads = mtl.task_gradients(losses_fn, params, statistics, x, has_aux=True)
        gradient, _ = tx.update(grads, tx.init(params), params, losses=losses)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient), moved

    flat, statistics = step(mtl.fs_mtl(mtl.imtl_g(), 5.0), params, jnp.ones(4))
    base, expected = step(mtl.imtl_g(), params, jnp.ones(4))
    np.testing.assert_allclose(statistics, expected, rtol=1e-6)
    np.testing.assert_allclose(statistics, 0.9 + 0.1 * (x @ params["shared"]).mean(axis=0), rtol=1e-5)
    assert np.abs(flat["shared"] - base["shared"]).max() > 1e-3
    later = step(mtl.fs_mtl(mtl.imtl_g(), 5.0), flat, statistics)[1]
    np.testing.assert_allclose(later, 0.9 * statistics + 0.1 * (x @ flat["shared"]).mean(axis=0), rtol=1e-5)


def test_one_perturbation_for_all_is_that_of_the_summed_loss():
    params, x = network()
    found, _ = updated(mtl.fs_mtl(mtl.ew(), 0.2, shared_perturbation=True), lambda p: split_losses(p, x), params)
    total = jax.grad(lambda p: sum(split_losses(p, x).values()))
    gradient = total(params)
    own = np.sqrt(sum(np.sum(np.square(gradient[task])) for task in "ab"))
    norms = {"shared": np.linalg.norm(gradient["shared"]), "a": own, "b": own}
    there = total({key: params[key] + 0.2 * gradient[key] / norms[key] for key in params})
    jax.tree.map(functools.partial(close, rtol=1e-4), found, there)
    direct, _ = updated(
        mtl.fs_mtl(mtl.ew(), 0.2, aggregate="direct", shared_perturbation=True), lambda p: split_losses(p, x), params
    )
    jax.tree.map(functools.partial(close, rtol=1e-4), direct, there)


# ---------------------------------------------------------------------------------------------------------------------
# Bases, states, cheaper variants

# A base that hands on the Jacobian it is given.
keeping = optax.GradientTransformationExtraArgs(
    lambda params: (), lambda grads, state, params=None, **_: (grads.jacobian(), state)
)
BASES = tuple(name for name in mtl.methods.names() if name != "fs_mtl")


@pytest.mark.parametrize("base", mostly_slow(BASES, quick=("graddrop", "uw")))
def test_every_method_is_a_base_with_two_states_of_its_own(base):
    """Two updates: the flat parts go through a second copy of the method that remembers them alone."""
    params, x = network()
    tx = mtl.methods.create("fs_mtl", 2, base=base, rho=0.2)
    plain, hand_on = mtl.methods.create(base, num_tasks=2), mtl.fs_mtl(keeping, 0.2, aggregate="direct")

    def both(x):
        state, of_losses, of_flat = tx.init(params), plain.init(params), plain.init(params)
        found, expected = [], []
        for index in range(2):
            losses, grads = mtl.task_gradients(split_losses, params, x[index])
            gradient, state = tx.update(grads, state, params, losses=losses)
            perturbed = hand_on.update(grads, hand_on.init(params), params)[0]
            flat = jax.tree.map(jnp.subtract, perturbed, grads.jacobian())
            first, of_losses = plain.update(grads, of_losses, params, losses=losses)
            second, of_flat = plain.update(grads.map(lambda _, f=flat: f), of_flat, params, losses=losses)
            found.append(gradient)
            expected.append(jax.tree.map(jnp.add, first, second))
        return found, expected

    found, expected = jax.jit(both)(jnp.stack([x, 2 * x + 1]))
    jax.tree.map(functools.partial(close, rtol=1e-3), found, expected)


def test_jit_compiles_once_and_a_state_resumes_bit_for_bit():
    params, x = network()
    tx = optax.chain(mtl.fs_mtl(mtl.nash_mtl(num_tasks=2), 0.2, num_tasks=2, perturb_every=2), optax.adam(1e-2))
    traces = []

    @jax.jit
    def step(params, state):
        traces.append(None)
        losses, grads = mtl.task_gradients(split_losses, params, x)
        updates, state = tx.update(grads, state, params, losses=losses)
        return optax.apply_updates(params, updates), state

    def run(carry, count):
        for _ in range(count):
            carry = step(*carry)
        return carry

    whole = run((params, tx.init(params)), 5)
    half = jax.device_get(run((params, tx.init(params)), 3))
    jax.tree.map(np.testing.assert_array_equal, run(half, 2), whole)
    assert len(traces) == 1
    assert mtl.task_weights(whole[1]).shape == (2,)


def test_a_kept_perturbation_adds_the_flat_parts_of_the_last_one():
    params, x = network()
    tx = mtl.fs_mtl(mtl.ew(num_tasks=2), 0.2, num_tasks=2, perturb_every=2)
    fresh = mtl.fs_mtl(mtl.ew(), 0.2)
    step = jax.jit(one_step(tx))
    hosted = jax.jit(
        lambda state, x, solve: tx.update(mtl.task_gradients(split_losses, params, x)[1], state, params, solve=solve),
        static_argnames="solve",
    )
    state = other = tx.init(params)
    first, state = step(params, state, x)
    again, other = hosted(other, x, True)
    jax.tree.map(functools.partial(close, rtol=1e-5), first, again)
    jax.tree.map(functools.partial(close, rtol=1e-5), first, one_step(fresh)(params, fresh.init(params), x)[0])
    second, state = step(params, state, 2 * x)
    again, other = hosted(other, 2 * x, False)
    jax.tree.map(functools.partial(close, rtol=1e-5), second, again)
    sums = [jax.grad(lambda p, x=x: sum(split_losses(p, x).values()))(params) for x in (x, 2 * x)]
    expected = jax.tree.map(lambda flat, old, new: flat - old + new, first, *sums)
    jax.tree.map(functools.partial(close, rtol=1e-4), second, expected)
    third, _ = step(params, state, 2 * x)
    jax.tree.map(functools.partial(close, rtol=1e-5), third, one_step(fresh)(params, fresh.init(params), 2 * x)[0])


@pytest.mark.slow
def test_several_batches_reach_a_base_that_asks_for_them():
    params, x = network()
    tx, plain = mtl.fs_mtl(mtl.modo(num_tasks=2), 0.2, num_tasks=2), mtl.modo(num_tasks=2)
    several = tuple(mtl.task_gradients(split_losses, params, x[i::3])[1] for i in range(3))
    found, state = tx.update(several, tx.init(params), params)
    first, _ = plain.update(several, plain.init(params), params)
    assert np.abs(found["shared"] - first["shared"]).max() > 1e-3
    one, _ = tx.update(several[0], tx.init(params), params)
    assert np.abs(found["shared"] - one["shared"]).max() > 1e-3
    assert int(state.step) == 1


@pytest.mark.slow
def test_it_scans_and_maps_over_radii():
    """One compiled program for a grid of ρ."""
    params, x = network()

    def after(rho):
        tx = optax.chain(mtl.fs_mtl(mtl.imtl_g(num_tasks=2), rho), optax.sgd(0.01))

        def step(carry, _):
            params, state = carry
            losses, grads = mtl.task_gradients(split_losses, params, x)
            updates, state = tx.update(grads, state, params, losses=losses)
            return (optax.apply_updates(params, updates), state), None

        return lax.scan(step, (params, tx.init(params)), None, 3)[0][0]["shared"]

    found = jax.jit(jax.vmap(after))(jnp.array([0.0, 0.1, 0.5]))
    assert np.all(np.isfinite(found))
    assert np.abs(found[0] - found[2]).max() > 1e-4
