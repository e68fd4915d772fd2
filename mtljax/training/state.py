"""The state of a run: everything a checkpoint needs to continue bit for bit."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

PyTree = Any


class Monitor(NamedTuple):
    """What the compiled step watches, so that the host need not look at every step.

    Attributes:
      loss_sum: (K,) sum of the losses since the last training record.
      steps: int32, steps in that sum.
      last_finite: (K,) the losses of the last step at which all were finite.
      bad_step: int32, the first step with a NaN or infinite loss, counted from 1; -1 for none.
      bad_losses: (K,) the losses at that step.
    """

    loss_sum: jax.Array
    steps: jax.Array
    last_finite: jax.Array
    bad_step: jax.Array
    bad_losses: jax.Array


class TrainState(NamedTuple):
    """The state of a run.

    Attributes:
      step: int32, updates so far; with the seed it determines the position in the data.
      params: `{"shared": ..., "heads": {task: ...}}`.
      model_state: batch statistics and the like, {} when there are none.
      opt_state: state of the method and the optimizer, hyperparameters included.
      key: uint32 PRNG key; dropout at step t uses it folded with t.
      monitor: see `Monitor`.
      losses_after: (K,) losses of the last batch at the parameters it led to, for methods that want them; else None.
      loss_scales: (K,) factors on the losses, in the order of the sorted tasks, so that runs which differ in them share
        a program; None for no factors.
    """

    step: jax.Array
    params: PyTree
    model_state: PyTree
    opt_state: PyTree
    key: jax.Array
    monitor: Monitor
    losses_after: jax.Array | None = None
    loss_scales: jax.Array | None = None


def new_monitor(num_tasks: int) -> Monitor:
    """A monitor that has seen nothing."""
    # Each field gets its own buffer: the step donates its state.
    return Monitor(
        loss_sum=jnp.zeros(num_tasks),
        steps=jnp.zeros((), jnp.int32),
        last_finite=jnp.full(num_tasks, jnp.nan, jnp.float32),
        bad_step=jnp.full((), -1, jnp.int32),
        bad_losses=jnp.zeros(num_tasks),
    )


def observe(monitor: Monitor, losses: jax.Array, step: jax.Array) -> Monitor:
    """The monitor after the (K,) losses of a step, counted from 1."""
    finite = jnp.all(jnp.isfinite(losses))
    first_bad = ~finite & (monitor.bad_step < 0)
    return Monitor(
        loss_sum=monitor.loss_sum + losses,
        steps=monitor.steps + 1,
        last_finite=jnp.where(finite & (monitor.bad_step < 0), losses, monitor.last_finite),
        bad_step=jnp.where(first_bad, step, monitor.bad_step),
        bad_losses=jnp.where(first_bad, losses, monitor.bad_losses),
    )


def restarted(monitor: Monitor) -> Monitor:
    """The monitor with an empty sum, after a training record was written."""
    return monitor._replace(loss_sum=jnp.zeros_like(monitor.loss_sum), steps=jnp.zeros_like(monitor.steps))
