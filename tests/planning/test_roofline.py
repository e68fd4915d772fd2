"""The roofline of GPUs."""

import pytest

from mtljax.planning.products import Product
from mtljax.planning.roofline import roofline
from mtljax.planning.targets import parse


def test_every_product_runs_at_its_own_precision():
    shapes = ("f32[8,8]", "f32[8,8]")
    products = (
        Product("", "dot", "default", "", 2, 989e9 / 4, shapes, ""),  # TF32
        Product("", "dot", "default", "", 1, 989e9, ("bf16[8,8]", "bf16[8,8]"), ""),
        Product("", "dot", "highest", "", 1, 67e9, shapes, ""),
        Product("", "dot", "default", "dot_bf16_bf16_f32_x3", 1, 989e9, shapes, ""),
    )
    assert roofline(products, 2 * 3350e6, parse("h100")) == pytest.approx((6e-3, 2e-3))
