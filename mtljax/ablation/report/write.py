"""Writing the report of a study from its records."""

import json
import warnings
from collections.abc import Callable, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from mtljax.ablation.report import page, sections
from mtljax.ablation.statistics import Record, Summary, read_tables, summarize, verdict, write_tables
from mtljax.ablation.store import STUDY, parse_record
from mtljax.training.logs import write_atomically

if TYPE_CHECKING:
    from mtljax.ablation.report.drawing import Builder, Saved

RESULTS = "results.csv"
REPORT = "report.html"
FIGURES = "figures"
_NEEDED = ("cell", "kind", "method", "optimizer", "seed", "tasks", "status", "metric_directions")
_MOST_EMBEDDED = 1_200_000  # characters of tables put into the page itself; what follows is linked as a file


def write_report(
    directory: str | Path,
    *,
    builders: "Sequence[Builder] | None" = None,
    warn: Callable[[str], None] | None = None,
) -> Path:
    """Writes report.html, the tables and figures/ from the cells of a study, or from its tables where cells/ is gone.

    Args:
      directory: of the study, with study.json and cells/, or with results.csv (and curves.csv).
      builders: of the figures; None takes `mtljax.ablation.report.figures.BUILDERS`.
      warn: where sentences about unreadable files go; None raises Python warnings. The report has them too.

    Returns:
      The path of report.html.

    Raises:
      ValueError: if there is no readable cell, two cells contradict each other, or a table is damaged.
    """
    from mtljax.ablation.report import drawing, figures

    directory = Path(directory)
    study, problems = _read_study(directory)
    command = str(study.get("command") or "mtljax ablate CONFIG")
    records, damaged = read_cells(directory)
    problems += damaged
    from_tables = False
    if records:
        write_tables(records, directory)
    elif not damaged and (directory / RESULTS).is_file():
        records, from_tables = read_tables(directory), True
    if not records:
        unreadable = sum(problem.startswith("Skipped") for problem in damaged)
        reason = f"none of its {unreadable} cells can be read" if unreadable else "it has no cells"
        reason += f" ({damaged[-1].rstrip('.')})" if len(damaged) > unreadable else ""
        raise ValueError(f"nothing to report in {directory}: {reason}; run `{command}` first")
    for problem in problems:
        (warn or _warn)(problem)
    summary = summarize(records, command=command)
    drawn = drawing.draw(figures.BUILDERS if builders is None else builders, summary, records, directory / FIGURES)
    files = resources.files("mtljax.ablation.report")
    results = (directory / RESULTS).read_text(encoding="utf-8")
    parts = _parts(study, problems, summary, records, drawn, results, from_tables)
    text = Template(files.joinpath("template.html").read_text(encoding="utf-8")).substitute(
        title=escape(str(study.get("name") or directory.resolve().name)),
        question=escape(str(study.get("question") or "")),
        style=files.joinpath("style.css").read_text(encoding="utf-8"),
        script=files.joinpath("sort.js").read_text(encoding="utf-8"),
        links="\n".join(f'<a href="#{name}">{title}</a>' for name, title, _ in parts),
        sections="\n".join(page.section(*part) for part in parts),
    )
    # ASCII reads the same in every encoding; the page's own non-ASCII text is in the body, where references work.
    write_atomically(directory / REPORT, text.encode("ascii", "xmlcharrefreplace").decode())
    return directory / REPORT


def read_cells(directory: str | Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Reads the cells of a study; those that cannot be read are skipped.

    Args:
      directory: of the study.

    Returns:
      The records in the order of their file names, and one sentence for each file skipped and for the cells left out
      because they are not in the grid of study.json.
    """
    records, problems = [], []
    paths = sorted((Path(directory) / "cells").glob("*.json"))
    grid = _grid(Path(directory))
    kept = paths if grid is None else [path for path in paths if path.stem in grid]
    for path in kept:
        try:
            record = parse_record(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            problems.append(f"Skipped the damaged cell {path.name}: {error}.")
            continue
        missing = [key for key in _NEEDED if not isinstance(record, dict) or key not in record]
        if missing:
            problems.append(f"Skipped {path.name}, which is no cell of a study: it lacks {', '.join(missing)}.")
            continue
        records.append(record)
    if earlier := len(paths) - len(kept):
        cells = f"{earlier} cells of an earlier grid in this directory are"
        problems.append(f"{cells if earlier > 1 else '1 cell of an earlier grid in this directory is'} left out.")
    return records, problems


def _grid(directory: Path) -> set[str] | None:
    """The names of the cells of the study; None where study.json does not list them, as older ones do not."""
    names = _read_study(directory)[0].get("cells")
    return set(map(str, names)) if isinstance(names, list) else None


def _read_study(directory: Path) -> tuple[dict[str, Any], list[str]]:
    path = directory / STUDY
    try:
        study = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(study, dict):
            raise ValueError("it holds no object")
    except (OSError, ValueError) as error:
        why = "it is missing" if isinstance(error, FileNotFoundError) else str(error)
        return {}, [f"Could not read study.json ({why}), so the question, the setting and the command are not known."]
    return study, []


def _parts(
    study: dict[str, Any],
    problems: Sequence[str],
    summary: Summary,
    records: Sequence[Record],
    drawn: "Sequence[Saved]",
    results: str,
    from_tables: bool,
) -> list[tuple[str, str, str]]:
    """The sections of the page that have something to say: name, title and HTML."""
    room = _MOST_EMBEDDED

    def data(path: str, csv: str, text: str) -> str:
        nonlocal room
        if len(csv) > room:
            return page.file_link(path, text)
        room -= len(csv)
        return page.data_link(Path(path).name, csv, text)

    links = {saved.plot.name: data(f"{FIGURES}/{saved.plot.name}.csv", saved.csv, "Data") for saved in drawn}

    def topic(name: str) -> str:
        plots = [saved for saved in drawn if saved.plot.topic == name]
        return page.figures(page.figure(p.name, p.title, svg, p.caption, links[p.name]) for p, svg, _ in plots)

    conclusions = page.paragraphs(verdict(summary).split("\n"))
    counts = f"{len(records)} runs, {sum(record['status'] != 'finished' for record in records)} of them failed"
    rows = sections.results(summary, data(RESULTS, results, "All results as CSV"))
    environment = page.definitions(sections.environment(records))
    if from_tables:
        environment = page.paragraphs([f"Not known: this page was made from {RESULTS}, which does not hold it."])
    parts = [
        ("setting", "Setting", page.definitions(dict(study.get("setting") or {}) | {"runs": counts})),
        ("verdict", "What was found", f'<div class="verdict">{conclusions}</div>'),
        ("warnings", "Warnings", f'<div class="warning">{page.paragraphs(problems)}</div>' if problems else ""),
        ("results", "Results on test", rows + topic("results") + sections.scalarization(summary)),
        ("trade-offs", "Trade-offs between tasks", topic("trade-offs") + sections.trade_offs(summary)),
        ("settings", "Settings tried", topic("settings") + sections.tried(summary)),
        ("training", "Training", topic("training")),
        ("time", "Time", topic("time") + sections.times(summary, records)),
        ("figures", "Figures", topic("figures")),
        ("failures", "Failed runs", sections.failures(summary) if summary.failures else ""),
        ("measured", "How it was measured", page.paragraphs(sections.measured(summary))),
        ("environment", "Environment", environment),
        ("command", "Run it again", page.code(str(study["command"])) if study.get("command") else ""),
    ]
    return [part for part in parts if part[2]]


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=3)
