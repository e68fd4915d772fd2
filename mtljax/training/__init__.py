"""Training runs: config, state, step, loop, checkpoints, devices.

Imports gradients, methods, models, tasks and data; knows nothing of ablations, analysis or the command line. The
modules in the order a reader needs them: `config` (what a run is), `loop` (the run, top to bottom), `program` (what is
compiled), `step` and `state`, `optimizers`, `parallel`, `checkpoint`, `logs`, `workdir`.
"""

from mtljax.training.config import DataConfig, MethodConfig, ModelConfig, OptimizerConfig, TrainConfig
from mtljax.training.loop import Progress, Result, train
from mtljax.training.records import NonFiniteLossError
from mtljax.training.workdir import Loaded, load

__all__ = [
    "DataConfig",
    "Loaded",
    "MethodConfig",
    "ModelConfig",
    "NonFiniteLossError",
    "OptimizerConfig",
    "Progress",
    "Result",
    "TrainConfig",
    "load",
    "train",
]
