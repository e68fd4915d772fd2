"""One pure train step, the same on one device and on many, and the evaluation of a batch."""

from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jax import lax

from mtljax.data.batches import Batch
from mtljax.gradients import Mode, task_gradients
from mtljax.methods import task_weights
from mtljax.models import MultiTaskModel
from mtljax.tasks import Task, mean_loss, mean_metric, metric_sums
from mtljax.training.state import TrainState, observe

PyTree = Any
Metrics = dict[str, Any]


def make_step(
    model: MultiTaskModel,
    tasks: Mapping[str, Task],
    tx: optax.GradientTransformationExtraArgs,
    *,
    mode: Mode = "auto",
    axis_name: str | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Builds the step `(state, batch) -> (state, metrics)`.

    Args:
      model: the network.
      tasks: the tasks by name; they must be those of the model's heads.
      tx: a method followed by an optimizer.
      mode: see `task_gradients`.
      axis_name: axis of pmap or shard_map over which the batch is split.

    Returns:
      A pure function. Its metrics are `losses` (dict by task) and `weights` ((K,) or None).

    Raises:
      ValueError: if tasks and heads differ.
    """
    if set(tasks) != set(model.heads):
        raise ValueError(f"the losses are for {sorted(tasks)}, but the model has heads for {sorted(model.heads)}")

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(state.key, state.step)
        if axis_name is not None:
            key = jax.random.fold_in(key, lax.axis_index(axis_name))

        def losses_fn(params: PyTree) -> tuple[dict[str, jax.Array], PyTree]:
            outputs, model_state = model.apply(
                params, state.model_state, jnp.asarray(batch.inputs), train=True, key=key
            )
            losses = {name: mean_loss(task, outputs[name], batch.targets[name]) for name, task in tasks.items()}
            return losses, model_state

        (losses, model_state), grads = task_gradients(
            losses_fn, state.params, mode=mode, axis_name=axis_name, has_aux=True
        )
        updates, opt_state = tx.update(cast(Any, grads), state.opt_state, state.params, losses=losses)
        if axis_name is not None:
            model_state = lax.pmean(model_state, axis_name)
        assert grads.losses is not None
        new_state = TrainState(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            model_state=model_state,
            opt_state=opt_state,
            key=state.key,
            monitor=observe(state.monitor, grads.losses.astype(jnp.float32), state.step + 1),
        )
        return new_state, {"losses": losses, "weights": task_weights(opt_state)}

    return step


def make_evaluation(
    model: MultiTaskModel, tasks: Mapping[str, Task]
) -> Callable[[PyTree, PyTree, Batch], dict[str, PyTree]]:
    """Builds `(params, model_state, batch) -> sums`, additive over batches.

    Args:
      model: the network.
      tasks: the tasks by name.

    Returns:
      A pure function that leaves out the examples the batch masks. The sums hold, by task, those of each metric and of
      the loss.
    """

    def evaluate(params: PyTree, model_state: PyTree, batch: Batch) -> dict[str, PyTree]:
        outputs, _ = model.apply(params, model_state, jnp.asarray(batch.inputs))
        sums, mask = {}, jnp.asarray(batch.mask)
        for name, task in tasks.items():
            targets = batch.targets[name]
            loss = mean_metric("loss", task.loss, higher_is_better=False)
            sums[name] = metric_sums(task, outputs[name], targets, mask)
            sums[name]["loss"] = loss.sums(outputs[name], targets, mask * task.valid(targets))
        return sums

    return evaluate
