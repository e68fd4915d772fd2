#!/usr/bin/env python
"""Compares methods with exact solutions: relative errors of d against the independent oracles of the tests.

One table a dtype, one column a kind of Jacobian, (K, 2K), three of each: `generic` is standard normal; `mixed` has rows
of length 1e-6 to 1e6; `near-singular` repeats or opposes half of its rows up to noise of 1e-5. In float32 a Gramian,
which squares the condition of the rows, does not tell what the last are, and the column is left out; so are the few
oracles that need 50 digits and more, for minutes, beyond K = 10. The oracle sees the rows as rounded.
Needs the packages of `pip install -e ".[test]"`.

example: python scripts/check_methods.py --num-tasks 2 10
"""

import argparse
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

import mtljax as mtl

sys.path.append(str(Path(__file__).parents[1] / "tests" / "methods"))
KINDS = {"float64": ("generic", "mixed", "near-singular"), "float32": ("generic", "mixed")}
SIZES = (1, 2, 5, 10, 20, 64)
DIGITS = 10  # the largest K for the oracles that work with 50 digits and more


class Row(NamedTuple):
    """A row of the tables.

    Attributes:
      name: the method.
      options: its hyperparameters.
      oracle: from a Jacobian (K, P), float64, to d.
      slow: the kinds for which the oracle works with 50 digits and more.
    """

    name: str
    options: dict[str, Any]
    oracle: Callable[[np.ndarray], np.ndarray]
    slow: tuple[str, ...] = ()


def rows() -> dict[str, Row]:
    """The rows by their labels."""
    general, linear = importlib.import_module("oracles"), importlib.import_module("oracles_linear")
    decades, both = ("mixed",), ("mixed", "near-singular")
    return {
        "aligned_mtl": Row("aligned_mtl", {}, general.aligned_mtl, decades),
        "cagrad": Row("cagrad", {}, general.cagrad),
        "conflict_free": Row("conflict_free", {}, linear.conflict_free),
        "dualproj": Row("dualproj", {}, general.dualproj),
        "fairgrad(alpha=2)": Row("fairgrad", {"alpha": 2.0}, lambda j: general.fairgrad(j, 2.0), both),
        "gradvac(shuffle=False)": Row("gradvac", {"shuffle": False}, linear.gradvac),
        "imtl_g": Row("imtl_g", {}, imtl_g),
        "mgda": Row("mgda", {}, general.mgda),
        "nash_mtl": Row("nash_mtl", {}, general.nash_mtl, both),
        "pcgrad(shuffle=False)": Row("pcgrad", {"shuffle": False}, linear.pcgrad),
        "upgrad": Row("upgrad", {}, general.upgrad),
    }


def imtl_g(jacobian: np.ndarray) -> np.ndarray:
    """IMTL-G from the pseudo-inverse of the unit gradients, whose condition is not squared; lengths of all decades.

    y = (U⁺)' U⁺ 1 gives the weights y_k / |g_k|, up to their sum.
    """
    norms = np.linalg.norm(jacobian, axis=1)
    triangle = np.linalg.qr((jacobian / norms[:, None]).T)[1]
    y = np.linalg.solve(triangle, np.linalg.solve(triangle.T, np.ones(len(norms))))
    direction = y @ (jacobian / norms[:, None])
    return direction / abs(np.sum(y / norms))


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


def errors(row: Row, kinds: tuple[str, ...], dtype: str, num_tasks: int, samples: int) -> dict[str, float]:
    """The largest relative error of d for each kind of Jacobian."""
    tx = mtl.methods.create(row.name, num_tasks=num_tasks, **row.options)
    by_kind = {}
    with jax.enable_x64(dtype == "float64"):
        state = tx.init(jnp.zeros(2 * num_tasks, dtype))
        update = jax.jit(lambda jacobian: tx.update(jacobian, state, losses=jnp.ones(num_tasks, dtype))[0])
        for kind in kinds:
            worst = 0.0
            for seed in range(samples):
                jacobian = sample(kind, num_tasks, seed).astype(dtype)
                d = np.asarray(update(jacobian), np.float64)
                expected = row.oracle(jacobian.astype(np.float64))
                worst = max(worst, float(np.linalg.norm(d - expected) / np.linalg.norm(expected)))
            by_kind[kind] = worst
    return by_kind


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help="default: all that have an oracle")
    parser.add_argument("--num-tasks", type=int, nargs="+", metavar="K", help=f"default: {' '.join(map(str, SIZES))}")
    parser.add_argument("--quick", action="store_true", help="one Jacobian of each kind, K = 2 and 5 by default")
    options = parser.parse_args()
    sizes = options.num_tasks or ((2, 5) if options.quick else SIZES)
    tables = []
    for dtype, kinds in KINDS.items():
        table = Table(title=f"largest relative error of d, {dtype}, jax {jax.__version__}")
        table.add_column("method")
        table.add_column("K", justify="right")
        for kind in kinds:
            table.add_column(kind, justify="right")
        for label, row in rows().items():
            if options.methods and row.name not in options.methods:
                continue
            for num_tasks in sizes:
                asked = tuple(
                    kind
                    for kind in kinds
                    if (kind != "near-singular" or num_tasks > 1) and (kind not in row.slow or num_tasks <= DIGITS)
                )
                by_kind = errors(row, asked, dtype, num_tasks, samples=1 if options.quick else 3)
                cells = [label, str(num_tasks), *(f"{by_kind[kind]:.0e}" if kind in by_kind else "–" for kind in kinds)]
                table.add_row(*cells)
                print(dtype, *cells, file=sys.stderr, flush=True)
        tables.append(table)
    for table in tables:
        Console(width=120).print(table)


if __name__ == "__main__":
    main()
