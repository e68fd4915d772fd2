"""Do multi-task methods beat equal weighting on two overlapping digits?

    mtljax ablate configs/digits.py

trains a small LeNet on MultiDigits, made on the fly from the digits archive inside the package.
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
    )
