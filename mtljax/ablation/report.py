"""The report of a study: one HTML file that needs nothing else, the figures as files, and the table for pandas.

`report_template.html` holds the page, its style and its few lines of script; here every text is escaped and put in.
"""

import base64
import json
import math
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from mtljax.ablation.statistics import Record, Row, Summary, shown, summarize, tidy, unit, verdict, write_csv
from mtljax.ablation.statistics.tables import csv_text, milliseconds, seeds_shown
from mtljax.training.logs import write_atomically

if TYPE_CHECKING:
    from mtljax.ablation.drawing import Builder, Saved

RESULTS = "results.csv"
REPORT = "report.html"
_NEEDED = ("cell", "kind", "method", "optimizer", "seed", "tasks", "status", "metric_directions")
_MOST_EMBEDDED = 4_000_000  # bytes of a table put into the page itself


def write_report(
    directory: str | Path,
    *,
    builders: "Sequence[Builder] | None" = None,
    warn: Callable[[str], None] | None = None,
) -> Path:
    """Writes report.html, results.csv and figures/ from the cells of a study.

    Args:
      directory: of the study, with cells/ and study.json.
      builders: of the figures; None takes `mtljax.ablation.figures.BUILDERS`.
      warn: where sentences about unreadable files go; None raises Python warnings. The report has them too.

    Returns:
      The path of report.html.

    Raises:
      ValueError: if there is no readable cell, or two cells contradict each other.
    """
    from mtljax.ablation import drawing, figures

    directory = Path(directory)
    study, problems = _read_study(directory)
    records, damaged = read_cells(directory)
    problems += damaged
    command = str(study.get("command") or "mtljax ablate CONFIG")
    if not records:
        found = f"none of its {len(damaged)} cells can be read" if damaged else "it has no cells"
        raise ValueError(f"nothing to report in {directory}: {found}; run `{command}` first")
    for problem in problems:
        (warn or _warn)(problem)
    summary = summarize(records, command=command)
    write_csv(records, directory / RESULTS)
    drawn = drawing.draw(figures.BUILDERS if builders is None else builders, summary, records, directory / "figures")
    page = Template(resources.files("mtljax.ablation").joinpath("report_template.html").read_text(encoding="utf-8"))
    text = page.substitute(
        title=escape(str(study.get("name") or directory.resolve().name)),
        question=escape(str(study.get("question") or "")),
        verdict=_paragraphs(verdict(summary).split("\n")),
        warnings=_section("Warnings", _paragraphs(problems)) if problems else "",
        table=_results(summary),
        marked="Marked rows: the optimizer chosen on validation for that method. " if _has_choice(summary) else "",
        results_link=_link(RESULTS, csv_text(tidy(records)), "All results as CSV"),
        figures=_section("Figures", _figures(drawn), "figures") if drawn else "",
        failures=_section("Failed runs", _failures(summary)) if summary.failures else "",
        setting=_definitions(study.get("setting") or {}),
        metrics=len(summary.directions),
        baseline=escape(_baseline(summary)),
        environment=_definitions(_environment(records)),
        command=_section("Run it again", f"<pre><code>{escape(command)}</code></pre>") if study.get("command") else "",
    )
    # ASCII reads the same in every encoding; the page's own non-ASCII text is in the body, where references work.
    write_atomically(directory / REPORT, text.encode("ascii", "xmlcharrefreplace").decode())
    return directory / REPORT


def read_cells(directory: str | Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Reads the cells of a study; those that cannot be read are skipped.

    Args:
      directory: of the study.

    Returns:
      The records in the order of their file names, and one sentence for each file skipped.
    """
    records, problems = [], []
    for path in sorted((Path(directory) / "cells").glob("*.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            problems.append(f"Skipped the damaged cell {path.name}: {error}.")
            continue
        missing = [key for key in _NEEDED if not isinstance(record, dict) or key not in record]
        if missing:
            problems.append(f"Skipped {path.name}, which is no cell of a study: it lacks {', '.join(missing)}.")
            continue
        records.append(record)
    return records, problems


def _read_study(directory: Path) -> tuple[dict[str, Any], list[str]]:
    path = directory / "study.json"
    try:
        study = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(study, dict):
            raise ValueError("it holds no object")
    except (OSError, ValueError) as error:
        why = "it is missing" if isinstance(error, FileNotFoundError) else str(error)
        return {}, [f"Could not read study.json ({why}), so the question, the setting and the command are not known."]
    return study, []


def _results(summary: Summary) -> str:
    """The table of all rows, every heading a button that sorts."""
    keys = list(summary.directions)
    chosen = _has_choice(summary)
    names = [
        f"{task} {metric} {unit(metric)[1]} {'↑' if up else '↓'}" for (task, metric), up in summary.directions.items()
    ]
    heads = [("method", True), ("optimizer", True)]
    heads += [(name, False) for name in ("Δm % ↓", *names, "validation score ↑", "ms/step", "seeds")]
    head = "".join(
        f'<th scope="col"{_class("text" if text else "")}><button type="button">{escape(name)}</button></th>'
        for name, text in heads
    )
    return (
        f'<table class="sortable">\n<thead><tr>{head}</tr></thead>\n<tbody>\n'
        + "\n".join(_result(row, keys, marked=chosen and row.selected) for row in summary.rows)
        + "\n</tbody>\n</table>"
    )


def _has_choice(summary: Summary) -> bool:
    """Whether some row was not selected; where all are, there is nothing to mark."""
    return not all(row.selected for row in summary.rows)


def _result(row: Row, keys: Sequence[tuple[str, str]], *, marked: bool) -> str:
    cells = [(shown(row.delta_m), row.delta_m.mean)]
    cells += [(shown(row.test[key], key[1]), row.test[key].mean) for key in keys]
    cells.append(("–" if math.isnan(row.validation) else f"{row.validation:.4f}".replace("-", "−"), row.validation))
    cells += [(milliseconds(row), row.seconds_per_step), (seeds_shown(row), float(len(row.seeds)))]
    numbers = "".join(f'<td data-value="{"" if math.isnan(v) else repr(v)}">{escape(text)}</td>' for text, v in cells)
    method, optimizer = escape(row.method), escape(row.optimizer)
    return (
        f"<tr{_class('selected' if marked else '')}>"
        f'<th scope="row" class="text" data-value="{method}">{method}</th>'
        f'<td class="text" data-value="{optimizer}">{optimizer}</td>{numbers}</tr>'
    )


def _figures(drawn: "Sequence[Saved]") -> str:
    items = []
    for plot, svg, csv in drawn:
        link = _link(f"{plot.name}.csv", csv, "Data")
        items.append(
            f"<figure>\n<h3>{escape(plot.title)}</h3>\n{svg}\n"
            f"<figcaption>{escape(plot.caption)} {link}</figcaption>\n</figure>"
        )
    return f'<div class="figures">\n{"".join(items)}\n</div>'


def _failures(summary: Summary) -> str:
    head = "".join(
        f'<th scope="col" class="text"><button type="button">{name}</button></th>' for name in ("cell", "reason")
    )
    rows = "\n".join(
        f'<tr><td class="text" data-value="{escape(f.cell)}">{escape(f.cell)}</td>'
        f'<td class="text wrap" data-value="{escape(f.reason)}">{escape(f.reason)}</td></tr>'
        for f in summary.failures
    )
    table = f'<table class="sortable">\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>'
    return f'<div class="scroll" tabindex="0" role="region" aria-label="Failed runs">\n{table}\n</div>'


def _baseline(summary: Summary) -> str:
    if summary.baseline is None:
        return summary.problem or ""
    return (
        f"B is the mean over seeds of single-task training with {summary.baseline}: one network per task, same encoder "
        "and budget, the optimizer with the best validation score. All rows share this reference. Its own spread is "
        "part of the comparison with single-task training above, not of the intervals in the table."
    )


def _environment(records: Sequence[Record]) -> dict[str, str]:
    """Every distinct value that the cells were made with."""
    found: dict[str, list[str]] = {}
    for record in records:
        environment = dict(record.get("environment") or {})
        versions = environment.pop("versions", None) or {}
        flat = {key.replace("_", " "): value for key, value in environment.items()} | dict(versions)
        for key, value in flat.items():
            values = found.setdefault(key, [])
            text = "unknown" if value is None else str(value)
            if text not in values:
                values.append(text)
    return {key: ", ".join(values) for key, values in found.items()}


def _definitions(items: Mapping[str, Any]) -> str:
    if not items:
        return "<p>Not recorded.</p>"
    rows = (
        f"<dt>{escape(str(key))}</dt><dd>{escape(value if isinstance(value, str) else json.dumps(value))}</dd>"
        for key, value in items.items()
    )
    return "<dl>\n" + "\n".join(rows) + "\n</dl>"


def _paragraphs(sentences: Iterable[str]) -> str:
    """Escaped; an interval such as `+0.50 [0.10, 0.90]` is kept on one line."""
    text = "\n".join(f"<p>{escape(sentence)}</p>" for sentence in sentences)
    return re.sub(r"(\d) \[(\S+), (\S+)\]", r"\1&nbsp;[\2,&nbsp;\3]", text)


def _section(title: str, body: str, name: str = "") -> str:
    identity = f' id="{name}"' if name else ""
    return f"<section{identity}>\n<h2>{title}</h2>\n{body}\n</section>"


def _link(name: str, csv: str, text: str) -> str:
    """A link that holds the data itself."""
    if len(csv) > _MOST_EMBEDDED:
        return f"{text}: {escape(name)}, beside this page."
    data = base64.b64encode(csv.encode()).decode()
    return f'<a download="{escape(name)}" href="data:text/csv;charset=utf-8;base64,{data}">{text}</a>'


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=3)
