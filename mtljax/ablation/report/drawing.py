"""How figures are drawn and saved: one style, one palette, files for papers and SVG for the page.

Colour and marker stand for the method, line style and hollow markers for the optimizer. The palette keeps a contrast of
3:1 on white and on near-black, and markers repeat what colour says for readers who cannot tell the colours apart. Uses
matplotlib's objects only (no pyplot), and leaves its global settings as they were.
"""

import io
import re
import textwrap
import warnings
from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mtljax.ablation.report.conditions import by_condition, name
from mtljax.ablation.statistics import SINGLE, Record, Row, Summary, unit
from mtljax.ablation.statistics.candidates import Candidate
from mtljax.ablation.statistics.labels import setting_text
from mtljax.ablation.statistics.tables import csv_text

INK = "#1c1e21"  # becomes currentColor in the SVG, so that text and axes follow the page's theme
WIDTH = 4.4  # inches; narrow, so that text stays legible when the figure shrinks to a phone
MOST_CONDITIONS = 4  # with more, the figures show the first ones
COLORS = ("#0072b2", "#d55e00", "#009e73", "#c76a9c", "#9c5a3c", "#8a63d2", "#a67c00")
_MARKERS = "osD^vPXh"
LINES = ("-", "--", ":", "-.")
_STYLE: Any = {
    "axes.axisbelow": True,
    "axes.edgecolor": INK,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": "medium",
    "font.size": 9.0,
    "grid.alpha": 0.18,
    "grid.color": INK,
    "grid.linewidth": 0.6,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "lines.markersize": 5.0,
    "pdf.fonttype": 42,  # TrueType: some venues refuse Type 3
    "svg.fonttype": "none",
    "text.color": INK,
    "text.parse_math": False,  # names may hold a dollar sign
    "xtick.color": INK,
    "ytick.color": INK,
}


TOPICS = ("results", "trade-offs", "settings", "training", "time", "figures")


class Plot(NamedTuple):
    """A figure, what it shows in one line, and the numbers in it.

    Attributes:
      name: file name without suffix.
      topic: the section of the page it belongs to, one of `TOPICS`.
      title: a few words.
      caption: one line.
      figure: the figure.
      data: the numbers drawn, one dict per row, all with the same keys.
    """

    name: str
    topic: str
    title: str
    caption: str
    figure: Figure
    data: list[dict[str, Any]]


class Saved(NamedTuple):
    """A plot that was saved, ready for a page.

    Attributes:
      plot: the plot.
      svg: an `svg` element for HTML; what is drawn in `INK` has the page's colour.
      csv: the numbers.
    """

    plot: Plot
    svg: str
    csv: str


Builder = Callable[[Summary, Sequence[Record]], Iterable[Plot]]


def draw(builders: Sequence[Builder], summary: Summary, records: Sequence[Record], directory: Path) -> list[Saved]:
    """Draws figures and saves each as NAME.png, NAME.pdf and NAME.csv.

    Where methods are compared under several conditions, each condition has figures of its own.

    Args:
      builders: each yields the figures that it has something to show in.
      summary: of the study.
      records: the cells of the study.
      directory: where the files go; made when missing.

    Returns:
      The figures in the order of their builders.
    """
    directory.mkdir(parents=True, exist_ok=True)
    parts = list(by_condition(summary).items())
    saved: list[Saved] = []
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        for key, value in _STYLE.items():
            matplotlib.rcParams[key] = value
        for builder in builders:
            for condition, part in parts[:MOST_CONDITIONS]:
                for plot in builder(part, records):
                    saved.append(_save(_under(plot, condition, len(parts), saved), directory))
    return saved


def _under(plot: Plot, condition: str, conditions: int, saved: Sequence[Saved]) -> Plot:
    """The plot named after its condition, and unlike all that are saved."""
    if condition:
        plot = plot._replace(name=file_name(f"{plot.name}-{condition}"), title=f"{plot.title}: {condition}")
    if conditions > MOST_CONDITIONS:
        plot = plot._replace(
            caption=f"{plot.caption} The first {MOST_CONDITIONS} of {conditions} conditions are drawn."
        )
    alike = sum(other.plot.name.lower().split("~")[0] == plot.name.lower() for other in saved)
    return plot._replace(name=f"{plot.name}~{alike + 1}") if alike else plot


def _save(plot: Plot, directory: Path) -> Saved:
    figure = plot.figure
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of letters the font lacks, of names too long for the layout
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # laid out once, for all three formats
        figure.savefig(directory / f"{plot.name}.png", dpi=200, facecolor="white")
        figure.savefig(directory / f"{plot.name}.pdf", facecolor="white", metadata={"CreationDate": None})
        svg = _svg(plot)
    csv = csv_text(plot.data)
    (directory / f"{plot.name}.csv").write_text(csv, encoding="utf-8")
    return Saved(plot, svg, csv)


def file_name(text: str) -> str:
    """A text as part of a file name."""
    return re.sub(r"[^A-Za-z0-9._=-]+", "_", text)[:120]


class Styles:
    """The colour, marker and line style of every row of a study, the same in all its figures."""

    def __init__(self, summary: Summary) -> None:
        """Assigns them by name."""
        self._methods = sorted({name(row) for row in summary.rows if row.kind != SINGLE})
        self._optimizers = sorted({row.optimizer for row in summary.rows})

    def color(self, row: Row) -> str:
        """The method's colour; single-task training has that of the text."""
        return INK if row.kind == SINGLE else COLORS[self._methods.index(name(row)) % len(COLORS)]

    def marker(self, row: Row) -> dict[str, Any]:
        """Colour and marker; hollow for an optimizer that was not selected."""
        symbol = "*" if row.kind == SINGLE else _MARKERS[self._methods.index(name(row)) % len(_MARKERS)]
        color = self.color(row)
        style = {"color": color, "marker": symbol, "markerfacecolor": color if row.selected else "none"}
        return style | ({"markersize": 8.0} if row.kind == SINGLE else {})

    def line(self, row: Row) -> dict[str, Any]:
        """Colour and line style."""
        return {"color": self.color(row), "linestyle": LINES[self._optimizers.index(row.optimizer) % len(LINES)]}

    def legend(self, figure: Figure, rows: Sequence[Row], *, lines: bool) -> None:
        """Puts below a figure what its methods, and with `lines` its optimizers, look like."""
        methods = {name(row): row for row in rows}
        entries = []
        for method, row in methods.items():
            entries.append(Line2D([], [], linestyle="-" if lines else "", label=method))
            entries[-1].set(**self.marker(row) | {"markerfacecolor": self.color(row)})
        optimizers = {row.optimizer: row for row in rows}
        if lines and len(optimizers) > 1:
            for optimizer, row in sorted(optimizers.items()):
                entries.append(Line2D([], [], color=INK, linestyle=self.line(row)["linestyle"], label=optimizer))
        add_legend(figure, entries)


def add_legend(figure: Figure, entries: Sequence[Artist]) -> None:
    """Puts a legend below a figure, in as many columns as its labels leave room for."""
    labels = [wrapped(str(entry.get_label())) for entry in entries]
    longest = max(len(line) for label in labels for line in label.split("\n"))
    figure.legend(entries, labels, loc="outside lower center", ncols=3 if longest <= 16 else 2)


def thinned(values: Sequence[float], most: int) -> list[float]:
    """At most so many of the values, evenly, with the first and the last."""
    if len(values) <= most:
        return list(values)
    return [values[i] for i in np.linspace(0, len(values) - 1, most).round().astype(int)]


def wrapped(label: str, width: int = 28) -> str:
    """A long label on several lines, so that it leaves room for the figure."""
    return "\n".join(textwrap.wrap(label, width)) or label


def named(row: Row, candidate: Candidate | None = None) -> dict[str, Any]:
    """The columns that say whose numbers a line of data holds."""
    tried = candidate or row
    texts = {"condition": setting_text(row.condition), "setting": setting_text(tried.setting)}
    return {"method": row.method, "optimizer": row.optimizer} | texts


def rounded(values: dict[str, Any]) -> dict[str, Any]:
    """Floats with seven digits; results.csv has all of them."""
    return {key: float(f"{value:.7g}") if isinstance(value, float) else value for key, value in values.items()}


def axis_label(task: str, summary: Summary) -> str:
    """The primary metric of a task, with its unit and direction."""
    metric = summary.primary[task]
    sign = unit(metric)[1]
    better = "higher" if summary.directions[task, metric] else "lower"
    return wrapped(f"{task} {metric}{', ' + sign if sign else ''} ({better} is better)", 44)


def frame(means: Sequence[float], half_widths: Sequence[float]) -> tuple[float, float]:
    """Limits that hold the bulk of the means with their intervals, so that one far off does not squash the rest."""
    values, widths = np.asarray(means), np.nan_to_num(np.asarray(half_widths))
    known = np.isfinite(values)
    if not known.any():
        return 0.0, 1.0
    values, widths = values[known], widths[known]
    center = float(np.median(values))
    distances = np.abs(values - center)
    near = distances <= max(6 * float(np.quantile(distances, 0.6)), 1e-12)
    kept = values[near]
    span = float(np.ptp(kept)) or abs(center) * 0.01 or 1.0
    reach = np.minimum(widths[near], 1.5 * span)  # with two seeds an interval may be a hundred times wider
    return float(np.min(kept - reach)) - 0.06 * span, float(np.max(kept + reach)) + 0.06 * span


def _svg(plot: Plot) -> str:
    """An `svg` element without size, links or ids that could meet those of another figure of the page."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": plot.name}):
        plot.figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    head, rest = text.split(">", 1)
    view_box = re.search(r'viewBox="[^"]*"', head)
    label = escape(f"{plot.title}. {plot.caption}")
    head = f'<svg role="img" aria-label="{label}" {view_box[0] if view_box else ""}'
    rest = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{plot.name}-", rest)
    rest = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", rest)
    rest = re.sub(r"<!--.*?-->\s*", "", rest, flags=re.DOTALL)
    rest = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\.\d\d)\d+", r"\1", tag[0]), rest)  # finer is not seen
    return f"{head}>{rest}".replace(INK, "currentColor").strip()
