#!/usr/bin/env python
"""Compares methods with exact solutions: relative errors of d against the independent oracles of the tests.

Kinds of Jacobians, (K, 2K), three of each: `generic` is standard normal; `mixed` has rows of length 1e-6 to 1e6;
`near-singular` repeats or opposes half of its rows up to noise of 1e-5. float32 is judged on generic ones, where the
Gramian, which squares the condition of the rows, still tells what they are. The oracle sees the rows as rounded.
Needs the packages of `pip install -e ".[test]"`.

example: python scripts/check_methods.py --num-tasks 2 10
"""

import argparse
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

import mtljax as mtl

sys.path.append(str(Path(__file__).parents[1] / "tests" / "methods"))
SMALL = 10  # the oracles for mixed scales work with 50 digits and more, for minutes beyond this K
COLUMNS = [("generic", "float64"), ("generic", "float32"), ("mixed", "float64"), ("near-singular", "float64")]


def methods() -> dict[str, tuple[str, dict[str, Any], Callable[[np.ndarray], np.ndarray]]]:
    """The rows of the table: method, hyperparameters, oracle."""
    general, linear = importlib.import_module("oracles"), importlib.import_module("oracles_linear")
    return {
        "aligned_mtl": ("aligned_mtl", {}, general.aligned_mtl),
        "cagrad": ("cagrad", {}, general.cagrad),
        "conflict_free": ("conflict_free", {}, linear.conflict_free),
        "dualproj": ("dualproj", {}, general.dualproj),
        "fairgrad(alpha=2)": ("fairgrad", {"alpha": 2.0}, lambda j: general.fairgrad(j, 2.0)),
        "gradvac(shuffle=False)": ("gradvac", {"shuffle": False}, linear.gradvac),
        "imtl_g": ("imtl_g", {}, linear.imtl_g),
        "mgda": ("mgda", {}, general.mgda),
        "nash_mtl": ("nash_mtl", {}, general.nash_mtl),
        "pcgrad(shuffle=False)": ("pcgrad", {"shuffle": False}, linear.pcgrad),
        "upgrad": ("upgrad", {}, general.upgrad),
    }


def sample(kind: str, num_tasks: int, seed: int) -> np.ndarray:
    """A Jacobian (K, 2K), float64."""
    rng = np.random.default_rng([seed, num_tasks])
    jacobian = rng.standard_normal((num_tasks, 2 * num_tasks))
    if kind == "mixed":
        return jacobian * 10 ** rng.uniform(-6, 6, (num_tasks, 1))
    if kind == "near-singular":
        half = num_tasks // 2
        sign = 1 if seed % 2 else -1
        jacobian[:half] = sign * jacobian[num_tasks - half :] + 1e-5 * rng.standard_normal((half, 2 * num_tasks))
    return jacobian


def error(name: str, options: dict[str, Any], oracle: Any, kind: str, dtype: str, num_tasks: int) -> float:
    """The largest relative error of d over three Jacobians."""
    tx = mtl.methods.create(name, num_tasks=num_tasks, **options)
    with jax.enable_x64(dtype == "float64"):
        state = tx.init(jnp.zeros(2 * num_tasks, dtype))
        update = jax.jit(lambda jacobian: tx.update(jacobian, state, losses=jnp.ones(num_tasks, dtype))[0])
        errors = []
        for seed in range(3):
            jacobian = sample(kind, num_tasks, seed).astype(dtype)
            found = np.asarray(update(jacobian), np.float64)
            expected = oracle(jacobian.astype(np.float64))
            errors.append(np.linalg.norm(found - expected) / np.linalg.norm(expected))
    return max(errors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help="default: all that have an oracle")
    parser.add_argument("--num-tasks", type=int, nargs="+", default=[1, 2, 5, 10, 20, 64], metavar="K")
    options = parser.parse_args()
    table = Table(title=f"largest relative error of d, jax {jax.__version__}")
    table.add_column("method")
    table.add_column("K", justify="right")
    for kind, dtype in COLUMNS:
        table.add_column(f"{kind}\n{dtype}", justify="right")
    for label, (name, hyperparameters, oracle) in methods().items():
        if options.methods and name not in options.methods:
            continue
        for num_tasks in options.num_tasks:
            row = [label, str(num_tasks)]
            for kind, dtype in COLUMNS:
                asked = kind == "generic" or 2 <= num_tasks <= SMALL
                row.append(f"{error(name, hyperparameters, oracle, kind, dtype, num_tasks):.0e}" if asked else "–")
            table.add_row(*row)
            print(*row, file=sys.stderr, flush=True)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
