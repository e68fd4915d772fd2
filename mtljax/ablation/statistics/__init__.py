"""What the records of a study say: one row per method and optimizer, a verdict in words, tables.

`intervals.py` holds the arithmetic (Δm, t-intervals, paired differences), `summary.py` applies it to records,
`verdict.py` says in words what follows, `tables.py` writes numbers for pandas and for the terminal. Pure functions;
imports numpy, scipy and rich, and of mtljax only the atomic write.
"""

from mtljax.ablation.statistics.intervals import (
    Difference,
    Interval,
    Key,
    delta_m,
    holm,
    paired_difference,
    t_interval,
)
from mtljax.ablation.statistics.summary import SINGLE, Failure, Record, Row, Summary, summarize
from mtljax.ablation.statistics.tables import COLUMNS, shown, text_table, tidy, unit, write_csv
from mtljax.ablation.statistics.verdict import verdict

__all__ = [
    "COLUMNS",
    "SINGLE",
    "Difference",
    "Failure",
    "Interval",
    "Key",
    "Record",
    "Row",
    "Summary",
    "delta_m",
    "holm",
    "paired_difference",
    "shown",
    "summarize",
    "t_interval",
    "text_table",
    "tidy",
    "unit",
    "verdict",
    "write_csv",
]
