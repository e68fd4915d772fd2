"""The text of a compiled program, taken apart: computations, instructions, arrays, and how often each is run.

Reads what XLA prints for TPUs, GPUs and CPUs. A text can be from another machine.
"""

import functools
import itertools
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from mtljax.gradients.gramian import OUT_OF_RANGE

_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s*(ROOT )?%?([\w.\-]+) = (.*?) ([\w\-]+)\((.*)$")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*|token)\[([\d,<=]*)\](?:\{([\d,]*)(?::([^{}]*))?\})?")
_OPERAND = re.compile(r"%([\w.\-]+)")
_BITS = re.compile(r"\d+")
_CONDITION = 6  # instructions in the condition of a loop that only counts, at most


class Array(NamedTuple):
    """An array as the program lays it out: type, shape, dimensions from the fastest to the slowest, tile, memory."""

    dtype: str
    shape: tuple[int, ...]
    order: tuple[int, ...]
    tile: tuple[int, ...]
    space: int

    @property
    def bytes(self) -> int:
        """Bytes of its elements."""
        return _bytes(self.dtype, math.prod(self.shape))

    @property
    def padded_bytes(self) -> int:
        """Bytes it occupies, with the sides that a tile covers rounded up: f32[3,10] is 8x128 floats on a TPU."""
        sides = [self.shape[i] for i in reversed(self.order)] if self.order else list(self.shape)
        tile = self.tile[-len(sides) :] if sides else ()
        for i, side in enumerate(reversed(tile), start=1):
            sides[-i] = -(-sides[-i] // side) * side
        return _bytes(self.dtype, math.prod(sides))

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


class Instruction(NamedTuple):
    """One line: its name, the type of the result, what it does, to what, and all that follows."""

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    argument: str
    attributes: str
    root: bool

    @property
    def op_name(self) -> str:
        """Where in the Python program it comes from, or its own name."""
        found = re.search(r'op_name="((?:[^"\\]|\\.)*)"', self.attributes)
        return re.sub(r"\\(.)", r"\1", found[1]) if found else self.name

    def called(self, attribute: str) -> str | None:
        """The computation that an attribute names: body, condition, to_apply, calls."""
        found = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.attributes)
        return found[1] if found else None


class Module(NamedTuple):
    """A program: computations by name, each its instructions by name; the first one; how many devices run it."""

    computations: dict[str, dict[str, Instruction]]
    entry: str
    devices: int


class Visit(NamedTuple):
    """An instruction that is run: in which computation, how often, whether inside a fusion."""

    instruction: Instruction
    computation: str
    times: int
    fused: bool


@functools.lru_cache(maxsize=2)
def parse(text: str) -> Module:
    """Takes a program apart; lines outside every computation make one of their own, so that a fragment can be read."""
    computations: dict[str, dict[str, Instruction]] = {"": {}}
    entry, name, devices = "", "", 1
    for line in text.splitlines():
        head = _HEAD.match(line)
        if head and " = " not in line.split("(", 1)[0]:
            name = head[2]
            computations[name] = {}
            entry = name if head[1] else entry
        elif line.startswith("}"):
            name = ""
        elif line.startswith("HloModule"):
            counts = re.findall(r"\b(?:num_partitions|replica_count)=(\d+)", line)
            devices = math.prod(map(int, counts))
        elif found := _INSTRUCTION.match(line):
            argument, attributes = _split(found[5])
            operands = () if found[4] in ("constant", "parameter") else _operands(argument)
            computations[name][found[2]] = Instruction(
                found[2], found[3], found[4], operands, argument, attributes, bool(found[1])
            )
    return Module(computations, entry, devices)


@functools.lru_cache(maxsize=2)
def visits(text: str) -> tuple[tuple[Visit, ...], tuple[str, ...]]:
    """What a run of the program executes.

    Args:
      text: of the program.

    Returns:
      The instructions reached from the entry, with how often; and the loops whose number of rounds the text does not
      tell, which are counted as one round. Of a conditional the branch with the most cycles is taken, of equals the
      longest; but not the one that takes the Gramian of extreme gradients again.
    """
    module = parse(text)

    def walk(name: str, count: int, fused: bool) -> list[Visit]:
        found: list[Visit] = []
        for instruction in module.computations.get(name, {}).values():
            found.append(Visit(instruction, name, count, fused))
            if instruction.opcode == "while":
                rounds = trip_count(module, name, instruction)
                found += walk(instruction.called("body") or "", count * (1 if rounds is None else rounds), fused)
            elif instruction.opcode == "conditional":
                branches = [walk(branch, count, fused) for branch in _branches(instruction)]
                usual = [branch for branch in branches if not any(_is_rare(each) for each in branch)]
                found += max(usual or branches, key=_weight, default=[])
            elif instruction.opcode in ("call", "call-start"):  # the latter on a sparse core of a TPU
                found += walk(instruction.called("to_apply") or "", count, fused)
            elif instruction.opcode == "fusion" or instruction.opcode.endswith("-start"):
                called = instruction.called("calls")
                found += walk(called, count, fused or instruction.opcode == "fusion") if called else []
        return found

    every = walk(module.entry, 1, False)
    loops = [each for each in every if each.instruction.opcode == "while"]
    unknown = [each for each in loops if trip_count(module, each.computation, each.instruction) is None]
    return tuple(every), tuple(dict.fromkeys(each.instruction.op_name for each in unknown))


def _is_rare(visit: Visit) -> bool:
    return f"/{OUT_OF_RANGE}/" in visit.instruction.op_name


def trip_count(module: Module, computation: str, loop: Instruction) -> int | None:
    """How many rounds a loop has, None if that is not written in the program."""
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
    if known:
        return int(known[1])
    condition = module.computations.get(loop.called("condition") or "", {})
    compare = next((each for each in condition.values() if each.root and each.opcode == "compare"), None)
    if not compare or len(condition) > _CONDITION or "direction=LT" not in compare.attributes:
        return None
    counter, limit = (condition.get(name) for name in compare.operands)
    if not counter or not limit or counter.opcode != "get-tuple-element":
        return None
    end = _integer(limit)
    index = re.search(r"index=(\d+)", counter.attributes)
    start = _initial(module.computations[computation], loop, int(index[1])) if index else None
    return None if end is None else max(end - (start or 0), 0)


def cycles(instruction: Instruction) -> int:
    """The compiler's estimate for one instruction, 0 where it makes none."""
    found = re.search(r'"estimated_cycles":"(\d+)"', instruction.attributes)
    return int(found[1]) if found else 0


def arrays(type_: str) -> tuple[Array, ...]:
    """The arrays in a type, those in nested tuples too."""
    found = []
    for dtype, shape, order, rest in _ARRAY.findall(type_):
        tile = re.search(r"T\(([\d,]+)\)", rest)
        space = re.search(r"S\((\d+)\)", rest)
        found.append(
            Array(dtype, _numbers(shape), _numbers(order), _numbers(tile[1] if tile else ""), int((space or "00")[1]))
        )
    return tuple(found)


def elements(type_: str) -> list[str]:
    """The types in a tuple, or the type alone."""
    if not type_.startswith("("):
        return [type_]
    parts, depth, start = [], 0, 1
    for i, character in enumerate(type_):
        depth += (character in "([{") - (character in ")]}")
        if (character == "," and depth == 1) or (i == len(type_) - 1 and depth == 0):
            parts.append(type_[start:i].strip())
            start = i + 1
    return parts


def result(instruction: Instruction) -> str:
    """The type of what an instruction makes; of an asynchronous one, whose type holds more, of what will come out."""
    parts = elements(instruction.type)
    if not instruction.opcode.endswith("-start") or len(parts) < 2:
        return instruction.type
    if instruction.opcode == "all-reduce-start" and not parts[0].startswith("("):  # results alone, some compilers write
        return instruction.type
    return parts[0] if instruction.opcode == "copy-start" else parts[1]


def groups(attributes: str, devices: int) -> tuple[int, tuple[tuple[int, ...], ...]]:
    """Who takes part in a collective.

    Args:
      attributes: of the instruction.
      devices: that run the program, who are one group where none is written.

    Returns:
      The size of a group, and the groups where they are written as numbers.

    >>> groups("replica_groups=[2,4]<=[4,2]T(1,0)", 8)
    (4, ((0, 2, 4, 6), (1, 3, 5, 7)))
    >>> groups("replica_groups=mesh['data'=4,'model'=2] {'model'}", 8)
    (2, ((0, 1), (2, 3), (4, 5), (6, 7)))
    """
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*?)((?:, *device_ids=.*?)?)\] \{([^}]*)\}", attributes):
        sizes = {name: int(size) for name, size in re.findall(r"'([^']*)'=(\d+)", mesh[1])}
        within = re.findall(r"'([^']*)'(?::\(\d+\)(\d+))?", mesh[3])
        size = math.prod(int(part) if part else sizes[name] for name, part in within)
        if mesh[2] or any(part for _, part in within):
            return size, ()
        names = list(sizes)
        inner = [names.index(name) for name, _ in within]
        outer = [i for i in range(len(names)) if i not in inner]
        return size, _iota(list(sizes.values()), outer + inner, size)
    if iota := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes):
        sizes, source = _numbers(iota[1]), list(_numbers(iota[2]))
        size = sizes[-1]
        return size, _iota(source, list(_numbers(iota[3])) if iota[3] else list(range(len(source))), size)
    written = re.search(r"replica_groups=\{((?:\{[\d,]*\},?)+)\}", attributes)
    if written:
        found = tuple(_numbers(each) for each in re.findall(r"\{([\d,]*)\}", written[1]))
        return max(map(len, found)), found
    return devices, (tuple(range(devices)),)


def _iota(sides: list[int], order: list[int], size: int) -> tuple[tuple[int, ...], ...]:
    """0, 1, 2, ... in a box with these sides, its dimensions reordered, cut into groups of a size."""
    strides = [math.prod(sides[i + 1 :]) for i in range(len(sides))]
    places = itertools.product(*(range(sides[i]) for i in order))
    flat = [sum(at * strides[i] for at, i in zip(place, order, strict=True)) for place in places]
    return tuple(tuple(flat[i : i + size]) for i in range(0, len(flat), size))


def _split(text: str) -> tuple[str, str]:
    """Cuts what follows an opening bracket where that one closes."""
    depth = 1
    for found in _brackets(text):
        depth += 1 if text[found] == "(" else -1
        if depth == 0:
            return text[:found], text[found + 1 :]
    return text, ""


def _brackets(text: str) -> Iterator[int]:
    quoted = False
    for match in re.finditer(r'\\.|[()"]', text):
        if match[0] == '"':
            quoted = not quoted
        elif match[0] in "()" and not quoted:
            yield match.start()


def _operands(argument: str) -> tuple[str, ...]:
    """Names, which have a % in compiled programs and none in others."""
    return tuple(_OPERAND.findall(argument)) or tuple(re.findall(r"(?:^|, |\*/)([\w.\-]+)(?=,|$)", argument))


def _branches(instruction: Instruction) -> list[str]:
    many = re.search(r"branch_computations=\{([^}]*)\}", instruction.attributes)
    if many:
        return [name.strip().lstrip("%") for name in many[1].split(",")]
    return [name for side in ("true", "false") if (name := instruction.called(f"{side}_computation"))]


def _weight(found: list[Visit]) -> tuple[int, int]:
    return sum(each.times * cycles(each.instruction) for each in found if not each.fused), len(found)


def _initial(computation: dict[str, Instruction], loop: Instruction, index: int) -> int | None:
    """The number that an element of a loop's state starts with, through copies."""
    state = computation.get(loop.operands[0])
    if not state or state.opcode != "tuple" or index >= len(state.operands):
        return None
    value = computation.get(state.operands[index])
    while value and value.opcode in ("copy", "bitcast"):
        value = computation.get(value.operands[0])
    return _integer(value) if value else None


def _integer(instruction: Instruction) -> int | None:
    if instruction.opcode != "constant" or not re.match(r"[su]\d+\[\]", instruction.type):
        return None
    return int(instruction.argument) if re.fullmatch(r"-?\d+", instruction.argument) else None


def _bytes(dtype: str, count: int) -> int:
    if dtype == "pred":
        return count
    bits = _BITS.search(dtype)
    return -(-count * int(bits[0]) // 8) if bits else 0


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", text))
