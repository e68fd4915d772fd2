"""Ablations: grids of training runs, their statistics, and the report.

Imports training and everything it imports; knows nothing of analysis or the command line. `study` runs the cells of a
grid and keeps each as one JSON record; `statistics` turns records into a table and a verdict; `figures` and `report`
show them.
"""

from mtljax.ablation.report import write_report
from mtljax.ablation.study import StudyConfig, StudyInterruptedError, run_study

__all__ = ["StudyConfig", "StudyInterruptedError", "run_study", "write_report"]
