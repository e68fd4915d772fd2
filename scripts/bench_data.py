#!/usr/bin/env python
"""Times training steps that draw their batches against the same steps on one fixed batch.

Both are compiled and take turns; the first includes the epoch's permutation and the gathering of each batch from the
split on the device, the second does nothing but the step. A ratio near 1 says that the input never starves the step.

example: python scripts/bench_data.py configs/digits.py --seconds 10
"""

import argparse
import statistics
import sys
import time

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from mtljax.data.batches import take
from mtljax.training import parallel
from mtljax.training.config import load_config
from mtljax.training.loop import load_data
from mtljax.training.overrides import override
from mtljax.training.program import build_model, build_program, build_transformation, data_key, init_state
from mtljax.training.step import Engine, make_step

ROUNDS = 10


def rates(path: str, overrides: list[str], seconds: float) -> tuple[int, float, float]:
    """Batch size and steps a second of a config's run: with its data, and on a fixed batch."""
    config = load_config(path)
    config = override(getattr(config, "base", config), ["--devices=1", *overrides])
    data = load_data(config)
    program = build_program(config, data)
    split = parallel.place(data.splits["train"], program.devices)
    tx = build_transformation(config, data)
    step = make_step(build_model(config, data.spec), data.tasks, tx, engine=Engine(config.mode))
    compiled, fixed = jax.jit(step, donate_argnums=0), take(split, jnp.arange(config.batch_size))
    drawn, given = (parallel.place(init_state(config, data, program), program.devices) for _ in range(2))
    key, done, permutation = data_key(config), 0, None

    def with_data() -> jax.Array:
        nonlocal drawn, done, permutation
        if done % program.steps_per_epoch == 0:
            permutation = program.shuffle(key, done // program.steps_per_epoch)
        drawn, _ = program.advance(drawn, split, permutation, None)
        done += 1
        return drawn.step

    def without() -> jax.Array:
        nonlocal given
        given, _ = compiled(given, fixed)
        return given.step

    step_rates: list[list[float]] = [[], []]
    for call in (with_data, without):
        jax.block_until_ready(call())
    for _ in range(ROUNDS):
        for call, values in zip((with_data, without), step_rates, strict=True):
            start, count = time.perf_counter(), 0
            while time.perf_counter() - start < seconds / ROUNDS:
                jax.block_until_ready(call())
                count += 1
            values.append(count / (time.perf_counter() - start))
    return config.batch_size, statistics.median(step_rates[0]), statistics.median(step_rates[1])


def main() -> int:
    """Prints one line a config."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="*", default=["configs/digits.py"], metavar="CONFIG")
    parser.add_argument("--seconds", type=float, default=10.0, help="time for each of the two")
    options, overrides = parser.parse_known_args()
    table = Table(title=f"jax {jax.__version__} on {jax.default_backend()}")
    for column in ("config", "batch", "steps/s with data", "steps/s, fixed batch", "ratio"):
        table.add_column(column, justify="left" if column == "config" else "right")
    for path in options.configs:
        batch, drawn, given = rates(path, overrides, options.seconds)
        table.add_row(path, str(batch), f"{drawn:.1f}", f"{given:.1f}", f"{drawn / given:.3f}")
    Console(width=100).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
