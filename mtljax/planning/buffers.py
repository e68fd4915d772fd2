"""The arrays of a compiled program in a device's memory: the largest, and how much is read and written."""

from typing import NamedTuple

from mtljax.planning import hlo_text
from mtljax.planning.hlo_text import Instruction, Module, Visit

_NO_BUFFERS = ("tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "optimization-barrier")
_SLICES = ("dynamic-slice", "slice", "gather")


class Buffer(NamedTuple):
    """A large array: where it comes from in the Python program, its shape, the bytes it occupies."""

    name: str
    shape: str
    bytes: int


def largest_arrays(text: str, count: int = 5) -> tuple[Buffer, ...]:
    """The largest arrays in the memory of a device, the largest first: arguments and what fusions and others write.

    Args:
      text: of the program.
      count: how many.

    Returns:
      The arrays with what they occupy, padding of a TPU's tiles included.
    """
    module = hlo_text.parse(text)
    found: dict[tuple[str, str, int], Buffer] = {}
    for visit in hlo_text.visits(text)[0]:
        instruction = visit.instruction
        inner = instruction.opcode == "parameter" and visit.computation != module.entry
        if (
            visit.fused
            or inner
            or instruction.opcode in _NO_BUFFERS
            or instruction.opcode.endswith(("-done", "-update"))
        ):
            continue
        for i, array in enumerate(hlo_text.arrays(hlo_text.result(instruction))):
            if array.space == 0:  # others are on the chip, or the host's
                buffer = Buffer(instruction.op_name, str(array), array.padded_bytes)
                found[visit.computation, instruction.name, i] = buffer
    return tuple(sorted(found.values(), key=lambda buffer: -buffer.bytes)[:count])


def bytes_moved(text: str) -> float:
    """Bytes that the instructions of a run read from and write to memory, each alone.

    Of an operand that a fusion only slices, the slices count; of one that it updates in place, the update. Arrays on
    the chip count as nothing.
    """
    module = hlo_text.parse(text)
    total = 0
    for visit in hlo_text.visits(text)[0]:
        opcode = visit.instruction.opcode
        if visit.fused or opcode in (*_NO_BUFFERS, "parameter", "constant") or opcode.endswith(("-done", "-update")):
            continue
        total += visit.times * _moved(module, visit)
    return float(total)


def _moved(module: Module, visit: Visit) -> int:
    instruction, computation = visit.instruction, module.computations[visit.computation]
    if instruction.opcode.endswith("-start"):
        sides = hlo_text.arrays(hlo_text.result(instruction))
        sources = [computation[name] for name in instruction.operands if name in computation]
        hbm = any(array.space == 0 for source in sources for array in hlo_text.arrays(source.type))
        return sum(array.bytes * (hbm + (array.space == 0)) for array in sides)
    body = module.computations.get(instruction.called("calls") or "", {}) if instruction.opcode == "fusion" else {}
    inner = {each.argument: each for each in body.values() if each.opcode == "parameter"}
    written = sum(array.bytes for array in hlo_text.arrays(instruction.type) if array.space == 0)
    root = next((each for each in body.values() if each.root), instruction)
    if root.opcode == "dynamic-update-slice":
        written = _size(body or computation, root.operands[1]) * (written > 0)
    read = 0
    for i, name in enumerate(instruction.operands):
        source = computation.get(name)
        if not source or all(array.space for array in hlo_text.arrays(source.type)):
            continue
        local = inner.get(str(i))
        scope, parameter = (body, local.name) if local else (computation, name)
        users = [each for each in body.values() if parameter in each.operands] if local else [instruction]
        if users and all(each.opcode in _SLICES and each.operands[0] == parameter for each in users):
            read += sum(array.bytes for each in users for array in hlo_text.arrays(each.type))
        elif not (root.opcode == "dynamic-update-slice" and root.operands[0] == parameter and len(users) == 1):
            read += _size(scope, parameter)
    return read + written


def _size(computation: dict[str, Instruction], name: str) -> int:
    return sum(array.bytes for array in hlo_text.arrays(computation[name].type)) if name in computation else 0
