"""`mtljax analyze`: small experiments on what optimizers and methods do."""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from mtljax.commands.output import console, save_figure


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
        runs.setdefault(setting, {})[rule] = run
    out = console(130)
    out.print(table)
    some = next(iter(runs["all trained"].values()))
    out.print(
        f"Invariant: updates differ by less than {some.tolerance:g} of their length at all of "
        f"{len(some.differences[BACKBONE])} steps. In brackets the relative difference of the first updates. Two runs "
        "of their own part sooner or later, as rounding grows; on the same path, gradients of both are taken at the "
        "parameters of the first.",
        highlight=False,
    )
    title = f"updates with losses scaled by {scales[0]:g} and {scales[1]:g}, against those without"
    return _done(options, start, lambda: plot_scale_invariance(runs, title))


def corruptions(options: argparse.Namespace, overrides: list[str]) -> int:
    """How far each corruption and severity moves the images of a data set, a row for each corruption."""
    import jax
    import numpy as np

    from mtljax import data as data_sets
    from mtljax.analysis.corruptions import SEVERITIES
    from mtljax.analysis.corruptions.sheet import distances, plot_corruptions

    del overrides
    if options.image < 0:
        raise ValueError(f"--image must be at least 0, got {options.image}")
    start, key, count = time.perf_counter(), jax.random.PRNGKey(options.seed), 128
    small = {"num_train": 1, "num_validation": 1, "num_test": max(count, options.image + 1)}
    images = np.asarray(data_sets.load(options.data, **small).splits["test"].inputs)
    if options.image >= len(images):
        raise ValueError(f"--image must be less than {len(images)}, the test images of {options.data}")
    table = Table(title=f"how far corruptions move {options.data}: root mean square change of a pixel, white is 1")
    table.add_column("corruption")
    for severity in SEVERITIES:
        table.add_column(f"severity {severity}", justify="right")
    for name, row in distances(key, images[:count]).items():
        table.add_row(name, *(f"{value:.3f}" for value in row))
    console(100).print(table)
    return _done(options, start, lambda: plot_corruptions(key, images[options.image]))


def robustness(options: argparse.Namespace, overrides: list[str]) -> int:
    """How much more multi-task runs lose to corruptions than single-task runs do, a row for each method."""
    from mtljax.analysis import robustness_runs, robustness_verdict

    del overrides
    start = time.perf_counter()
    fields = ("num_train", "num_test", "epochs", "batch_size", "learning_rate", "seed")
    given = {name: getattr(options, name) for name in fields}
    config = robustness_runs.RobustnessConfig(**{name: value for name, value in given.items() if value is not None})
    runs = robustness_runs.read_runs(options.runs)
    results = robustness_runs.measure_runs(
        runs, config, force=options.force, line=lambda text: print(text, file=sys.stderr)
    )
    comparisons = robustness_verdict.compare(runs, results)
    out = console(130)
    out.print(_metrics(robustness_verdict.averages(runs, results)))
    tasks = list(dict.fromkeys(task for each in comparisons for task in each.tasks))
    table = Table(title="δ against single-task runs of the same seed: below 0 the multi-task runs are more robust")
    for column in ("method", "seeds", *tasks, "mean", "mean, clean metrics before tuning"):
        table.add_column(column)
    for each in comparisons:
        cells = (each.tasks[task].text("+.4f") if task in each.tasks else "" for task in tasks)
        shown = f"{each.mean.text('+.4f')}: {robustness_verdict.sign(each.mean)}"
        table.add_row(each.method, str(len(each.seeds)), *cells, shown, each.before_tuning.text("+.4f"))
    out.print(table)
    out.print(
        f"± is half of the 95% interval over seeds. Heads fine-tuned on {config.num_train} corrupted examples, "
        f"{config.num_test} test examples in 15 corruptions at 5 severities.",
        highlight=False,
    )
    out.print(f"no consistent benefit, mixed signs: {robustness_verdict.consistent(comparisons)}", highlight=False)
    out.print(robustness_verdict.ROBUSTNESS_RULE, highlight=False)
    return _done(options, start, lambda: robustness_verdict.plot_robustness(comparisons))


def _metrics(averages: dict[str, dict[str, tuple[float, float]]]) -> Table:
    table = Table(title="mean over seeds, in clean images → over all corruptions")
    tasks = list(dict.fromkeys(task for each in averages.values() for task in each))
    for column in ("", *tasks):
        table.add_column(column)
    for label, each in averages.items():
        shown = (f"{each[task][0]:.4f} → {each[task][1]:.4f}" if task in each else "" for task in tasks)
        table.add_row(label, *shown)
    return table


def optimizers(options: argparse.Namespace, overrides: list[str]) -> int:
    """Two optimizers of a finished study: Pareto counts, best Δm, and the claims of a paper, as Markdown."""
    from mtljax.ablation.report import read_cells
    from mtljax.ablation.report.parallel import parallel_coordinates
    from mtljax.ablation.statistics import summarize
    from mtljax.analysis.optimizer_tables import markdown
    from mtljax.analysis.optimizers import optimizer_pair

    del overrides
    start = time.perf_counter()
    records, problems = read_cells(options.directory)
    for problem in problems:
        print(problem, file=sys.stderr)
    if not records:
        is_run = (Path(options.directory) / "config.json").is_file()
        what = f"{options.directory} is a run, not a study" if is_run else f"no study in {options.directory}"
        raise ValueError(f"{what}: make one with `mtljax ablate CONFIG`")
    summary = summarize(records)
    print(markdown(summary, optimizer_pair(summary, *(options.pair or ()))))
    plots = list(parallel_coordinates(summary, records)) if options.figure is not None else []
    if options.figure is not None and not plots:
        raise ValueError(f"nothing to draw: {options.directory} has no settings tried with several optimizers")
    return _done(options, start, lambda: plots[0].figure)


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
    if options.figure is not None:
        save_figure(figure, options.figure)
    console(120).print(f"{time.perf_counter() - start:.0f} s", highlight=False)
    return 0
