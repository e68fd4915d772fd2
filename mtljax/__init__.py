"""mtljax: multi-task learning methods as optax transformations, and honest ablations of them, in JAX.

`import mtljax` loads gradients and methods alone, which need jax, optax and numpy. The laboratory (`analysis`, `data`,
`models`, `tasks`, `training`, `ablation`, `load`) is imported at its first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

from mtljax import gradients, methods
from mtljax.gradients import (
    GradientFunction,
    Gramian,
    IndependentBatches,
    TaskGradients,
    accumulate,
    explain,
    split,
    task_gradients,
    value_and_grad,
)
from mtljax.methods import per_task, task_weights
from mtljax.methods.index import *  # noqa: F403

if TYPE_CHECKING:
    from mtljax import ablation, analysis, data, models, tasks, training
    from mtljax.training import load

__version__ = "0.1.0"

_LABORATORY = ("ablation", "analysis", "data", "models", "tasks", "training")

__all__ = [
    "GradientFunction",
    "Gramian",
    "IndependentBatches",
    "TaskGradients",
    "ablation",
    "accumulate",
    "analysis",
    "data",
    "explain",
    "gradients",
    "load",
    "methods",
    "models",
    "per_task",
    "split",
    "task_gradients",
    "task_weights",
    "tasks",
    "training",
    "value_and_grad",
    *methods.names(),
]


def __getattr__(name: str) -> Any:
    if name in _LABORATORY:
        return importlib.import_module(f"mtljax.{name}")
    if name == "load":
        return importlib.import_module("mtljax.training").load
    raise AttributeError(f"module 'mtljax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
