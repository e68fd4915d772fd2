"""Tables in Markdown, for documents and for commands whose output goes into one."""

from collections.abc import Iterable, Sequence


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table.

    >>> print(markdown_table(["method", "steps"], [["ew", "10"]]))
    | method | steps |
    | --- | --- |
    | ew | 10 |

    Args:
      heads: the names of the columns.
      rows: cells of Markdown, as many a row as there are columns.

    Returns:
      The lines, without a newline at the end.
    """
    return "\n".join(f"| {' | '.join(line)} |" for line in [heads, ["---"] * len(heads), *rows])
