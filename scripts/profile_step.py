#!/usr/bin/env python
"""Traces a train step of bench_step.py with jax.profiler and names its largest costs.

Times are those of XLA's operations, added over threads or streams and averaged over steps; an operation that was fused
goes by the JAX operation its result comes from. The trace itself stays in --directory, for TensorBoard or Perfetto.

example: python scripts/profile_step.py --networks mlp resnet18-3 --top 3
"""

import argparse
import collections
import re
import sys
from pathlib import Path
from typing import Any

import bench_step
import jax
from rich.console import Console
from rich.table import Table

STEPS = 5
# What wraps or waits for operations, and is none.
_NO_OPERATION = re.compile(r"ThunkExecutor|wait|Wait|\$|::|^Thread|^end:|Rendezvous|Executable")


def origins(program: Any) -> dict[str, str]:
    """For each operation of a compiled program, where in the JAX code it comes from."""
    by_operation, inside, callers, computation = {}, {}, {}, ""
    for line in program.as_text().splitlines():
        if line.endswith("{"):
            computation = line.split()[0].lstrip("%")
        operation = re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = ", line)
        origin, called = re.search(r'op_name="([^"]*)"', line), re.search(r"calls=%?([\w.\-]+)", line)
        if operation and origin:
            by_operation[operation[1]] = origin[1]
            heavy = re.search(r"dot_general|conv_general", origin[1])
            if heavy or computation not in inside:
                inside[computation] = origin[1]
        if operation and called:
            callers[operation[1]] = called[1]
        result = re.match(r"\s*ROOT %?[\w.\-]+ = (\S+) ([\w\-]+)\(", line)
        if result and computation not in inside:  # the compiler made it and says not from what
            inside[computation] = f"{result[2]} giving {result[1].split('{')[0]}"
    for operation, called in callers.items():
        if operation not in by_operation and called in inside:
            by_operation[operation] = inside[called]
    return by_operation


def costs(directory: Path, names: dict[str, str]) -> collections.Counter[tuple[str, str]]:
    """Nanoseconds by operation, of the newest trace in a directory."""
    total: collections.Counter[tuple[str, str]] = collections.Counter()
    newest = max(directory.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    for plane in jax.profiler.ProfileData.from_file(str(newest)).planes:
        for line in plane.lines:
            if "XLA" not in line.name and "Stream" not in line.name and "/device" not in plane.name:
                continue
            for event in line.events:
                if not _NO_OPERATION.search(event.name):
                    total[event.name, names.get(event.name, "")] += event.duration_ns
    return total


def main() -> int:
    """Prints one table a network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = list(bench_step.NETWORKS)
    parser.add_argument("--networks", nargs="+", default=["mlp"], choices=known, metavar="NAME")
    parser.add_argument("--method", default="pcgrad", help="method (default: pcgrad)")
    parser.add_argument("--mode", default="auto", help="engine (default: auto)")
    parser.add_argument("--top", type=int, default=3, help="operations to name (default: 3)")
    parser.add_argument("--directory", type=Path, default=Path("runs/profiles"), help="where traces are kept")
    options = parser.parse_args()
    for name in options.networks:
        step = bench_step.jax_step(bench_step.NETWORKS[name], name, options.method, mode=options.mode)
        step.call()
        directory = options.directory / name
        with jax.profiler.trace(str(directory)):
            for _ in range(STEPS):
                step.call()
        times = costs(directory, origins(step.program))
        whole = sum(times.values())
        table = Table(
            title=f"{name}, {options.method}, {options.mode}: {whole / STEPS / 1e6:.1f} ms of operations a step"
        )
        for column in ("operation", "from", "ms a step", "share"):
            table.add_column(column, justify="right" if column in ("ms a step", "share") else "left")
        for (operation, origin), spent in times.most_common(options.top):
            origin = "/".join(origin.split("/")[-6:])
            table.add_row(operation, origin, f"{spent / STEPS / 1e6:.2f}", f"{spent / whole:.0%}")
        Console(width=140).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
