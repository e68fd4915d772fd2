"""Adam or SGD, whatever the method? The grid of arXiv:2311.04698, Sec. 4.1, on Multi-MNIST with unequal losses.

    mtljax ablate configs/optimizer_study/multi_mnist.py --dry-run
    mtljax ablate configs/optimizer_study/multi_mnist.py
    mtljax analyze optimizers runs/optimizer_study --figure settings.png

The loss of the right digit counts ten times. Eight methods with Adam and with SGD and momentum, one Adam a task
(adatask), one SGD a task (mtl_io) and the sign of the momentum, each at ten learning rates with three seeds; with them
single-task training and 9 weightings of the losses at the same learning rates. This is the profile for an accelerator,
where blocks of cells are one program. NOT RUN YET: there are no expected numbers. multi_mnist_cpu.py is the small one.
"""

from mtljax.ablation import Pair, StudyConfig, product
from mtljax.training import DataConfig, MethodConfig, ModelConfig, OptimizerConfig, TrainConfig


def get_config() -> StudyConfig:
    adam, sgd = OptimizerConfig("adam"), OptimizerConfig("sgd", options={"momentum": 0.9})
    return StudyConfig(
        name="optimizer_study",
        question="Two overlapping digits, the loss of one ten times the other's: does the optimizer matter more than "
        "the multi-task method, and is Adam better than SGD with momentum for all of them?",
        base=TrainConfig(
            name="optimizer_study",
            data=DataConfig("multi_mnist"),
            model=ModelConfig("lenet"),
            loss_scales={"left": 1.0, "right": 10.0},
            batch_size=256,
            epochs=50,
        ),
        methods=tuple(
            MethodConfig(name) for name in ("ew", "uw", "rlw", "mgda", "pcgrad", "cagrad", "imtl", "aligned_mtl")
        ),
        optimizers=(adam, sgd),
        pairs=(
            Pair(MethodConfig("adatask"), OptimizerConfig("sgd"), label="adam"),
            Pair(MethodConfig("mtl_io"), OptimizerConfig("sgd"), label="sgd(momentum=0.9)"),
            Pair(MethodConfig("ew"), OptimizerConfig("signsgd")),
        ),
        axes=product({"optimizer.learning_rate": (0.5, 0.1, 0.05, 0.01, 5e-3, 1e-3, 5e-4, 1e-4, 5e-5, 1e-5)}),
        seeds=(0, 1, 2),
    )
