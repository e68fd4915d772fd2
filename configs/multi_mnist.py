"""Multi-MNIST with the LeNet of the papers: one network for two overlapping digits.

    mtljax train configs/multi_mnist.py --method.name=cagrad
    mtljax ablate configs/multi_mnist.py

The data is made from TFDS `mnist`, found in the directory named by MTLJAX_DATA or downloaded by TFDS.
"""

from mtljax.ablation import StudyConfig
from mtljax.training import DataConfig, MethodConfig, ModelConfig, OptimizerConfig, TrainConfig


def get_config() -> StudyConfig:
    return StudyConfig(
        name="multi_mnist",
        question="On Multi-MNIST, do gradient methods beat the plain sum of the losses, and does either beat one "
        "network a task?",
        base=TrainConfig(
            name="multi_mnist",
            data=DataConfig("multi_mnist"),
            model=ModelConfig("lenet"),
            optimizer=OptimizerConfig("adam", learning_rate=1e-3),
            batch_size=256,
            epochs=3,
        ),
        methods=tuple(MethodConfig(name) for name in ("ew", "pcgrad", "mgda", "cagrad")),
        optimizers=(OptimizerConfig("adam", learning_rate=1e-3),),
        seeds=(0, 1, 2),
    )
