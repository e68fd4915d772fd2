"""Do multi-task methods beat equal weighting on two overlapping digits?

    mtljax ablate configs/digits.py

trains a small LeNet on MultiDigits, made on the fly from the digits archive inside the package: 36 runs, about 160 s on
2 CPU cores. Expected with sgd (test accuracy of left and right in %, Δm in %, ± half of the 95% interval over 3 seeds):

    single-task 79.3 ± 6.2, 83.4 ± 5.4     ew 76.8 ± 5.4, 80.1 ± 0.9, +3.56 ± 3.38
    cagrad      77.3 ± 3.7, 79.2 ± 1.1, +3.81 ± 2.76     pcgrad 74.6 ± 8.0, 79.3 ± 5.3, +5.41 ± 7.65
    mgda        74.7 ± 10.8, 78.9 ± 3.2, +5.58 ± 8.48

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
