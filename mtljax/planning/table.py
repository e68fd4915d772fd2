"""A plan as a table for a terminal, as text, and as JSON for machines."""

import itertools
import math
from collections import Counter
from collections.abc import Mapping
from io import StringIO
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from mtljax.planning.hlo import Collective
from mtljax.planning.results import Compiled
from mtljax.planning.steps import SUMMED, Blocks, Plan, Row


def table(plan: Plan) -> Table:
    """A row a way to make the step; all figures are of one device."""
    target = plan.target
    size = "" if plan.batch is None else f", batch {plan.batch} over all devices"
    heading = {"tpu": "ms (compiler)", "cuda": "ms (roofline)", "cpu": "ms"}[target.platform]
    found = Table(title=f"{target.name}: {target.devices} devices{size}; of one device", box=box.SIMPLE_HEAD)
    memory = "MB" if target.memory is None else f"MB of {target.memory / 1e6:,.0f}"
    for name in ("step", "fits", memory, "temporaries MB", heading, "ratio", "GFLOP", "GB moved", "sent MB"):
        found.add_column(name, justify="left" if name == "step" else "right")
    first = next((row.seconds for row in plan.rows if row.name == SUMMED), None)
    for row in plan.rows:
        found.add_row(*_cells(row, first))
    return found


def lines(plan: Plan) -> list[str]:
    """What the table does not hold: memory by part, the choice, what is sent, the largest batch and arrays, hours."""
    shown = [row for row in plan.rows if row.compiled is not None]
    best = next((row for row in shown if row.name == "auto"), shown[-1])
    assert best.compiled is not None
    result = [f"{row.name}: {row.choice}" for row in plan.rows if row.compiled is None or row.name == "auto"]
    held = ", ".join(f"{name} {_megabytes(size)}" for name, size in best.parts.items() if size)
    result.append(f"of {best.name}, arguments: {held}; the rest is activations, gradients, a Jacobian if one is held")
    for row in shown:
        if row.compiled is not None and row.compiled.collectives:
            result.append(f"{row.name} sends {_traffic(row.compiled, row.mesh)}")
    if plan.largest_batch is not None:
        found = plan.largest_batch or "none"
        result.append(f"largest batch of {best.name} that fits: {found} (to 5%, by compiling)")
    if best.compiled.fits is False:
        arrays = (f"{each.name or 'one'} {each.shape} {_megabytes(each.bytes)}" for each in best.compiled.largest[:3])
        result.append(f"{best.name} does not fit into {plan.target.name}; largest arrays: {', '.join(arrays)}")
    if plan.steps is not None and plan.seconds is not None:
        took = _duration(plan.steps * plan.seconds)
        result.append(f"{plan.steps:,} steps take {took} at that estimate, evaluations and data not counted")
    if any(row.compiled and row.compiled.estimate and row.compiled.estimate.unknown_loops for row in shown):
        result.append("loops that end when they converge, as of a solver, count as one round")
    result.append(_SAYS[plan.target.platform])
    return result


_FITS = {True: "yes", False: "NO", None: "–"}
_SAYS = {
    "tpu": "ms: the compiler's own estimate of its cycles, not a measurement; what devices send is not in it",
    "cuda": "ms: the least that arithmetic and memory allow (roofline), no measurement; what devices send is not in "
    "it. Of a GPU's memory jax takes three quarters unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise",
    "cpu": "no estimate of time is made for a CPU: run it",
}


def text(plan: Plan) -> str:
    """Table and lines as plain text."""
    out = Console(file=StringIO(), width=140)
    show(plan, out)
    return out.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def show(plan: Plan, console: Console) -> None:
    """Prints table and lines."""
    console.print(table(plan))
    for line in lines(plan):
        console.print(line, highlight=False, soft_wrap=True)


def to_json(plan: Plan) -> dict[str, Any]:
    """The plan for machines: bytes, seconds, operations of one device."""
    return {
        "target": plan.target._asdict(),
        "batch": plan.batch,
        "largest_batch": plan.largest_batch,
        "steps": plan.steps,
        "rows": [_row(row) for row in plan.rows],
    }


def blocks_table(blocks: Blocks) -> Table:
    """A row a number of cells in one program, of one device."""
    target = next(iter(blocks.compiled.values())).target
    found = Table(title=f"{target.name}: cells of the study in one program, one device", box=box.SIMPLE_HEAD)
    for name in ("cells", "fits", "MB", "ms a step", "ms a cell and step", "gain"):
        found.add_column(name, justify="right")
    first = None
    for size, compiled in blocks.compiled.items():
        seconds = Row("", compiled, "").seconds
        first = first or (seconds and seconds / size)  # of one cell alone in its program
        needed = "?" if compiled.needed is None else f"{compiled.needed / 1e6:,.0f}"
        times = ["–"] * 3
        if seconds and first:
            times = [f"{1e3 * seconds:.3g}", f"{1e3 * seconds / size:.3g}", f"{first * size / seconds:.2f}"]
        found.add_row(str(size), _FITS[compiled.fits], needed, *times)
    return found


def study_lines(plan: Plan, blocks: Blocks | None, method: str, cells: int) -> list[str]:
    """What the cells of a study cost together, each taken to cost what a run of this method does."""
    found = [f"the study has {cells} cells; each is taken to cost what one of {method} does, its dearest method"]
    if plan.steps is None or plan.seconds is None:
        return found
    total = cells * plan.steps * plan.seconds
    found.append(f"one after another they take {_duration(total)}")
    if blocks is None:
        return found
    times = {size: Row("", each, "").seconds for size, each in blocks.compiled.items() if each.fits}
    shares = {size: seconds / size for size, seconds in times.items() if seconds}
    if shares:
        best = min(shares, key=lambda size: shares[size])
        took = _duration(cells * plan.steps * shares[best])
        found.append(f"largest block that fits: {max(shares)} cells; quickest: {best}, one device then takes {took}")
    return found


def blocks_json(blocks: Blocks) -> dict[str, Any]:
    """The blocks for machines."""
    rows = {size: _row(Row("", compiled, "")) for size, compiled in blocks.compiled.items()}
    return {"by_size": rows}


def _row(row: Row) -> dict[str, Any]:
    found: dict[str, Any] = {"name": row.name, "choice": row.choice, "parts": dict(row.parts)}
    compiled = row.compiled
    if compiled is None:
        return found
    return found | {
        "fits": compiled.fits,
        "needed": compiled.needed,
        "memory": compiled.memory and compiled.memory._asdict(),
        "seconds": row.seconds,
        "flops": _flops(compiled),
        "bytes_moved": compiled.bytes_moved,
        "collectives": [each._asdict() for each in compiled.collectives],
        "largest": [each._asdict() for each in compiled.largest],
        "unknown_loops": list(compiled.estimate.unknown_loops) if compiled.estimate else [],
        "compile_seconds": compiled.seconds,
    }


def _cells(row: Row, first: float | None) -> list[str]:
    compiled = row.compiled
    if compiled is None:
        return [row.name, "cannot", *["–"] * 7]
    fits = _FITS[compiled.fits]
    needed = "?" if compiled.needed is None else f"{compiled.needed / 1e6:,.0f}"
    if compiled.memory is None:
        return [row.name, fits, needed, *["–"] * 6]
    seconds = row.seconds
    return [
        row.name,
        fits,
        needed,
        f"{compiled.memory.temporaries / 1e6:,.0f}",
        "–" if seconds is None else f"{1e3 * seconds:.3g}",
        "–" if seconds is None or not first else f"{seconds / first:.2f}",
        f"{_flops(compiled) / 1e9:,.1f}",
        f"{compiled.bytes_moved / 1e9:.2f}",
        f"{sum(each.times * each.bytes for each in compiled.collectives) / 1e6:.2f}",
    ]


def _flops(compiled: Compiled) -> float:
    """Of products and convolutions, loops counted as often as they run."""
    return math.fsum(each.times * each.flops for each in compiled.products)


def _traffic(compiled: Compiled, mesh: Mapping[str, int]) -> str:
    """How often which collective moves how much, over which sides of the mesh."""
    count: Counter[tuple[str, str]] = Counter()
    size: Counter[tuple[str, str]] = Counter()
    for each in compiled.collectives:
        key = each.kind, _sides(each, mesh)
        count[key] += each.times
        size[key] += each.times * each.bytes
    return ", ".join(f"{count[key]} {key[0]} of {_megabytes(size[key])} over {key[1]}" for key in count)


def _sides(collective: Collective, mesh: Mapping[str, int]) -> str:
    """The sides of the mesh along which those of one group lie, "data (4)"; how many they are where that is none."""
    places = np.arange(math.prod(mesh.values())).reshape(tuple(mesh.values()))
    wanted = {frozenset(group) for group in collective.groups}
    for count in range(1, len(mesh) + 1):
        for names in itertools.combinations(mesh, count):
            along = [list(mesh).index(name) for name in names]
            size = math.prod(mesh[name] for name in names)
            lines = np.moveaxis(places, along, range(-count, 0)).reshape(-1, size)
            if wanted == {frozenset(map(int, line)) for line in lines}:
                return f"{' x '.join(names)} ({size})"
    return f"{collective.group_size} devices"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.3g} min" if seconds < 6000 else f"{seconds / 3600:.3g} hours"


def _megabytes(size: float) -> str:
    return f"{size / 1e6:,.3g} MB" if size < 1e9 else f"{size / 1e9:,.3g} GB"
