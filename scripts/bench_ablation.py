#!/usr/bin/env python
"""Times studies: strategies against each other, and one grid against as many separate runs.

First, cells per minute of each strategy on digits: one structure, learning rates x seeds, with a warm compilation cache
(each strategy runs the cells once before it is timed), so that what compiles is read from disk and what starts, starts.
Second, a grid in one `mtljax ablate` against separate `mtljax train` processes, with a cold and with a warm compilation
cache; some of these processes are measured, spread over the grid, and the rest taken to be like them: the table says
how many. Third, what a cell costs beside its training steps, in the cells that compile nothing. All commands run on
this machine one after the other; neither the cells nor the separate runs write checkpoints.

example: python scripts/bench_ablation.py --networks mlp --cells 8 --epochs 1 --strategies sequential vmap
"""

import argparse
import contextlib
import importlib.util
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.progress import track
from rich.table import Table

from mtljax.ablation import StudyConfig, product
from mtljax.ablation.cell import Cell, Context
from mtljax.ablation.strategies import STRATEGIES
from mtljax.ablation.strategies.processes import cores
from mtljax.training import DataConfig, MethodConfig, ModelConfig, OptimizerConfig, TrainConfig

NETWORKS = {
    "mlp": ModelConfig("mlp", {"features": (64, 64)}),
    "lenet": ModelConfig("lenet", {"channels": (16, 32), "kernels": (3, 3), "padding": "SAME", "features": 64}),
}
METHODS = ("ew", "pcgrad", "mgda", "cagrad")
RATES = (1e-3, 3e-3)
SEEDS = (0, 1, 2)


def base(network: str, epochs: int) -> TrainConfig:
    """One run on digits."""
    return TrainConfig(
        name=network,
        data=DataConfig("digits", {"num_train": 6000}),
        model=NETWORKS[network],
        method=MethodConfig("mgda"),
        batch_size=128,
        epochs=epochs,
        checkpoints=False,
        tensorboard=False,
        devices=1,
    )


def cells_of(network: str, count: int, epochs: int) -> list[Cell]:
    """Cells of one structure."""
    cells = []
    for i in range(count):
        optimizer = OptimizerConfig("adam", learning_rate=1e-4 * 10 ** (2 * (i % 8) / 7))
        config = replace(base(network, epochs), name=f"cell{i}", seed=i // 8, optimizer=optimizer)
        cells.append(Cell(config.name, "multi", "mgda", "adam", config))
    return cells


def strategies_table(options: argparse.Namespace) -> Iterator[Table]:
    """Cells per minute, a table a network."""
    for network in options.networks:
        cells = cells_of(network, options.cells, options.epochs)
        rows: list[tuple[str, str, float]] = []
        settings = [(name, jobs) for name in options.strategies for jobs in (options.jobs if name == "vmap" else [0])]
        for name, jobs in track(settings, network, transient=True, console=Console(stderr=True)):
            context = Context(jobs=jobs or (os.cpu_count() or 1))
            first = cells[: max(1, min(context.jobs, len(cells)))] if name in ("vmap", "sequential") else cells
            times = []
            for part in (first, cells):  # the first compiles
                start = time.perf_counter()
                records = list(STRATEGIES[name](part, context))
                times.append(time.perf_counter() - start)
                if bad := [record for record in records if record["status"] != "finished"]:
                    raise SystemExit(f"{name}: {bad[0]['cell']} failed: {bad[0]['reason']}")
            rows.append((name, str(jobs) if name == "vmap" else "", 60 * len(cells) / times[1]))
        steps = options.epochs * (6000 // 128)
        table = Table(title=f"{network} on digits, {len(cells)} cells of {steps} steps, batch 128")
        for column in ("strategy", "M", "cells per minute", "ratio to the first row"):
            table.add_column(column, justify="left" if column == "strategy" else "right")
        for name, jobs, rate in rows:
            table.add_row(name, jobs, f"{rate:.1f}", f"{rate / rows[0][2]:.2f}")
        yield table


def grid(network: str, epochs: int) -> StudyConfig:
    """24 cells: four methods, two learning rates, three seeds."""
    return StudyConfig(
        name="bench",
        base=base(network, epochs),
        methods=tuple(MethodConfig(name) for name in METHODS),
        optimizers=(OptimizerConfig("adam"),),
        seeds=SEEDS,
        baselines=False,
        weight_grid=0,
        axes=product({"optimizer.learning_rate": RATES}),
    )


def get_config() -> StudyConfig:
    """What `mtljax ablate` and `mtljax train` read when this file is their config."""
    return grid(os.environ["BENCH_NETWORK"], int(os.environ["BENCH_EPOCHS"]))


def command(words: list[str], cache: Path, network: str, epochs: int) -> float:
    """Wall seconds of a command with a compilation cache of its own."""
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "BENCH_NETWORK": network,
        "BENCH_EPOCHS": str(epochs),
    }
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "mtljax.cli", *words], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} failed:\n{done.stderr}")
    return time.perf_counter() - start


def train_words(index: int, directory: Path) -> list[str]:
    """One of the 24 as a separate run: every method has six, and neighbours are of different methods."""
    method, rest = METHODS[index % 4], index // 4
    return [
        "train",
        __file__,
        f"--workdir={directory / 'train' / f'{time.time_ns()}'}",
        f"--method.name={method}",
        f"--optimizer.learning_rate={RATES[rest % 2]}",
        f"--seed={SEEDS[rest // 2]}",
    ]


def throughput_table(network: str, options: argparse.Namespace) -> tuple[Table, Table]:
    """One grid against separate runs, and what its cells cost beside their steps."""
    count = len(METHODS) * len(RATES) * len(SEEDS)
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        study = [f"--strategy={options.grid_strategy}", f"--jobs={options.grid_jobs}"]

        def ablate(name: str, cache: str) -> float:
            words = ["ablate", __file__, f"--workdir={directory / name}", *study]
            return command(words, directory / cache, network, options.grid_epochs)

        def train(index: int, cache: str) -> float:
            return command(train_words(index, directory), directory / cache, network, options.grid_epochs)

        ablate_cold, ablate_warm = ablate("a", "study"), ablate("b", "study")
        cold = [train(i, f"cold{i}") for i in range(options.runs)]
        for i in range(min(options.runs, len(METHODS))):
            train(i, "warm")  # fills the cache
        warm = [train(i, "warm") for i in range(options.runs)]
        records = [json.loads(path.read_text()) for path in (directory / "a" / "cells").glob("*.json")]

    table = Table(title=f"{network} on digits, {count} cells, {options.grid_epochs} epochs: one grid or separate runs")
    for column in ("how", "measured", "seconds for 24", "ratio to the cold grid", "ratio to the warm grid"):
        table.add_column(column, justify="left" if column == "how" else "right")
    rows = [
        (f"mtljax ablate ({options.grid_strategy}), cold cache", "the whole", ablate_cold),
        (f"mtljax ablate ({options.grid_strategy}), warm cache", "the whole", ablate_warm),
        ("mtljax train, cold cache", f"{len(cold)} of {count}", count * statistics.mean(cold)),
        ("mtljax train, warm cache", f"{len(warm)} of {count}", count * statistics.mean(warm)),
    ]
    for label, measured, seconds in rows:
        table.add_row(label, measured, f"{seconds:.1f}", f"{seconds / ablate_cold:.2f}", f"{seconds / ablate_warm:.2f}")
    return table, overhead_table(network, records)


def overhead_table(network: str, records: list[dict[str, Any]]) -> Table:
    """What a cell costs beside its steps; the first of each method compiles, and is left out."""
    later = []
    for method in METHODS:
        own = [record for record in records if record["method"] == method and record["seconds_per_step"] is not None]
        own.remove(max(own, key=lambda record: record["seconds"]))
        later += own
    seconds = statistics.mean(record["seconds"] for record in later)
    steps = statistics.mean(record["steps"] * record["seconds_per_step"] for record in later)
    evaluation = statistics.mean(map(evaluation_seconds, later))
    table = Table(title=f"{network}: seconds of a cell, mean of the {len(later)} that compile nothing")
    for column in ("whole", "steps", "evaluations", "all else", "all else / whole"):
        table.add_column(column, justify="right")
    rest = seconds - steps - evaluation
    table.add_row(*(f"{x:.3f}" for x in (seconds, steps, evaluation, rest)), f"{rest / seconds:.1%}")
    return table


def evaluation_seconds(record: dict[str, Any]) -> float:
    """Seconds of a cell's evaluations, from its log: from the training record before to the evaluation's own."""
    return sum(
        line["seconds"] - before["seconds"]
        for before, line in itertools.pairwise(record["history"])
        if line["split"] != "train"
    )


def main() -> int:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = [name for name in STRATEGIES if name != "ray" or importlib.util.find_spec("ray")]
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=list(NETWORKS), metavar="NAME")
    parser.add_argument("--strategies", nargs="+", default=["sequential", "vmap", "processes"], choices=known)
    parser.add_argument("--jobs", nargs="+", type=int, default=[1, 8, 32], metavar="M", help="blocks of vmap")
    parser.add_argument("--cells", type=int, default=32, help="cells of each strategy")
    parser.add_argument("--epochs", type=int, default=2, help="epochs of these cells")
    parser.add_argument("--grids", nargs="*", default=["lenet"], choices=list(NETWORKS), help="networks of the grids")
    parser.add_argument("--grid_epochs", type=int, default=2, help="epochs of the cells of a grid")
    parser.add_argument("--grid_strategy", default="sequential", choices=known)
    parser.add_argument("--grid_jobs", type=int, default=1)
    parser.add_argument("--runs", type=int, default=4, metavar="N", help="separate runs measured, of 24")
    options = parser.parse_args()
    console = Console(width=110)
    device = jax.devices()[0].device_kind
    console.print(f"jax {jax.__version__} on {jax.default_backend()} ({device}), {cores()} cores")
    with tempfile.TemporaryDirectory() as cache:
        jax.config.update("jax_compilation_cache_dir", cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        for table in strategies_table(options):
            console.print(table)
    for network in options.grids:
        for table in throughput_table(network, options):
            console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
