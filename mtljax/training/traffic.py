"""What a compiled step sends between devices, read from its HLO."""

import math
import re

_COLLECTIVE = re.compile(r"= (\(.*?\)|\S+) (all-reduce|reduce-scatter|all-gather)(-start)?\(")
_SHAPE = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")


def collective_bytes(text: str, devices: int) -> dict[str, int]:
    """Bytes a device sends in one run of a program, by kind of collective.

    A ring sends (D-1)/D of these numbers, which stand for many devices: reduce-scatter and all-gather their whole array
    once, all-reduce, which is one after the other, twice.

    >>> text = "%s = f32[3,100]{1,0} all-reduce(%x), channel_id=1"
    >>> collective_bytes(text, devices=8)
    {'all-reduce': 2400, 'reduce-scatter': 0, 'all-gather': 0}

    Args:
      text: `compiled.as_text()`, of an optimised program; loops count once.
      devices: how many share each collective.

    Returns:
      Bytes by kind; their sum is the traffic.
    """
    totals = {"all-reduce": 0, "reduce-scatter": 0, "all-gather": 0}
    for result, kind, start in _COLLECTIVE.findall(text):
        arrays = [_size(*shape) for shape in _SHAPE.findall(result)]
        if start and kind == "all-gather":  # asynchronous: (what goes in, what comes out)
            arrays = arrays[len(arrays) // 2 :]
        # The result of a reduce-scatter is one device's part.
        totals[kind] += sum(arrays) * {"all-reduce": 2, "reduce-scatter": devices, "all-gather": 1}[kind]
    return totals


def _size(dtype: str, bits: str, shape: str) -> int:
    return math.prod(int(n) for n in shape.split(",") if n) * (1 if dtype == "pred" else max(1, int(bits) // 8))
