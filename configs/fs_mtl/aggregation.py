"""How to aggregate flat parts: with the gradients, apart, twice, or not at all? FS-MTL (arXiv:2211.13723).

    mtljax ablate configs/fs_mtl/aggregation.py
    python scripts/fs_mtl_verdict.py runs/fs_mtl_aggregation

UNRUN: the paper's setting, for an accelerator; all as in multi_mnist.py, on two sets. CAGrad alone, on perturbed
gradients ("direct"), on losses and flat parts apart ("decomposed", the paper's choice), with a third aggregation of the
two ("second") or one for each task ("each"); and F-LS, the sum of each task's SAM gradient: for a sum "direct" and
"decomposed" are the same up to rounding. Expected by the paper (MultiFashion, Multi-MNIST; test accuracy at the best
epoch on test, in %):

    cagrad 86.51, 95.01     direct 86.72, 95.23     decomposed 87.82, 95.95     second 87.90, 95.86
    each 87.59, 95.92     F-LS (from the authors' repository) 87.72, 95.67
"""

from dataclasses import replace
from pathlib import Path

from mtljax.ablation import StudyConfig, product
from mtljax.training import MethodConfig
from mtljax.training.config import load_config

FLAT = {"rho": 2.0, "adaptive": True, "norm": "joint"}


def get_config() -> StudyConfig:
    study: StudyConfig = load_config(Path(__file__).with_name("multi_mnist.py"))
    flat = [MethodConfig("fs_mtl", {"base": base, **FLAT}) for base in ("ew", "cagrad")]
    others = ("direct", "second", "each")
    flat += [MethodConfig("fs_mtl", {"base": "cagrad", **FLAT, "aggregate": kind}) for kind in others]
    return replace(
        study,
        name="fs_mtl_aggregation",
        question="Is aggregating losses and flat parts apart better than one aggregation of perturbed gradients, and "
        "better than the sum of each task's perturbed gradient?",
        base=replace(study.base, name="fs_mtl_aggregation"),
        methods=(MethodConfig("ew"), MethodConfig("cagrad"), *flat),
        single_methods=(),
        axes=product({"data.name": ("multi_fashion", "multi_mnist")}),
    )
