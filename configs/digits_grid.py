"""Like with like: each method at its best learning rate, against single-task training and tuned weights of the losses.

    mtljax ablate configs/digits_grid.py --dry-run     # lists the 450 cells and estimates the time
    mtljax ablate configs/digits_grid.py

Four methods x {adam, sgd with momentum} x 5 learning rates x 3 seeds on MultiDigits, made on the fly from the digits
archive inside the package; with them, at the same learning rates, single-task training and 9 fixed weightings of the
two losses. What is tuned is chosen on validation data: 5 learning rates for a method with one optimizer, 45 pairs of
learning rate and weighting for tuned scalarization. Cells that differ in learning rate, weighting or seed share a
program: 14 are compiled. Expected: about 20 minutes on 2 CPU cores; no method beats tuned scalarization (README.md
holds the table, docs/digits_grid.html the report).
"""

from mtljax.ablation import StudyConfig, product
from mtljax.training import DataConfig, MethodConfig, ModelConfig, OptimizerConfig, TrainConfig


def get_config() -> StudyConfig:
    return StudyConfig(
        name="digits_grid",
        question="Two overlapping handwritten digits, one network: with the learning rate chosen for each, does any "
        "multi-task method beat a tuned weighting of the losses?",
        base=TrainConfig(
            name="digits_grid",
            data=DataConfig("digits", {"num_train": 3000, "num_validation": 1000, "num_test": 1000}),
            model=ModelConfig("lenet", {"channels": (8, 16), "kernels": (3, 3), "padding": "SAME", "features": 32}),
            batch_size=128,
            epochs=10,
        ),
        methods=tuple(MethodConfig(name) for name in ("ew", "pcgrad", "mgda", "cagrad")),
        optimizers=(OptimizerConfig("adam"), OptimizerConfig("sgd", options={"momentum": 0.9})),
        axes=product({"optimizer.learning_rate": (3e-3, 1e-2, 3e-2, 1e-1, 3e-1)}),
        seeds=(0, 1, 2),
    )
