"""Pieces of the page: text becomes HTML here and nowhere else, every one escaped."""

import base64
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple, TypeAlias

# A text; or a number as it is shown, what it is sorted by, and what appears when it is pointed at.
Cell: TypeAlias = str | tuple[str, float] | tuple[str, float, str]

_SHORT, _LONG = 24, 120  # characters: texts of a line, of some lines

_WIDE = 10  # columns: more are printed smaller


class Line(NamedTuple):
    """A line of a table; `marked` sets it off from the others."""

    cells: Sequence[Cell]
    marked: bool = False


def table(heads: Sequence[str], groups: Mapping[str, Sequence[Line]], label: str, note: str = "") -> str:
    """A table that scrolls inside its frame, every heading a button that sorts the lines of each group.

    Args:
      heads: headings of the columns.
      groups: lines by the heading of their group; "" needs none.
      label: what the table holds, for those who do not see it.
      note: HTML below it.

    Returns:
      HTML.
    """
    lines = [line for group in groups.values() for line in group]
    text = [all(isinstance(line.cells[i], str) for line in lines) for i in range(len(heads))]
    head = "".join(
        f'<th scope="col"{_class("text" if is_text else "")}><button type="button">{escape(name)}</button></th>'
        for name, is_text in zip(heads, text, strict=True)
    )
    wide = " wide" * (len(heads) > _WIDE)
    below = f'<p class="note">{note}</p>' if note else ""
    bodies = []
    for name, group in groups.items():
        title = f'<tr class="group"><th colspan="{len(heads)}" scope="rowgroup">{escape(name)}</th></tr>\n'
        rows = "\n".join(_line(line) for line in group)
        bodies.append(f"<tbody>\n{title if name else ''}{rows}\n</tbody>")
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}">\n'
        f'<table class="sortable{wide}">\n<thead><tr>{head}</tr></thead>\n'
        + "\n".join(bodies)
        + f"\n</table>\n</div>{below}"
    )


def _line(line: Line) -> str:
    first, *rest = line.cells
    start = f'<th scope="row" class="text">{escape(first if isinstance(first, str) else first[0])}</th>'
    return f"<tr{_class('selected' if line.marked else '')}>{start}{''.join(map(_cell, rest))}</tr>"


def _cell(cell: Cell) -> str:
    if isinstance(cell, str):
        size = " wrap long" * (len(cell) > _LONG) or " wrap" * (len(cell) > _SHORT)
        return f'<td class="text{size}">{escape(cell)}</td>'
    shown, value, *title = cell
    sort = f' data-value="{value:.9g}"' if math.isfinite(value) else ""
    hint = f' title="{escape(title[0])}"' if title and title[0] else ""
    return f"<td{sort}{hint}>{escape(shown)}</td>"


def section(name: str, title: str, body: str) -> str:
    """A section with its heading; `name` is the target of links."""
    head = f'<h2 id="{name}-title">{title}</h2>'
    return f'<section id="{name}" aria-labelledby="{name}-title">\n{head}\n{body}\n</section>'


def figure(name: str, title: str, svg: str, caption: str, link: str) -> str:
    """A figure with its caption and the link to its numbers."""
    return (
        f'<figure id="{escape(name)}">\n<h3>{escape(title)}</h3>\n{svg}\n'
        f"<figcaption>{escape(caption)} {link}</figcaption>\n</figure>"
    )


def figures(items: Iterable[str]) -> str:
    """Figures beside each other where there is room."""
    body = "\n".join(items)
    return f'<div class="figures">\n{body}\n</div>' if body else ""


def paragraphs(sentences: Iterable[str]) -> str:
    """One paragraph each; an interval such as `+0.50 [0.10, 0.90]` is kept on one line."""
    text = "\n".join(f"<p>{escape(sentence)}</p>" for sentence in sentences)
    return re.sub(r"(\d) \[(\S+), (\S+)\]", r"\1&nbsp;[\2,&nbsp;\3]", text)


def definitions(items: Mapping[str, Any]) -> str:
    """Names and values."""
    if not items:
        return "<p>Not recorded.</p>"
    rows = (f"<dt>{escape(str(key))}</dt><dd>{escape(_value(value))}</dd>" for key, value in items.items())
    return "<dl>\n" + "\n".join(rows) + "\n</dl>"


def details(summary: str, body: str) -> str:
    """What opens on a click."""
    return f"<details>\n<summary>{escape(summary)}</summary>\n{body}\n</details>"


def code(text: str) -> str:
    """A command."""
    return f"<pre><code>{escape(text)}</code></pre>"


def data_link(name: str, csv: str, text: str) -> str:
    """A link that holds the data itself, so that it works wherever the page is."""
    data = base64.b64encode(csv.encode()).decode()
    return f'<a download="{escape(name)}" href="data:text/csv;charset=utf-8;base64,{data}">{text}</a>'


def file_link(path: str, text: str) -> str:
    """A link to a file beside the page."""
    return f'<a href="{escape(path)}">{text}</a> (a file beside this page)'


def _value(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple) and not any(isinstance(item, dict | list) for item in value):
        return ", ".join(map(str, value))
    return json.dumps(value)


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""
