#!/usr/bin/env python
"""Times a step of FS-MTL as a ratio to a step of its base method, with the variants that are cheaper.

The paper's step takes 2K backward and K + 1 forward passes, the base method's K and one. With a backward pass worth two
forward ones that is a ratio of (5K + 1) / (2K + 1): 2.2 for two tasks. Everything runs in one process and takes turns,
so that what else the machine does slows all alike; times are medians, peak memory is what the compiler reserves beside
arguments and results. For a perturbation that is kept, the mean over ten steps is given.

example: python scripts/bench_flat.py --networks mlp lenet --seconds 5
"""

import argparse
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from bench_step import medians
from rich.console import Console
from rich.table import Table

import mtljax as mtl

BATCH, KEPT = 256, 10
NETWORKS: dict[str, dict[str, Any]] = {"mlp": {"features": (512, 512, 256)}, "lenet": {}}
PAPER = {"rho": 2.0, "adaptive": True, "norm": "joint"}


class Step(NamedTuple):
    """A step as a function of no arguments, and the memory of its compilation in MB."""

    name: str
    call: Callable[[], None]
    peak: float


def step_of(name: str, encoder: str, tasks: int, tx: Any, solve: bool | None = None, mode: Any = "auto") -> Step:
    """A jitted step on random images and labels."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((BATCH, 36, 36, 1), np.float32))
    labels = {f"t{k:02}": jnp.asarray(rng.integers(0, 10, BATCH)) for k in range(tasks)}
    model = mtl.models.MultiTaskModel(
        mtl.models.encoder(encoder, **NETWORKS[encoder]),
        {task: mtl.tasks.classification(10).head() for task in labels},
    )
    params, _ = model.init(jax.random.PRNGKey(0), x[:1])

    def losses_fn(params: Any, x: jax.Array, labels: dict[str, jax.Array]) -> dict[str, jax.Array]:
        outputs, _ = model.apply(params, {}, x, train=True)
        return {
            task: optax.softmax_cross_entropy_with_integer_labels(outputs[task], labels[task]).mean() for task in labels
        }

    chain = optax.chain(tx, optax.sgd(1e-4))

    def step(params: Any, state: Any, x: jax.Array, labels: Any) -> Any:
        losses, grads = mtl.task_gradients(losses_fn, params, x, labels, mode=mode)
        updates, state = chain.update(grads, state, params, losses=losses, solve=solve)  # pyright: ignore[reportArgumentType]
        return optax.apply_updates(params, updates), state

    state = chain.init(params)
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, x, labels).compile()
    memory = compiled.memory_analysis()
    held = [params, state]

    def call() -> None:
        held[:] = compiled(*held, x, labels)
        jax.block_until_ready(held)

    return Step(name, call, float("nan") if memory is None else memory.temp_size_in_bytes / 1e6)


def steps_of(encoder: str, tasks: int, base: str) -> list[Step]:
    """The rows of a table, the base method first."""

    def flat(**options: Any) -> Any:
        return mtl.methods.create("fs_mtl", tasks, base=base, **PAPER, **options)

    kept = flat(perturb_every=KEPT)
    one = {"aggregate": "direct", "shared_perturbation": True}
    return [
        step_of(base, encoder, tasks, mtl.methods.create(base, num_tasks=tasks)),
        step_of(f"fs_mtl({base})", encoder, tasks, flat()),
        step_of("aggregate=direct", encoder, tasks, flat(aggregate="direct")),
        step_of("mode=two_pass", encoder, tasks, flat(), mode="two_pass"),
        step_of("shared_perturbation, direct", encoder, tasks, flat(**one)),
        step_of("perturb_every, perturbed", encoder, tasks, kept, solve=True),
        step_of("perturb_every, kept", encoder, tasks, kept, solve=False),
        step_of("ew", encoder, tasks, mtl.ew()),
        step_of("fs_mtl(ew), direct: SAM a task", encoder, tasks, mtl.fs_mtl(mtl.ew(), 0.05, aggregate="direct")),
    ]


def main() -> int:
    """Prints one table a network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS), metavar="NAME")
    parser.add_argument("--base", default="cagrad", metavar="NAME", help="the method that aggregates")
    parser.add_argument("--tasks", type=int, default=2, metavar="K")
    parser.add_argument("--seconds", type=float, default=5.0, help="time for each step")
    options = parser.parse_args()
    console = Console(width=110)
    console.print(f"jax {jax.__version__} on {jax.default_backend()} ({jax.devices()[0].device_kind})")
    for encoder in options.networks:
        steps = steps_of(encoder, options.tasks, options.base)
        times = medians([step.call for step in steps], options.seconds)
        table = Table(title=f"{encoder}: K={options.tasks}, batch {BATCH}, 36x36x1")
        for column in ("step", "ms", f"ratio to {options.base}", "peak MB"):
            table.add_column(column, justify="left" if column == "step" else "right")
        rows = [(step.name, taken, step.peak) for step, taken in zip(steps, times, strict=True)]
        taken = dict(zip((step.name for step in steps), times, strict=True))
        mean = (taken["perturb_every, perturbed"] + (KEPT - 1) * taken["perturb_every, kept"]) / KEPT
        rows.append((f"perturb_every={KEPT} (mean)", mean, float("nan")))
        for name, milliseconds, peak in rows:
            shown = "–" if np.isnan(peak) else f"{peak:.2f}"
            table.add_row(name, f"{milliseconds:.2f}", f"{milliseconds / times[0]:.2f}", shown)
        console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
