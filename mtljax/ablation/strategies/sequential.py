"""One cell after the other."""

from collections.abc import Generator, Sequence

from mtljax.ablation.cell import Cell, Context, Record, run_in
from mtljax.ablation.strategies.grouping import by_structure


def sequential(cells: Sequence[Cell], context: Context) -> Generator[Record, None, None]:
    """Runs cells one after the other, those of one structure together, so that each structure compiles once.

    Args:
      cells: what to run.
      context: what they share.

    Yields:
      The record of each cell.

    Raises:
      StudyInterruptedError: on SIGTERM or Ctrl-C.
    """
    for group in by_structure(cells).values():
        for cell in group:
            yield run_in(cell, context)
