"""Ablations: grids of training runs, their statistics, and the report.

Imports training and everything it imports; knows nothing of analysis or the command line. `grid` turns a config into
cells, `cell` runs one, `strategies` run many, `store` keeps each as one JSON record and `study` joins them;
`statistics` turns records into a table and a verdict; `report` shows them.
"""

from mtljax.ablation.axes import Axis, product, zipped
from mtljax.ablation.cell import StudyInterruptedError
from mtljax.ablation.grid import Pair, StudyConfig
from mtljax.ablation.report import write_report
from mtljax.ablation.study import run_study

__all__ = ["Axis", "Pair", "StudyConfig", "StudyInterruptedError", "product", "run_study", "write_report", "zipped"]
