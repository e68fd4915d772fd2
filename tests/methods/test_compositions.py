"""Optimizers a task, and the sign of the momentum, as chains of `per_task`, a method and optax: equal to loops."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from samplers import gaussian

import mtljax as mtl
from mtljax.training.optimizers import signsgd

K, D, RATE = 3, 5, 0.1
JACOBIANS = [gaussian(K, D, seed) for seed in range(8)]


def run(tx):
    """The updates of a chain, in float64."""
    with jax.enable_x64(True):
        state = tx.init(jnp.zeros(D))
        found = []
        for jacobian in JACOBIANS:
            update, state = tx.update(jnp.asarray(jacobian), state, jnp.zeros(D))
            found.append(np.asarray(update))
    return found


def adam_a_task(b1=0.9, b2=0.999, eps=1e-8):
    first, second = np.zeros((K, D)), np.zeros((K, D))
    for t, jacobian in enumerate(JACOBIANS, 1):
        step = np.zeros(D)
        for k in range(K):
            first[k] = b1 * first[k] + (1 - b1) * jacobian[k]
            second[k] = b2 * second[k] + (1 - b2) * jacobian[k] ** 2
            step += first[k] / (1 - b1**t) / (np.sqrt(second[k] / (1 - b2**t)) + eps)
        yield -RATE * step


def sgd_a_task(momentum=0.9):
    traces = np.zeros((K, D))
    for jacobian in JACOBIANS:
        step = np.zeros(D)
        for k in range(K):
            traces[k] = jacobian[k] + momentum * traces[k]
            step += traces[k]
        yield -RATE * step


def sign_of_momentum(momentum=0.9):
    trace = np.zeros(D)
    for jacobian in JACOBIANS:
        trace = jacobian.sum(axis=0) + momentum * trace
        yield -RATE * np.sign(trace)


def sign_of_momentum_a_task(momentum=0.9):
    traces = np.zeros((K, D))
    for jacobian in JACOBIANS:
        traces = jacobian + momentum * traces
        yield -RATE * np.sign(traces).sum(axis=0)


@pytest.mark.parametrize(
    ("chain", "loop"),
    [
        ((mtl.per_task(optax.scale_by_adam(), K), mtl.ew(), optax.scale(-RATE)), adam_a_task),
        ((mtl.adatask(num_tasks=K), optax.sgd(RATE)), adam_a_task),
        ((mtl.per_task(optax.trace(0.9), K), mtl.ew(), optax.scale(-RATE)), sgd_a_task),
        ((mtl.mtl_io(num_tasks=K), optax.sgd(RATE)), sgd_a_task),
        ((mtl.ew(), optax.trace(0.9), optax.scale_by_sign(), optax.scale(-RATE)), sign_of_momentum),
        ((mtl.ew(), signsgd(RATE)), sign_of_momentum),
        ((mtl.ew(), optax.lion(RATE, b1=0.9, b2=0.9, weight_decay=0.0)), sign_of_momentum),
        (
            (mtl.per_task(optax.chain(optax.trace(0.9), optax.scale_by_sign()), K), mtl.ew(), optax.scale(-RATE)),
            sign_of_momentum_a_task,
        ),
    ],
    ids=["adam", "adatask", "sgd", "mtl_io", "sign", "signsgd", "lion", "sign a task"],
)
def test_a_chain_takes_the_steps_of_a_loop(chain, loop):
    for found, expected in zip(run(optax.chain(*chain)), loop(), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)


def test_one_sgd_a_task_is_one_sgd_on_the_sum():
    """Linear: what individual optimizers change lies in the nonlinear ones."""
    together = run(optax.chain(mtl.ew(), optax.sgd(RATE, momentum=0.9)))
    np.testing.assert_allclose(list(sgd_a_task()), together, rtol=1e-10, atol=1e-12)
