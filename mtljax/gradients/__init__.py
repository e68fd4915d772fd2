"""One gradient per task, not yet combined: `task_gradients` and the lazy `TaskGradients` it returns.

`evaluate` runs the losses once (`accumulate` in parts). `container` is what methods get: a face on one of the engines
of `backward`, `features` and `held`, which share the interface of `engine`. `gramian` holds the inner products,
`inspection` what the jaxpr of the losses tells, `gradient_function` the door to loops of one's own. Imports nothing
else of the package but `errors`.
"""

from mtljax.gradients.accumulate import accumulate
from mtljax.gradients.arguments import Mask, loss_vector, mask
from mtljax.gradients.choice import MODES, Choice, Mode
from mtljax.gradients.container import TaskGradients
from mtljax.gradients.engine import PyTree, differences
from mtljax.gradients.evaluate import Reduce, explain, task_gradients
from mtljax.gradients.features import SplitLosses, split
from mtljax.gradients.gradient_function import GradientFunction, IndependentBatches, value_and_grad
from mtljax.gradients.gramian import CrossGramian, Gramian, scaled_gramian

__all__ = [
    "MODES",
    "Choice",
    "CrossGramian",
    "GradientFunction",
    "Gramian",
    "IndependentBatches",
    "Mask",
    "Mode",
    "PyTree",
    "Reduce",
    "SplitLosses",
    "TaskGradients",
    "accumulate",
    "differences",
    "explain",
    "loss_vector",
    "mask",
    "scaled_gramian",
    "split",
    "task_gradients",
    "value_and_grad",
]
