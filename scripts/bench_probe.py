#!/usr/bin/env python
"""Times one look at the gradients of 8 examples beside a training step, and what looking every n steps costs.

Then steps of an optax loop with the method alone, and with `conflict_probe` before it, which looks at the gradients of
the tasks on the whole batch. What is compared takes turns in one process, so that what else the machine does slows all
alike; times are medians.

example: python scripts/bench_probe.py --seconds 5
"""

import argparse
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from bench_step import medians
from rich.console import Console
from rich.table import Table

import mtljax as mtl
from mtljax.data import Batch, MultiTaskData, Split
from mtljax.tasks import classification
from mtljax.training import MethodConfig, ModelConfig, TrainConfig
from mtljax.training.program import build_program, data_key, init_state

EVERY = (5, 10, 20, 50, 200)
PROBED = (1, 20)  # updates between looks of conflict_probe; twenty are timed together
SMALL = {"channels": (16, 32), "kernels": (3, 3), "padding": "SAME", "features": 64}
CASES = {  # encoder, its options, pixels a side, batch, tasks
    "lenet, 36 x 36, batch 256": ("lenet", {}, 36, 256, 2),
    "lenet, 36 x 36, batch 64": ("lenet", {}, 36, 64, 2),
    "small lenet, 12 x 12, batch 128": ("lenet", SMALL, 12, 128, 2),
    "mlp 512-512, 12 x 12, batch 256": ("mlp", {"features": (512, 512)}, 12, 256, 2),
    "mlp 128-64, 12 x 12, batch 128": ("mlp", {"features": (128, 64)}, 12, 128, 2),
    "mlp 128-64, 32 x 32, batch 128, 12 tasks": ("mlp", {"features": (128, 64)}, 32, 128, 12),
}


def data_of(side: int, count: int, tasks: int) -> MultiTaskData:
    """Noise with several labels an image."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, side, side, 1)).astype(np.uint8)
    targets = {f"task {k:02}": rng.integers(0, 10, count).astype(np.int32) for k in range(tasks)}
    split = Split(images, targets)
    kinds = {task: classification(10) for task in targets}
    return MultiTaskData("noise", kinds, dict.fromkeys(("train", "validation", "test"), split))


def times_of(
    encoder: str, options: dict[str, object], side: int, batch: int, tasks: int, method: str, seconds: float
) -> tuple[list[float], list[float]]:
    """Milliseconds of a step and of a look; of a step in an optax loop, and of that with `conflict_probe`."""
    data = data_of(side, 2 * batch, tasks)
    config = TrainConfig(model=ModelConfig(encoder, options), method=MethodConfig(method), batch_size=batch, devices=1)
    program = build_program(config, data)
    state = jax.device_put(init_state(config, data, program))
    split, order = jax.device_put(data.splits["train"]), program.shuffle(data_key(config), 0)
    inputs, targets = jax.tree.map(lambda leaf: leaf[:8], tuple(data.splits["train"]))
    some, key = Batch(inputs, targets, np.ones(8, np.float32)), jax.random.PRNGKey(0)
    first, fixed = jax.tree.map(np.array, (state.params, (state.model_state, state.loss_scales)))  # steps reuse memory

    def step() -> None:
        nonlocal state
        state = program.advance(state._replace(step=state.step * 0), split, order, None)[0]
        jax.block_until_ready(state)

    def look() -> None:
        rest = state.model_state, state.loss_scales
        jax.block_until_ready(mtl.analysis.sample_probe.measure(program.losses, state.params, rest, some, key))

    whole = Batch(
        *jax.tree.map(lambda leaf: jax.device_put(leaf[:batch]), tuple(data.splits["train"])),
        np.ones(batch, np.float32),
    )

    def loop(*probe: optax.GradientTransformationExtraArgs) -> Callable[[], None]:
        tx = optax.chain(*probe, mtl.methods.create(method, num_tasks=tasks), optax.adam(1e-3))

        @jax.jit
        def update(params: Any, opt_state: Any) -> Any:
            losses, grads = mtl.task_gradients(program.losses, params, fixed, whole)
            updates, opt_state = tx.update(grads, opt_state, params, losses=losses)
            return optax.apply_updates(params, updates), opt_state

        held = first, tx.init(first)

        def run() -> None:
            nonlocal held
            for _ in range(max(PROBED)):
                held = update(*held)
            jax.block_until_ready(held)

        return run

    probed = (mtl.analysis.conflict_probe(every=every) for every in PROBED)
    chains = medians([loop(), *map(loop, probed)], seconds)
    return medians([step, look], seconds), [each / max(PROBED) for each in chains]


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
    chain = Table(title=f"conflict_probe before {options.method} in an optax chain, and what it adds to a step")
    for column in ("network", "without ms", *(part for n in PROBED for part in (f"every={n} ms", "added"))):
        chain.add_column(column, justify="left" if column == "network" else "right")
    for name, case in ((name, case) for name, case in CASES.items() if name.startswith(options.networks)):
        (step, look), (plain, *probed) = times_of(*case, options.method, options.seconds)
        chain.add_row(
            name, f"{plain:.2f}", *(t for each in probed for t in (f"{each:.2f}", f"{each / plain - 1:+.0%}"))
        )
        table.add_row(name, f"{step:.1f}", f"{look:.1f}", *(f"{100 * look / (n * step + look):.1f}%" for n in EVERY))
    Console(width=130).print(table)
    Console(width=130).print(chain)
    return 0


if __name__ == "__main__":
    sys.exit(main())
