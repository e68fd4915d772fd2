"""The grid of multi_mnist.py for two CPU cores: fewer pairs of digits, an MLP on halved images, few epochs.

    mtljax ablate configs/optimizer_study/multi_mnist_cpu.py --strategy=processes --jobs=2
    mtljax analyze optimizers runs/optimizer_study_cpu --figure settings.png

414 cells, some 41 minutes on two loaded cores (378 in 38 minutes, 36 in 3). Expected: 7 Pareto-optimal settings with
Adam and none with SGD; Δm, in % with half of its 95% interval:

    imtl  adam +6.1 ± 0.8, sgd +10.5 ± 7.2    aligned_mtl  +6.4 ± 3.1, +10.5 ± 2.8
    cagrad  +7.5 ± 3.5, +11.4 ± 3.2
    uw    +9.5 ± 2.5, +14.4 ± 2.5     pcgrad  +13.9 ± 1.2, +22.6 ± 7.5     ew  +15.5 ± 2.5, +26.2 ± 4.4
    rlw   +17.5 ± 2.6, +31.9 ± 3.1    mgda +16.3 ± 0.7, +29.2 ± 3.7
    one adam a task +7.6 ± 2.6, one sgd a task +25.9 ± 4.8

docs/optimizer_study.md has the tables. --weight_grid=9 adds tuned scalarization, 324 cells, which have not been run.
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
        weight_grid=0,
    )
