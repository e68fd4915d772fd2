"""The training loop, top to bottom: step, log, evaluate on validation, keep the best, checkpoint, stop.

With several processes all run this loop on equal numbers, and only the first has a workdir.
"""

import collections
import contextlib
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from mtljax import data as data_sets
from mtljax.data import MultiTaskData
from mtljax.training import checkpoint as ckpt
from mtljax.training import parallel, processes
from mtljax.training.config import TrainConfig
from mtljax.training.logs import RunLog
from mtljax.training.probing import Probe, Prober, network
from mtljax.training.program import Program, build_program, data_key, evaluate, init_state, score
from mtljax.training.records import (
    Metrics,
    StepTimer,
    check_evaluation,
    check_finite,
    epoch_line,
    evaluation_record,
    train_record,
)
from mtljax.training.selection import Best, best_so_far, stops_early
from mtljax.training.signals import stop_requests
from mtljax.training.state import TrainState, restarted
from mtljax.training.workdir import prepare

PyTree = Any
_RUN_AHEAD = 8  # steps dispatched but not done: enough to keep a device busy, few enough to stop at once when asked


class Progress(NamedTuple):
    """What the loop tells while it runs; see `mtljax.training.progress` for terminals.

    Attributes:
      start: called once with (first step, last step).
      step: called with each step done.
      line: called with a line of text, one an epoch and for warnings.
    """

    start: Callable[[int, int], None] = lambda first, last: None
    step: Callable[[int], None] = lambda step: None
    line: Callable[[str], None] = lambda text: None


class Result(NamedTuple):
    """What a run found.

    Attributes:
      validation: metrics by task of the selected network on the validation split; {} when interrupted.
      test: the same network on the test split; {} when interrupted.
      best_step: the step it was selected at.
      steps: steps the run has made, those before a resume included.
      seconds_per_step: mean over this process's steps, compilation and evaluation left out; NaN when it made too few.
      records: the log.
      params: the selected network's parameters.
      model_state: its model state.
      interrupted: name of the signal that ended the run, None when it finished.
    """

    validation: Metrics
    test: Metrics
    best_step: int
    steps: int
    seconds_per_step: float
    records: list[dict[str, Any]]
    params: PyTree
    model_state: PyTree
    interrupted: str | None


class _Start(NamedTuple):
    """Where a run starts, and where it writes."""

    state: TrainState
    best: Best | None
    log: RunLog
    checkpoints: ckpt.Checkpoints | None


def load_data(config: TrainConfig) -> MultiTaskData:
    """The data of a run, restricted to its tasks."""
    data = data_sets.load(config.data.name, **config.data.options)
    return data.select(config.tasks) if config.tasks else data


def train(
    config: TrainConfig,
    *,
    workdir: str | Path | None = None,
    resume: bool = False,
    data: MultiTaskData | None = None,
    program: Program | None = None,
    progress: Progress | None = None,
    probe: Probe | None = None,
) -> Result:
    """Trains one network, selects it on validation data and evaluates it once on test data.

    Args:
      config: the run.
      workdir: directory of log, config and checkpoints; None keeps everything in memory.
      resume: continue the run in `workdir` from its last checkpoint.
      data: the data, to share between runs; None loads it.
      program: the compiled functions, to share between runs of one `program.structure`; None builds them.
      progress: how to report; None is silent.
      probe: what `config.probe_every` measures, such as `mtl.analysis.sample_probe`.

    Returns:
      The result. On SIGTERM or Ctrl-C the run saves, and returns with `interrupted` set.

    Raises:
      ValueError: on a bad config or workdir.
      NonFiniteLossError: if a loss becomes NaN or infinite; the last checkpoint stays.
    """
    progress = (progress or Progress()) if processes.is_main() else Progress()
    processes.require_equal(config)
    data = load_data(config) if data is None else data
    program = build_program(config, data) if program is None else program
    state = init_state(config, data, program)
    directory = None if workdir is None else Path(workdir)
    prober = Prober(config, data, program, probe, directory if config.checkpoints else None, progress.line)
    with contextlib.ExitStack() as stack:
        run = processes.first(lambda: _begin(config, data, program, state, directory, resume, progress, stack))
        result = _run(config, data, program, _shared(run, state), progress, prober)
    processes.largest(0)  # no process leaves before the first has written everything
    return result


def _begin(
    config: TrainConfig,
    data: MultiTaskData,
    program: Program,
    state: TrainState,
    directory: Path | None,
    resume: bool,
    progress: Progress,
    stack: contextlib.ExitStack,
) -> _Start:
    """Prepares the workdir and restores what is in it; the stack closes log and checkpoints."""
    if directory is not None:
        changes = prepare(directory, config, data.spec, resume=resume)
        if changes:
            progress.line(f"goes on with {', '.join(changes)}")
    checkpoints = None
    if directory is not None and config.checkpoints:
        checkpoints = ckpt.open_checkpoints(directory, progress.line)
        stack.callback(ckpt.close, checkpoints)
    restored = ckpt.restore_last(checkpoints, state) if checkpoints is not None and resume else None
    if resume and restored is None:
        progress.line("no checkpoint yet: starting from the beginning")
    state = state if restored is None else restored
    until = int(state.step) if resume else None
    log = RunLog(directory, progress.line, tensorboard=config.tensorboard, until=until)
    stack.callback(log.close)
    return _Start(state, best_so_far(log, program, state, checkpoints), log, checkpoints)


def _shared(start: _Start | None, state: TrainState) -> _Start:
    """The first process's start on all, so that no file system need be shared; the others write nothing."""
    if processes.alone():
        assert start is not None
        return start
    shared = None if start is None else (start.log.records, start.best and (start.best.score, start.best.step))
    records, best = json.loads(processes.text_from_main(json.dumps(shared)))
    if start is None:
        log = RunLog(None, lambda text: None, tensorboard=False, until=None)
        log.records.extend(records)
        best = None if best is None else Best(best[0], best[1], state.params, state.model_state)
        start = _Start(state, best, log, None)
    state = processes.from_main(start.state)
    if start.best is None:
        return start._replace(state=state)
    params, model_state = processes.from_main((start.best.params, start.best.model_state))
    return start._replace(state=state, best=start.best._replace(params=params, model_state=model_state))


def _run(
    config: TrainConfig, data: MultiTaskData, program: Program, begin: _Start, progress: Progress, prober: Prober
) -> Result:
    devices = program.devices
    state, best, log, checkpoints = begin
    step, total = int(state.step), config.epochs * program.steps_per_epoch
    every = config.evaluate_every or program.steps_per_epoch
    splits = {name: jax.device_put(data.splits[name], devices.local[0]) for name in ("validation", "test")}
    split = parallel.place(data.splits["train"], devices)
    state = parallel.place(state, devices)
    key, permutation, epoch = data_key(config), None, -1
    start = time.perf_counter()
    timer, under_way = StepTimer(), collections.deque()
    progress.start(step, total)
    stopped, stop, together = stops_early(config, log, program), None, True

    def evaluated(params: PyTree, model_state: PyTree, name: str) -> Metrics:
        values = evaluate(program.evaluation, params, model_state, splits[name])
        # One process's numbers for all: what is decided from them must not differ by a rounding error.
        return jax.tree.map(float, processes.from_main(values))

    def save() -> None:
        if checkpoints is not None:
            ckpt.save_last(checkpoints, parallel.fetch(state, devices))
            prober.save()

    prober.restore(step)
    with stop_requests() as request:
        while step < total and not stopped and (stop := processes.agreed(request, together)) is None:
            if step // program.steps_per_epoch != epoch:
                epoch = step // program.steps_per_epoch
                permutation = parallel.place(program.shuffle(key, epoch), devices)
            if prober.due(step):
                timer.pause(state)
                prober.look(step, network(state, devices), lambda order=permutation: parallel.fetch(order, devices))
                timer.proceed()
            solve = None if program.solve_every == 1 else step % program.solve_every == 0
            state, metrics = program.advance(state, split, permutation, solve)
            step += 1
            timer.count(state)
            under_way.append(metrics["losses"])
            if len(under_way) > _RUN_AHEAD:
                jax.block_until_ready(under_way.popleft())
            progress.step(step)
            if step % program.steps_per_epoch == 0:
                prober.write(log, step, time.perf_counter() - start)
            evaluating = step % every == 0 or step == total
            together = evaluating or step % config.log_every == 0
            if together:
                timer.pause(state)
                monitor, weights = jax.device_get(parallel.fetch((state.monitor, metrics["weights"]), devices))
                check_finite(program, monitor, checkpoints=checkpoints is not None)
                log.write(train_record(program, step, monitor, weights, time.perf_counter() - start))
                state = state._replace(monitor=parallel.place(jax.device_get(restarted(monitor)), devices))
            if evaluating:
                params, model_state = parallel.fetch((state.params, state.model_state), devices)
                measured = evaluated(params, model_state, "validation")
                log.write(evaluation_record(program, "validation", step, measured, time.perf_counter() - start))
                if config.test_curve:
                    seen = evaluated(params, model_state, "test")
                    log.write(evaluation_record(program, "test_curve", step, seen, time.perf_counter() - start))
                check_evaluation(measured, step, checkpoints=checkpoints is not None)
                value = score(program, measured)
                if best is None or value > best.score:
                    best = Best(value, step, params, model_state)
                    if checkpoints is not None:
                        ckpt.save_best(checkpoints, step, params, model_state)
                progress.line(epoch_line(program, step, total, measured, timer))
                save()
                stopped = stops_early(config, log, program)
                timer.resume()
        interrupted = stop if step < total and not stopped else None

    if interrupted:
        if step % every:
            save()
        if checkpoints is not None:
            ckpt.wait(checkpoints)
    else:
        prober.write(log, step, time.perf_counter() - start)  # of an epoch that patience cut short
    if best is None:  # interrupted before the first evaluation
        best = Best(-math.inf, step, *parallel.fetch((state.params, state.model_state), devices))
    if checkpoints is not None and not interrupted and not ckpt.has_best(checkpoints, best.step):
        ckpt.save_best(checkpoints, best.step, best.params, best.model_state)  # an earlier save of it failed
    validation, test = {}, {}
    if not interrupted:
        validation = evaluated(best.params, best.model_state, "validation")
        test = evaluated(best.params, best.model_state, "test")
        log.write(evaluation_record(program, "test", best.step, test, time.perf_counter() - start))
    return Result(
        validation=validation,
        test=test,
        best_step=best.step,
        steps=step,
        seconds_per_step=timer.mean(),
        records=log.records,
        params=best.params,
        model_state=best.model_state,
        interrupted=interrupted,
    )
