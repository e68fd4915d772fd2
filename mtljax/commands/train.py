"""`mtljax train` and `mtljax evaluate`."""

import argparse
import contextlib
import math
import shlex
import sys
from pathlib import Path

from rich.console import Console

from mtljax.analysis import sample_probe
from mtljax.commands.output import INTERRUPTED, metrics_table
from mtljax.training import loop, processes
from mtljax.training.config import TrainConfig, load_config
from mtljax.training.evaluation import evaluate_run
from mtljax.training.launch import distributed_flags, engine_line, several_processes
from mtljax.training.loop import Progress
from mtljax.training.overrides import override
from mtljax.training.progress import bar


def train(options: argparse.Namespace, overrides: list[str]) -> int:
    """Trains one network."""
    config = load_config(options.config)
    config = getattr(config, "base", config)  # of a study
    if not isinstance(config, TrainConfig):
        raise ValueError(f"{options.config} returns a {type(config).__name__}; mtljax train needs a TrainConfig")
    config = override(config, overrides)
    parts = (config.name, config.method.name, *config.tasks, f"seed{config.seed}")
    workdir = Path(options.workdir or f"runs/{'-'.join(parts)}")
    several = distributed_flags(options)
    command = shlex.join(
        ["mtljax", "train", options.config, "--workdir", str(workdir), "--resume", *several, *overrides]
    )
    advice = f"continue with: {command}" if config.checkpoints else "it kept no checkpoints"
    message = f"the run in {workdir} lost another of its processes and cannot go on alone; {advice}"
    with several_processes(options, message):
        title = f"{config.name} {config.method.name}"
        shown = bar(title) if processes.is_main() else contextlib.nullcontext(Progress())
        with shown as progress, engine_line(config.method.name, progress.line):
            result = loop.train(config, workdir=workdir, resume=options.resume, progress=progress, probe=sample_probe)
    if result.interrupted:
        if processes.is_main():
            print(f"{result.interrupted}: stopped at step {result.steps} of {workdir}; {advice}", file=sys.stderr)
        return INTERRUPTED[result.interrupted]
    if not processes.is_main():
        return 0
    console = Console()
    console.print(metrics_table({"validation": result.validation, "test": result.test}))
    speed = f"{1000 * result.seconds_per_step:.2f} ms/step; " if math.isfinite(result.seconds_per_step) else ""
    console.print(
        f"selected at step {result.best_step} of {result.steps} on validation; {speed}log and checkpoints: {workdir}",
        highlight=False,
        soft_wrap=True,
    )
    return 0


def evaluate(options: argparse.Namespace, overrides: list[str]) -> int:
    """Prints the metrics of a run."""
    del overrides
    metrics = evaluate_run(options.directory, options.split)
    Console().print(metrics_table({options.split: metrics}))
    return 0
