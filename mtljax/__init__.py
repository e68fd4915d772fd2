"""mtljax: multi-task learning methods as optax transformations, and honest ablations of them, in JAX.

`import mtljax` loads gradients and methods alone, which need jax, optax and numpy. The laboratory (`analysis`, `data`,
`models`, `tasks`, `training`, `ablation`, `planning`, `load`, `plan`) is imported at its first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

from mtljax import gradients as gradients
from mtljax import methods as methods
from mtljax.gradients import GradientFunction as GradientFunction
from mtljax.gradients import Gramian as Gramian
from mtljax.gradients import IndependentBatches as IndependentBatches
from mtljax.gradients import TaskGradients as TaskGradients
from mtljax.gradients import accumulate as accumulate
from mtljax.gradients import explain as explain
from mtljax.gradients import split as split
from mtljax.gradients import task_gradients as task_gradients
from mtljax.gradients import value_and_grad as value_and_grad
from mtljax.methods import per_task as per_task
from mtljax.methods import task_weights as task_weights
from mtljax.methods.index import *  # noqa: F403

if TYPE_CHECKING:
    from mtljax import ablation as ablation
    from mtljax import analysis as analysis
    from mtljax import data as data
    from mtljax import models as models
    from mtljax import planning as planning
    from mtljax import tasks as tasks
    from mtljax import training as training
    from mtljax.planning.steps import plan as plan
    from mtljax.training import load as load

__version__ = "0.1.0"

_LABORATORY = ("ablation", "analysis", "data", "models", "planning", "tasks", "training")

_FUNCTIONS = {"load": "mtljax.training", "plan": "mtljax.planning.steps"}


def __getattr__(name: str) -> Any:
    if name in _LABORATORY:
        return importlib.import_module(f"mtljax.{name}")
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(_FUNCTIONS[name]), name)
    raise AttributeError(f"module 'mtljax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LABORATORY, *_FUNCTIONS})
