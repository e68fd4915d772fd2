"""The grid of multi_mnist.py for two CPU cores: fewer pairs of digits, an MLP on halved images, few epochs.

    mtljax ablate configs/optimizer_study/multi_mnist_cpu.py --strategy=vmap
    mtljax analyze optimizers runs/optimizer_study_cpu --figure settings.png

738 cells, 324 of them tuned scalarization, 14 minutes on two cores. Expected: 7 Pareto-optimal settings with Adam and 1
with SGD; Δm, in % with half of its 95% interval:

    imtl  adam +6.2 ± 0.4, sgd +10.7 ± 7.3    aligned_mtl  +6.6 ± 3.0, +10.2 ± 2.6
    cagrad  +7.5 ± 3.5, +11.4 ± 3.2
    uw    +9.2 ± 3.4, +14.5 ± 2.2     pcgrad  +14.0 ± 1.2, +22.7 ± 7.5     ew  +15.8 ± 2.8, +26.2 ± 5.4
    rlw   +17.7 ± 3.9, +31.7 ± 4.0    mgda +16.1 ± 0.3, +29.1 ± 3.7
    one adam a task +7.8 ± 1.8, one sgd a task +26.1 ± 5.0

docs/optimizer_study.md has the tables.
"""

import dataclasses
from pathlib import Path

from mtljax.ablation import StudyConfig, product
from mtljax.training import DataConfig, ModelConfig
from mtljax.training.config import load_config


def get_config() -> StudyConfig:
    study: StudyConfig = load_config(Path(__file__).with_name("multi_mnist.py"))
    return dataclasses.replace(
        study,
        name="optimizer_study_cpu",
        base=dataclasses.replace(
            study.base,
            name="optimizer_study_cpu",
            data=DataConfig("multi_mnist", {"num_train": 6000, "num_validation": 2000, "num_test": 4000}),
            model=ModelConfig("mlp", {"features": (128, 64), "shrink": 2}),
            batch_size=128,
            epochs=10,
        ),
        axes=product({"optimizer.learning_rate": (0.5, 0.1, 0.05, 0.01, 5e-3, 1e-3)}),
    )
