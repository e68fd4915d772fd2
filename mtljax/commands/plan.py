"""`mtljax plan`."""

import argparse
import dataclasses
import json
from pathlib import Path

import jax
from rich.console import Console

from mtljax.ablation import StudyConfig
from mtljax.commands.output import console
from mtljax.gradients import MODES
from mtljax.planning import runs, table
from mtljax.planning.targets import parse
from mtljax.training.config import TrainConfig, load_config
from mtljax.training.overrides import override


def plan(options: argparse.Namespace, overrides: list[str]) -> int:
    """Prints what a step of a run costs on a machine that is not here."""
    target = parse(options.target)
    modes = tuple(options.modes.split(","))
    for mode in modes:
        if mode not in (*MODES, "all"):
            raise ValueError(f"--modes={options.modes}: {mode!r} is unknown, use {', '.join(MODES)} or all")
    sizes = _numbers(options.blocks)
    jax.config.update("jax_platforms", "cpu")  # a plug-in that is installed is for the process that compiles
    config = load_config(options.config)
    if not isinstance(config, TrainConfig | StudyConfig):
        raise ValueError(f"{options.config} returns a {type(config).__name__}; mtljax plan needs a run or a study")
    config = override(config, overrides)
    run = config.base if isinstance(config, StudyConfig) else config
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
                blocks = runs.plan_blocks(dataclasses.replace(config, base=run), target, sizes, say)
        except ModuleNotFoundError as error:
            raise ValueError(str(error)) from error
    table.show(planned, out)
    if blocks is not None:
        out.print(table.blocks_table(blocks))
        out.print(f"the study has {blocks.cells} cells; each is taken to cost what its base does", highlight=False)
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
    return found
