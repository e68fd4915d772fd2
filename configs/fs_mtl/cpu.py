"""All experiments of FS-MTL (arXiv:2211.13723) at once, scaled down for 2 CPU cores.

    mtljax ablate configs/fs_mtl/cpu.py
    python scripts/fs_mtl_verdict.py runs/fs_mtl_cpu

Three sets x (seven methods, plain and in FS-MTL; CAGrad's three other aggregations; one network a task, plain and with
SAM) x 3 seeds: 189 networks, 25 minutes. A perceptron of 256 and 128 units on images halved to
18 x 18 in place of ResNet-18, 2,048 pairs in place of 108,000, 768 steps in place of 84,000, Adam 2e-3 in place of
1e-3; ρ is the paper's. Expected, test accuracy in percentage points (selected on validation, ± half of the 95% interval
over seeds; docs/flat_minima.md has all):

    F-STL > STL             Multi-MNIST +3.10 ± 0.68, MultiFashion +1.37 ± 2.13, Fashion+MNIST +1.03 ± 1.19
    F-cagrad > cagrad       Multi-MNIST +1.96 ± 0.60, MultiFashion +0.75 ± 2.45, Fashion+MNIST +1.02 ± 2.18
    flat > plain, mean of 7 Multi-MNIST +1.78 ± 0.71, MultiFashion +0.65 ± 1.11, Fashion+MNIST +0.67 ± 1.83
    decomposed > F-LS       Multi-MNIST -0.26 ± 0.72, MultiFashion +0.14 ± 0.27, Fashion+MNIST -0.27 ± 1.18
"""

from dataclasses import replace
from pathlib import Path

from mtljax.ablation import StudyConfig, product
from mtljax.training import DataConfig, ModelConfig, OptimizerConfig
from mtljax.training.config import load_config

SETS = ("multi_mnist", "multi_fashion", "fashion_and_mnist")


def get_config() -> StudyConfig:
    full, aggregation = (load_config(Path(__file__).with_name(f"{name}.py")) for name in ("multi_mnist", "aggregation"))
    adam = OptimizerConfig("adam", learning_rate=2e-3)
    base = replace(
        full.base,
        name="fs_mtl_cpu",
        data=DataConfig("multi_mnist", {"num_train": 2048, "num_validation": 1000, "num_test": 3000}),
        model=ModelConfig("mlp", {"shrink": 2, "features": (256, 128)}),
        optimizer=adam,
        batch_size=128,
        epochs=48,
        evaluate_every=64,  # steps: four epochs
    )
    return replace(
        full,
        name="fs_mtl_cpu",
        question="Scaled down for a CPU: does FS-MTL raise the accuracy of every multi-task method, and is aggregating "
        "losses and flat parts apart better than plain SAM for each task?",
        base=base,
        methods=(*full.methods, *(method for method in aggregation.methods if method not in full.methods)),
        optimizers=(adam,),
        axes=product({"data.name": SETS}),
    )
