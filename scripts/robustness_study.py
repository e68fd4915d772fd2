#!/usr/bin/env python
"""Are multi-task networks more robust? Trains on Multi-MNIST, measures corruption robustness and prints the verdict.

Single-task networks and four multi-task methods, three seeds each, with a small LeNet; runs are kept, and what is done
is not done again. The data comes from TFDS `mnist`, found in the directory named by MTLJAX_DATA or downloaded by TFDS.

example: python scripts/robustness_study.py --figure robustness.png
"""

import argparse
import dataclasses
import sys
import time
from pathlib import Path

from mtljax.cli import main
from mtljax.commands.output import add_figure
from mtljax.training import DataConfig, MethodConfig, ModelConfig, OptimizerConfig, TrainConfig, train
from mtljax.training.config import to_dict
from mtljax.training.loop import load_data
from mtljax.training.program import build_program
from mtljax.training.workdir import CONFIG, finished

TASKS, METHODS, SEEDS = ("left", "right"), ("ew", "uw", "pcgrad", "cagrad"), (0, 1, 2)
BASE = TrainConfig(
    name="robustness",
    data=DataConfig("multi_mnist", {"num_train": 16_000, "num_validation": 2000, "num_test": 2000}),
    model=ModelConfig("lenet", {"channels": (6, 12)}),
    optimizer=OptimizerConfig("adam", learning_rate=3e-3),
    batch_size=128,
    epochs=3,
    tensorboard=False,
)


def configs() -> list[list[TrainConfig]]:
    """The runs, in groups that share a compiled program: those of one method or task, a seed each."""
    single = [dataclasses.replace(BASE, tasks=(task,)) for task in TASKS]
    multi = [dataclasses.replace(BASE, method=MethodConfig(method)) for method in METHODS]
    return [[dataclasses.replace(config, seed=seed) for seed in SEEDS] for config in (*single, *multi)]


def place(directory: Path, config: TrainConfig) -> Path:
    """The directory of a run."""
    return directory / f"{config.tasks[0] if config.tasks else config.method.name}-seed{config.seed}"


def run_all(directory: Path) -> list[Path]:
    """Trains what is not trained yet."""
    start, workdirs = time.perf_counter(), []
    for group in configs():
        left = [config for config in group if not finished(place(directory, config), to_dict(config))]
        data = load_data(group[0]) if left else None
        program = None if data is None else build_program(group[0], data)
        for config in left:
            workdir = place(directory, config)
            resume = (workdir / CONFIG).is_file()
            result = train(config, workdir=workdir, resume=resume, data=data, program=program)
            if result.interrupted:
                sys.exit(f"{result.interrupted}: start the same command again to go on")
            scores = ", ".join(f"{task} {each['accuracy']:.4f}" for task, each in result.test.items())
            print(f"{workdir}: test accuracy {scores}; {time.perf_counter() - start:.0f} s", flush=True)
        workdirs += [place(directory, config) for config in group]
    return workdirs


if __name__ == "__main__":
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--workdir", type=Path, default=Path("runs/robustness"), help="default: runs/robustness")
    add_figure(words)
    options = words.parse_args()
    try:
        directories = [str(each) for each in run_all(options.workdir)]
    except ValueError as error:
        sys.exit(f"error: {error}")
    figure = [] if options.figure is None else ["--figure", options.figure]
    sys.exit(main(["analyze", "robustness", *directories, "--num_test=1000", *figure]))
