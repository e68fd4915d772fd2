"""The products of matrices and convolutions of a compiled program: how large, how precise."""

import math
import re
from typing import NamedTuple

from mtljax.planning import hlo_text
from mtljax.planning.hlo_text import Array, Instruction


class Product(NamedTuple):
    """A product of matrices or a convolution.

    Attributes:
      name: where in the Python program it comes from.
      kind: "dot" or "convolution".
      precision: "default", "high" or "highest", of the operand with more.
      algorithm: a named algorithm, "dot_bf16_bf16_f32_x3", or "".
      times: how often in a run.
      flops: of one time, two for each multiplication of elements that are not padding.
      operands: their shapes.
      result: its shape.
    """

    name: str
    kind: str
    precision: str
    algorithm: str
    times: int
    flops: float
    operands: tuple[str, ...]
    result: str


def products(text: str) -> tuple[Product, ...]:
    """The products of matrices and convolutions of a run, in the order of the program, those in fusions too."""
    module = hlo_text.parse(text)
    found = []
    for visit in hlo_text.visits(text)[0]:
        instruction = visit.instruction
        kind = _product_kind(instruction)
        if not kind:
            continue
        computation = module.computations[visit.computation]
        operands = [_operand(computation, instruction, i) for i in range(2)]
        result = hlo_text.arrays(instruction.type)[0]
        flops = (
            _dot_flops(instruction, operands, result) if kind == "dot" else _conv_flops(instruction, operands, result)
        )
        found.append(
            Product(
                instruction.op_name,
                kind,
                _precision(instruction),
                _algorithm(instruction),
                visit.times,
                flops,
                tuple(str(operand) for operand in operands if operand),
                str(result),
            )
        )
    return tuple(found)


def _product_kind(instruction: Instruction) -> str:
    if instruction.opcode in ("dot", "convolution"):
        # What a TPU calls a convolution without a window is a product of matrices.
        return "dot" if "window=" not in instruction.attributes else "convolution"
    target = re.search(r'custom_call_target="([^"]*)"', instruction.attributes)
    if instruction.opcode != "custom-call" or not target:
        return ""
    if re.search(r"conv", target[1], re.IGNORECASE) and "dim_labels=" in instruction.attributes:
        return "convolution"
    return "dot" if re.search(r"gemm|matmul", target[1], re.IGNORECASE) else ""


def _precision(instruction: Instruction) -> str:
    found = re.search(r'operand_precision(?:=\{|":\[)([^}\]]*)', instruction.attributes)
    words = set(re.findall(r"\w+", found[1].lower())) if found else set()
    return next((word for word in ("highest", "high") if word in words), "default")


def _algorithm(instruction: Instruction) -> str:
    found = re.search(r'\balgorithm(?:=|":")(?:ALG_)?(dot_\w+)', instruction.attributes, re.IGNORECASE)
    return found[1].lower() if found and found[1].lower() != "dot_unset" else ""


def _operand(computation: dict[str, Instruction], instruction: Instruction, index: int) -> Array | None:
    name = instruction.operands[index] if index < len(instruction.operands) else ""
    arrays = hlo_text.arrays(computation[name].type) if name in computation else ()
    return arrays[0] if arrays else None


def _dot_flops(instruction: Instruction, operands: list[Array | None], result: Array) -> float:
    left, right = operands
    contracting = re.search(r'lhs_contracting_(?:dims=\{|dimensions":\[)([\d," ]*)[}\]]', instruction.attributes)
    if left and contracting:
        sides = [left.shape[int(i)] for i in re.findall(r"\d+", contracting[1])]
    elif right and (labels := _labels(instruction)):
        sides = [right.shape[labels[1].index("i")]]
    else:
        sides = []
    return 2.0 * math.prod(result.shape) * math.prod(sides)


def _conv_flops(instruction: Instruction, operands: list[Array | None], result: Array) -> float:
    labels, (first, second) = _labels(instruction), operands
    if not labels or not first or not second:
        return 0.0
    source, kernel, output = first, second, result
    if "convBackwardFilter" in instruction.attributes:  # cuDNN's take the labels of the convolution forwards
        kernel, output = result, second
    elif "convBackwardInput" in instruction.attributes:
        source, output = result, first
    spatial = sorted(label for label in labels[0] if label.isdigit())
    taps = 1
    for label in spatial:
        sides = [array.shape[side.index(label)] for array, side in zip((source, kernel, output), labels, strict=True)]
        taps *= _taps(instruction, int(label), *sides)
    outputs = [side for side, label in zip(output.shape, labels[2], strict=True) if label not in spatial]
    return 2.0 * math.prod(outputs) * taps * kernel.shape[labels[1].index("i")]


def _taps(instruction: Instruction, dimension: int, source: int, kernel: int, output: int) -> int:
    """Pairs of an output and a place in the window, along one dimension, that meet an element and no padding."""
    stride = _window(instruction, "stride", dimension, 1)
    dilated = _window(instruction, "lhs_dilate", dimension, 1)
    spread = _window(instruction, "rhs_dilate", dimension, 1)
    padding = _window(instruction, "pad", dimension, 0)
    places = (i * stride + j * spread - padding for i in range(output) for j in range(kernel))
    return sum(0 <= place <= (source - 1) * dilated and place % dilated == 0 for place in places)


def _window(instruction: Instruction, name: str, dimension: int, default: int) -> int:
    found = re.search(rf"window=\{{[^}}]*\b{name}=([^ }}]*)", instruction.attributes)
    return int(found[1].split("x")[dimension].split("_")[0]) if found else default


def _labels(instruction: Instruction) -> list[str] | None:
    found = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    return [found[1], found[2], found[3]] if found else None
