#!/usr/bin/env python
"""Times one look at the gradients of 8 examples beside a training step, and what looking every n steps costs.

Both take turns in one process, so that what else the machine does slows both alike; times are medians.

example: python scripts/bench_probe.py --seconds 5
"""

import argparse
import sys

import jax
import numpy as np
from bench_step import medians
from rich.console import Console
from rich.table import Table

import mtljax as mtl
from mtljax.data import Batch, MultiTaskData, Split
from mtljax.tasks import classification
from mtljax.training import MethodConfig, ModelConfig, TrainConfig
from mtljax.training.program import build_program, data_key, init_state

EVERY = (5, 10, 20, 50, 200)
SMALL = {"channels": (16, 32), "kernels": (3, 3), "padding": "SAME", "features": 64}
CASES = {
    "lenet, 36 x 36, batch 256": ("lenet", {}, 36, 256),
    "lenet, 36 x 36, batch 64": ("lenet", {}, 36, 64),
    "small lenet, 12 x 12, batch 128": ("lenet", SMALL, 12, 128),
    "mlp 512-512, 12 x 12, batch 256": ("mlp", {"features": (512, 512)}, 12, 256),
    "mlp 128-64, 12 x 12, batch 128": ("mlp", {"features": (128, 64)}, 12, 128),
}


def data_of(side: int, count: int) -> MultiTaskData:
    """Noise with two labels an image."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, side, side, 1)).astype(np.uint8)
    split = Split(images, {task: rng.integers(0, 10, count).astype(np.int32) for task in ("left", "right")})
    tasks = {task: classification(10) for task in split.targets}
    return MultiTaskData("noise", tasks, dict.fromkeys(("train", "validation", "test"), split))


def times_of(
    encoder: str, options: dict[str, object], side: int, batch: int, method: str, seconds: float
) -> list[float]:
    """Milliseconds of a step and of a look."""
    data = data_of(side, 2 * batch)
    config = TrainConfig(model=ModelConfig(encoder, options), method=MethodConfig(method), batch_size=batch, devices=1)
    program = build_program(config, data)
    state = jax.device_put(init_state(config, data, program))
    split, order = jax.device_put(data.splits["train"]), program.shuffle(data_key(config), 0)
    inputs, targets = jax.tree.map(lambda leaf: leaf[:8], tuple(data.splits["train"]))
    some, key = Batch(inputs, targets, np.ones(8, np.float32)), jax.random.PRNGKey(0)

    def step() -> None:
        nonlocal state
        state = program.advance(state._replace(step=state.step * 0), split, order, None)[0]
        jax.block_until_ready(state)

    def look() -> None:
        rest = state.model_state, state.loss_scales
        jax.block_until_ready(mtl.analysis.sample_probe.measure(program.losses, state.params, rest, some, key))

    return medians([step, look], seconds)


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="for each of step and look (default: 5)")
    parser.add_argument("--method", default="ew", help="default: ew")
    parser.add_argument("--networks", default="", metavar="NAME", help="those whose name begins so (default: all)")
    options = parser.parse_args()
    table = Table(title=f"{options.method}: one look, and its share of the training time")
    for column in ("network", "step ms", "look ms", *(f"every {n}" for n in EVERY)):
        table.add_column(column, justify="left" if column == "network" else "right")
    for name, case in ((name, case) for name, case in CASES.items() if name.startswith(options.networks)):
        step, look = times_of(*case, options.method, options.seconds)
        table.add_row(name, f"{step:.1f}", f"{look:.1f}", *(f"{100 * look / (n * step + look):.1f}%" for n in EVERY))
    Console(width=130).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
