"""Does FS-MTL (arXiv:2211.13723) help at full size? For one GPU.

    mtljax ablate configs/fs_mtl/accelerator.py

ResNet-18 on all of Multi-MNIST and MultiFashion for 20 epochs, {ew, cagrad} with rho = 0 and adaptive rho = 2, seeds 0
to 2, beside one network a task: 36 networks. UNRUN. Expected: in the logs of the authors flat parts add 1 point and
more by epoch 10 (+1.0 to +1.1 on MultiFashion, +1.4 to +1.6 on Multi-MNIST, with RLW and SI).
"""

from dataclasses import replace
from pathlib import Path

from mtljax.ablation import StudyConfig, product
from mtljax.training.config import load_config


def get_config() -> StudyConfig:
    full: StudyConfig = load_config(Path(__file__).with_name("multi_mnist.py"))
    bases = ("ew", "cagrad")
    return replace(
        full,
        name="fs_mtl_accelerator",
        base=replace(full.base, name="fs_mtl_accelerator", epochs=20),
        methods=tuple(m for m in full.methods if m.name in bases or m.options.get("base") in bases),
        single_methods=(),
        axes=product({"data.name": ("multi_mnist", "multi_fashion")}),
    )
