"""Does seeking flat minima task by task help every method on Fashion+MNIST? FS-MTL (arXiv:2211.13723).

    mtljax ablate configs/fs_mtl/fashion_and_mnist.py
    python scripts/fs_mtl_verdict.py runs/fs_mtl_fashion_and_mnist

UNRUN: the paper's setting, for an accelerator; all as in multi_mnist.py but the data: a digit on the left, a garment on
the right. cpu.py is the same scaled down to minutes. Expected by the paper: every method is better with FS-MTL around
it.
"""

from dataclasses import replace
from pathlib import Path

from mtljax.ablation import StudyConfig
from mtljax.training import DataConfig
from mtljax.training.config import load_config


def get_config() -> StudyConfig:
    study: StudyConfig = load_config(Path(__file__).with_name("multi_mnist.py"))
    base = replace(study.base, name="fs_mtl_fashion_and_mnist", data=DataConfig("fashion_and_mnist"))
    question = study.question.replace("Multi-MNIST", "Fashion+MNIST")
    return replace(study, name="fs_mtl_fashion_and_mnist", question=question, base=base)
