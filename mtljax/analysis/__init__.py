"""What training did to the losses, beyond the metrics: pure functions of losses and parameters, or of predictions.

`sharpness` (how far a task's loss can rise nearby), `conflicts` (cosines between task gradients), `calibration` (how
far probabilities can be trusted) and `landscape` (losses along random directions, and their picture). They take the
`losses_fn` and `params` of `mtl.task_gradients` and know nothing of configs or runs. Imports gradients alone.
"""

from mtljax.analysis.calibration import brier_score, expected_calibration_error
from mtljax.analysis.conflicts import conflict_share, cosines
from mtljax.analysis.landscape import Surface, plot_surface, random_direction, surface
from mtljax.analysis.sharpness import gradient_norms, worst_case_rise

__all__ = [
    "Surface",
    "brier_score",
    "conflict_share",
    "cosines",
    "expected_calibration_error",
    "gradient_norms",
    "plot_surface",
    "random_direction",
    "surface",
    "worst_case_rise",
]
