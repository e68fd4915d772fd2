"""How figures are drawn and saved: one style, one palette, files for papers and SVG for the page.

Colour and marker stand for the method, line style and hollow markers for the optimizer. The palette keeps a contrast of
3:1 on white and on near-black, and markers repeat what colour says for readers who cannot tell the colours apart. Uses
matplotlib's objects only (no pyplot), and leaves its global settings as they were.
"""

import io
import re
import textwrap
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mtljax.ablation.statistics import SINGLE, Record, Row, Summary
from mtljax.ablation.statistics.tables import csv_text

INK = "#1c1e21"  # becomes currentColor in the SVG, so that text and axes follow the page's theme
WIDTH = 4.8  # inches; narrow, so that text stays legible when the figure shrinks to a phone
COLORS = ("#0072b2", "#d55e00", "#009e73", "#c76a9c", "#9c5a3c", "#8a63d2", "#a67c00")
_MARKERS = "osD^vPXh"
_LINES = ("-", "--", ":", "-.")
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
    "legend.fontsize": "small",
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


class Plot(NamedTuple):
    """A figure, what it shows in one line, and the numbers in it.

    Attributes:
      name: file name without suffix.
      title: a few words.
      caption: one line.
      figure: the figure.
      data: the numbers drawn, one dict per row, all with the same keys.
    """

    name: str
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


Builder = Callable[[Summary, Sequence[Record]], Plot | None]


def draw(builders: Sequence[Builder], summary: Summary, records: Sequence[Record], directory: Path) -> list[Saved]:
    """Draws figures and saves each as NAME.png, NAME.pdf and NAME.csv.

    Args:
      builders: one per figure; None from a builder means that the study has nothing to show in it.
      summary: of the study.
      records: the cells of the study.
      directory: where the files go; made when missing.

    Returns:
      The figures that had something to show, in the order of their builders.
    """
    directory.mkdir(parents=True, exist_ok=True)
    saved = []
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        for name, value in _STYLE.items():
            matplotlib.rcParams[name] = value
        for builder in builders:
            plot = builder(summary, records)
            if plot is None:
                continue
            plot.figure.draw_without_rendering()
            plot.figure.set_layout_engine("none")  # laid out once, for all three formats
            plot.figure.savefig(directory / f"{plot.name}.png", dpi=200, facecolor="white")
            plot.figure.savefig(directory / f"{plot.name}.pdf", facecolor="white", metadata={"CreationDate": None})
            csv = csv_text(plot.data)
            (directory / f"{plot.name}.csv").write_text(csv, encoding="utf-8")
            saved.append(Saved(plot, _svg(plot), csv))
    return saved


class Styles:
    """The colour, marker and line style of every row of a study, the same in all its figures."""

    def __init__(self, summary: Summary) -> None:
        """Assigns them by name."""
        self._methods = sorted({row.method for row in summary.rows if row.kind != SINGLE})
        self._optimizers = sorted({row.optimizer for row in summary.rows})

    def color(self, row: Row) -> str:
        """The method's colour; single-task training has that of the text."""
        return INK if row.kind == SINGLE else COLORS[self._methods.index(row.method) % len(COLORS)]

    def marker(self, row: Row) -> dict[str, Any]:
        """Colour and marker; hollow for an optimizer that was not selected."""
        symbol = "*" if row.kind == SINGLE else _MARKERS[self._methods.index(row.method) % len(_MARKERS)]
        color = self.color(row)
        return {"color": color, "marker": symbol, "markerfacecolor": color if row.selected else "none"}

    def line(self, row: Row) -> dict[str, Any]:
        """Colour and line style."""
        return {"color": self.color(row), "linestyle": _LINES[self._optimizers.index(row.optimizer) % len(_LINES)]}

    def legend(self, figure: Figure, rows: Sequence[Row], *, lines: bool) -> None:
        """Puts below a figure what its methods, and with `lines` its optimizers, look like."""
        methods = {row.method: row for row in rows}
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


def wrapped(label: str) -> str:
    """A long label on several lines, so that it leaves room for the figure."""
    return "\n".join(textwrap.wrap(label, 28)) or label


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
    return f"{head}>{rest}".replace(INK, "currentColor").strip()
