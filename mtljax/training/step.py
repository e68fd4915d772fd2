"""One pure train step, the same on one device and on many, and the evaluation of a batch."""

import logging
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jax import lax

from mtljax.data.batches import Batch
from mtljax.gradients import Mode, Reduce, SplitLosses, accumulate, mask, split, task_gradients
from mtljax.methods import task_weights
from mtljax.models import MultiTaskModel
from mtljax.tasks import Task, loss_sum, mean_loss, mean_metric, metric_sums
from mtljax.training.state import TrainState, observe

PyTree = Any
Metrics = dict[str, Any]
_LOG = logging.getLogger("mtljax")


class Engine(NamedTuple):
    """How the gradients of a step are computed; see `task_gradients` and `mtljax.accumulate`.

    Attributes:
      mode: "auto", "jacrev", "loop", "two_pass" or "features".
      subset: a regular expression searched in the paths of the shared parameters, such as "shared/Dense_0": those that
        match enter the Gramian. None for all.
      trainable: the same for the parameters that are trained.
      accumulate: microbatches a step.
      axis_name: axis of pmap or shard_map over which the batch is split.
      reduce: "mean" or "scatter", how the Jacobian is averaged over it.
    """

    mode: Mode = "auto"
    subset: str | None = None
    trainable: str | None = None
    accumulate: int = 1
    axis_name: str | None = None
    reduce: Reduce = "mean"


def make_step(
    model: MultiTaskModel,
    tasks: Mapping[str, Task],
    tx: optax.GradientTransformationExtraArgs,
    *,
    engine: Engine | None = None,
    batches: int = 1,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Builds the step `(state, batch, solve=None) -> (state, metrics)`.

    Args:
      model: the network.
      tasks: the tasks by name; they must be those of the model's heads.
      tx: a method followed by an optimizer.
      engine: how gradients are computed, None for the defaults.
      batches: how many independent batches the method wants: the batch is cut into as many.

    Returns:
      A pure function; `solve` is that of the method's `update`. A state that holds `losses_after` gets them anew at
      each step, for one more forward pass. Its metrics are `losses` (dict by task, unscaled) and `weights` ((K,) or
      None).

    Raises:
      ValueError: if tasks and heads differ.
    """
    if set(tasks) != set(model.heads):
        raise ValueError(f"the losses are for {sorted(tasks)}, but the model has heads for {sorted(model.heads)}")
    engine = engine or Engine()
    losses_fn = accumulate(task_losses(model, tasks), engine.accumulate, argnums=(1, 2))
    axis_name = engine.axis_name
    options: dict[str, Any] = {"mode": engine.mode, "axis_name": axis_name, "reduce": engine.reduce}
    options |= {"subset": _matches(engine.subset), "trainable": _matches(engine.trainable)}

    def step(state: TrainState, batch: Batch, solve: bool | None = None) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(state.key, state.step)
        if axis_name is not None:
            key = jax.random.fold_in(key, lax.axis_index(axis_name))
        scales = None if state.loss_scales is None else dict(zip(sorted(tasks), state.loss_scales, strict=True))
        model_state, every_losses, every_grads = state.model_state, [], []
        for index, part in enumerate(_parts(batch, batches)):
            part_key = key if batches == 1 else jax.random.fold_in(key, index)
            keys = jax.random.split(part_key, engine.accumulate)
            (losses, model_state), grads = task_gradients(
                losses_fn, state.params, model_state, part, keys, scales, has_aux=True, **options
            )
            _LOG.info(grads.explanation())  # said when a step is traced, not at each
            every_losses.append(losses)
            every_grads.append(grads)
        losses = jax.tree.map(lambda *values: sum(values) / batches, *every_losses)
        updates, opt_state = tx.update(
            cast(Any, tuple(every_grads) if batches > 1 else every_grads[0]),
            state.opt_state,
            state.params,
            losses=losses,
            losses_after=state.losses_after,
            solve=solve,
        )
        if options["trainable"] is not None:  # weight decay moves parameters without a gradient
            trained = mask("trainable", options["trainable"], updates)
            updates = jax.tree.map(lambda leaf, train: leaf if train else jnp.zeros_like(leaf), updates, trained)
        params = optax.apply_updates(state.params, updates)
        losses_after = None
        if state.losses_after is not None:
            losses_after = _vector(every_grads[-1].losses_at(params))
        if axis_name is not None:
            model_state = lax.pmean(model_state, axis_name)
        if scales is not None:
            losses = {name: loss / scales[name] for name, loss in losses.items()}
        new_state = TrainState(
            step=state.step + 1,
            params=params,
            model_state=model_state,
            opt_state=opt_state,
            key=state.key,
            monitor=observe(state.monitor, _vector(losses), state.step + 1),
            losses_after=losses_after,
            loss_scales=state.loss_scales,
        )
        return new_state, {"losses": losses, "weights": task_weights(opt_state)}

    return step


def task_losses(model: MultiTaskModel, tasks: Mapping[str, Task]) -> SplitLosses:
    """The losses of a network, split at the representation.

    Args:
      model: the network.
      tasks: the tasks by name.

    Returns:
      `(params, model_state, batch, keys, scales=None) -> ({task: (sum, count)}, model_state)`: `keys` holds one key of
      dropout along a leading axis, `scales` factors on the losses.
    """

    def encode(params: PyTree, model_state: PyTree, batch: Batch, keys: jax.Array, scales: PyTree = None) -> PyTree:
        del scales
        return model.encode(params, model_state, jnp.asarray(batch.inputs), train=True, key=keys[0])

    def heads(
        params: PyTree, encoded: PyTree, model_state: PyTree, batch: Batch, keys: jax.Array, scales: PyTree = None
    ) -> tuple[dict[str, tuple[jax.Array, jax.Array]], PyTree]:
        del model_state, keys
        representation, updated = encoded
        outputs = model.decode(params, representation)
        losses = {}
        for name, task in tasks.items():
            total, count = loss_sum(task, outputs[name], batch.targets[name])
            losses[name] = (total if scales is None else scales[name] * total, count)
        return losses, updated

    return split(encode, heads)


def _matches(expression: str | None) -> Callable[[tuple[Any, ...]], bool] | None:
    """A predicate on key paths, such as shared/Dense_0/kernel; None for no expression."""
    if expression is None:
        return None
    pattern = re.compile(expression)
    return lambda path: bool(pattern.search(jax.tree_util.keystr(path, simple=True, separator="/")))


def _parts(batch: Batch, count: int) -> list[Batch]:
    """A batch cut into pieces whose sizes differ by at most one."""
    if count == 1:
        return [batch]
    size = len(batch.inputs)
    cuts = [size * i // count for i in range(count + 1)]
    return [jax.tree.map(lambda leaf, i=i: leaf[cuts[i] : cuts[i + 1]], batch) for i in range(count)]


def _vector(losses: Mapping[str, jax.Array]) -> jax.Array:
    return jnp.stack([losses[name] for name in sorted(losses)]).astype(jnp.float32)


def example_losses(model: MultiTaskModel, tasks: Mapping[str, Task]) -> Callable[..., dict[str, jax.Array]]:
    """Builds `(params, (model_state, scales), batch) -> {task: loss}`, for the gradients of single examples.

    As in an evaluation: running averages of batch statistics, no dropout. An example without a label has loss 0.
    """

    def losses(params: PyTree, rest: tuple[PyTree, jax.Array | None], batch: Batch) -> dict[str, jax.Array]:
        model_state, scales = rest
        outputs, _ = model.apply(params, model_state, jnp.asarray(batch.inputs))
        losses = {name: mean_loss(tasks[name], outputs[name], batch.targets[name]) for name in sorted(tasks)}
        if scales is None:
            return losses
        return {name: scale * loss for (name, loss), scale in zip(losses.items(), scales, strict=True)}

    return losses


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
