"""What is no single gradient, no Jacobian or no loss of a task is answered with one sentence, never with numbers."""

import subprocess
import sys
import warnings

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from evaluable import given
from flax import nnx
from flax.training.train_state import TrainState
from marks import mostly_slow

import mtljax as mtl

NAMES = mtl.methods.names()
PARAMS = {"w": jnp.ones((3, 4)), "b": jnp.ones(3)}
MASK = {"w": True, "b": False}


def losses_fn(params):
    return {"a": jnp.sum(params["w"] ** 2) + jnp.sum(params["b"]), "c": jnp.sum(jnp.sin(params["w"]))}


def task_gradients():
    return mtl.task_gradients(losses_fn, PARAMS)[1]


def updated(tx):
    return lambda grads: tx.update(grads, tx.init(PARAMS), PARAMS)


def nnx_update(grads):
    model = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
    nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param).update(model, grads)


# Where one gradient is expected: what follows a method, and wrappers of one gradient around a method.
ONE_GRADIENT = {
    "TrainState": lambda grads: TrainState.create(apply_fn=None, params=PARAMS, tx=optax.adam(1e-3)).apply_gradients(
        grads=grads
    ),
    "nnx.Optimizer": nnx_update,
    "adam": updated(optax.adam(1e-3)),
    "sgd": updated(optax.sgd(1e-3)),
    "sgd with momentum": updated(optax.sgd(1e-3, momentum=0.9)),
    "adafactor": updated(optax.adafactor(1e-3)),
    "lion": updated(optax.lion(1e-3)),
    "muon": updated(optax.contrib.muon(1e-3)),
    "clip": updated(optax.clip(1.0)),
    "clip_by_global_norm": updated(optax.clip_by_global_norm(1.0)),
    "clip_by_block_rms": updated(optax.clip_by_block_rms(1.0)),
    "adaptive_grad_clip": updated(optax.adaptive_grad_clip(0.1)),
    "add_decayed_weights": updated(optax.add_decayed_weights(0.1)),
    "zero_nans": updated(optax.zero_nans()),
    "MultiSteps": updated(optax.MultiSteps(mtl.ew(), 2)),
    "masked": updated(optax.masked(mtl.ew(), MASK)),
    "multi_transform": updated(optax.multi_transform({"x": mtl.ew()}, {"w": "x", "b": "x"})),
    "apply_if_finite": updated(optax.apply_if_finite(mtl.ew(), 3)),
    "tree.norm": optax.tree.norm,
    "jit": lambda grads: jax.jit(task_gradients)(),
    "scan": lambda grads: jax.lax.scan(lambda carry, _: (carry, task_gradients()), 0, None, length=2),
    "arithmetic": lambda grads: 0.5 * grads,
    "jnp": jnp.sum,
    "numpy": np.asarray,
    "keys": lambda grads: grads["w"],
    "iteration": list,
}


@pytest.mark.parametrize("use", ONE_GRADIENT)
def test_task_gradients_in_place_of_one_gradient_explain_themselves(use):
    message = (
        r"these are the gradients of 2 tasks \(a, c\), not one gradient: put a method, such as mtl\.ew\(\), before the "
        r"other transformations in optax\.chain and no wrapper around it, or take the plain gradient of "
        r"mtl\.value_and_grad"
    )
    with pytest.raises(TypeError, match=message):
        ONE_GRADIENT[use](task_gradients())


def test_task_gradients_say_what_they_are():
    grads = mtl.task_gradients(losses_fn, PARAMS, mode="jacrev")[1]
    assert repr(grads) == "<TaskGradients of a, c: mode jacrev: asked for; 2 tasks, a Jacobian of 96 B>"
    assert repr(mtl.TaskGradients.from_jacobian(jnp.eye(3))) == "<TaskGradients: an explicit Jacobian of 3 tasks>"


LOSSES = jnp.ones(3)
PLAIN = {"w": jnp.ones((3, 4)), "b": jnp.ones(3)}  # the shapes of params: of one gradient
NO_JACOBIAN = {
    "a plain gradient": (PLAIN, PARAMS, r"a Jacobian needs a leading task axis.*got \(3,\).*the gradient of one loss"),
    "a plain gradient without params": ({"w": jnp.ones((2, 4)), "b": jnp.ones(3)}, None, "same leading task axis"),
    "leaves of other shapes": (jnp.ones((2, 1)), jnp.ones(3), r"\(K, 3\) at params, got \(2, 1\)"),
    "leaves that disagree on K": (
        {"w": jnp.ones((3, 3, 4)), "b": jnp.ones((2, 3))},
        PARAMS,
        "the same K on every leaf",
    ),
    "a scalar": ({"w": jnp.ones((3, 3, 4)), "b": jnp.ones(())}, PARAMS, "leading task axis"),
    "integers": ({"w": jnp.ones((3, 3, 4)), "b": jnp.ones((3, 3), int)}, PARAMS, r"\['b'\] has dtype int32"),
    "complex numbers": (jnp.ones((3, 3), complex), jnp.ones(3), "dtype complex64, expected floating point"),
    "gradients by task of other shapes": (
        {"a": {"w": jnp.ones(3)}, "b": {"w": jnp.ones(4)}, "c": {"w": jnp.ones(3)}},
        {"w": jnp.ones(3)},
        "must have the same shapes",
    ),
    "another tree": ({"x": jnp.ones((3, 3))}, PARAMS, "Jacobian with the structure of params"),
}


@pytest.mark.parametrize("name", [*mtl.methods.names(plain_jacobian=True), "per_task", "conflict_probe"])
def test_what_is_no_jacobian_is_refused_by_every_method(name):
    build = {
        "per_task": lambda: mtl.per_task(optax.scale(1.0), 3),
        "conflict_probe": lambda: mtl.analysis.conflict_probe(3),
    }.get(name, lambda: mtl.methods.create(name, num_tasks=3))
    tx = build()
    state = tx.init(PARAMS)
    for updates, params, message in NO_JACOBIAN.values():
        with pytest.raises(ValueError, match=f"{name}: .*{message}"):
            tx.update(updates, state, params, losses=LOSSES)


@pytest.mark.parametrize("name", mostly_slow(NAMES, ("adatask", "ew", "mgda")))
def test_a_second_method_in_a_chain_is_refused(name):
    tx = optax.chain(mtl.ew(), mtl.methods.create(name, num_tasks=2))
    grads = given(name, jnp.ones((2, 4))) if name == "fs_mtl" else mtl.TaskGradients.from_jacobian(jnp.ones((2, 4)))
    with pytest.raises(ValueError, match=r"a Jacobian needs a leading task axis.*only one method in a chain"):
        tx.update(grads, tx.init(jnp.ones(4)), jnp.ones(4), losses=jnp.ones(2))


def test_a_jacobian_by_task_is_read_by_the_names_of_the_losses():
    """Without params, a dict of gradients is told from a Jacobian of parameters in a dict by the losses."""
    by_task = {"b": jnp.array([1.0, 2.0]), "a": jnp.array([3.0, 4.0])}
    tx = mtl.scalarization([1.0, 10.0])
    gradient, _ = tx.update(by_task, tx.init(jnp.zeros(2)), losses={"a": 1.0, "b": 1.0})
    np.testing.assert_array_equal(gradient, [13.0, 24.0])


# ---------------------------------------------------------------------------------------------------------------------
# Losses


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        ({"a": {"x": jnp.ones(()), "y": jnp.ones(())}}, r"the loss of task 'a' is a dict of 2 values.*\['a'\]\['x'\]"),
        ({"a": [jnp.ones(())]}, r"the loss of task 'a' is a list of 1 values, the first at \['a'\]\[0\]"),
        ({"a": {}}, "the loss of task 'a' is a dict of 0 values"),
        ({"a": (jnp.ones(()), jnp.ones(2))}, r"the loss of task 'a' has shape \(2,\)"),
        ({"a": (jnp.ones(()), jnp.ones(()), 1)}, "is a tuple of 3 values"),
        ({"a": jnp.int32(3)}, "the loss of task 'a' has dtype int32"),
    ],
)
def test_a_loss_that_is_no_scalar_is_named_by_its_path(losses, message):
    with pytest.raises(ValueError, match=message):
        mtl.task_gradients(lambda p: losses, jnp.ones(3))


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("names", ["ab", "abc"])
def test_a_loss_that_depends_on_no_parameter_is_refused_with_both_cures(jit, names):
    def constant(p):
        return {name: jnp.sum(p["body"]) * p[name] if name != "b" else jnp.zeros(()) for name in names}

    params = {"body": jnp.ones(3), **{name: jnp.ones(()) for name in names}}
    evaluate = lambda p: mtl.task_gradients(constant, p)[1].gramian()  # noqa: E731
    with pytest.raises(ValueError, match=r"task 'b' depends on no parameter.*jnp\.where.*or pass shared="):
        (jax.jit(evaluate) if jit else evaluate)(params)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shared = mtl.task_gradients(constant, params, shared=lambda path: path[0].key == "body")[1]
    assert shared.shared["body"] is True
    masked = {"body": jnp.ones(3), "a": jnp.ones(()), "b": jnp.ones(())}
    grads = mtl.task_gradients(
        lambda p: {t: jnp.where(t == "a", jnp.sum(p["body"]) * p[t], 0 * p["body"].sum() * p[t]) for t in "ab"}, masked
    )[1]
    assert grads.shared == {"body": True, "a": False, "b": False}


def test_one_task_without_a_parameter_is_no_fault():
    with pytest.warns(UserWarning, match="no loss depends on the parameter"):
        mtl.task_gradients(lambda p: {"a": jnp.ones(())}, jnp.ones(3))


def network(p, x, penalty):
    z = jnp.tanh(x @ p["body"] + p["bias"])
    losses = {task: jnp.mean((z @ p[task] - 1) ** 2) for task in ("a", "b")}
    losses["a"] = jnp.mean((z @ p["a"] + p["a0"] - 1) ** 2)
    return {task: loss + penalty(p) for task, loss in losses.items()}


NETWORK = {"body": jnp.ones((3, 4)), "bias": jnp.ones(4), "a": jnp.ones(4), "b": jnp.ones(4), "a0": jnp.ones(1)}
PENALTIES = {
    "L2": lambda p: 1e-3 * sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(p)),
    "L1": lambda p: 1e-3 * sum(jnp.sum(jnp.abs(leaf)) for leaf in jax.tree.leaves(p)),
    "norm": lambda p: 1e-3 * optax.tree.norm(p),
    "products": lambda p: 1e-3 * sum(jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(p)),
    "raveled": lambda p: 1e-3 * jnp.sum(jax.flatten_util.ravel_pytree(p)[0] ** 2),
    "jitted": jax.jit(lambda p: 1e-3 * optax.tree.norm(p, squared=True)),
}


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("jit", [False, True])
def test_a_penalty_in_every_loss_is_told_once_and_names_the_heads(penalty, jit):
    x = jnp.arange(12.0).reshape(4, 3)
    evaluate = lambda p: mtl.task_gradients(network, p, x, PENALTIES[penalty])[0]  # noqa: E731
    evaluate = jax.jit(evaluate) if jit else evaluate
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            evaluate(NETWORK)
    assert len(caught) == 1
    message = str(caught[0].message)
    assert message.startswith("['a'], ['a0'], ['b'] would belong to one task, but a term in every loss")
    assert "regularizer= of mtl.value_and_grad" in message
    assert caught[0].filename == __file__


@pytest.mark.parametrize("penalty", ["none", "of the trunk", "of each head"])
def test_a_penalty_that_shares_no_head_is_no_fault(penalty):
    def losses_fn(p, x):
        losses = network(p, x, lambda p: jnp.sum(p["body"] ** 2) if penalty == "of the trunk" else 0.0)
        if penalty == "of each head":
            return {task: loss + jnp.sum(p[task] ** 2) for task, loss in losses.items()}
        return losses

    grads = mtl.task_gradients(losses_fn, NETWORK, jnp.ones((4, 3)))[1]
    assert grads.shared == {"body": True, "bias": True, "a": False, "b": False, "a0": False}


def test_losses_that_all_read_one_vector_are_no_penalty():
    quadratics = {"a": jnp.array([3.0, 1.0]), "b": jnp.array([-1.0, 2.0])}
    mtl.task_gradients(lambda p: {task: jnp.sum((p - centre) ** 2) for task, centre in quadratics.items()}, jnp.ones(2))
    matrix = jnp.ones((3, 2))
    mtl.task_gradients(lambda p: {"a": jnp.sum((matrix @ p) ** 2), "b": jnp.sum(p**2)}, jnp.ones(2))


# ---------------------------------------------------------------------------------------------------------------------
# Labels that are missing somewhere


def test_pairs_of_sum_and_count_are_exact_over_microbatches_and_devices():
    """Task b has labels in 12 of 32 rows, all in one of two microbatches, which take every other row."""
    x = jax.random.normal(jax.random.key(0), (32, 3))
    labelled = (jnp.arange(32) < 24) & (jnp.arange(32) % 2 == 0)
    params = {"body": jnp.eye(3), "a": jnp.ones(3), "b": jnp.ones(3)}

    def pairs(p, x, labelled):
        errors = {task: (jnp.tanh(x @ p["body"]) @ p[task] - 1) ** 2 for task in "ab"}
        return {"a": jnp.mean(errors["a"]), "b": (jnp.sum(errors["b"] * labelled), jnp.sum(labelled))}

    def means(p, x, labelled):
        losses = pairs(p, x, labelled)
        total, count = losses["b"]
        return {"a": losses["a"], "b": total / jnp.maximum(count, 1)}

    losses, grads = mtl.task_gradients(means, params, x, labelled)
    expected = losses, grads.jacobian(), grads.gramian()

    def read(losses_fn, *args, **options):
        losses, grads = mtl.task_gradients(losses_fn, *args, **options)
        return losses, grads.jacobian(), grads.gramian()

    def close(found):
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)

    close(read(pairs, params, x, labelled))
    close(read(mtl.accumulate(pairs, 4, argnums=(0, 1)), params, x, labelled))
    over = jax.pmap(lambda p, *batch: read(pairs, p, *batch, axis_name="i"), axis_name="i", in_axes=(None, 0, 0))
    close(jax.tree.map(lambda leaf: leaf[3], over(params, x.reshape(8, 4, 3), labelled.reshape(8, 4))))
    bare = mtl.accumulate(means, 2, argnums=(0, 1))(params, x, labelled)["b"]
    np.testing.assert_allclose(bare, expected[0]["b"] / 2, rtol=1e-5)  # what a mean over each part's labels costs


# ---------------------------------------------------------------------------------------------------------------------
# Hyperparameters


def hyperparameters():
    """Every hyperparameter that is a number or true or false, of every method."""
    import inspect

    for name in NAMES:
        for parameter in inspect.signature(mtl.methods.describe(name).build).parameters.values():
            if isinstance(parameter.default, (bool, int, float)):
                yield name, parameter.name, isinstance(parameter.default, bool)


@pytest.mark.parametrize(("name", "argument", "is_bool"), list(hyperparameters()))
def test_hyperparameters_of_the_wrong_type_are_one_sentence(name, argument, is_bool):
    build = mtl.methods.describe(name).build
    for wrong in ("0.4", [0.1, "x"], {}, object()) if not is_bool else ("false", 0.5, None):
        with pytest.raises(ValueError, match=rf"^{name}: {argument} must be "):
            build(num_tasks=2, **{argument: wrong})
    if not is_bool and argument not in ("seed", "iterations"):
        with pytest.raises(ValueError, match=rf"^{name}: {argument} must be .*, got nan"):
            build(num_tasks=2, **{argument: float("nan")})


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("wrong", ["3", 0, -1, 2.5, True, (1, 2), {}])
def test_a_wrong_number_of_tasks_is_one_sentence(name, wrong):
    with pytest.raises(ValueError, match=f"^{name}: num_tasks must be at least 1, a whole number, got"):
        mtl.methods.describe(name).build(num_tasks=wrong)


def test_learning_rates_are_checked_and_k_is_given_once():
    with pytest.raises(ValueError, match="gradnorm: learning_rate must be >= 0 and finite, got -1"):
        mtl.gradnorm(learning_rate=-1.0, num_tasks=2)
    with pytest.raises(ValueError, match=r"num_tasks=3 needs as many weights, got 2"):
        mtl.scalarization([1.0, 2.0], num_tasks=3)
    with pytest.raises(TypeError, match="multiple values for argument 'num_tasks'"):
        mtl.methods.create("cagrad", 2, num_tasks=3)
    for name in ("pcgrad", "rlw", "gradvac", "graddrop"):
        with pytest.raises(ValueError, match=f"{name}: seed must be a whole number, got nan"):
            mtl.methods.describe(name).build(seed=float("nan"), num_tasks=2)
    for name in ("famo", "imtl", "imtl_l", "uw", "gradnorm"):
        with pytest.raises(ValueError, match=f"{name}: optimizer must be an optax transformation, got 'adam'"):
            mtl.methods.describe(name).build(optimizer="adam", num_tasks=2)
    with pytest.raises(ValueError, match="mgda: update_every must be a positive Python int, got True"):
        mtl.mgda(update_every=True, num_tasks=2)
    with pytest.raises(ValueError, match="unknown option of method cagrad 'num_task'"):
        mtl.methods.create("cagrad", 2, num_task=3)
    tx = mtl.fs_mtl(mtl.cagrad(num_tasks=2))
    with pytest.raises(ValueError, match="cagrad: built with num_tasks=2, but got the gradients of 3"):
        tx.update(given("fs_mtl", jnp.ones((3, 4))), tx.init(jnp.ones(4)))


def test_importing_mtljax_imports_nothing_of_the_laboratory():
    """Only what gradients and methods need: jax, optax, numpy and what these import themselves."""
    program = (
        "import sys, jax, optax, numpy; before = set(sys.modules); import mtljax; "
        "print(sorted({name.split('.')[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "['jax', 'mtljax']"
