#!/usr/bin/env python
"""Times every method's rule alone: one jitted update from a K x K Jacobian, beside TorchJD where it is installed.

Solvers take more steps on some Jacobians than on others: each method is timed on several, `random` (standard normal,
shifted), `conflicting` (rows that nearly sum to zero) and `near-singular` (half of the rows oppose the others up to
1e-3), and the table shows the slowest. A K x K Jacobian stands for a given Gramian: the product and the combination are
counted, and cost little beside the rule. TorchJD's weightings start from the Gramian itself. Both run in one process,
float32, in turns of a tenth of the time each, so that what else the machine does slows both; medians of many calls, and
the ratio is the smallest over the Jacobians.

example: python scripts/bench_methods.py --num-tasks 10 40
"""

import argparse
import importlib
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

import mtljax as mtl

KINDS = ("random", "conflicting", "near-singular")
ROUNDS = 10  # turns that the two take
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


def sample(kind: str, num_tasks: int) -> np.ndarray:
    """A Jacobian (K, K), float32."""
    jacobian = np.random.default_rng(num_tasks).standard_normal((num_tasks, num_tasks)) + 0.3
    if kind == "conflicting":
        jacobian -= 0.95 * jacobian.mean(axis=0)
    elif kind == "near-singular":
        half = num_tasks // 2
        jacobian[:half] = -jacobian[num_tasks - half :] + 1e-3 * jacobian[:half]
    return jacobian.astype(np.float32)


def medians_ms(calls: Sequence[Callable[[], Any]], seconds: float) -> list[float]:
    """Median milliseconds of each of the calls, in turns, over about so many seconds each and ten times at least."""
    times: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call()
    for _ in range(ROUNDS):
        for call, taken in zip(calls, times, strict=True):
            end = time.perf_counter() + seconds / ROUNDS
            start = 0.0
            while start < end:
                start = time.perf_counter()
                call()
                taken.append(time.perf_counter() - start)
                start = time.perf_counter()
    return [1e3 * statistics.median(taken) for taken in times]


def compiled(name: str, num_tasks: int) -> tuple[float, Callable[[np.ndarray], Callable[[], Any]]]:
    """Seconds to trace and compile an update, and what makes a call of it from a Jacobian."""
    tx = mtl.methods.create(name, num_tasks=num_tasks)
    state = tx.init(jnp.zeros(num_tasks))
    losses = jnp.linspace(0.5, 2.0, num_tasks)
    example = jnp.zeros((num_tasks, num_tasks))
    jax.clear_caches()
    start = time.perf_counter()
    update = jax.jit(lambda j, s, losses: tx.update(j, s, losses=losses)).lower(example, state, losses).compile()
    seconds = time.perf_counter() - start

    def call_on(jacobian: np.ndarray) -> Callable[[], Any]:
        argument = jnp.asarray(jacobian)
        return lambda: jax.block_until_ready(update(argument, state, losses))

    return seconds, call_on


def torchjd_call(name: str, jacobian: np.ndarray) -> Callable[[], Any] | None:
    """A call of TorchJD's weighting of the same Gramian, None where it has none or fails."""
    try:
        torch = importlib.import_module("torch")
        aggregation = importlib.import_module("torchjd.aggregation")
        torch.set_num_threads(1)
        if name == "nash_mtl":  # an aggregator only: it takes the Jacobian
            method, argument = aggregation.NashMTL(n_tasks=len(jacobian)), torch.tensor(jacobian)
        else:
            build = getattr(aggregation, TORCHJD[name])
            method = build(c=0.4) if name == "cagrad" else build(alpha=1.0) if name == "fairgrad" else build()
            argument = torch.tensor(jacobian @ jacobian.T)
        method(argument)
    except Exception:  # whatever its solvers raise
        return None
    return lambda: method(argument)


def timed(name: str, num_tasks: int, kinds: Sequence[str], seconds: float) -> list[str]:
    """The cells of a method at one K: compilation, the slowest Jacobian, TorchJD's slowest, the smallest ratio."""
    compiling, call_on = compiled(name, num_tasks)
    ours, theirs, ratios = {}, [], []
    for kind in kinds:
        jacobian = sample(kind, num_tasks)
        peer = torchjd_call(name, jacobian)
        milliseconds = medians_ms([call_on(jacobian), *([] if peer is None else [peer])], seconds)
        ours[kind] = milliseconds[0]
        theirs += milliseconds[1:]
        ratios += [each / milliseconds[0] for each in milliseconds[1:]]
    slowest = max(ours, key=lambda kind: ours[kind])
    cells = [f"{compiling:.2f}", f"{ours[slowest]:.3f}", slowest]
    return cells + ([f"{max(theirs):.2f}", f"{min(ratios):.1f}x"] if ratios else ["–", "–"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", metavar="METHOD", help="default: all of them")
    parser.add_argument("--num-tasks", type=int, nargs="+", default=[10, 40], metavar="K", help="default: 10 40")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="Jacobians (default: all three)")
    parser.add_argument("--seconds", type=float, default=0.5, help="spent on each number (default: 0.5)")
    options = parser.parse_args()
    for name in options.methods:
        mtl.methods.describe(name)
    tables = []
    for k in options.num_tasks:
        table = Table(title=f"one update, K={k}, {jax.devices()[0].device_kind}, jax {jax.__version__}, float32")
        table.add_column("method")
        for column in ("compile s", "ms, slowest", "on", "TorchJD ms", "ratio, least"):
            table.add_column(column, justify="right")
        for name in options.methods or mtl.methods.names():
            cells = timed(name, k, options.kinds, options.seconds)
            table.add_row(name, *cells)
            print(f"K={k} {name}", *cells, file=sys.stderr, flush=True)
        tables.append(table)
    for table in tables:
        Console(width=120).print(table)


if __name__ == "__main__":
    main()
