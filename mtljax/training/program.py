"""Everything of a run that is compiled: model, tasks, the step, the evaluation. Runs of one structure share it."""

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from mtljax import methods, models
from mtljax import tasks as task_kinds
from mtljax.data import MultiTaskData, Split
from mtljax.data.batches import batch_indices, epoch_permutation, evaluation_batches, position, steps_per_epoch, take
from mtljax.errors import unknown
from mtljax.models import MultiTaskModel
from mtljax.tasks import Task, metric_values
from mtljax.training import parallel
from mtljax.training.config import TrainConfig, to_dict
from mtljax.training.optimizers import base_of, by_task, injects_base, numbers, resolved, solve_every, transformation
from mtljax.training.state import TrainState, new_monitor
from mtljax.training.step import Engine, example_losses, make_evaluation, make_step

PyTree = Any
EVALUATION_BATCH = 1000


class Program(NamedTuple):
    """The compiled functions of a run and what they were made from.

    Attributes:
      model: the network.
      tasks: the tasks by name.
      devices: where it trains.
      steps_per_epoch: updates an epoch.
      advance: `(state, split, permutation, solve) -> (state, metrics)` on the devices.
      solve_every: steps between the method's solves; the host passes `solve` accordingly, so that the steps between
        compile to a program of their own, with one backward pass.
      shuffle: `(key, epoch) -> permutation` of the training examples.
      evaluation: how it is evaluated.
      draw: `seed -> (params, model_state)`, the network before the first step, in host memory.
      losses: `(params, (model_state, loss_scales), batch) -> {task: loss}` of single examples, for probes.
    """

    model: MultiTaskModel
    tasks: Mapping[str, Task]
    devices: parallel.Devices
    steps_per_epoch: int
    advance: Callable[..., Any]
    solve_every: int
    shuffle: Callable[..., jax.Array]
    evaluation: "Evaluation"
    draw: Callable[[int], tuple[PyTree, PyTree]]
    losses: Callable[..., dict[str, jax.Array]]


class Evaluation(NamedTuple):
    """The compiled evaluation of a network.

    Attributes:
      tasks: the tasks by name.
      batch: `(params, model_state, split, indices, mask) -> sums`, see `make_evaluation`.
    """

    tasks: Mapping[str, Task]
    batch: Callable[..., Any]


def build_model(config: TrainConfig, spec: Mapping[str, Any], axis_name: str | None = None) -> MultiTaskModel:
    """The network of a config for data of a given spec.

    Args:
      config: the run.
      spec: `MultiTaskData.spec`.
      axis_name: axis over which batch statistics are averaged.

    Returns:
      The model; encoders that keep batch statistics get the axis.
    """
    encoder = models.encoder(config.model.encoder, **config.model.options)
    if axis_name is not None and any(field.name == "axis_name" for field in dataclasses.fields(encoder)):
        encoder = encoder.clone(axis_name=axis_name)
    heads = {name: task_kinds.from_spec(task).head() for name, task in spec["tasks"].items()}
    return MultiTaskModel(encoder, heads, config.model.compute_dtype)


def example(spec: Mapping[str, Any]) -> np.ndarray:
    """A zero batch of one input, to draw parameters for."""
    return np.zeros((1, *spec["inputs"]["shape"]), spec["inputs"]["dtype"])


def build_program(config: TrainConfig, data: MultiTaskData, devices: parallel.Devices | None = None) -> Program:
    """Builds, without compiling yet, all functions of a run.

    Args:
      config: the run.
      data: its data, restricted to the tasks of the run.
      devices: where it runs; None for the devices here that the config asks for.

    Returns:
      The program.

    Raises:
      ValueError: on unknown names, a batch larger than the data or not divisible by the devices.
    """
    devices = devices or parallel.choose_devices(config.devices, config.batch_size, config.parallel)
    axis_name = devices.axis_name
    num_examples = data.splits["train"].num_examples
    model = build_model(config, data.spec, axis_name)
    tx = build_transformation(config, data)
    batches = methods.describe(base_of(config.method).name).batches
    _check_batch(config, len(devices.every), batches)
    reduce = "mean" if axis_name is None else config.reduce  # one device has nobody to share with
    engine = Engine(config.mode, config.subset, config.trainable, config.accumulate, axis_name, reduce)
    step = make_step(model, data.tasks, tx, engine=engine, batches=batches)
    per_device = config.batch_size // len(devices.every)

    def advance(state: TrainState, split: Split, permutation: jax.Array, solve: bool | None) -> tuple[TrainState, Any]:
        _, batch = position(state.step, num_examples, config.batch_size)
        indices = batch_indices(permutation, batch, config.batch_size)
        if axis_name is not None:
            indices = lax.dynamic_slice(indices, (lax.axis_index(axis_name) * per_device,), (per_device,))
        examples = take(split, indices)
        if devices.sharding is not None:
            examples = lax.with_sharding_constraint(examples, devices.sharding)
        return step(state, examples, solve)

    return Program(
        model=model,
        tasks=data.tasks,
        devices=devices,
        steps_per_epoch=steps_per_epoch(num_examples, config.batch_size),
        advance=parallel.compile_advance(advance, devices),
        solve_every=solve_every(config.method),
        shuffle=jax.jit(lambda key, epoch: epoch_permutation(key, epoch, num_examples)),
        evaluation=build_evaluation(model, data.tasks),
        draw=lambda seed: _draw(model, data.spec, seed),
        losses=example_losses(model, data.tasks),
    )


def _draw(model: MultiTaskModel, spec: Mapping[str, Any], seed: int) -> tuple[PyTree, PyTree]:
    # Not jitted: drawing parameters compiles for seconds, and op by op every structure shares that.
    init_key, _ = jax.random.split(jax.random.PRNGKey(seed))
    return jax.device_get(model.init(init_key, jnp.asarray(example(spec))))


def _check_batch(config: TrainConfig, devices: int, batches: int) -> None:
    """Each device's batch must be cut evenly into what the method and the microbatches want."""
    per_device = config.batch_size // devices
    if per_device < batches:
        raise ValueError(
            f"method {config.method.name} cuts each device's batch into {batches} independent ones, but "
            f"batch_size={config.batch_size} leaves {per_device} a device: use at least {batches * devices}"
        )
    parts = batches * config.accumulate
    if config.accumulate > 1 and per_device % parts:
        raise ValueError(
            f"batch_size={config.batch_size} cannot be cut into accumulate={config.accumulate} microbatches on each of "
            f"{devices} devices" + (f" for {batches} independent batches" if batches > 1 else "") + ": use a multiple "
            f"of {parts * devices}"
        )


def build_evaluation(model: MultiTaskModel, tasks: Mapping[str, Task]) -> Evaluation:
    """The evaluation of a network on one device; nothing is compiled yet."""
    sums = make_evaluation(model, tasks)
    return Evaluation(tasks, jax.jit(lambda p, s, split, indices, mask: sums(p, s, take(split, indices, mask))))


def build_transformation(config: TrainConfig, data: MultiTaskData) -> optax.GradientTransformationExtraArgs:
    """The optax chain of a run."""
    method = config.method
    return transformation(
        dataclasses.replace(method, options=by_task(method.options, data.tasks, f"method {method.name}")),
        config.optimizer,
        num_tasks=len(data.tasks),
        steps_per_epoch=steps_per_epoch(data.splits["train"].num_examples, config.batch_size),
        epochs=config.epochs,
        seed=config.seed,
    )


def loss_scales(config: TrainConfig, tasks: Iterable[str]) -> np.ndarray:
    """The (K,) factors on the losses of the sorted tasks; raises ValueError, naming the nearest, where one is none."""
    names = sorted(tasks)
    for name in config.loss_scales:
        if name not in names:
            raise unknown("task in loss_scales", name, names)
    return np.array([config.loss_scales.get(name, 1.0) for name in names], np.float32)


def structure(config: TrainConfig) -> str:
    """A key that is equal for runs which can share a program: all but seeds and numeric hyperparameters."""
    values = to_dict(dataclasses.replace(config, method=resolved(config.method)))
    for key in ("name", "seed", "loss_scales", "patience", "checkpoints", "tensorboard", "log_every", "evaluate_every"):
        del values[key]
    values["optimizer"]["learning_rate"] = None
    if config.optimizer.clip_norm is not None:
        values["optimizer"]["clip_norm"] = "number"
    groups = [values["method"]["options"], values["optimizer"]["options"]]
    if injects_base(config.method):
        groups.append(groups[0].get("base_options") or {})
    for options in groups:
        for key, value in options.items():
            constant = key in ("update_every", "perturb_every", "base_options")
            if not constant and (count := numbers(value)) is not None:
                options[key] = f"{count} numbers" if count else "number"
    return json.dumps(values, sort_keys=True)


def init_state(config: TrainConfig, data: MultiTaskData, program: Program) -> TrainState:
    """The state before the first step, in host memory, drawn from `config.seed`."""
    _, train_key = jax.random.split(jax.random.PRNGKey(config.seed))
    params, model_state = program.draw(config.seed)
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        model_state=model_state,
        opt_state=build_transformation(config, data).init(params),
        key=train_key,
        monitor=new_monitor(len(data.tasks)),
        losses_after=jnp.zeros(len(data.tasks)) if methods.describe(base_of(config.method).name).losses_after else None,
        loss_scales=jnp.asarray(loss_scales(config, data.tasks)),
    )
    # On the host all leaves are strongly typed: a weak type would compile the step a second time.
    return jax.device_get(state)


def data_key(config: TrainConfig) -> jax.Array:
    """The key from which every epoch's order is drawn."""
    return jax.random.fold_in(jax.random.PRNGKey(config.seed), 1)


def evaluate(evaluation: Evaluation, params: PyTree, model_state: PyTree, split: Split) -> dict[str, dict[str, float]]:
    """Metrics and mean loss of every task over a whole split.

    Args:
      evaluation: the compiled function.
      params: parameters on one device.
      model_state: model state on one device.
      split: the examples, on a device or on the host.

    Returns:
      `{task: {metric: value, ..., "loss": value}}`. NaN where a task has no label in the split.
    """
    return metrics_from(evaluation.tasks, evaluation_sums(evaluation, params, model_state, split))


def evaluation_sums(evaluation: Evaluation, params: PyTree, model_state: PyTree, split: Split) -> dict[str, PyTree]:
    """The sums of `make_evaluation` over a whole split, on the host."""
    totals: Any = None
    for indices, mask in zip(*evaluation_batches(split.num_examples, EVALUATION_BATCH), strict=True):
        sums = evaluation.batch(params, model_state, split, indices, mask)
        totals = sums if totals is None else jax.tree.map(lambda a, b: a + b, totals, sums)
    return jax.device_get(totals)


def metrics_from(tasks: Mapping[str, Task], totals: Mapping[str, PyTree]) -> dict[str, dict[str, float]]:
    """Metrics and mean loss by task, from the sums over a split."""
    results = {}
    for name, task in tasks.items():
        loss = totals[name]["loss"]
        values = metric_values(task, totals[name]) | {
            "loss": loss["total"] / loss["count"] if loss["count"] else math.nan
        }
        results[name] = {metric: float(value) for metric, value in values.items()}
    return results


def score(program: Program, metrics: Mapping[str, Mapping[str, float]]) -> float:
    """What model selection maximises: the mean over tasks of the primary metric, signed so that up is better."""
    values = []
    for name, task in program.tasks.items():
        metric = task.metrics[0]
        values.append(metrics[name][metric.name] * (1 if metric.higher_is_better else -1))
    return float(np.mean(values))
