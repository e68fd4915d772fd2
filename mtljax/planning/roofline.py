"""The least time that a program takes on a GPU, whose compiler estimates none."""

import re
from collections.abc import Iterable

from mtljax.planning.products import Product
from mtljax.planning.targets import Target

# NVIDIA's figures for products of float32 without tensor cores, operations a second.
_FLOAT32 = {"a100": 19.5e12, "h100": 67e12, "h200": 67e12, "b200": 80e12}


def roofline(products: Iterable[Product], moved: float, target: Target) -> tuple[float, float]:
    """Seconds of arithmetic and seconds of memory traffic; a program takes the larger at least.

    Args:
      products: of matrices and convolutions: TF32 runs at half of the peak of bfloat16, "highest" without tensor cores.
      moved: bytes that instructions read and write, each charged to the memory, though some may stay in a cache.
      target: a GPU.

    Returns:
      Both. Launches of kernels, and what devices send, come on top.
    """
    assert target.peak_flops is not None
    assert target.bandwidth is not None
    arithmetic = 0.0
    for each in products:
        factor = 2.0 if each.operands and each.operands[0].startswith("f32") else 1.0
        if passes := re.search(r"(bf16|tf32)\w*_x(\d)", each.algorithm):
            factor = int(passes[2]) * (2 if passes[1] == "tf32" else 1)
        elif each.precision == "highest":
            factor = target.peak_flops / _FLOAT32[target.chip]
        arithmetic += each.times * each.flops * factor / target.peak_flops
    return arithmetic, moved / target.bandwidth
