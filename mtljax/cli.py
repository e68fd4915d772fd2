"""The command line: mtljax train | evaluate | ablate | report | methods."""

import argparse
import contextlib
import inspect
import logging
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
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
    from mtljax.training.loop import Progress, train
    from mtljax.training.overrides import override
    from mtljax.training.progress import bar

    config = load_config(options.config)
    config = getattr(config, "base", config)  # of a study
    if not isinstance(config, TrainConfig):
        raise ValueError(f"{options.config} returns a {type(config).__name__}; mtljax train needs a TrainConfig")
    config = override(config, overrides)
    workdir = Path(options.workdir or f"runs/{config.name}-{config.method.name}-seed{config.seed}")
    several = _distributed_flags(options)
    again = shlex.join(["mtljax", "train", options.config, "--workdir", str(workdir), "--resume", *several, *overrides])
    how = f"continue with: {again}" if config.checkpoints else "it kept no checkpoints"
    lost = f"the run in {workdir} lost another of its processes and cannot go on alone; {how}"
    with _several_processes(options, lost):
        title = f"{config.name} {config.method.name}"
        shown = bar(title) if processes.is_main() else contextlib.nullcontext(Progress())
        with shown as progress, _engine_line(config.method.name, progress.line):
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


def _distributed_flags(options: argparse.Namespace) -> list[str]:
    """The options with which every process of a run is started."""
    if options.distributed is None:
        return []
    flags = ["--distributed" + (f"={options.distributed}" if options.distributed else "")]
    if options.num_processes is not None:
        flags.append(f"--num_processes={options.num_processes}")
    if options.process_id is not None:
        flags.append(f"--process_id={options.process_id}")
    return flags


@contextlib.contextmanager
def _several_processes(options: argparse.Namespace, lost: str) -> Iterator[None]:
    """Joins the other processes, if there are any; when one is lost, this one ends with a sentence."""
    import jax

    from mtljax.training import processes

    if options.distributed is None:
        if options.num_processes is not None or options.process_id is not None:
            raise ValueError("--num_processes and --process_id go with --distributed=HOST:PORT")
        yield
        return
    processes.join(options.distributed or None, options.num_processes, options.process_id)
    sentence = f"mtljax: process {processes.index()}: {lost}"
    processes.say_before_abort(sentence)
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):  # memory, not a neighbour
            raise
        processes.leave(f"{sentence} ({str(error).splitlines()[0]})")


@contextlib.contextmanager
def _engine_line(method: str, line: Callable[[str], None]) -> Iterator[None]:
    """Shows, once, how the step computes the gradients of a method that needs one a task."""
    from mtljax import methods

    said: set[str] = set()

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = record.getMessage()
            if text not in said:
                said.add(text)
                line(text)

    log, handler = logging.getLogger("mtljax"), Lines()
    if methods.describe(method).needs not in ("gramian", "jacobian"):
        yield
        return
    level, propagate = log.level, log.propagate
    log.setLevel(logging.INFO)
    log.propagate = False
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        log.propagate = propagate


def _evaluate(options: argparse.Namespace, overrides: list[str]) -> int:
    del overrides
    from mtljax.training.evaluation import evaluate_run

    metrics = evaluate_run(options.directory, options.split)
    Console().print(_metrics_table({options.split: metrics}))
    return 0


def _ablate(options: argparse.Namespace, overrides: list[str]) -> int:
    from mtljax.ablation import StudyConfig, StudyInterruptedError, run_study, write_report
    from mtljax.ablation.progress import study_bar
    from mtljax.ablation.report import read_cells
    from mtljax.ablation.statistics import summarize, text_table, verdict
    from mtljax.training.config import load_config
    from mtljax.training.overrides import override

    study = load_config(options.config)
    if not isinstance(study, StudyConfig):
        raise ValueError(f"{options.config} returns a {type(study).__name__}; mtljax ablate needs a StudyConfig")
    study = override(study, overrides)
    directory = Path(options.workdir or f"runs/{study.name}")
    where = ["--workdir", str(directory)] if options.workdir else []
    command = shlex.join(["mtljax", "ablate", options.config, *where, *overrides])
    start = time.perf_counter()
    try:
        with study_bar() as progress:
            run_study(study, directory, command=command, progress=progress)
    except StudyInterruptedError as interrupted:
        print(f"{interrupted}: finished runs are kept in {directory}; continue with: {command}", file=sys.stderr)
        return _INTERRUPTED[str(interrupted)]
    report = write_report(directory)
    records, _ = read_cells(directory)
    summary = summarize(records, command=command)
    console = Console() if sys.stdout.isatty() else Console(width=100)
    console.print(text_table(summary))
    console.print(verdict(summary), highlight=False)
    failed = sum(record["status"] != "finished" for record in records)
    if failed:
        again = f"delete their files in {directory / 'cells'} to run them again"
        console.print(f"{failed} runs failed and are kept as such; {again}", highlight=False, soft_wrap=True)
    console.print(f"{len(records)} runs, {time.perf_counter() - start:.0f} s in this call", highlight=False)
    console.print(f"report:      {report}\nraw results: {directory / 'results.csv'}", highlight=False, soft_wrap=True)
    return 1 if failed else 0


def _report(options: argparse.Namespace, overrides: list[str]) -> int:
    del overrides
    from mtljax.ablation import write_report

    print(write_report(options.directory))
    return 0


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
    console = Console() if sys.stdout.isatty() else Console(width=140)
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
        "run a study: methods x optimizers x seeds and single-task baselines; finished runs are kept and skipped",
        'mtljax ablate configs/digits.py --base.epochs=4 --seeds="(0, 1, 2, 3, 4)"',
    )
    ablate.add_argument("config", metavar="CONFIG", help="Python file with get_config() returning a StudyConfig")
    ablate.add_argument("--workdir", help="directory of the study (default: runs/NAME)")
    ablate.set_defaults(takes_overrides=True)

    report = command("report", _report, "rebuild the report of a study from its records", "mtljax report runs/digits")
    report.add_argument("directory", metavar="DIR", help="directory of a study")

    listing = command("methods", _methods, "list the multi-task methods, or explain one", "mtljax methods cagrad")
    listing.add_argument("name", nargs="?", metavar="NAME", help="the method to explain")
    listing.add_argument("--markdown", action="store_true", help="print the tables of docs/methods.md")
    return parser


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
