#!/usr/bin/env python
"""Do tasks fight less in flat regions? The share of mini-batches with opposed gradients, by epoch (FS-MTL, Fig. 3).

Trains CAGrad without FS-MTL (ERM) and with it (FS), network and data those of configs/fs_mtl/cpu.py, and counts the
mini-batches on which the gradients of the two losses over the shared parameters have a negative cosine. They are the
gradients that each step takes anyway. At the end: how far the losses rise within an adaptive ball, the length of their
gradients, both on training examples; accuracy, calibration error (15 bins) and Brier score on the test split; all as
means of the two tasks. No network is selected: these are end points. Intervals are 95% t-intervals over seeds.

example: python scripts/fs_mtl_conflicts.py --figure conflicts.png
"""

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mtljax as mtl
from mtljax.ablation.statistics import t_interval
from mtljax.analysis.claims import RULE, Claim, claim, claims_table
from mtljax.commands.output import add_figure, save_figure
from mtljax.data import MultiTaskData, Split
from mtljax.markdown import markdown_table
from mtljax.training import TrainConfig
from mtljax.training.config import load_config
from mtljax.training.overrides import replaced
from mtljax.training.program import build_model

CONFIG = Path(__file__).parents[1] / "configs" / "fs_mtl" / "cpu.py"
RHO = {"ERM": 0.0, "FS": 2.0}
EXAMPLES = 1000  # on which sharpness is measured
RADIUS = 0.5  # of the adaptive ball it is measured in

Losses = Callable[[Any, Split], dict[str, jax.Array]]


class Run(NamedTuple):
    """What one training found.

    Attributes:
      shares: (epochs,) shares of the mini-batches with a negative cosine, in percent.
      end: what the network is like at the end, by name.
    """

    shares: np.ndarray
    end: dict[str, float]


def losses_of(model: Any, data: MultiTaskData) -> Losses:
    """The losses of a network without batch statistics."""

    def losses_fn(params: Any, batch: Split) -> dict[str, jax.Array]:
        outputs, _ = model.apply(params, {}, batch.inputs, train=True)
        return {task: jnp.mean(each.loss(outputs[task], batch.targets[task])) for task, each in data.tasks.items()}

    return losses_fn


def step_of(losses_fn: Losses, tx: Any, size: int) -> Callable[..., Any]:
    """A step on the batch `index` of an epoch's order, which also gives the cosines of the gradients it takes."""

    @jax.jit
    def step(params: Any, state: Any, split: Split, order: jax.Array, index: jax.Array) -> Any:
        chosen = jax.lax.dynamic_slice(order, (index * size,), (size,))
        losses, grads = mtl.task_gradients(losses_fn, params, jax.tree.map(lambda leaf: leaf[chosen], split))
        updates, state = tx.update(grads, state, params, losses=losses)
        return optax.apply_updates(params, updates), state, grads.scaled_gramian().cosines

    return step


def trained(
    model: Any, tx: Any, step: Callable[..., Any], split: Split, config: TrainConfig, seed: int
) -> tuple[Any, np.ndarray]:
    """The parameters at the end, and the share of conflicts of every epoch in percent."""
    init_key, order_key = jax.random.split(jax.random.PRNGKey(seed))
    params, _ = model.init(init_key, split.inputs[:1])
    state, shares = tx.init(params), []
    for epoch in range(config.epochs):
        order = jax.random.permutation(jax.random.fold_in(order_key, epoch), split.num_examples)
        cosines = []
        for index in range(split.num_examples // config.batch_size):
            params, state, cosine = step(params, state, split, order, np.int32(index))
            cosines.append(cosine)
        shares.append(100 * mtl.analysis.conflict_share(jnp.stack(cosines))[0, 1])
    return params, np.asarray(shares)


def judge_of(model: Any, losses_fn: Losses, data: MultiTaskData) -> Callable[[Any], dict[str, float]]:
    """How flat and how good a network is, in means over the tasks."""
    some = jax.tree.map(lambda leaf: jnp.asarray(leaf[:EXAMPLES]), data.splits["train"])
    test = data.splits["test"]
    predict = jax.jit(lambda params: jax.tree.map(jax.nn.softmax, model.apply(params, {}, test.inputs)[0]))
    rises = jax.jit(partial(mtl.analysis.worst_case_rise, losses_fn, rho=RADIUS, adaptive=True, steps=3))
    norms = jax.jit(partial(mtl.analysis.gradient_norms, losses_fn))

    def judge(params: Any) -> dict[str, float]:
        probabilities = predict(params)

        def on_test(score: Callable[..., Any]) -> dict[str, Any]:
            return {task: score(probabilities[task], test.targets[task]) for task in data.tasks}

        measures: dict[str, Mapping[str, Any]] = {
            f"rise of the training loss, adaptive ball of {RADIUS:g}": rises(params, some),
            "gradient norm of the training loss": norms(params, some),
            "expected calibration error": on_test(mtl.analysis.expected_calibration_error),
            "Brier score": on_test(mtl.analysis.brier_score),
            "error rate, %": on_test(lambda p, labels: 100 * jnp.mean(jnp.argmax(p, axis=1) != labels)),
        }
        return {
            name: float(np.mean([float(value) for value in by_task.values()])) for name, by_task in measures.items()
        }

    return judge


def run_all(config: TrainConfig, seeds: Sequence[int]) -> dict[str, list[Run]]:
    """Both ways with every seed; the seeds share what is compiled."""
    data = mtl.data.load(config.data.name, **config.data.options)
    model, split = build_model(config, data.spec), jax.device_put(data.splits["train"])
    losses_fn, runs = losses_of(model, data), {}
    judge = judge_of(model, losses_fn, data)
    for name, rho in RHO.items():
        flat = mtl.fs_mtl(mtl.cagrad(), rho, adaptive=True, norm="joint")
        tx = optax.chain(flat, optax.adam(config.optimizer.learning_rate))
        step, runs[name] = step_of(losses_fn, tx, config.batch_size), []
        for seed in seeds:
            params, shares = trained(model, tx, step, split, config, seed)
            runs[name].append(Run(shares, judge(params)))
            print(f"{name} seed {seed}: trained", file=sys.stderr, flush=True)
    return runs


def share_table(runs: Mapping[str, Sequence[Run]]) -> str:
    """The share of conflicts by epoch, at most some twenty rows."""
    epochs = len(next(iter(runs.values()))[0].shares)
    lines = []
    for epoch in sorted({1, epochs, *range(0, epochs + 1, max(1, epochs // 10))} - {0}):
        intervals = [t_interval([run.shares[epoch - 1] for run in several]) for several in runs.values()]
        lines.append([str(epoch), *(each.text(".1f") for each in intervals)])
    return markdown_table(["epoch", *(f"{name}, %" for name in runs)], lines)


def end_table(runs: Mapping[str, Sequence[Run]], seeds: Sequence[int]) -> str:
    """The end points: each way's own numbers, and the claim that FS has the lower one."""
    lines = []
    for name in runs["ERM"][0].end:
        values = {
            way: {s: run.end[name] for s, run in zip(seeds, several, strict=True)} for way, several in runs.items()
        }
        own = [t_interval(list(by_seed.values())) for by_seed in values.values()]
        compared = claim(name, values["FS"], values["ERM"], lower=True)
        lines.append([name, *(f"{each.mean:.4g} ± {each.half_width:.2g}" for each in own), compared.verdict])
    return markdown_table(["at the end", *runs, "FS lower"], lines)


def claims_of(runs: Mapping[str, Sequence[Run]], seeds: Sequence[int]) -> tuple[Claim, ...]:
    """The paper's claims on the share of conflicts, of the last quarter of the epochs."""
    late = {
        way: {
            s: float(run.shares[-max(1, len(run.shares) // 4) :].mean()) for s, run in zip(seeds, several, strict=True)
        }
        for way, several in runs.items()
    }
    half = {seed: share / 2 for seed, share in late["ERM"].items()}
    below = partial(claim, lower=True)
    return (
        below("fewer conflicts in FS than ERM, points", late["FS"], late["ERM"], paper="+52 (last epoch)"),
        below("FS below half of ERM, points", late["FS"], half, paper="+25.5 (last epoch)"),
    )


def plot(runs: Mapping[str, Sequence[Run]], title: str) -> Any:
    """Both shares over epochs, mean and range over seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.0, 3.6), layout="constrained")
    axes = figure.subplots()
    for name, several in runs.items():
        shares = np.stack([run.shares for run in several])
        epochs = np.arange(1, shares.shape[1] + 1)
        (line,) = axes.plot(epochs, shares.mean(axis=0), label=f"{name} (ρ = {RHO[name]:g})")
        axes.fill_between(epochs, shares.min(axis=0), shares.max(axis=0), color=line.get_color(), alpha=0.2, lw=0)
    axes.set(xlabel="epoch", ylabel="mini-batches with cos < 0, %", ylim=(0, None), title=title)
    axes.legend()
    return figure


def main() -> int:
    """Trains, prints the tables, draws the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="multi_mnist", help="or multi_fashion, fashion_and_mnist")
    parser.add_argument("--epochs", type=int, help="default: those of the config")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add_figure(parser)
    options = parser.parse_args()
    start, config = time.perf_counter(), load_config(CONFIG).base
    changes = {"data.name": options.data, "epochs": options.epochs or config.epochs}
    for field, value in changes.items():
        config = replaced(config, field, value)
    runs = run_all(config, options.seeds)
    claims = claims_of(runs, options.seeds)
    print(f"{share_table(runs)}\n\n{claims_table([(each,) for each in claims], ('last quarter of the epochs',))}\n")
    print(f"{end_table(runs, options.seeds)}\n\n{RULE}.")
    if options.figure is not None:
        save_figure(lambda: plot(runs, f"CAGrad on {options.data}, {len(options.seeds)} seeds"), options.figure)
    print(f"{time.perf_counter() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
