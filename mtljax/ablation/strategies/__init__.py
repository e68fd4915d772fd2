"""How the cells of a study are run: one after the other, many in one program, in processes, or on a Ray cluster.

A strategy is a function `(cells, context) -> Iterator[record]` that yields each record as soon as its cell is done, in
any order, and writes nothing. A cell that fails (a loss becomes NaN, memory runs out, a worker is killed) gives a
record that says so and the others go on; SIGTERM and Ctrl-C raise StudyInterruptedError. All strategies give the same
numbers to rounding: the same seeds, batches and dropout keys. `context.jobs` is how many cells may run at once, None
for the strategy's own default.
"""

from collections.abc import Callable, Generator, Sequence
from typing import TypeAlias

import jax

from mtljax.ablation.cell import Cell, Context, Record
from mtljax.ablation.strategies.processes import processes
from mtljax.ablation.strategies.ray_cluster import ray_cluster
from mtljax.ablation.strategies.sequential import sequential
from mtljax.ablation.strategies.vectorised import vectorised

Strategy: TypeAlias = Callable[[Sequence[Cell], Context], Generator[Record, None, None]]

STRATEGIES: dict[str, Strategy] = {
    "processes": processes,
    "ray": ray_cluster,
    "sequential": sequential,
    "vmap": vectorised,
}


def default() -> str:
    """The strategy for this machine: on a CPU one run keeps the cores busy, on accelerators it takes many."""
    return "sequential" if jax.default_backend() == "cpu" else "vmap"
