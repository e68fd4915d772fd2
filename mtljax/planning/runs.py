"""Plans of what a config describes: a run, or a study with its block of cells."""

import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec

from mtljax import methods
from mtljax.ablation import StudyConfig
from mtljax.ablation.cell import Context
from mtljax.ablation.grid import cells
from mtljax.data import MultiTaskData
from mtljax.planning.compiler import compile_for
from mtljax.planning.layout import device_bytes
from mtljax.planning.steps import REUSED, SUMMED, Blocks, Job, Plan, compare, on, ways_of
from mtljax.planning.targets import Target
from mtljax.training.block import build_block
from mtljax.training.config import MethodConfig, TrainConfig
from mtljax.training.loop import load_data
from mtljax.training.optimizers import base_of, solve_every
from mtljax.training.parallel import planned_devices
from mtljax.training.program import build_program, data_key, init_state


def plan_config(
    config: TrainConfig,
    target: Target,
    *,
    modes: Sequence[str] = ("auto",),
    largest_batch: bool = True,
    progress: Callable[[str], None] = lambda text: None,
) -> Plan:
    """What a step of a run costs on a machine.

    Args:
      config: the run; its `devices` are those of the machine.
      target: the machine.
      modes: the engines to compare with the summed loss, ("all",) for every one.
      largest_batch: whether to look for the largest batch that fits.
      progress: told what is being compiled.

    Returns:
      The plan; `steps` is that of the whole run.
    """
    loaded = load_data(config)
    method = methods.describe(base_of(config.method).name)
    several = method.needs in ("gramian", "jacobian")
    every = solve_every(config.method)
    names = [SUMMED, *ways_of(modes)] if several else ["auto"]
    names += [REUSED] if several and every > 1 else []

    def job_of(name: str, batch: int | None) -> Job:
        mode: Any = {SUMMED: "loop", REUSED: "auto"}.get(name, name)
        run = dataclasses.replace(config, mode=mode, batch_size=batch or config.batch_size, devices=1)
        data = loaded if run.batch_size == config.batch_size else _with_examples(loaded, run.batch_size)
        if name == SUMMED:
            run = dataclasses.replace(run, method=MethodConfig("ew"), reduce="mean")
        devices = planned_devices(target.devices, run.batch_size, run.parallel)
        program = build_program(run, data, devices)
        state, split = _shapes(init_state(run, data, program)), _shapes(data.splits["train"])
        order = jax.eval_shape(program.shuffle, data_key(run), 0)
        solve = None if program.solve_every == 1 else name != REUSED

        def step(state: Any, split: Any, order: jax.Array) -> Any:
            return program.advance(state, split, order, solve)

        args = (state, split, order)
        with _said() as said:
            jax.eval_shape(step, *args)
        sides = {"devices": target.devices}
        parts = {
            "parameters": state.params,
            "method state": state.opt_state[0],
            "optimizer state": state.opt_state[1:],
            "model state": state.model_state,
            "training split": split,
        }
        several_devices = target.devices > 1
        return Job(
            step,
            args,
            (0,),
            sides if several_devices else None,
            [None] * 3 if several_devices else None,
            PartitionSpec() if several_devices else None,  # as training has it: every device holds the whole state
            parts={name: device_bytes(tree, None, sides) for name, tree in parts.items()},
            choice=next((line for line in said if line.startswith("mode ")), ""),
        )

    found = compare(target, job_of, names, config.batch_size, largest_batch, progress=progress)
    steps = config.epochs * (loaded.splits["train"].num_examples // config.batch_size)
    return found._replace(steps=steps, solve_every=every)


def dearest(study: StudyConfig) -> TrainConfig:
    """The run of a study that costs most by its method: the first that needs gradients by task, else its base."""
    for method in (*study.methods, *(pair.method for pair in study.pairs)):
        if methods.describe(base_of(method).name).needs in ("gramian", "jacobian"):
            return dataclasses.replace(study.base, method=method)
    return study.base


def count_cells(study: StudyConfig) -> int:
    """How many runs a study has."""
    return len(cells(study, Context().tasks))


def plan_blocks(
    study: StudyConfig, target: Target, sizes: Sequence[int], progress: Callable[[str], None] = lambda text: None
) -> Blocks:
    """What a step of a block of cells costs on one device, for several numbers of cells; of its dearest method."""
    config = dearest(study)
    data = load_data(config)
    found = {}
    with on(target):
        program = build_program(config, data, planned_devices(1, config.batch_size))
        block = build_block(program, jax.devices()[:1])
        state, split = _shapes(init_state(config, data, program)), _shapes(data.splits["train"])
        order = jax.eval_shape(program.shuffle, data_key(config), 0)
        for size in sizes:
            progress(f"compiling a block of {size} cells for {target.name}")
            states, orders = jax.tree.map(lambda leaf, n=size: _stacked(leaf, n), (state, order))
            args = (states, split, orders, jax.ShapeDtypeStruct((), np.int32))
            found[size] = compile_for(block.advance, args, target, donate=(0,))
    return Blocks(found)


def _with_examples(data: MultiTaskData, count: int) -> MultiTaskData:
    """The data with at least so many training examples, as a larger batch needs; their values do not matter."""
    train = data.splits["train"]
    if train.num_examples >= count:
        return data
    grown = jax.tree.map(lambda leaf: np.broadcast_to(leaf[:1], (count, *leaf.shape[1:])), train)
    return dataclasses.replace(data, splits={**data.splits, "train": grown})


def _shapes(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype), tree)


def _stacked(leaf: Any, count: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((count, *leaf.shape), leaf.dtype)


@contextmanager
def _said() -> Iterator[list[str]]:
    """Collects what a step says as it is traced: how its gradients are computed, and why."""
    lines: list[str] = []

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    log, handler = logging.getLogger("mtljax"), Lines()
    level, propagate = log.level, log.propagate
    log.setLevel(logging.INFO)
    log.propagate = False
    log.addHandler(handler)
    try:
        yield lines
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        log.propagate = propagate
