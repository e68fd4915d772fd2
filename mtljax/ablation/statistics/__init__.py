"""What the records of a study say: one row per condition, method and optimizer, a verdict in words, tables.

Data flows one way: `intervals.py` holds the arithmetic (Δm, t-intervals, paired differences, ranks), `candidates.py`
puts the seeds of one setting together, `rows.py` and `summary.py` choose settings and optimizers on validation.
`comparisons.py`, `pareto.py` and `walltime.py` ask questions of a summary, `verdict.py` says in words what follows,
`tables.py` writes for the terminal, `tidy.py` and `files.py` for pandas. Pure functions but for the files; numpy, scipy
and rich, and of mtljax only the atomic write.
"""

from mtljax.ablation.statistics.candidates import SCALARIZATION, SINGLE, Candidate, Failure, Fields, Record
from mtljax.ablation.statistics.comparisons import (
    Comparison,
    EqualBudget,
    against,
    against_scalarization,
    at_equal_budget,
    compare,
    contestants,
    expected_choice,
    settings_tried,
)
from mtljax.ablation.statistics.files import csv_text, read_tables, write_csv, write_tables
from mtljax.ablation.statistics.intervals import (
    Difference,
    Interval,
    Key,
    delta_m,
    holm,
    mean_ranks,
    paired_difference,
    t_interval,
)
from mtljax.ablation.statistics.labels import method_text, optimizer_text, row_name, setting_text
from mtljax.ablation.statistics.pareto import (
    Pareto,
    ParetoCount,
    ParetoPoint,
    counts_by_method,
    pareto,
    pareto_optimal,
    undominated_by_others,
)
from mtljax.ablation.statistics.rows import Row, surroundings
from mtljax.ablation.statistics.summary import Summary, reference, summarize
from mtljax.ablation.statistics.tables import pareto_table, shown, text_table, unit
from mtljax.ablation.statistics.tidy import COLUMNS, CURVES, columns, curves, tidy
from mtljax.ablation.statistics.verdict import verdict
from mtljax.ablation.statistics.walltime import EqualTime, TimedRow, equal_time

__all__ = [
    "COLUMNS",
    "CURVES",
    "SCALARIZATION",
    "SINGLE",
    "Candidate",
    "Comparison",
    "Difference",
    "EqualBudget",
    "EqualTime",
    "Failure",
    "Fields",
    "Interval",
    "Key",
    "Pareto",
    "ParetoCount",
    "ParetoPoint",
    "Record",
    "Row",
    "Summary",
    "TimedRow",
    "against",
    "against_scalarization",
    "at_equal_budget",
    "columns",
    "compare",
    "contestants",
    "counts_by_method",
    "csv_text",
    "curves",
    "delta_m",
    "equal_time",
    "expected_choice",
    "holm",
    "mean_ranks",
    "method_text",
    "optimizer_text",
    "paired_difference",
    "pareto",
    "pareto_optimal",
    "pareto_table",
    "read_tables",
    "reference",
    "row_name",
    "setting_text",
    "settings_tried",
    "shown",
    "summarize",
    "surroundings",
    "t_interval",
    "text_table",
    "tidy",
    "undominated_by_others",
    "unit",
    "verdict",
    "write_csv",
    "write_tables",
]
