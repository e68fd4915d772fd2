"""The machines that a program can be compiled for: their names, and what their vendors say of them."""

import math
import re
from importlib import resources
from typing import Any, Literal, NamedTuple

from mtljax.errors import unknown

GB, GIB = 10**9, 2**30


class Target(NamedTuple):
    """A machine to compile for.

    The figures are the vendors', of one device: what jax calls a device is a chip, except on a tpu7x, whose two cores
    are a device each with half the chip's memory, bandwidth and arithmetic. They are None for a CPU.

    Attributes:
      name: as `parse` takes it, in full: "v5e:4x4", "h100x8", "cpu".
      platform: the compiler, as jax calls it.
      chip: "v5e", "h100", "cpu".
      topology: how the chips are wired, "4x4"; slices, hosts and GPUs a host for GPUs, "1x1x8"; "4" for a CPU.
      chips: how many chips.
      devices: how many devices of jax.
      memory: bytes a device; of a GPU the three quarters that jax takes for itself.
      bandwidth: bytes a second between a device and its memory.
      peak_flops: operations a second of a device, dense products of bfloat16.
      clock: cycles a second, by which the compiler's estimated cycles become seconds; None where it makes no estimate.
    """

    name: str
    platform: Literal["tpu", "cuda", "cpu"]
    chip: str
    topology: str
    chips: int
    devices: int
    memory: int | None
    bandwidth: float | None
    peak_flops: float | None
    clock: float | None


class _Chip(NamedTuple):
    memory: int
    bandwidth: float
    peak_flops: float
    clock: float | None = None
    sides: int = 0  # of the torus
    devices: int = 1


# Google's figures of a chip (cloud.google.com/tpu/docs) and, with them, the clock. The compiler does not say by which
# clock its cycles are; the published ones are what its estimates fit. The units of a chip, counted from its peak (4
# arrays of 128x128 in a v5e at 1.5 GHz, 8 in a v4 at 1.05 and a v5p at 1.75, 4 of 256x256 in a v6e at 1.75 and in a
# core of a tpu7x at 2.2), need 8192^3 / (arrays * side^2) cycles for a product of bfloat16 matrices of 8192x8192, and
# the estimates are 1.08 to 1.14 of that, 1.42 for v6e and 1.24 for tpu7x. For y = 2x + 1 over half a GB they are, at
# these clocks, 0.77 (v4), 0.80 (v5e), 0.71 (v5p), 0.81 (v6e) and 0.75 (tpu7x) of the published bandwidth, which is what
# such a loop gets. (libtpu 0.0.50; at 940 MHz, the clock of a v3, a v5e would reach half of either.)
_TPUS = {
    "v4": _Chip(32 * GIB, 1228e9, 275e12, 1.05e9, 3),
    "v5e": _Chip(16 * GIB, 819e9, 197e12, 1.5e9, 2),
    "v5p": _Chip(95 * GIB, 2765e9, 459e12, 1.75e9, 3),
    "v6e": _Chip(32 * GIB, 1640e9, 918e12, 1.75e9, 2),
    "tpu7x": _Chip(192 * GIB, 7380e9, 2307e12, 2.2e9, 3, 2),
}
# NVIDIA's data sheets, SXM boards, without sparsity; of a B200 what remains of 192 GB.
_GPUS = {
    "a100": _Chip(80 * GB, 2039e9, 312e12),
    "h100": _Chip(80 * GB, 3350e9, 989e12),
    "h200": _Chip(141 * GB, 4800e9, 989e12),
    "b200": _Chip(180 * GB, 8000e9, 2250e12),
}
_TAKEN = 0.75  # of a GPU's memory, by jax, unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise
_SIDE, _HOST = 16, 8  # chips along a side, at most; GPUs in a host


def chips() -> tuple[str, ...]:
    """The names that `parse` takes, without topologies and counts."""
    return (*_TPUS, *_GPUS, "cpu")


def parse(name: str) -> Target:
    """Reads the name of a machine.

    Args:
      name: a TPU with the sides of its slice, "v5e:4x4", "v5p:2x2x1", one chip without; a GPU with how many, "h100x8",
        one without; "cpu" or "cpux4".

    Returns:
      The target.

    Raises:
      ValueError: if there is no such machine; the message names the nearest.

    >>> parse("v5e:4x4").chips, parse("tpu7x").devices, parse("h100x8").topology
    (16, 2, '1x1x8')
    """
    text = name.strip().lower()
    chip, colon, topology = text.partition(":")
    if chip in _TPUS and (topology or not colon):
        return _tpu(chip, topology or "x".join("1" * _TPUS[chip].sides))
    counted = re.fullmatch(r"(\w+?)(?:x(\d+))?", text)
    if counted and counted[1] in (*_GPUS, "cpu"):
        return _counted(counted[1], int(counted[2] or 1))
    if chip in (*_GPUS, "cpu"):
        raise ValueError(f"target {name!r}: several of {chip} are written {chip}x4")
    raise _unknown(chip if colon else text, name)


def describe_topology(target: Target) -> dict[str, Any]:
    """Arguments of `jax.experimental.topologies.get_topology_desc` for a TPU or GPU."""
    if target.platform == "tpu":
        # As TPU VMs are set up; by default libtpu takes each of the two cores of a v4 for a device.
        cores = {"chip_config_name": "megacore"} if target.chip == "v4" else {}
        return {"platform": "tpu", "topology_name": f"{target.chip}:{target.topology}", **cores}
    description = (
        resources.files("mtljax.planning").joinpath("gpus", f"{target.chip}.txtpb").read_text(encoding="utf-8")
    )
    lines = [line for line in description.splitlines() if not line.startswith("#")]
    return {
        "platform": "cuda",
        "topology_name": target.chip,
        "topology": target.topology,
        "target_config": "\n".join(lines),
    }


def _tpu(chip: str, topology: str) -> Target:
    facts = _TPUS[chip]
    sides = [int(side) for side in topology.split("x")] if re.fullmatch(r"\d+(x\d+)*", topology) else []
    if len(sides) != facts.sides or any(side > _SIDE or side < 1 or (side > 1 and side % 2) for side in sides):
        largest = "x".join([str(_SIDE)] * facts.sides)
        near = " or ".join(f"{chip}:{slice_}" for slice_ in _near(sides, facts.sides))
        raise ValueError(
            f"target '{chip}:{topology}': did you mean {near}? A slice of {chip} has {facts.sides} sides, each 1 or "
            f"even, up to {largest}"
        )
    count, cores = math.prod(sides), facts.devices
    return Target(
        f"{chip}:{topology}",
        "tpu",
        chip,
        topology,
        count,
        count * cores,
        facts.memory // cores,
        facts.bandwidth / cores,
        facts.peak_flops / cores,
        facts.clock,
    )


def _near(sides: list[int], dimensions: int) -> list[str]:
    """The slices with almost as many chips as were asked for, the smaller first."""
    slices = [[1] * dimensions]
    while math.prod(slices[-1]) < _SIDE**dimensions:  # 2x2, 2x4, 4x4, ...; 2x2x1, 2x2x2, 2x2x4, 2x4x4, ...
        *_, last = slices
        smallest = max(i for i, side in enumerate(last) if side == min(last))
        slices.append([side * 2 if i == smallest else side for i, side in enumerate(last)])
    wanted = math.prod(sides) or 1
    below = [each for each in slices if math.prod(each) <= wanted][-1:]
    above = [each for each in slices if math.prod(each) > wanted][: 2 - len(below)]
    return ["x".join(map(str, each)) for each in (*below, *above)]


def _counted(chip: str, count: int) -> Target:
    name = chip if count == 1 else f"{chip}x{count}"
    if chip == "cpu":
        if not 1 <= count <= 512:
            raise ValueError(f"target {name!r}: 1 to 512 devices of the CPU can be pretended")
        return Target(name, "cpu", chip, str(count), count, count, None, None, None, None)
    if count < 1 or (count > _HOST and count % _HOST) or count > 1024:
        near = min(max(round(count / _HOST), 1), 1024 // _HOST) * _HOST
        raise ValueError(
            f"target {name!r}: did you mean {chip}x{near}? One host has 1 to {_HOST} GPUs, several have {_HOST} each, "
            "up to 1024"
        )
    facts, hosts = _GPUS[chip], max(count // _HOST, 1)
    topology, memory = f"1x{hosts}x{count // hosts}", int(facts.memory * _TAKEN)
    figures = (memory, facts.bandwidth, facts.peak_flops, facts.clock)
    return Target(name, "cuda", chip, topology, count, count, *figures)


def _unknown(chip: str, name: str) -> ValueError:
    message = str(unknown("target", chip, chips())).replace(repr(chip), repr(name), 1)
    return ValueError(f"{message}; a slice is written v5e:4x4, several GPUs h100x8")
