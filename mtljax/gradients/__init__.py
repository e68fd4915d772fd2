"""One gradient per task, not yet combined: `task_gradients` and the lazy `TaskGradients` it returns.

`evaluate` runs the losses once (`accumulate` in parts), `linearized` and `features` transpose them in the ways a mode
asks for, `container` is what methods get, `gramian` the inner products. Imports nothing else of the package.
"""

from mtljax.gradients.accumulate import accumulate
from mtljax.gradients.arguments import loss_vector
from mtljax.gradients.choice import MODES, Choice, Mode
from mtljax.gradients.container import TaskGradients
from mtljax.gradients.evaluate import Reduce, explain, task_gradients
from mtljax.gradients.features import SplitLosses, split
from mtljax.gradients.gramian import CrossGramian, Gramian, scaled_gramian
from mtljax.gradients.linearized import PyTree

__all__ = [
    "MODES",
    "Choice",
    "CrossGramian",
    "Gramian",
    "Mode",
    "PyTree",
    "Reduce",
    "SplitLosses",
    "TaskGradients",
    "accumulate",
    "explain",
    "loss_vector",
    "scaled_gramian",
    "split",
    "task_gradients",
]
