"""Does seeking flat minima task by task help every method on Multi-MNIST? FS-MTL (arXiv:2211.13723), Table 1.

    mtljax ablate configs/fs_mtl/multi_mnist.py
    python scripts/fs_mtl_verdict.py runs/fs_mtl_multi_mnist

UNRUN: the paper's setting, for an accelerator. ResNet-18 with the 7 x 7 stem of stride 2 and 100 units, Adam 1e-3,
batch 256, 200 epochs of 108,000 pairs, 3 seeds, adaptive ρ = 2 with the joint norm; 54 cells. cpu.py is the same scaled
down to minutes. Expected by the paper, the mean test accuracy of both tasks at the epoch that is best on test, in %,
method and FS-MTL around it:

    mgda 95.05, 95.68     pcgrad 95.06, 95.92     cagrad 95.01, 95.95     imtl_g 95.28, 95.85
    nash_mtl 95.01, 95.94     fairgrad 94.92, 95.91     ew 94.88, 95.67     one network a task 94.74, -

At epoch 10 the gain is there in full: 93.5 and 94.9 in the authors' logs. Here networks are selected on validation; the
paper's own number stands beside it in the verdict. What differs: 108,000 training pairs, whose overlap is the brighter
pixel, instead of 120,000 of another making; residual blocks that start as the identity; Nash-MTL in its exact scale;
FairGrad with the α = 2 of its own experiments, as α = 1 is Nash-MTL; `imtl_g`, the part of IMTL that the paper's code
has.
"""

from mtljax.ablation import StudyConfig
from mtljax.training import DataConfig, MethodConfig, ModelConfig, OptimizerConfig, TrainConfig

BASES = ("ew", "mgda", "pcgrad", "cagrad", "imtl_g", "nash_mtl", "fairgrad")
OPTIONS = {"fairgrad": {"alpha": 2.0}}
FLAT = {"rho": 2.0, "adaptive": True, "norm": "joint"}


def flat(base: str, **options: str) -> MethodConfig:
    """FS-MTL around a method, in the paper's setting."""
    inner = {"base_options": OPTIONS[base]} if base in OPTIONS else {}
    return MethodConfig("fs_mtl", {"base": base, **inner, **FLAT, **options})


def get_config() -> StudyConfig:
    adam = OptimizerConfig("adam", learning_rate=1e-3)
    plain = (MethodConfig(base, OPTIONS.get(base, {})) for base in BASES)
    return StudyConfig(
        name="fs_mtl_multi_mnist",
        question="Does taking each task's gradient a step uphill, and aggregating losses and flatness apart, raise the "
        "accuracy of every multi-task method on Multi-MNIST, and that of one network a task?",
        base=TrainConfig(
            name="fs_mtl_multi_mnist",
            data=DataConfig("multi_mnist"),
            model=ModelConfig("resnet18"),
            optimizer=adam,
            batch_size=256,
            epochs=200,
            test_curve=True,
        ),
        methods=(*plain, *map(flat, BASES)),
        single_methods=(flat("ew", aggregate="direct"),),
        optimizers=(adam,),
        seeds=(0, 1, 2),
        weight_grid=0,
    )
