"""mtljax: multi-task learning methods as optax transformations, and honest ablations of them, in JAX."""

from mtljax import data, methods, models, tasks
from mtljax.gradients import Gramian, TaskGradients, task_gradients
from mtljax.methods import cagrad, ew, mgda, pcgrad, per_task, scalarization, task_weights
from mtljax.training import load

__version__ = "0.1.0"

__all__ = [
    "Gramian",
    "TaskGradients",
    "cagrad",
    "data",
    "ew",
    "load",
    "methods",
    "mgda",
    "models",
    "pcgrad",
    "per_task",
    "scalarization",
    "task_gradients",
    "task_weights",
    "tasks",
]
