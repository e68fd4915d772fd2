"""Cells in the order in which the fewest programs are compiled."""

from collections.abc import Callable, Hashable, Sequence

from mtljax.ablation.cell import Cell
from mtljax.training.program import structure


def by_structure(
    cells: Sequence[Cell], key: Callable[[Cell], Hashable] = lambda cell: structure(cell.config)
) -> dict[Hashable, list[Cell]]:
    """Groups cells that share a program.

    Args:
      cells: in any order.
      key: what the cells of a group have in common.

    Returns:
      The groups by key, in the order of their first cells; within a group the order is kept.
    """
    groups: dict[Hashable, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(key(cell), []).append(cell)
    return groups
