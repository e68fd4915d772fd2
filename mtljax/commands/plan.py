"""`mtljax plan`."""

import argparse
import dataclasses
import json
from pathlib import Path

import jax
from rich.console import Console

from mtljax.ablation import StudyConfig
from mtljax.commands.output import console
from mtljax.planning import runs, table
from mtljax.planning.steps import ways_of
from mtljax.planning.targets import parse
from mtljax.training.config import TrainConfig, load_config
from mtljax.training.overrides import override


def plan(options: argparse.Namespace, overrides: list[str]) -> int:
    """Prints what a step of a run costs on a machine that is not here."""
    target = parse(options.target)
    modes = tuple(options.modes.split(","))
    ways_of(modes)
    sizes = _numbers(options.blocks)
    jax.config.update("jax_platforms", "cpu")  # a plug-in that is installed is for the process that compiles
    config = load_config(options.config)
    if not isinstance(config, TrainConfig | StudyConfig):
        raise ValueError(f"{options.config} returns a {type(config).__name__}; mtljax plan needs a run or a study")
    config = override(config, overrides)
    run = runs.dearest(config) if isinstance(config, StudyConfig) else config
    if options.batch_size is not None:
        run = dataclasses.replace(run, batch_size=options.batch_size)
    if sizes and not isinstance(config, StudyConfig):
        raise ValueError(f"--blocks is for a study; {options.config} is a single run")
    out, errors = console(130), Console(stderr=True)
    with errors.status("") as status:
        say = status.update
        try:
            planned = runs.plan_config(run, target, modes=modes, largest_batch=options.largest_batch, progress=say)
            blocks = None
            if isinstance(config, StudyConfig) and sizes:
                base = dataclasses.replace(config.base, batch_size=run.batch_size)
                blocks = runs.plan_blocks(dataclasses.replace(config, base=base), target, sizes, say)
        except ModuleNotFoundError as error:
            raise ValueError(str(error)) from error
    table.show(planned, out)
    if isinstance(config, StudyConfig):
        for line in table.study_lines(planned, blocks, run.method.name, runs.count_cells(config)):
            out.print(line, highlight=False, soft_wrap=True)
    if blocks is not None:
        out.print(table.blocks_table(blocks))
    if options.json:
        found = table.to_json(planned) | ({"blocks": table.blocks_json(blocks)} if blocks is not None else {})
        Path(options.json).write_text(json.dumps(found, indent=1), encoding="utf-8")
        out.print(f"json: {options.json}", highlight=False)
    return 0


def _numbers(text: str | None) -> list[int]:
    if text is None:
        return []
    try:
        found = [int(word) for word in text.split(",")]
    except ValueError:
        found = [0]
    if min(found) < 1:
        raise ValueError(f"--blocks={text} must be numbers of cells, such as 1,8,32")
    return sorted({1, *found})  # gains are told against a cell alone
