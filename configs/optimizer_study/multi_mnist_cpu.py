"""The grid of multi_mnist.py for two CPU cores: fewer pairs of digits, an MLP on halved images, few epochs.

mtljax ablate configs/optimizer_study/multi_mnist_cpu.py --dry-run
mtljax ablate configs/optimizer_study/multi_mnist_cpu.py
mtljax analyze optimizers runs/optimizer_study_cpu --figure settings.png
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
