"""What a compiled program says of itself: cycles, what devices send each other, large arrays, products.

Pure functions of `compiled.as_text()`, of an optimised program for TPUs, GPUs or CPUs.
"""

import re
from typing import NamedTuple

from mtljax.planning import hlo_text
from mtljax.planning.buffers import Buffer as Buffer
from mtljax.planning.buffers import bytes_moved as bytes_moved
from mtljax.planning.buffers import largest_arrays as largest_arrays
from mtljax.planning.hlo_text import Module, Visit
from mtljax.planning.products import Product as Product
from mtljax.planning.products import products as products

_KINDS: tuple[str, ...] = ("all-reduce", "reduce-scatter", "all-gather", "all-to-all", "collective-permute")


class Estimate(NamedTuple):
    """The compiler's cycles for a run, and the loops of unknown length in it, which it counts as one round."""

    cycles: float
    unknown_loops: tuple[str, ...]


class Collective(NamedTuple):
    """What devices send each other.

    Attributes:
      kind: "all-reduce", "reduce-scatter", "all-gather", "all-to-all" or "collective-permute".
      times: how often in a run.
      shapes: of a device's results, "f32[3,5]".
      bytes: of one time, of the arrays that a group has: what is summed, scattered, gathered or exchanged.
      group_size: how many devices take part in one.
      groups: who they are, where the program numbers them.
      name: where in the Python program it comes from, as far as the compiler knows.
    """

    kind: str
    times: int
    shapes: tuple[str, ...]
    bytes: int
    group_size: int
    groups: tuple[tuple[int, ...], ...]
    name: str


def cycles(text: str) -> Estimate | None:
    """The sum of the cycles that the compiler estimates for the instructions of a run.

    Collectives and copies from memory that run beside others have no estimate and count as nothing.

    Args:
      text: of the program.

    Returns:
      The estimate, or None if the compiler made none: only that for TPUs does.
    """
    found, unknown = hlo_text.visits(text)
    counts = [each.times * hlo_text.cycles(each.instruction) for each in found if not each.fused]
    return Estimate(float(sum(counts)), unknown) if any(counts) else None


def collectives(text: str) -> tuple[Collective, ...]:
    """What devices send each other in a run, in the order of the program; an asynchronous one is one, not two."""
    module = hlo_text.parse(text)
    found = []
    for visit in hlo_text.visits(text)[0]:
        instruction = visit.instruction
        kind = instruction.opcode.removesuffix("-start")
        if kind not in _KINDS or _continues(module, visit):
            continue
        if kind != instruction.opcode and instruction.called("calls"):
            continue  # the collective itself is in what is called
        arrays = hlo_text.arrays(hlo_text.result(instruction))
        size, groups = hlo_text.groups(instruction.attributes, module.devices)
        if kind == "collective-permute":
            pairs = re.findall(r"\{(\d+),(\d+)\}", instruction.attributes.split("source_target_pairs=")[-1])
            groups = tuple((int(source), int(target)) for source, target in pairs)
            size = 2
        whole = sum(array.bytes for array in arrays) * (size if kind == "reduce-scatter" else 1)
        shapes = tuple(map(str, arrays))
        found.append(Collective(kind, visit.times, shapes, whole, size, groups, instruction.op_name))
    return tuple(found)


def collective_bytes(text: str, devices: int | None = None) -> dict[str, int]:
    """Bytes a device sends in one run of a program, by kind of collective.

    A ring sends (D-1)/D of these numbers, which stand for many devices: reduce-scatter and all-gather their whole array
    once, all-reduce, which is one after the other, twice.

    >>> text = "%s = f32[3,100]{1,0} all-reduce(%x), channel_id=1"
    >>> collective_bytes(text, devices=8)["all-reduce"]
    2400

    Args:
      text: of the program.
      devices: how many share each collective; None for what the program says.

    Returns:
      Bytes by kind; their sum is the traffic.
    """
    totals: dict[str, int] = dict.fromkeys(_KINDS, 0)
    for each in collectives(text):
        size = each.bytes
        if devices is not None and each.kind == "reduce-scatter":
            size = size // each.group_size * devices
        totals[each.kind] += each.times * size * (2 if each.kind == "all-reduce" else 1)
    return totals


def _continues(module: Module, visit: Visit) -> bool:
    """Whether a collective is written once more, where a TPU goes on with it beside other work or waits for its end."""
    if not visit.fused:
        return False
    ends = any("AsyncCollectiveDone" in each.attributes for each in module.computations[visit.computation].values())
    return ends or visit.computation.startswith("async_collective_fusion")
