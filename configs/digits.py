"""Do multi-task methods beat equal weighting on two overlapping digits?

    mtljax ablate configs/digits.py

trains a small LeNet on MultiDigits, made on the fly from the digits archive inside the package: 36 runs, about 160 s on
2 CPU cores. Expected with sgd (test accuracy of left and right in %, Δm in %, ± half of the 95% interval over 3 seeds):

    single-task 80.7 ± 3.2, 84.6 ± 3.4     cagrad 76.7 ± 1.0, 81.3 ± 3.5, +4.39 ± 1.91
    mgda        76.7 ± 6.5, 79.5 ± 4.5, +5.48 ± 2.38     pcgrad 75.5 ± 2.4, 80.2 ± 6.3, +5.82 ± 4.23
    ew          76.0 ± 8.9, 78.9 ± 6.3, +6.29 ± 9.23

The learning rates are not tuned and there is no tuned weighting of the losses, to be quick: digits_grid.py has both.
"""

from mtljax.ablation import StudyConfig
from mtljax.training import DataConfig, MethodConfig, ModelConfig, OptimizerConfig, TrainConfig


def get_config() -> StudyConfig:
    return StudyConfig(
        name="digits",
        question="Two overlapping handwritten digits, one network: which multi-task method reads both best, "
        "and does any beat the plain sum of the losses?",
        base=TrainConfig(
            name="digits",
            data=DataConfig("digits", {"num_train": 6000}),
            model=ModelConfig("lenet", {"channels": (16, 32), "kernels": (3, 3), "padding": "SAME", "features": 64}),
            batch_size=128,
            epochs=6,
        ),
        methods=tuple(MethodConfig(name) for name in ("ew", "pcgrad", "mgda", "cagrad")),
        optimizers=(
            OptimizerConfig("adam", learning_rate=3e-3),
            OptimizerConfig("sgd", learning_rate=0.1, options={"momentum": 0.9}),
        ),
        seeds=(0, 1, 2),
        weight_grid=0,
    )
