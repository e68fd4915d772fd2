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
    batches: int = 1,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Builds the step `(state, batch) -> (state, metrics)`.

    Args:
      model: the network.
      tasks: the tasks by name; they must be those of the model's heads.
      tx: a method followed by an optimizer.
      mode: see `task_gradients`.
      axis_name: axis of pmap or shard_map over which the batch is split.
      batches: how many independent batches the method wants: the batch is cut into as many.

    Returns:
      A pure function. A state that holds `losses_after` gets them anew at each step, for one more forward pass. Its
      metrics are `losses` (dict by task) and `weights` ((K,) or None).

    Raises:
      ValueError: if tasks and heads differ.
    """
    if set(tasks) != set(model.heads):
        raise ValueError(f"the losses are for {sorted(tasks)}, but the model has heads for {sorted(model.heads)}")

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(state.key, state.step)
        if axis_name is not None:
            key = jax.random.fold_in(key, lax.axis_index(axis_name))

        def losses_fn(params: PyTree, model_state: PyTree, part: Batch) -> tuple[dict[str, jax.Array], PyTree]:
            outputs, model_state = model.apply(params, model_state, jnp.asarray(part.inputs), train=True, key=key)
            return {
                name: mean_loss(task, outputs[name], part.targets[name]) for name, task in tasks.items()
            }, model_state

        model_state, every_losses, every_grads = state.model_state, [], []
        for part in _parts(batch, batches):
            (losses, model_state), grads = task_gradients(
                losses_fn, state.params, model_state, part, mode=mode, axis_name=axis_name, has_aux=True
            )
            every_losses.append(losses)
            every_grads.append(grads)
        losses = jax.tree.map(lambda *values: sum(values) / batches, *every_losses)
        updates, opt_state = tx.update(
            cast(Any, tuple(every_grads) if batches > 1 else every_grads[0]),
            state.opt_state,
            state.params,
            losses=losses,
            losses_after=state.losses_after,
        )
        params = optax.apply_updates(state.params, updates)
        losses_after = None
        if state.losses_after is not None:
            losses_after = _vector(losses_fn(params, state.model_state, batch)[0])
        if axis_name is not None:
            model_state, losses_after = lax.pmean((model_state, losses_after), axis_name)
        new_state = TrainState(
            step=state.step + 1,
            params=params,
            model_state=model_state,
            opt_state=opt_state,
            key=state.key,
            monitor=observe(state.monitor, _vector(losses), state.step + 1),
            losses_after=losses_after,
        )
        return new_state, {"losses": losses, "weights": task_weights(opt_state)}

    return step


def _parts(batch: Batch, count: int) -> list[Batch]:
    """A batch cut into pieces whose sizes differ by at most one."""
    if count == 1:
        return [batch]
    size = len(batch.inputs)
    cuts = [size * i // count for i in range(count + 1)]
    return [jax.tree.map(lambda leaf, i=i: leaf[cuts[i] : cuts[i + 1]], batch) for i in range(count)]


def _vector(losses: Mapping[str, jax.Array]) -> jax.Array:
    return jnp.stack([losses[name] for name in sorted(losses)]).astype(jnp.float32)


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
