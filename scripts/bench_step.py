#!/usr/bin/env python
"""Times a whole train step of every engine against the step of the plain summed loss, and against PyTorch libraries.

For each network: the summed loss by jax.grad, a loss weighting, an exact Gramian method (pcgrad) by each engine, and
the mean step where weights are solved for every ten steps. Everything runs in one process and takes turns, so that
what else the machine does slows all alike; times are medians, memory is what the compiler reserves beside arguments and
results. PCGrad of TorchJD (default settings) and of LibMTL (1.1.5) stand beside where they are installed. The last step
is SGD's.

example: python scripts/bench_step.py --networks mlp lenet --seconds 5
"""

import argparse
import importlib
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.progress import track
from rich.table import Table

import mtljax as mtl

ROUNDS = 5


class Network(NamedTuple):
    """What is trained."""

    encoder: str
    options: dict[str, Any]
    inputs: tuple[int, ...]
    batch: int
    tasks: int
    features: int


_RESNET = {"width": 32, "features": 0, "small_stem": True, "norm": "group"}
NETWORKS = {
    "lenet": Network("lenet", {}, (36, 36, 1), 256, 2, 50),
    "mlp": Network("mlp", {"features": (512, 512, 256)}, (36, 36, 1), 256, 2, 256),
    "mlp-40": Network("mlp", {"features": (512, 512, 256)}, (36, 36, 1), 256, 40, 256),
    "resnet18-3": Network("resnet18", _RESNET, (32, 32, 3), 64, 3, 256),
    "resnet18-10": Network("resnet18", _RESNET, (32, 32, 3), 64, 10, 256),
}


class Step(NamedTuple):
    """One row of the table: a step as a function of no arguments, and what its compilation says."""

    name: str
    call: Callable[[], Any]
    peak: float
    flops: float
    compile_seconds: float
    program: Any = None


def data_of(network: Network) -> tuple[np.ndarray, np.ndarray]:
    """Random images and labels."""
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((network.batch, *network.inputs), np.float32)
    return inputs, rng.integers(0, 10, (network.tasks, network.batch))


def jax_step(network: Network, name: str, method: str | None, solve: bool | None = None, **options: Any) -> Step:
    """A jitted step; `method=None` is the summed loss without mtljax."""
    inputs, labels = data_of(network)
    tasks = [f"t{k:02}" for k in range(network.tasks)]
    model = mtl.models.MultiTaskModel(
        mtl.models.encoder(network.encoder, **network.options),
        {task: mtl.tasks.classification(10).head() for task in tasks},
    )
    params, _ = model.init(jax.random.PRNGKey(0), jnp.zeros((1, *network.inputs)))

    def encode(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        del y
        return model.encode(params, {}, x, train=True)[0]

    def heads(params: Any, z: jax.Array, x: jax.Array, y: jax.Array) -> dict[str, jax.Array]:
        del x
        outputs = model.decode(params, z)
        return {
            task: optax.softmax_cross_entropy_with_integer_labels(outputs[task], y[k]).mean()
            for k, task in enumerate(tasks)
        }

    losses_fn = mtl.split(encode, heads)
    every = {"update_every": 10} if solve is not None else {}
    rule = optax.identity() if method is None else mtl.methods.create(method, num_tasks=network.tasks, **every)
    tx = optax.chain(rule, optax.sgd(1e-4))

    def step(params: Any, state: Any, x: jax.Array, y: jax.Array) -> Any:
        if method is None:
            grads, losses = jax.grad(lambda p: sum(losses_fn(p, x, y).values()))(params), None
        else:
            losses, grads = mtl.task_gradients(losses_fn, params, x, y, **options)
        updates, state = tx.update(cast(Any, grads), state, params, losses=losses, solve=solve)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    start = time.perf_counter()
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, inputs, labels).compile()
    seconds = time.perf_counter() - start
    cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
    held = [params, state]
    x, y = jnp.asarray(inputs), jnp.asarray(labels)

    def call() -> None:
        held[:] = compiled(*held, x, y)
        jax.block_until_ready(held)

    peak = float("nan") if memory is None else memory.temp_size_in_bytes / 1e6
    return Step(name, call, peak, (cost or {}).get("flops", float("nan")) / 1e9, seconds, compiled)


def steps_of(network: Network, methods: list[str]) -> list[Step]:
    """The rows of a network, the summed loss first."""
    steps = [jax_step(network, "summed loss, jax.grad", None), jax_step(network, "uw (loss weighting)", "uw")]
    for method in methods:
        for mode in ("auto", "loop", "jacrev", "two_pass", "features"):
            steps.append(jax_step(network, f"{method}, {mode}", method, mode=mode))
        steps.append(jax_step(network, f"{method}, weights reused", method, solve=False))
    return steps


PEERS = {"summed loss, PyTorch": "torch", "PCGrad, TorchJD": "torchjd", "PCGrad, LibMTL": "LibMTL"}
INSTALLED = [name for name, library in PEERS.items() if importlib.util.find_spec(library) is not None]


def torch_steps(network: Network) -> list[Step]:
    """The same in PyTorch, by each of its libraries that is installed."""
    if not INSTALLED:
        return []
    torch, torch_models = importlib.import_module("torch"), importlib.import_module("torch_models")
    torch.manual_seed(0)
    inputs, labels = data_of(network)
    device = "cuda" if torch.cuda.is_available() and jax.default_backend() != "cpu" else "cpu"
    builders = dict(
        zip(PEERS, (torch_models.summed_step, torch_models.torchjd_step, torch_models.libmtl_step), strict=True)
    )
    steps = []
    for name in INSTALLED:
        encoder = getattr(torch_models, network.encoder)(network.inputs)
        call = builders[name](encoder, network.features, inputs, labels, device)
        steps.append(Step(name, call, float("nan"), float("nan"), float("nan")))
    return steps


def medians(calls: Sequence[Callable[[], Any]], seconds: float) -> list[float]:
    """Median milliseconds of each call, taken in turns over about so many seconds each, a few at least."""
    times: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call()
    for _ in track(range(ROUNDS), "timing", transient=True, console=Console(stderr=True)):
        for call, taken in zip(calls, times, strict=True):
            end = time.perf_counter() + seconds / ROUNDS
            while True:
                start = time.perf_counter()
                call()
                taken.append(time.perf_counter() - start)
                if time.perf_counter() > end:
                    break
    return [1e3 * statistics.median(taken) for taken in times]


def table_of(name: str, network: Network, steps: list[Step], times: list[float]) -> Table:
    """One network's results; the mean over ten steps is added for reused weights."""
    torch_time = next((t for s, t in zip(steps, times, strict=True) if "TorchJD" in s.name), float("nan"))
    table = Table(title=f"{name}: K={network.tasks}, batch {network.batch}, {'x'.join(map(str, network.inputs))}")
    for column in ("step", "ms", "ratio to summed loss", "TorchJD's time / this", "peak MB", "GFLOP", "compile s"):
        table.add_column(column, justify="left" if column == "step" else "right")
    rows = [(s.name, t, s.peak, s.flops, s.compile_seconds) for s, t in zip(steps, times, strict=True)]
    auto = {s.name.split(",")[0]: t for s, t in zip(steps, times, strict=True) if s.name.endswith(", auto")}
    for step, taken in zip(steps, times, strict=True):
        if step.name.endswith("reused"):
            method = step.name.split(",")[0]
            nan = float("nan")
            rows.append((f"{method}, update_every=10 (mean)", (auto[method] + 9 * taken) / 10, nan, nan, nan))
    for row_name, taken, peak, flops, seconds in rows:
        shown = (taken / times[0], torch_time / taken, peak, flops, seconds)
        table.add_row(row_name, f"{taken:.2f}", *("–" if np.isnan(x) else f"{x:.2f}" for x in shown))
    return table


def main() -> int:
    """Prints one table a network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS), metavar="NAME")
    parser.add_argument("--methods", nargs="+", default=["pcgrad"], metavar="NAME", help="Gramian methods")
    parser.add_argument("--seconds", type=float, default=5.0, help="time for each step")
    options = parser.parse_args()
    console = Console(width=130)
    device = jax.devices()[0].device_kind
    console.print(f"jax {jax.__version__} on {jax.default_backend()} ({device})")
    for name in options.networks:
        network = NETWORKS[name]
        steps = steps_of(network, options.methods) + torch_steps(network)
        console.print(table_of(name, network, steps, medians([step.call for step in steps], options.seconds)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
