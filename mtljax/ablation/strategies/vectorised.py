"""Many cells in one program, for accelerators: one small network does not keep them busy."""

import dataclasses
import time
from collections.abc import Generator, Hashable, Sequence
from typing import Any

import jax

from mtljax.ablation.cell import (
    FAILURES,
    Cell,
    Context,
    Record,
    StudyInterruptedError,
    failed,
    finished,
    head,
    is_failure,
    is_memory,
)
from mtljax.ablation.strategies.grouping import by_structure
from mtljax.data import MultiTaskData
from mtljax.training.block import Block, build_block, train_block
from mtljax.training.config import TrainConfig
from mtljax.training.program import init_state, structure
from mtljax.training.state import TrainState

# Cells of a device in a block. By the compilers' estimates (scripts/check_blocks.py) a step of 32 takes a cell on a v5e
# 0.08 to 0.10 of what it takes alone for an MLP and 0.34 to 0.38 for LeNet. With 128 an MLP takes 0.06 to 0.08, but
# LeNet's convolutions take more again, 0.39 to 0.44, and over six times the memory. On an H100 a cell alone starts 50
# to 110 kernels a step, of 32 each starts 1 to 4; the rest is bound by memory, which larger blocks do not save.
DEFAULT_JOBS = 32


def vectorised(cells: Sequence[Cell], context: Context) -> Generator[Record, None, None]:
    """Runs blocks of cells of one structure as one program, by vmap over their states.

    Each cell trains on one device alone, whatever `devices` says; the cells of a block are spread over all devices of
    this process. The times in its record are its share of its block's. Where a block does not fit into memory, half as
    many cells are tried. On a CPU this is slow for convolutions, which XLA does not spread over threads inside a loop.

    Args:
      cells: what to run.
      context: what they share; `jobs` is the largest number of cells in a block, 32 a device by default.

    Yields:
      The record of each cell, when its block is done.

    Raises:
      StudyInterruptedError: on SIGTERM or Ctrl-C.
    """
    for group in by_structure(cells, _alike).values():
        data = context.data(group[0].config)
        devices = jax.local_devices()
        waiting, length = list(group), _even(len(group), context.jobs or DEFAULT_JOBS * len(devices))
        try:
            block = build_block(context.program(_on_one_device(group[0].config)), devices[:length])
        except ValueError as error:
            yield from (failed(head(cell, data), error, 0.0) for cell in group)
            continue
        while waiting:
            ready, states = [], []
            for cell in waiting[:length]:
                try:
                    states.append(init_state(cell.config, data, block.program))
                    ready.append(cell)
                except ValueError as error:
                    yield failed(head(cell, data), error, 0.0)
            try:
                records = _run(ready, states, data, block, length, context) if ready else []
            except FAILURES as error:
                if not is_failure(error):
                    raise
                if is_memory(error) and length > len(block.devices):
                    waiting = ready + waiting[length:]
                    length = _even(len(waiting), max(length // 2, len(block.devices)))
                    continue
                records = [failed(head(cell, data), error, 0.0) for cell in ready]
            yield from records
            waiting = waiting[length:]


def _run(
    cells: list[Cell], states: list[TrainState], data: MultiTaskData, block: Block, size: int, context: Context
) -> list[Record]:
    """The records of the cells of one block."""
    for cell in cells:
        context.progress.cell(cell.name)
    start = time.perf_counter()
    configs = [cell.config for cell in cells]
    results = train_block(
        configs, states, data=data, block=block, size=size, progress=context.progress.run, probe=context.probe
    )
    seconds = (time.perf_counter() - start) / len(cells)
    records = []
    for cell, result in zip(cells, results, strict=True):
        if isinstance(result, Exception):
            records.append(failed(head(cell, data), result, seconds))
        elif result.interrupted:
            raise StudyInterruptedError(result.interrupted)
        else:
            records.append(finished(head(cell, data), result, block.program.steps_per_epoch, seconds))
    return records


def _even(waiting: int, size: int) -> int:
    """The length of blocks of nearly equal length, which are padded to share what is compiled."""
    return -(-waiting // -(-waiting // size))


def _alike(cell: Cell) -> Hashable:
    """Cells that can be stacked: one structure, one rhythm of logging, numbers of one type."""
    config = _on_one_device(cell.config)
    options: Any = (config.method.options, config.optimizer.options)
    types = jax.tree.map(lambda value: type(value).__name__, options)
    return structure(config), config.log_every, config.evaluate_every, str(types)


def _on_one_device(config: TrainConfig) -> TrainConfig:
    return dataclasses.replace(config, devices=1)
