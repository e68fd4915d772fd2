"""Many runs of one structure in one program: their states stacked, the step vmapped, the loop over steps inside.

On several devices each has its own runs, and a whole copy of the data: they have nothing to tell each other. What the
runs log, select and stop at is decided by the functions of `loop` and `records`, run by run.
"""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from mtljax.data import MultiTaskData, Split
from mtljax.methods import task_weights
from mtljax.training import parallel
from mtljax.training.config import TrainConfig
from mtljax.training.logs import RunLog
from mtljax.training.loop import Progress, Result
from mtljax.training.probing import Probe, Prober
from mtljax.training.program import Evaluation, Program, data_key, evaluation_sums, metrics_from, score
from mtljax.training.records import (
    Metrics,
    NonFiniteLossError,
    check_evaluation,
    check_finite,
    evaluation_record,
    train_record,
)
from mtljax.training.selection import stops_early
from mtljax.training.signals import stop_requests
from mtljax.training.state import Monitor, TrainState, restarted

PyTree = Any
_RUNS = "runs"  # the axis over devices
_LOOK_SECONDS = 1.0  # about how long steps run before the host looks for a signal and tells the progress


class Block(NamedTuple):
    """The compiled functions of many runs at once; what they take and give has a leading axis over the runs.

    Attributes:
      program: the functions of one run.
      devices: where the runs are; each has as many, so that their number is a multiple of that of the devices.
      apart: how what has an axis over the runs lies there, each device having its own.
      whole: how what all runs read lies there, a copy on each.
      advance: `(states, split, permutations, steps) -> (states, weights)`, so many steps, which are no constant.
      shuffle: `(keys, epoch) -> permutations`.
      evaluation: of `(params, model_states)`.
      keep: `(better, new, old) -> networks`, the new ones where `better` is true.
    """

    program: Program
    devices: tuple[parallel.Device, ...]
    apart: Sharding
    whole: Sharding
    advance: Callable[..., Any]
    shuffle: Callable[..., jax.Array]
    evaluation: Evaluation
    keep: Callable[..., PyTree]


class _Run:
    """What the host knows of one run of a block."""

    def __init__(self, config: TrainConfig, prober: Prober) -> None:
        self.config, self.prober = config, prober
        self.log = RunLog(None, lambda text: None, tensorboard=False, until=None)
        self.score, self.best_step, self.steps = -math.inf, 0, 0
        self.stopped = False
        self.error: NonFiniteLossError | None = None

    @property
    def runs(self) -> bool:
        return not self.stopped and self.error is None


def build_block(program: Program, devices: Sequence[parallel.Device] | None = None) -> Block:
    """The functions of many runs, from those of one; nothing is compiled yet.

    Args:
      program: of one device.
      devices: over which the runs are spread; None for that of the program.

    Returns:
      The block.

    Raises:
      ValueError: if the program is of several devices.
    """
    if len(program.devices.every) > 1:
        raise ValueError(
            f"runs are stacked on one device each, but the program is of {len(program.devices.every)}: use devices=1"
        )
    every, devices = program.solve_every, tuple(devices or program.devices.local)
    apart, whole, over_runs = _spread(devices)

    def step(states: TrainState, split: Split, permutations: jax.Array, solve: bool | None) -> TrainState:
        return jax.vmap(lambda state, order: program.advance(state, split, order, solve)[0])(states, permutations)

    def advance(states: TrainState, split: Split, permutations: jax.Array, steps: jax.Array) -> tuple[TrainState, Any]:
        def body(_: Any, states: TrainState) -> TrainState:
            if every == 1:
                return step(states, split, permutations, None)
            # All runs are at the same step, so that only one of the branches is computed; a device looks at its own.
            return lax.cond(
                states.step[0] % every == 0,
                lambda states: step(states, split, permutations, True),
                lambda states: step(states, split, permutations, False),
                states,
            )

        states = lax.fori_loop(0, steps, body, states)
        return states, jax.vmap(task_weights)(states.opt_state)

    def keep(better: jax.Array, new: PyTree, old: PyTree) -> PyTree:
        def choose(a: jax.Array, b: jax.Array) -> jax.Array:
            return jnp.where(better.reshape(-1, *(1,) * (a.ndim - 1)), a, b)

        return jax.tree.map(choose, new, old)

    batch = jax.vmap(program.evaluation.batch, in_axes=(0, 0, None, None, None))
    return Block(
        program=program,
        devices=devices,
        apart=apart,
        whole=whole,
        advance=jax.jit(over_runs(advance, (0, None, 0, None)), donate_argnums=0),
        shuffle=jax.jit(over_runs(jax.vmap(program.shuffle, in_axes=(0, None)), (0, None))),
        evaluation=Evaluation(program.tasks, jax.jit(over_runs(batch, (0, 0, None, None, None)))),
        keep=jax.jit(over_runs(keep, (0, 0, 0))),
    )


def _spread(
    devices: tuple[parallel.Device, ...],
) -> tuple[Sharding, Sharding, Callable[[Callable[..., Any], tuple[int | None, ...]], Callable[..., Any]]]:
    """How runs and what they share lie on devices; and what makes of a function one in which each has its own runs.

    The latter takes the axes of the runs in the arguments, as vmap does, and is no more than the function where there
    is one device.
    """
    if len(devices) == 1:
        place = SingleDeviceSharding(devices[0])
        return place, place, lambda function, in_axes: function
    mesh = Mesh(np.asarray(devices), (_RUNS,))
    apart, whole = PartitionSpec(_RUNS), PartitionSpec()

    def over_runs(function: Callable[..., Any], in_axes: tuple[int | None, ...]) -> Callable[..., Any]:
        # Left to the compiler, devices would ask each other even for the number of the step.
        specs = tuple(whole if axis is None else apart for axis in in_axes)
        return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=apart, check_vma=False)

    return NamedSharding(mesh, apart), NamedSharding(mesh, whole), over_runs


def train_block(
    configs: Sequence[TrainConfig],
    states: Sequence[TrainState],
    *,
    data: MultiTaskData,
    block: Block,
    size: int | None = None,
    progress: Progress | None = None,
    probe: Probe | None = None,
) -> list[Result | NonFiniteLossError]:
    """Trains many networks at once, each as `train` would.

    Args:
      configs: runs of one structure, with equal `log_every` and `evaluate_every`.
      states: their states before the first step, from `init_state`; trees of equal shapes and dtypes.
      data: their data.
      block: their functions, from `build_block`.
      size: pad to so many runs, so that blocks of different lengths share what is compiled; and to as many a device.
      progress: how to report; None is silent.
      probe: as for `train`, with equal `probe_every`.

    Returns:
      What each run found, without workdir, or the error that ended it while the others went on. Times are a run's
      share of the block's. On SIGTERM or Ctrl-C every result that is not an error has `interrupted` set.
    """
    progress = progress or Progress()
    program = block.program
    runs = [_Run(config, Prober(config, data, program, probe)) for config in configs]
    size = -(-(size or len(runs)) // len(block.devices)) * len(block.devices)
    padded = [*states, *[states[-1]] * (size - len(runs))]
    keys = jnp.stack([data_key(config) for config in [*configs, *[configs[-1]] * (len(padded) - len(runs))]])
    stacked: TrainState = jax.device_put(jax.tree.map(lambda *leaves: np.stack(leaves), *padded), block.apart)
    splits = {name: jax.device_put(split, block.whole) for name, split in data.splits.items()}
    step, total = 0, configs[0].epochs * program.steps_per_epoch
    log_every, every = configs[0].log_every, configs[0].evaluate_every or program.steps_per_epoch
    stops = log_every, every, program.steps_per_epoch, configs[0].probe_every or total
    permutations, best, interrupted = block.shuffle(keys, 0), (stacked.params, stacked.model_state), None
    best = block.keep(jnp.ones(len(padded), bool), best, best)  # a copy: the step donates its state
    stacked, _ = block.advance(stacked, splits["train"], permutations, np.int32(0))  # compiles, outside the clock
    jax.block_until_ready(stacked)
    start, training, most = time.perf_counter(), 0.0, 1
    progress.start(0, total)

    def share() -> float:
        return (time.perf_counter() - start) / len(runs)

    def evaluated(params: PyTree, model_states: PyTree, split: str) -> list[Metrics]:
        sums = evaluation_sums(block.evaluation, params, model_states, splits[split])
        return [metrics_from(program.tasks, _item(sums, i)) for i in range(len(runs))]

    with stop_requests() as request:
        while step < total and any(run.runs for run in runs):
            if request:
                interrupted = request[0]
                break
            if step and step % program.steps_per_epoch == 0:
                permutations = block.shuffle(keys, step // program.steps_per_epoch)
            stop = min(total, step + most, *(step - step % n + n for n in stops))
            for i, run in enumerate(runs):
                if run.runs and run.prober.due(step):
                    network = _item((stacked.params, (stacked.model_state, stacked.loss_scales)), i)
                    network = jax.device_put(network, block.devices[0])
                    run.prober.look(step, network, lambda i=i, orders=permutations: orders[i])
            began = time.perf_counter()
            stacked, weights = block.advance(stacked, splits["train"], permutations, np.int32(stop - step))
            jax.block_until_ready(stacked.step)
            took = time.perf_counter() - began
            most = most * 2 if took < _LOOK_SECONDS else max(1, most // 2)
            training += took
            step = stop
            progress.step(step)
            for run in runs:
                if run.runs and step % program.steps_per_epoch == 0:
                    run.prober.write(run.log, step, share())
            evaluating = step % every == 0 or step == total
            if not evaluating and step % log_every:
                continue
            monitor, weights = jax.device_get((stacked.monitor, weights))
            stacked = stacked._replace(monitor=jax.device_put(jax.device_get(restarted(monitor)), block.apart))
            for i, run in enumerate(runs):
                if run.runs:
                    _log_training(program, run, step, _item(monitor, i), _item(weights, i), share())
            if not evaluating:
                continue
            if configs[0].test_curve:
                for run, metrics in zip(runs, evaluated(stacked.params, stacked.model_state, "test"), strict=True):
                    if run.runs:
                        run.log.write(evaluation_record(program, "test_curve", step, metrics, share()))
            better = np.zeros(len(padded), bool)
            for i, metrics in enumerate(evaluated(stacked.params, stacked.model_state, "validation")):
                if runs[i].runs:
                    better[i] = _select(program, runs[i], step, metrics, share())
            best = block.keep(better, (stacked.params, stacked.model_state), best)
        interrupted = interrupted if any(run.runs for run in runs) else None

    validation = test = [{} for _ in runs]
    if not interrupted and any(run.error is None for run in runs):
        validation, test = (evaluated(best[0], best[1], split) for split in ("validation", "test"))
    networks, per_step = jax.device_get(best), training / step / len(runs) if step else math.nan
    results: list[Result | NonFiniteLossError] = []
    for i, run in enumerate(runs):
        if run.error is None and not interrupted:
            run.log.write(evaluation_record(program, "test", run.best_step, test[i], share()))
        params, model_state = _item(networks, i)
        results.append(
            run.error
            or Result(
                validation=validation[i],
                test=test[i],
                best_step=run.best_step,
                steps=run.steps,
                seconds_per_step=per_step,
                records=run.log.records,
                params=params,
                model_state=model_state,
                interrupted=interrupted,
            )
        )
    return results


def _log_training(program: Program, run: _Run, step: int, monitor: Monitor, weights: Any, seconds: float) -> None:
    """Logs the steps since the last record, or keeps the error that ends the run."""
    run.steps = step
    try:
        check_finite(program, monitor)
    except NonFiniteLossError as error:
        run.error = error
        return
    run.log.write(train_record(program, step, monitor, weights, seconds))


def _select(program: Program, run: _Run, step: int, metrics: Metrics, seconds: float) -> bool:
    """Logs a validation; says whether the network is the best of its run so far."""
    run.log.write(evaluation_record(program, "validation", step, metrics, seconds))
    try:
        check_evaluation(metrics, step)
    except NonFiniteLossError as error:
        run.error = error
        return False
    value = score(program, metrics)
    better = value > run.score or not run.best_step
    if better:
        run.score, run.best_step = value, step
    run.stopped = stops_early(run.config, run.log, program)
    if run.stopped:
        run.prober.write(run.log, step, seconds)
    return better


def _item(tree: PyTree, index: int) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[index], tree)
