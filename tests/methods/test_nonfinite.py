"""One bad batch must not stay: NaN, infinities and numbers whose square overflows, in a gradient or a loss."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from evaluable import given
from marks import mostly_slow
from samplers import conflicting
from trajectories import OPTIONS

import mtljax as mtl
from mtljax.methods import MethodState

NAMES = mtl.methods.names()
K, SIZE, STEPS = 3, 5, 7
WHEN = (0, 3)
VALUES = {"nan": np.nan, "inf": np.inf, "-inf": -np.inf, "huge": 1e25}
CASES = [(value, place, when) for value in VALUES for place in ("gradient", "loss") for when in WHEN]
JACOBIANS = np.stack([conflicting(K, SIZE, step) for step in range(STEPS)]).astype(np.float32)
LOSSES = (np.array([0.5, 2.0, 1.0]) * np.array([0.8, 0.9, 0.95]) ** np.arange(STEPS)[:, None]).astype(np.float32)


def sequences():
    """Those with a bad step, one a case, and for each `when` the one that never saw it, one step more at its end."""
    jacobians, losses = [], []
    for value, place, when in CASES:
        jacobian, loss = JACOBIANS.copy(), LOSSES.copy()
        if place == "gradient":
            jacobian[when, 1, 2] = VALUES[value]
        else:
            loss[when, 1] = VALUES[value]
        jacobians.append(jacobian)
        losses.append(loss)
    for when in WHEN:
        steps = [*range(when), *range(when + 1, STEPS), STEPS - 1]
        jacobians.append(JACOBIANS[steps])
        losses.append(LOSSES[steps])
    return np.stack(jacobians), np.stack(losses)


VARIANTS = {
    "plain": lambda name: mtl.methods.create(name, num_tasks=K, **OPTIONS.get(name, {})),
    "fs_mtl": lambda name: mtl.methods.create("fs_mtl", K, base=name, base_options=OPTIONS.get(name, {}), rho=0.1),
    "update_every": lambda name: mtl.methods.create(name, num_tasks=K, update_every=2, **OPTIONS.get(name, {})),
}
FLAT = {
    "direct": {"aggregate": "direct"},
    "second": {"aggregate": "second"},
    "each": {"aggregate": "each"},
    "perturb_every": {"perturb_every": 2},
    "shared": {"aggregate": "direct", "shared_perturbation": True},
}
VARIANTS |= {
    f"fs_mtl {kind}": lambda name, options=options: mtl.methods.create("fs_mtl", K, base=name, rho=0.1, **options)
    for kind, options in FLAT.items()
}
VARIANTS["injected"] = lambda name: optax.inject_hyperparams(mtl.methods.describe(name).build, static_args="num_tasks")(
    num_tasks=K
)
GRAMIAN = [name for name in NAMES if mtl.methods.describe(name).needs == "gramian"]
BASES = [name for name in NAMES if name not in ("fs_mtl", "modo", "sdmgrad")]
CHECKED = [
    *(("plain", name) for name in NAMES),
    *mostly_slow([("fs_mtl", name) for name in BASES], quick=[("fs_mtl", "adatask"), ("fs_mtl", "uw")]),
    *mostly_slow([("update_every", name) for name in GRAMIAN], quick=[("update_every", "gradvac")]),
    *mostly_slow([(f"fs_mtl {kind}", name) for kind in FLAT for name in ("gradvac", "adatask")], quick=[]),
    *mostly_slow([("injected", name) for name in ("adatask", "excess_mtl", "gradvac", "moco", "uw")], quick=[]),
]


class Outcome(NamedTuple):
    """What became of one bad step: `kept` and `same` are None where the method could make a finite step of it."""

    case: tuple[str, str, int]
    bad: bool  # the step's output is not finite
    kept: bool | None  # the state after it is the one before it
    same: bool | None  # the other steps equal those of a run that never saw it
    finite: bool  # everything after it is finite


def outcomes(tx, source):
    """What becomes of each of the cases, in one program; `source` is the method that `given` makes gradients for."""

    def one(jacobians, losses):
        def step(state, inputs):
            gradient, after = tx.update(given(source, *inputs), state, losses=inputs[1])
            # What inject_hyperparams counts is its own.
            return after, (gradient, getattr(state, "inner_state", state), getattr(after, "inner_state", after))

        return jax.lax.scan(step, tx.init(jnp.zeros(SIZE)), (jacobians, losses))[1]

    gradients, before, after = jax.tree.map(np.asarray, jax.jit(jax.vmap(one))(*sequences()))
    states = list(zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True))
    remembers = any(leaf is not None for leaf in memories(tx.init(jnp.zeros(SIZE))))
    for i, case in enumerate(CASES):
        when = case[2]
        bad = not np.all(np.isfinite(gradients[i, when]))
        others, never = np.delete(gradients[i], when, axis=0), gradients[len(CASES) + WHEN.index(when)]
        yield Outcome(
            case,
            bad,
            kept=all(np.array_equal(new[i, when], old[i, when]) for old, new in states) if bad and remembers else None,
            # Lanes of one vectorised program round differently; a batch that stays moves the steps by far more.
            same=np.allclose(others, never[: STEPS - 1], rtol=1e-4, atol=1e-5) if bad else None,
            finite=bool(np.isfinite(others).all() and all(np.isfinite(new[i]).all() for _, new in states)),
        )


@pytest.mark.parametrize("checked", CHECKED, ids=" ".join)
def test_a_bad_step_is_not_finite_and_leaves_no_trace(checked):
    variant, name = checked
    for outcome in outcomes(VARIANTS[variant](name), "fs_mtl" if variant.startswith("fs_mtl") else name):
        assert outcome.bad or outcome.case[0] == "huge", outcome
        assert outcome.kept is not False, outcome
        assert outcome.same is not False, outcome
        assert outcome.finite, outcome


def memories(state):
    """What the methods inside a state remember: memory and key; of reused weights, the later steps tell."""
    states = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, MethodState))
    return [part for each in states if isinstance(each, MethodState) for part in (each.memory, each.key)]


CHAINS = {
    **{name: functools.partial(mtl.methods.create, name, 2) for name in NAMES},
    "per_task": lambda: optax.chain(mtl.per_task(optax.scale_by_adam(), 2), mtl.ew()),
    "per_task momentum": lambda: optax.chain(mtl.per_task(optax.trace(0.9), 2), mtl.upgrad()),
}
QUICK = ("adatask", "db_mtl", "excess_mtl", "moco", "mtl_io", "per_task", "rlw")


@pytest.mark.parametrize("name", mostly_slow(CHAINS, QUICK))
def test_a_run_that_skips_a_batch_equals_one_that_never_saw_it(name):
    """A whole network with heads, behind it Adam that skips what is not finite."""
    tx = optax.chain(CHAINS[name](), optax.apply_if_finite(optax.adam(1e-2), 5))
    keys = jax.random.split(jax.random.key(0), 3)
    params = {"body": jax.random.normal(keys[0], (4, 4)), "a": jnp.ones(4), "b": jnp.ones(4)}
    batches = jax.random.normal(keys[1], (8, 16, 4))

    def losses_fn(p, x):
        z = jnp.tanh(x @ p["body"])
        return {"a": jnp.mean((z @ p["a"] - 1) ** 2), "b": jnp.mean((z @ p["b"] + x[:, 0]) ** 2)}

    @jax.jit
    def run(batches):
        def step(carry, x):
            losses, grads = mtl.task_gradients(losses_fn, carry[0], x)
            updates, state = tx.update(grads, carry[1], carry[0], losses=losses)
            return (optax.apply_updates(carry[0], updates), state), None

        return jax.lax.scan(step, (params, tx.init(params)), batches)[0][0]

    seen = run(batches.at[3, 5, 0].set(jnp.nan))
    never = run(jnp.concatenate([batches[:3], batches[4:], batches[:1]]))
    shorter = run(jnp.concatenate([batches[:3], batches[4:], batches[:1].at[0, 0, 0].set(jnp.inf)]))
    jax.tree.map(np.testing.assert_array_equal, seen, shorter)
    assert any(np.any(a != b) for a, b in zip(jax.tree.leaves(seen), jax.tree.leaves(never), strict=True))
