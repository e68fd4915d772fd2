#!/usr/bin/env python
"""Times every method's rule alone: one jitted update from a K x K Jacobian, beside TorchJD where it is installed.

A K x K Jacobian stands for a given Gramian: the product and the combination are counted, and cost little beside the
rule. TorchJD's weightings start from the Gramian itself. Both run in one process, float32; medians of many calls.

example: python scripts/bench_methods.py --num-tasks 10 40
"""

import argparse
import importlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

import mtljax as mtl

TORCHJD = {
    "aligned_mtl": "AlignedMTLWeighting",
    "cagrad": "CAGradWeighting",
    "dualproj": "DualProjWeighting",
    "fairgrad": "FairGradWeighting",
    "gradvac": "GradVacWeighting",
    "imtl_g": "IMTLGWeighting",
    "mgda": "MGDAWeighting",
    "pcgrad": "PCGradWeighting",
    "upgrad": "UPGradWeighting",
}


def median_ms(call: Callable[[], Any], seconds: float) -> float:
    """Median milliseconds of a call, over about so many seconds and at least five calls."""
    call()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 5 or (time.perf_counter() < end and len(times) < 10_000):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def compile_and_time(name: str, jacobian: np.ndarray, seconds: float) -> tuple[float, float]:
    """Seconds to trace and compile an update, and milliseconds of one."""
    num_tasks = len(jacobian)
    tx = mtl.methods.create(name, num_tasks=num_tasks)
    state = tx.init(jnp.zeros(num_tasks))
    arguments = (jnp.asarray(jacobian, jnp.float32), state, jnp.linspace(0.5, 2.0, num_tasks))
    jax.clear_caches()
    start = time.perf_counter()
    update = jax.jit(lambda j, s, losses: tx.update(j, s, losses=losses)).lower(*arguments).compile()
    compiling = time.perf_counter() - start
    return compiling, median_ms(lambda: jax.block_until_ready(update(*arguments)), seconds)


def torchjd_ms(name: str, jacobian: np.ndarray, seconds: float) -> float | None:
    """Milliseconds of TorchJD's weighting of the same Gramian, None where it has none or fails."""
    try:
        torch = importlib.import_module("torch")
        aggregation = importlib.import_module("torchjd.aggregation")
        torch.set_num_threads(1)
        if name == "nash_mtl":  # an aggregator only: it takes the Jacobian
            method, argument = aggregation.NashMTL(n_tasks=len(jacobian)), torch.tensor(jacobian, dtype=torch.float32)
        else:
            build = getattr(aggregation, TORCHJD[name])
            method = build(c=0.4) if name == "cagrad" else build(alpha=1.0) if name == "fairgrad" else build()
            argument = torch.tensor(jacobian @ jacobian.T, dtype=torch.float32)
        return median_ms(lambda: method(argument), seconds)
    except Exception:  # whatever its solvers raise
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", metavar="METHOD", help="default: all of them")
    parser.add_argument("--num-tasks", type=int, nargs="+", default=[10, 40], metavar="K", help="default: 10 40")
    parser.add_argument("--seconds", type=float, default=0.5, help="spent on each number (default: 0.5)")
    options = parser.parse_args()
    for name in options.methods:
        mtl.methods.describe(name)
    table = Table(title=f"one update on {jax.devices()[0].device_kind}, jax {jax.__version__}, float32")
    table.add_column("method")
    for k in options.num_tasks:
        for column in ("compile s", "ms", "TorchJD ms", "ratio"):
            table.add_column(f"{column}\nK={k}", justify="right")
    for name in options.methods or mtl.methods.names():
        row = [name]
        for k in options.num_tasks:
            jacobian = np.random.default_rng(k).standard_normal((k, k)) + 0.3
            compiling, ours = compile_and_time(name, jacobian, options.seconds)
            peer = torchjd_ms(name, jacobian, options.seconds)
            row += [f"{compiling:.2f}", f"{ours:.3f}"]
            row += ["–", "–"] if peer is None else [f"{peer:.2f}", f"{peer / ours:.0f}x"]
        table.add_row(*row)
        print(f"{name} done", flush=True)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
