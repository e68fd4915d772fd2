#!/usr/bin/env python3
"""Prints what TorchJD 0.18.0 and mtljax make of the same Jacobians, next to the exact answer.

Every number is computed when the script runs. "exact" solves each problem with 50 digits and code of its own: quadratic
programs by trying every active set, CAGrad by bisection, Nash-MTL by Newton's method. A float32 row rounds the Jacobian
to float32 first, and its exact answer is that of the rounded one. TorchJD runs at its defaults, a new object for each
Jacobian. Takes about two minutes.

  error of d               |d - exact d| / |exact d|
  least cos(d, g_k)        the cosine of d and the gradient it serves worst; negative is a conflict
  spread of a_k <g_k, d>   Nash-MTL makes these products equal: the largest distance to their mean, over the mean
  linearity                |A(aJ) + A(bJ) - A((a + b)J)| / |A((a + b)J)|, the rows scaled by a, b in [0.1, 10]
  spread J                 independent normal gradients, of lengths spread over two decades
  opposed J                independent normal gradients of like length, less 95% of their mean
"""

import argparse
import importlib
import itertools
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

INSTALL = 'pip install torch==2.13.0 "torchjd[full]==0.18.0"'
VERSIONS = {"torch": "2.13.0", "torchjd": "0.18.0"}
DTYPES = (np.float64, np.float32)
C = 0.4  # the radius of CAGrad
# Conflicting gradients; the mean of the second pair conflicts too, which only matters to DualProj.
PAIRS = {"[[1, 0], [-1, 0.1]]": [[1.0, 0.0], [-1.0, 0.1]], "[[1, 0], [-2, 0.1]]": [[1.0, 0.0], [-2.0, 0.1]]}
SIZES = (3, 5)  # K of the random Jacobians


class Row(NamedTuple):
    """One line of the table; the last three hold the same quantity."""

    problem: str
    dtype: str
    quantity: str
    exact: str
    torchjd: str
    mtljax: str


class Method(NamedTuple):
    """One method three times: exactly, by TorchJD for K tasks, and the name of mtljax's."""

    exact: Callable[[np.ndarray], np.ndarray]
    torchjd: Callable[[int], Any]
    mtljax: str
    hyperparameters: dict[str, float]


# The exact answers. Gradients are float64 or float32 numbers, taken as they are.


def supports(num_tasks: int) -> Iterator[tuple[int, ...]]:
    return itertools.chain.from_iterable(itertools.combinations(range(num_tasks), n) for n in range(num_tasks + 1))


def solve_on(gramian: Any, support: Sequence[int], right: Any) -> Any:
    """The z with G_SS z_S = r_S and zeros elsewhere."""
    z = mpmath.zeros(gramian.rows, 1)
    if support:
        block = mpmath.matrix([[gramian[i, j] for j in support] for i in support])
        for i, value in zip(support, mpmath.lu_solve(block, mpmath.matrix([right[i] for i in support])), strict=True):
            z[i] = value
    return z


def product(jacobian: np.ndarray) -> tuple[Any, Any]:
    """The transposed Jacobian and the Gramian, with all digits."""
    matrix = mpmath.matrix(jacobian.astype(np.float64).tolist())
    return matrix.T, matrix * matrix.T


def as_array(vector: Any) -> np.ndarray:
    return np.array([float(x) for x in vector])


def exact_mgda(jacobian: np.ndarray) -> np.ndarray:
    """The shortest convex combination: weights ∝ G_SS^-1 1 on the one support beyond which no gradient helps."""
    transposed, gramian = product(jacobian)
    for support in supports(gramian.rows):
        w = solve_on(gramian, support, mpmath.ones(gramian.rows, 1))
        if support and min(w) >= 0:
            products = gramian * w
            if min(products) >= 1 - mpmath.mpf(10) ** -30:  # on the support they are 1
                return as_array(transposed * w / mpmath.fsum(w))
    raise AssertionError("the gradients are dependent")


def project_on_dual_cone(jacobian: np.ndarray, u: Any) -> np.ndarray:
    """The vector nearest to Jᵀ u that conflicts with no gradient: Jᵀ v of the v ≥ u that minimises vᵀ G v."""
    transposed, gramian = product(jacobian)
    products = gramian * u
    slack = mpmath.mpf(10) ** -30 * max(abs(x) for x in gramian)
    for support in supports(gramian.rows):
        v = u + solve_on(gramian, support, -products)
        if min(v - u) >= 0 and min(gramian * v) >= -slack:
            return as_array(transposed * v)
    raise AssertionError("the gradients are dependent")


def exact_upgrad(jacobian: np.ndarray) -> np.ndarray:
    units = mpmath.eye(len(jacobian)) / len(jacobian)
    return np.sum([project_on_dual_cone(jacobian, units[:, k]) for k in range(len(jacobian))], axis=0)


def exact_dualproj(jacobian: np.ndarray) -> np.ndarray:
    return project_on_dual_cone(jacobian, mpmath.ones(len(jacobian), 1) / len(jacobian))


def exact_cagrad(jacobian: np.ndarray) -> np.ndarray:
    """Two tasks: the dual is convex in the one weight, and its slope is bisected."""
    transposed, _ = product(jacobian)
    first, second = transposed[:, 0], transposed[:, 1]
    mean = (first + second) / 2
    low, high = mpmath.mpf(0), mpmath.mpf(1)
    for _ in range(160):
        w = (low + high) / 2
        combined = w * first + (1 - w) * second
        moved = mean + C * mpmath.norm(mean) * combined / mpmath.norm(combined)
        low, high = (low, w) if ((first - second).T * moved)[0] > 0 else (w, high)
    return as_array(moved)


def exact_nash(jacobian: np.ndarray) -> np.ndarray:
    """Jᵀ a with G a = 1 / a, by Newton steps down ½ aᵀ G a - Σ log a, at length 1 as in the official code."""
    transposed, gramian = product(jacobian)
    a = mpmath.matrix([1 / mpmath.sqrt(gramian[k, k]) for k in range(gramian.rows)])
    decrement = mpmath.inf
    while decrement > mpmath.mpf(10) ** -30:
        slope = gramian * a - a.apply(lambda x: 1 / x)
        step = mpmath.lu_solve(gramian + mpmath.diag([1 / x**2 for x in a]), -slope)
        decrement = mpmath.sqrt(-(slope.T * step)[0])
        a += step / (1 + decrement)
    d = transposed * a
    return as_array(d / mpmath.norm(d))


# The two libraries, each in the dtype of the Jacobians it is given.


def run_torchjd(build: Callable[[int], Any], jacobian: np.ndarray) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return build(len(jacobian))(torch.from_numpy(jacobian.copy())).numpy().astype(np.float64)


def run_mtljax(method: Method, jacobians: np.ndarray) -> np.ndarray:
    """A new method on each of a stack of Jacobians (n, K, d)."""
    build = getattr(importlib.import_module(f"mtljax.methods.{method.mtljax}"), method.mtljax)
    tx = build(num_tasks=jacobians.shape[1], **method.hyperparameters)
    with jax.enable_x64(jacobians.dtype == np.float64):
        directions = jax.jit(jax.vmap(lambda jacobian: tx.update(jacobian, tx.init(jacobian[0]))[0]))(
            jnp.asarray(jacobians)
        )
        return np.asarray(directions, np.float64)


def three(method: Method, jacobians: np.ndarray) -> list[np.ndarray]:
    """What the exact solution, TorchJD and mtljax make of a stack of Jacobians: three arrays (n, d)."""
    exact = np.stack([method.exact(jacobian) for jacobian in jacobians])
    theirs = np.stack([run_torchjd(method.torchjd, jacobian) for jacobian in jacobians])
    return [exact, theirs, run_mtljax(method, jacobians)]


def methods() -> dict[str, Method]:
    return {
        "CAGrad": Method(exact_cagrad, lambda _: aggregation.CAGrad(c=C), "cagrad", {"c": C}),
        "UPGrad": Method(exact_upgrad, lambda _: aggregation.UPGrad(), "upgrad", {}),
        "DualProj": Method(exact_dualproj, lambda _: aggregation.DualProj(), "dualproj", {}),
        "MGDA": Method(exact_mgda, lambda _: aggregation.MGDA(), "mgda", {}),
        "Nash-MTL": Method(exact_nash, lambda k: aggregation.NashMTL(n_tasks=k), "nash_mtl", {"max_norm": 1.0}),
    }


# What is measured of a stack of results d (n, d) on Jacobians (n, K, d).


def errors(directions: np.ndarray, exact: np.ndarray) -> np.ndarray:
    return np.linalg.norm(directions - exact, axis=-1) / np.linalg.norm(exact, axis=-1)


def worst_cosines(directions: np.ndarray, jacobians: np.ndarray) -> np.ndarray:
    """The cosine of d and the gradient it serves worst; negative is a conflict, NaN where d = 0."""
    lengths = np.linalg.norm(jacobians.astype(np.float64), axis=-1) * np.linalg.norm(directions, axis=-1)[:, None]
    with np.errstate(invalid="ignore"):
        return (np.einsum("nkd,nd->nk", jacobians.astype(np.float64), directions) / lengths).min(axis=1)


def nash_residuals(directions: np.ndarray, jacobians: np.ndarray) -> np.ndarray:
    """How far the products a_k ⟨g_k, d⟩, all equal at the solution, are from their mean, relative to it."""
    residuals = []
    for d, jacobian in zip(directions, jacobians.astype(np.float64), strict=True):
        a = np.linalg.lstsq(jacobian.T, d, rcond=None)[0]
        products = a * (jacobian @ d)
        residuals.append(np.abs(products / products.mean() - 1).max())
    return np.array(residuals)


def random_jacobians(family: str, num_tasks: int, count: int) -> np.ndarray:
    """Gradients of K tasks in K + 2 dimensions, (count, K, K + 2); the families are those of the docstring above."""
    rng = np.random.default_rng([num_tasks, 2024])
    jacobians = rng.standard_normal((count, num_tasks, num_tasks + 2))
    if family == "opposed":
        return jacobians - 0.95 * jacobians.mean(axis=1, keepdims=True)
    return jacobians * 10 ** rng.uniform(-1, 1, (count, num_tasks, 1))


# The lines of the table.


def number(value: float) -> str:
    return f"{value:.1e}"


def vector(values: np.ndarray) -> str:
    return "(" + ", ".join(f"{x:+.3e}" for x in values) + ")"


def small_gradients() -> Iterator[Row]:
    for name, pair, scale in (("CAGrad", 0, 5e-3), ("UPGrad", 0, 5e-3), ("DualProj", 1, 4e-3)):
        text, matrix = list(PAIRS.items())[pair]
        for factor, dtype in ((scale, np.float64), (scale, np.float32), (1.0, np.float64)):
            jacobian = (factor * np.array(matrix)).astype(dtype)
            directions = [each[0] for each in three(methods()[name], jacobian[None])]
            problem = f"{name}, J = {text}" if factor == 1 else f"{name}, J = {factor:g} {text}"
            if factor < 1 and dtype is np.float64:
                mean = jacobian.mean(axis=0)
                cosines = (worst_cosines(d[None], jacobian[None])[0] for d in directions)
                yield Row(problem, "float64", "d", *map(vector, directions))
                yield Row(problem, "float64", "|d - mean| / |mean|", *(number(errors(d, mean)) for d in directions))
                yield Row(problem, "float64", "least cos(d, g_k); nan: d = 0", *map(number, cosines))
            yield Row(problem, dtype.__name__, "error of d", *(number(errors(d, directions[0])) for d in directions))


def random_gradients(count: int) -> Iterator[Row]:
    cases = (
        ("MGDA", "spread"),
        ("MGDA", "opposed"),
        ("Nash-MTL", "spread"),
        ("UPGrad", "spread"),
        ("DualProj", "spread"),
    )
    for (name, family), dtype in itertools.product(cases, DTYPES):
        measures: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
            "error of d": lambda d, exact, _: errors(d, exact)
        }
        if dtype is np.float64 and name == "Nash-MTL":
            measures["spread of a_k <g_k, d>"] = lambda d, _, jacobians: nash_residuals(d, jacobians)
        elif dtype is np.float64:
            measures["least cos(d, g_k)"] = lambda d, _, jacobians: -worst_cosines(d, jacobians)
        stacks = [random_jacobians(family, num_tasks, count).astype(dtype) for num_tasks in SIZES]
        directions = [three(methods()[name], jacobians) for jacobians in stacks]
        problem = f"{name}, {count * len(SIZES)} {family} J, K = {' and '.join(map(str, SIZES))}"
        for quantity, measure in measures.items():
            columns = [
                np.concatenate(
                    [measure(each[i], each[0], stack) for each, stack in zip(directions, stacks, strict=True)]
                )
                for i in range(3)
            ]
            if "cos" in quantity:
                yield Row(problem, dtype.__name__, quantity, *(number(-max(column)) for column in columns))
                continue
            yield Row(problem, dtype.__name__, f"{quantity}, worst", *(number(max(column)) for column in columns))
            yield Row(
                problem, dtype.__name__, f"{quantity}, median", *(number(np.median(column)) for column in columns)
            )


def linearity(count: int) -> Iterator[Row]:
    num_tasks = 3
    for dtype in DTYPES:
        jacobians = random_jacobians("spread", num_tasks, count)
        scales = 10 ** np.random.default_rng(7).uniform(-1, 1, (2, count, num_tasks, 1))
        stacked = np.concatenate([scales[0] * jacobians, scales[1] * jacobians, scales.sum(axis=0) * jacobians])
        gaps = []
        for directions in three(methods()["UPGrad"], stacked.astype(dtype)):
            first, second, both = np.split(directions, 3)
            gaps.append(errors(first + second, both))
        problem = f"UPGrad, {count} spread J, K = {num_tasks}"
        yield Row(problem, dtype.__name__, "linearity, worst", *(number(max(gap)) for gap in gaps))
        yield Row(problem, dtype.__name__, "linearity, median", *(number(np.median(gap)) for gap in gaps))


def printed(rows: Sequence[Row]) -> str:
    header = Row("problem", "dtype", "quantity", "exact", "TorchJD 0.18.0", "mtljax")
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (header, *rows)]
    return "\n".join(line.rstrip() for line in (lines[0], "-" * len(lines[0]), *lines[1:]))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"example:\n  {INSTALL}\n  python scripts/compare_peers.py --count 20",
    )
    parser.add_argument("--count", type=int, default=40, help="random Jacobians for each number of tasks (default: 40)")
    count = parser.parse_args(arguments).count
    if count < 1:
        parser.error(f"--count must be at least 1, got {count}")
    global aggregation, mpmath, torch
    try:
        if any(metadata.version(name).partition("+")[0] != version for name, version in VERSIONS.items()):
            raise ImportError
        mpmath, torch, aggregation = map(importlib.import_module, ("mpmath", "torch", "torchjd.aggregation"))
        for build in (aggregation.UPGrad, lambda: aggregation.CAGrad(c=C), lambda: aggregation.NashMTL(n_tasks=2)):
            build()
    except ImportError:
        sys.exit(f"This comparison needs torch 2.13.0 and torchjd 0.18.0 beside mtljax; install them with: {INSTALL}")
    mpmath.mp.dps = 50
    print(printed([*small_gradients(), *random_gradients(count), *linearity(count)]))


if __name__ == "__main__":
    main()
