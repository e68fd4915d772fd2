#!/usr/bin/env python
"""Shows what mtljax answers to wrong uses and to bad batches, as Markdown: the cases of the tests, seen one by one.

The first table holds every place where one gradient is expected, with what it says to the gradients of several tasks.
The second holds every method with a batch of NaN, infinity, or a number whose square overflows, in a gradient or in a
loss, at the first step or a later one: whether the step's output is finite, and whether the rest of the run equals one
that never saw the batch.

example: python scripts/check_faults.py
"""

import argparse
import sys
from pathlib import Path

from rich.progress import track

from mtljax.markdown import markdown_table

TESTS = Path(__file__).parents[1] / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "methods"), str(TESTS / "gradients")]


def uses_table() -> str:
    """One row a use."""
    import test_wrong_uses as uses

    rows = []
    for name, use in uses.ONE_GRADIENT.items():
        try:
            use(uses.task_gradients())
            rows.append([name, "no error"])
        except Exception as error:
            rows.append([name, f"{type(error).__name__}: {str(error).split(':')[0]}: ..."])
    return markdown_table(["where one gradient is expected", "the answer to those of two tasks"], rows)


def batches_table() -> str:
    """One row a method, one column a bad value."""
    import test_nonfinite as bad

    rows = []
    for name in track(bad.NAMES, "bad batches", transient=True):
        cells = dict.fromkeys(bad.VALUES, "")
        every = list(bad.outcomes(bad.VARIANTS["plain"](name), name))
        for value in bad.VALUES:
            chosen = [outcome for outcome in every if outcome.case[0] == value]
            wrong = [o for o in chosen if o.kept is False or o.same is False or not o.finite]
            skipped = sum(outcome.bad for outcome in chosen)
            cells[value] = f"{skipped} of {len(chosen)} not finite" + (f", {len(wrong)} left a trace" if wrong else "")
        rows.append([name, *cells.values()])
    return markdown_table(["method", *bad.VALUES], rows)


def main() -> int:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    print(uses_table())
    print()
    print(batches_table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
