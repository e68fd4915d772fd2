"""The command line: mtljax train | evaluate | ablate | report | analyze | methods."""

import argparse
import contextlib
import inspect
import logging
import os
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

_INTERRUPTED = {"SIGINT": 128 + signal.SIGINT, "SIGTERM": 128 + signal.SIGTERM}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
      arguments: the words after `mtljax`; None takes them from the command line.

    Returns:
      The exit status: 0; 1 when a run failed; 2 on bad input, after one sentence on standard error; 128 plus the
      signal's number when a signal ended a run that saved and can be resumed.
    """
    parser = _parser()
    options, overrides = parser.parse_known_args(arguments)
    if overrides and not hasattr(options, "takes_overrides"):
        parser.error(f"unrecognized arguments: {' '.join(overrides)}")
    _quiet_backends()
    from mtljax.training import NonFiniteLossError
    from mtljax.training.processes import StoppedElsewhereError

    try:
        return options.run(options, overrides)
    except (ValueError, FileNotFoundError) as error:
        return _fail(error, 2)
    except (NonFiniteLossError, StoppedElsewhereError, OSError) as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        return _fail("interrupted", _INTERRUPTED["SIGINT"])


def _train(options: argparse.Namespace, overrides: list[str]) -> int:
    from mtljax.training import processes
    from mtljax.training.config import TrainConfig, load_config
    from mtljax.training.launch import distributed_flags, engine_line, several_processes
    from mtljax.training.loop import Progress, train
    from mtljax.training.overrides import override
    from mtljax.training.progress import bar

    config = load_config(options.config)
    config = getattr(config, "base", config)  # of a study
    if not isinstance(config, TrainConfig):
        raise ValueError(f"{options.config} returns a {type(config).__name__}; mtljax train needs a TrainConfig")
    config = override(config, overrides)
    workdir = Path(options.workdir or f"runs/{config.name}-{config.method.name}-seed{config.seed}")
    several = distributed_flags(options)
    again = shlex.join(["mtljax", "train", options.config, "--workdir", str(workdir), "--resume", *several, *overrides])
    how = f"continue with: {again}" if config.checkpoints else "it kept no checkpoints"
    lost = f"the run in {workdir} lost another of its processes and cannot go on alone; {how}"
    with several_processes(options, lost):
        title = f"{config.name} {config.method.name}"
        shown = bar(title) if processes.is_main() else contextlib.nullcontext(Progress())
        with shown as progress, engine_line(config.method.name, progress.line):
            result = train(config, workdir=workdir, resume=options.resume, progress=progress)
    if result.interrupted:
        if processes.is_main():
            print(f"{result.interrupted}: stopped at step {result.steps} of {workdir}; {how}", file=sys.stderr)
        return _INTERRUPTED[result.interrupted]
    if not processes.is_main():
        return 0
    console = Console()
    console.print(_metrics_table({"validation": result.validation, "test": result.test}))
    console.print(
        f"selected at step {result.best_step} of {result.steps} on validation; "
        f"{1000 * result.seconds_per_step:.2f} ms/step; log and checkpoints: {workdir}",
        highlight=False,
        soft_wrap=True,
    )
    return 0


def _evaluate(options: argparse.Namespace, overrides: list[str]) -> int:
    del overrides
    from mtljax.training.evaluation import evaluate_run

    metrics = evaluate_run(options.directory, options.split)
    Console().print(_metrics_table({options.split: metrics}))
    return 0


def _ablate(options: argparse.Namespace, overrides: list[str]) -> int:
    from mtljax.ablation import StudyConfig, StudyInterruptedError, run_study
    from mtljax.ablation.progress import study_bar
    from mtljax.training.compilation import kept_programs
    from mtljax.training.config import load_config
    from mtljax.training.overrides import override

    study = load_config(options.config)
    if not isinstance(study, StudyConfig):
        raise ValueError(f"{options.config} returns a {type(study).__name__}; mtljax ablate needs a StudyConfig")
    study = override(study, overrides)
    directory = Path(options.workdir or f"runs/{study.name}")
    command = shlex.join(["mtljax", "ablate", options.config, *_ablate_flags(options), *overrides])
    start = time.perf_counter()
    with kept_programs():
        if options.dry_run:
            return _dry_run(study, directory, options)
        try:
            with study_bar() as progress:
                records = run_study(
                    study,
                    directory,
                    command=command,
                    progress=progress,
                    strategy=options.strategy,
                    jobs=options.jobs,
                    yes=options.yes,
                    retry_failed=options.retry_failed,
                )
        except (StudyInterruptedError, KeyboardInterrupt) as interrupted:
            signal_name = str(interrupted) or "SIGINT"
            print(f"{signal_name}: finished cells are kept in {directory}; continue with: {command}", file=sys.stderr)
            return _INTERRUPTED[signal_name]
    return _found(directory, command, len(records), time.perf_counter() - start)


def _ablate_flags(options: argparse.Namespace) -> list[str]:
    """The options with which a study is continued."""
    flags = ["--workdir", options.workdir] if options.workdir else []
    if options.strategy:
        flags.append(f"--strategy={options.strategy}")
    if options.jobs is not None:
        flags.append(f"--jobs={options.jobs}")
    return flags + (["--yes"] if options.yes else [])


def _dry_run(study: Any, directory: Path, options: argparse.Namespace) -> int:
    """Says what a study would do, and how long it would take."""
    from mtljax.ablation.estimate import cell_table, estimate
    from mtljax.ablation.strategies.grouping import by_structure
    from mtljax.ablation.study import find_strategy, plan

    strategy, _ = find_strategy(options.strategy)
    found = plan(study, directory, jobs=options.jobs, yes=options.yes, retry_failed=options.retry_failed)
    console = _console(100)
    console.print(cell_table(found))
    count = len(by_structure(found.left))
    console.print(
        f"{len(found.cells)} cells, {len(found.left)} left to run; they share {count} programs, each compiled once",
        highlight=False,
        soft_wrap=True,
    )
    left = estimate(found)
    several = (options.jobs or os.cpu_count() or 1) if strategy in ("processes", "ray") else 1
    text = f"time left: unknown ({left.source})"
    if left.seconds is not None:
        shared = f", divided by {several} jobs" if several > 1 else ""
        text = f"time left: about {_duration(left.seconds / several)} ({left.source}{shared})"
    console.print(text, highlight=False, soft_wrap=True)
    return 0


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _found(directory: Path, command: str, cells: int, seconds: float) -> int:
    """Writes the report of a study and prints what it says."""
    from mtljax.ablation import write_report
    from mtljax.ablation.report import read_cells
    from mtljax.ablation.statistics import summarize, text_table, verdict

    report = write_report(directory)
    records, _ = read_cells(directory)
    summary = summarize(records, command=command)
    console = _console(100)
    console.print(text_table(summary))
    console.print(verdict(summary), highlight=False)
    failed = sum(record["status"] != "finished" for record in records)
    if failed:
        again = f"to run them again: {command} --retry-failed"
        console.print(f"{failed} cells failed and are kept as such; {again}", highlight=False, soft_wrap=True)
    console.print(f"{cells} cells, {seconds:.0f} s in this call", highlight=False)
    console.print(f"report:      {report}\nraw results: {directory / 'results.csv'}", highlight=False, soft_wrap=True)
    return 1 if failed else 0


def _console(width: int) -> Console:
    """Standard output; where it is no terminal, it has this width."""
    return Console() if sys.stdout.isatty() else Console(width=width)


def _report(options: argparse.Namespace, overrides: list[str]) -> int:
    del overrides
    from mtljax.ablation import write_report

    print(write_report(options.directory))
    return 0


def _analyze(options: argparse.Namespace, overrides: list[str]) -> int:
    from mtljax.commands import analyze

    return getattr(analyze, options.what.replace("-", "_"))(options, overrides)


def _methods(options: argparse.Namespace, overrides: list[str]) -> int:
    del overrides
    from mtljax import methods
    from mtljax.methods import catalogue

    if options.name is not None:
        build = methods.describe(options.name).build
        print(f"{catalogue.signature(options.name)}\n\n{inspect.getdoc(build)}")
        return 0
    if options.markdown:
        print(catalogue.markdown(), end="")
        return 0
    table = Table(title="multi-task methods")
    for column in ("name", "family", "needs", "backward passes", "properties", "paper"):
        table.add_column(column)
    for name in methods.names():
        method = methods.describe(name)
        properties = ", ".join(prop for prop in methods.PROPERTIES if prop in method.properties)
        table.add_row(name, method.family, method.needs, method.backward_passes, properties, method.paper)
    console = _console(140)
    console.print(table)
    for prop, meaning in methods.PROPERTIES.items():
        console.print(f"{prop}: {meaning}", highlight=False)
    console.print("One method in full: mtljax methods NAME", highlight=False)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mtljax",
        description="Train multi-task networks in JAX and compare what trains them.",
        epilog="example: mtljax ablate configs/digits.py",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Any, help_text: str, example: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            help=help_text,
            description=help_text[0].upper() + help_text[1:] + ".",
            epilog=f"example: {example}",
            allow_abbrev=False,
        )
        sub.set_defaults(run=run)
        return sub

    train = command(
        "train",
        _train,
        "train one network; --path.to.field=value overrides a field of the config",
        "mtljax train configs/digits.py --method.name=cagrad --optimizer.learning_rate=3e-4",
    )
    train.add_argument("config", metavar="CONFIG", help="Python file with get_config()")
    train.add_argument("--workdir", help="directory of log, config and checkpoints (default: runs/NAME-METHOD-seedN)")
    train.add_argument("--resume", action="store_true", help="continue from the last checkpoint, bit for bit")
    train.add_argument(
        "--distributed",
        nargs="?",
        const="",
        metavar="HOST:PORT",
        help="train with other processes, each started with the same command: alone on a TPU pod or under SLURM, "
        "elsewhere with the address of the first process and the next two options",
    )
    train.add_argument("--num_processes", type=int, metavar="N", help="how many processes train together")
    train.add_argument("--process_id", type=int, metavar="I", help="which of them this is, from 0")
    train.set_defaults(takes_overrides=True)

    evaluate = command(
        "evaluate", _evaluate, "print the metrics of a trained run", "mtljax evaluate runs/digits-ew-seed0 --split test"
    )
    evaluate.add_argument("directory", metavar="DIR", help="workdir of a run")
    evaluate.add_argument("--split", default="test", choices=("train", "validation", "test"), help="default: test")

    ablate = command(
        "ablate",
        _ablate,
        "run a study, a grid of runs with single-task baselines and tuned scalarization; finished cells are kept",
        'mtljax ablate configs/digits.py --base.epochs=4 --seeds="(0, 1, 2, 3, 4)"',
    )
    ablate.add_argument("config", metavar="CONFIG", help="Python file with get_config() returning a StudyConfig")
    ablate.add_argument("--workdir", help="directory of the study (default: runs/NAME)")
    ablate.add_argument(
        "--jobs", type=int, metavar="N", help="cells at once, where the strategy runs several (default: as many as fit)"
    )
    ablate.add_argument(
        "--strategy",
        metavar="S",
        help="how cells run: sequential (default on a CPU), vmap (default on accelerators), processes or ray",
    )
    ablate.add_argument(
        "--dry-run", action="store_true", help="list cells and programs, estimate the time, run nothing"
    )
    ablate.add_argument("--yes", action="store_true", help="run more than 10,000 cells")
    ablate.add_argument("--retry-failed", action="store_true", help="run the cells again that failed")
    ablate.set_defaults(takes_overrides=True)

    report = command("report", _report, "rebuild the report of a study from its records", "mtljax report runs/digits")
    report.add_argument("directory", metavar="DIR", help="directory of a study")

    _add_analyses(command("analyze", _analyze, "see what optimizers and methods do", "mtljax analyze toy"))

    listing = command("methods", _methods, "list the multi-task methods, or explain one", "mtljax methods cagrad")
    listing.add_argument("name", nargs="?", metavar="NAME", help="the method to explain")
    listing.add_argument("--markdown", action="store_true", help="print the tables of docs/methods.md")
    return parser


def _add_analyses(analyze: argparse.ArgumentParser) -> None:
    kinds = analyze.add_subparsers(dest="what", required=True, metavar="WHAT")

    def kind(name: str, help_text: str, example: str) -> argparse.ArgumentParser:
        text, last = help_text[0].upper() + help_text[1:] + ".", f"example: mtljax analyze {name} {example}"
        sub = kinds.add_parser(name, help=help_text, description=text, epilog=last, allow_abbrev=False)
        sub.add_argument("--figure", metavar="FILE", help="also draw it, as PNG, PDF or SVG")
        return sub

    toy = kind(
        "toy",
        "steps to the minimum of CAGrad's function of two parameters; --field=value overrides a field of the config",
        "--iterations=10000 --methods=all --figure toy.png",
    )
    toy.add_argument("config", nargs="?", metavar="CONFIG", help="file with get_config() returning a ToyConfig")
    toy.set_defaults(takes_overrides=True)
    scale = kind(
        "scale-invariance",
        "which optimizers see the scale of the losses, on a small network",
        "--scales 10,0.01 --figure scales.png",
    )
    scale.add_argument("--scales", default="10,0.1", metavar="A,B", help="of the two losses (default: 10,0.1)")
    scale.add_argument("--steps", type=int, metavar="N", help="of each run (default: 800, that is 100 epochs)")
    scale.add_argument("--eps", type=float, default=1e-16, help="Adam's ε (default: 1e-16)")


def _metrics_table(splits: dict[str, dict[str, dict[str, float]]]) -> Table:
    table = Table()
    table.add_column("task")
    found = ((split, m) for split, tasks in splits.items() for values in tasks.values() for m in values)
    columns = list(dict.fromkeys(found))
    for split, metric in columns:
        table.add_column(f"{split} {metric}", justify="right")
    for task in next(iter(splits.values())):
        values = (splits[split][task].get(metric) for split, metric in columns)
        table.add_row(task, *("–" if value is None else f"{value:.4f}" for value in values))
    return table


def _fail(message: object, status: int) -> int:
    from mtljax.training import processes

    which = f"process {processes.index()}: " if processes.joined() else ""
    print(f"mtljax: {which}{message}", file=sys.stderr)
    return status


def _quiet_backends() -> None:
    """Keeps chatter of jax's backends out of the output, and orbax's tracebacks of failed saves, which we report."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    logging.getLogger("absl").setLevel(logging.CRITICAL)


if __name__ == "__main__":
    sys.exit(main())
