"""Which network of a run is kept: the best of its evaluations on validation data; and when to stop looking for it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtljax.training import checkpoint as ckpt
from mtljax.training.config import TrainConfig
from mtljax.training.logs import RunLog
from mtljax.training.program import Program, score
from mtljax.training.state import TrainState

PyTree = Any


class Best(NamedTuple):
    """The best network so far.

    Attributes:
      score: on validation data, up is better.
      step: the step it was evaluated at.
      params: its parameters.
      model_state: its model state.
    """

    score: float
    step: int
    params: PyTree
    model_state: PyTree


def _validation_scores(log: RunLog, program: Program) -> list[tuple[float, int]]:
    """(score, step) of every evaluation so far."""
    return [(score(program, r["metrics"]), r["step"]) for r in log.records if r["split"] == "validation"]


def best_so_far(log: RunLog, program: Program, state: TrainState, checkpoints: ckpt.Checkpoints | None) -> Best | None:
    """The best network of the evaluations in the log of a resumed run."""
    scores = _validation_scores(log, program)
    if not scores or checkpoints is None:
        return None
    value, step = max(scores, key=lambda pair: (pair[0], -pair[1]))
    network = ckpt.restore_best(checkpoints, state.params, state.model_state, step)
    if network is None and step == int(state.step):
        network = jax.tree.map(jnp.asarray, (state.params, state.model_state))
        ckpt.save_best(checkpoints, step, *network)
    if network is None:
        checkpoints.warn(
            f"the best network (step {step}) is lost; the best from step {int(state.step)} on is kept instead"
        )
        return None
    return Best(value, step, *network)


def stops_early(config: TrainConfig, log: RunLog, program: Program) -> bool:
    """Whether the last `patience` evaluations all failed to beat the best before them."""
    values = [value for value, _ in _validation_scores(log, program)]
    return (
        config.patience is not None and bool(values) and len(values) - 1 - values.index(max(values)) >= config.patience
    )
