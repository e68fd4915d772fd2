"""What a study will cost, before it runs: its cells, its programs, its time."""

import time
from collections.abc import Hashable
from typing import NamedTuple

import jax
import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from mtljax.ablation.cell import Context
from mtljax.ablation.strategies.grouping import by_structure
from mtljax.ablation.study import Plan
from mtljax.training import parallel
from mtljax.training.config import TrainConfig
from mtljax.training.program import EVALUATION_BATCH, data_key, evaluate, init_state, structure

BUDGET_SECONDS = 20.0  # after which no further program is timed
_STEPS = 5  # timed of a cell, or as many as fit into
_STEP_SECONDS = 4.0


class Estimate(NamedTuple):
    """The time that is left.

    Attributes:
      seconds: of all cells one after another; None when nothing is known.
      source: what it rests on, in words.
    """

    seconds: float | None
    source: str


def estimate(plan: Plan, budget: float = BUDGET_SECONDS) -> Estimate:
    """How long the cells that are left will take.

    Args:
      plan: of the study.
      budget: seconds to spend on timing steps where no cell of the study is finished.

    Returns:
      The estimate: from finished cells of the same program, the mean of the others where there is none; else from
      steps timed here.
    """
    groups = by_structure(plan.left)
    if not groups:
        return Estimate(0.0, "nothing is left")
    finished: dict[Hashable, list[float]] = {}
    for cell in plan.cells:
        record = plan.done.get(cell.name)
        if record is not None and record["status"] == "finished":
            finished.setdefault(structure(cell.config), []).append(record["seconds"])
    if finished:
        means = {key: float(np.mean(seconds)) for key, seconds in finished.items()}
        other = float(np.mean([seconds for durations in finished.values() for seconds in durations]))
        total = sum(means.get(key, other) * len(cells) for key, cells in groups.items())
        return Estimate(total, f"from {sum(map(len, finished.values()))} finished cells")
    timed: dict[Hashable, tuple[float, float]] = {}
    start = time.perf_counter()
    for key, cells in groups.items():
        if timed and time.perf_counter() - start > budget:
            break
        try:
            timed[key] = _time(cells[0].config, plan.context)
        except ValueError:
            continue  # these cells will fail, and say why
    if not timed:
        return Estimate(None, "no program could be built")
    first, later = (float(np.mean([times[i] for times in timed.values()])) for i in range(2))
    costs = {key: timed.get(key, (first, later)) for key in groups}
    total = sum(costs[key][0] + costs[key][1] * len(cells) for key, cells in groups.items())
    return Estimate(total, f"from up to {_STEPS} steps and evaluated batches of {len(timed)} of {len(groups)} programs")


def _time(config: TrainConfig, context: Context) -> tuple[float, float]:
    """Seconds once a program, for compiling, and seconds a cell."""
    data, program, start = context.data(config), context.program(config), time.perf_counter()
    devices = program.devices
    split = parallel.place(data.splits["train"], devices)
    validation = data.splits["validation"]
    some = jax.device_put(jax.tree.map(lambda leaf: leaf[:EVALUATION_BATCH], validation), devices.local[0])
    state = parallel.place(init_state(config, data, program), devices)
    permutation = parallel.place(program.shuffle(data_key(config), 0), devices)
    marks = [start]
    while len(marks) < 3 or (len(marks) < 2 + _STEPS and marks[-1] - marks[1] < _STEP_SECONDS):
        state, _ = program.advance(state, split, permutation, None if program.solve_every == 1 else True)
        jax.block_until_ready(state)
        marks.append(time.perf_counter())
    compiling, *steps = np.diff(marks)
    params, model_state = parallel.fetch((state.params, state.model_state), devices)
    marks = [time.perf_counter()]
    for _ in range(2):
        evaluate(program.evaluation, params, model_state, some)
        marks.append(time.perf_counter())
    first, later = np.diff(marks)
    total = config.epochs * program.steps_per_epoch
    evaluations = total // (config.evaluate_every or program.steps_per_epoch) + 2
    batches = -(-validation.num_examples // EVALUATION_BATCH)
    return float(compiling + first), float(total * np.mean(steps) + evaluations * batches * later)


def cell_table(plan: Plan) -> Table:
    """The cells as a table for a terminal."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("cell", "role", "seed", "status"):
        table.add_column(name, overflow="fold")
    for cell in plan.cells:
        record = plan.done.get(cell.name)
        status = "to run" if record is None else record["status"]
        table.add_row(*map(Text, (cell.name, cell.role, str(cell.config.seed), status)))
    return table
