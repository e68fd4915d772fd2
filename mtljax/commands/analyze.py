"""`mtljax analyze`: small experiments on what optimizers and methods do."""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from mtljax.commands.output import console


def toy(options: argparse.Namespace, overrides: list[str]) -> int:
    """Steps to the minimum of CAGrad's function, a row for each optimizer and method."""
    from mtljax.analysis.toy import POSITIVE_LOSSES, STARTS, ToyConfig, cells, chosen_methods, plot_toy, run_toy
    from mtljax.training.config import load_config
    from mtljax.training.overrides import override

    if options.config is not None and options.config.startswith("--"):  # argparse: what holds a space is no option
        options.config, overrides = None, [options.config, *overrides]
    config = ToyConfig() if options.config is None else load_config(options.config)
    if not isinstance(config, ToyConfig):
        raise ValueError(f"{options.config} returns a {type(config).__name__}; mtljax analyze toy needs a ToyConfig")
    config = override(config, overrides)
    start, results = time.perf_counter(), []
    pairs = [(optimizer, name) for optimizer in config.optimizers for name in chosen_methods(config)]
    for optimizer, name in _progress(pairs, "methods"):
        results.append(run_toy(name, optimizer, config))
    table = Table(title=f"steps until the mean loss is near its minimum, the slowest of {len(STARTS)} starts")
    table.add_column("optimizer")
    table.add_column("method")
    for rate in config.learning_rates:
        table.add_column(f"{rate:g}", justify="right")
    for result in results:
        table.add_row(result.optimizer, result.method, *cells(result))
    out = console(120)
    out.print(table)
    out.print(f"-: not from every start within {config.iterations:,} steps; columns are learning rates")
    if config.methods == ("all",):
        out.print(f"n/a, as they need positive losses: {', '.join(POSITIVE_LOSSES)}", highlight=False)
    return _done(options, start, lambda: plot_toy(results, config))


def scale_invariance(options: argparse.Namespace, overrides: list[str]) -> int:
    """Which optimizers see the scale of the losses, a row for each setting and rule."""
    from mtljax.analysis.scale_experiment import experiment, rules
    from mtljax.analysis.scale_invariance import BACKBONE, plot_scale_invariance

    del overrides
    scales = _numbers(options.scales)
    start, runs = time.perf_counter(), {}
    table = Table(title=f"are updates the same when the losses are scaled by {scales[0]:g} and {scales[1]:g}?")
    groups = (BACKBONE, "head first", "head second")
    for column in ("trained", "rule", *groups):
        table.add_column(column)
    for rule, setting, run in _progress(
        experiment(scales, steps=options.steps, eps=options.eps), "runs", 3 * len(rules())
    ):
        verdicts = run.verdicts()
        row = (f"{verdicts[g]} ({run.differences[g][0]:.0e})" if g in verdicts else "frozen" for g in groups)
        table.add_row(setting, rule, *row)
        if setting == "all trained":
            runs[rule] = run
    out = console(130)
    out.print(table)
    out.print(
        "In brackets the relative difference of the first updates. Two runs of their own part sooner or later, as "
        "rounding grows; on the same path, gradients of both are taken at the parameters of the first.",
        highlight=False,
    )
    title = f"losses scaled by {scales[0]:g} and {scales[1]:g}, all trained"
    return _done(options, start, lambda: plot_scale_invariance(runs, title))


def _numbers(text: str) -> tuple[float, float]:
    try:
        first, second = (float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--scales takes two numbers, such as 10,0.1, got {text!r}") from None
    return first, second


def _progress(items: Any, what: str, total: int | None = None) -> Any:
    """A bar on a terminal."""
    shown = sys.stderr.isatty()
    return track(items, what, total, console=Console(stderr=True), transient=True) if shown else items


def _done(options: argparse.Namespace, start: float, figure: Any) -> int:
    out = console(120)
    if options.figure is not None:
        path = Path(options.figure)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure().savefig(path, dpi=150)
        out.print(f"figure: {path}", highlight=False, soft_wrap=True)
    out.print(f"{time.perf_counter() - start:.0f} s", highlight=False)
    return 0
