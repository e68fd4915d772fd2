"""Evaluating a run that is done."""

from pathlib import Path

import jax

from mtljax.training.loop import load_data
from mtljax.training.program import build_evaluation, evaluate
from mtljax.training.workdir import load


def evaluate_run(workdir: str | Path, split: str = "test") -> dict[str, dict[str, float]]:
    """Metrics of the network a run selected.

    Args:
      workdir: directory of a run trained with checkpoints.
      split: "train", "validation" or "test".

    Returns:
      `{task: {metric: value, ..., "loss": value}}`.

    Raises:
      ValueError: if the directory holds no run or no readable checkpoint.
    """
    run = load(workdir)
    examples = jax.device_put(load_data(run.config).splits[split])
    return evaluate(build_evaluation(run.model, run.tasks), run.params, run.model_state, examples)
