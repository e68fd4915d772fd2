"""What a run writes down and shows: records of the log, lines for terminals, the time of a step, non-finite numbers."""

import math
import time
from typing import Any, TypeAlias

import jax
import numpy as np

from mtljax.training.program import Program
from mtljax.training.state import Monitor, TrainState

Metrics: TypeAlias = dict[str, dict[str, float]]


class NonFiniteLossError(RuntimeError):
    """A loss became NaN or infinite; the message says where and what to try."""


class StepTimer:
    """Mean time of a step, with the first (which compiles) and everything between pause and resume left out."""

    def __init__(self) -> None:
        self._seconds, self._steps, self._pending, self._since = 0.0, 0, 0, None

    def count(self, state: TrainState) -> None:
        """Counts a step that was dispatched."""
        if self._since is None:  # the first step, or the first after a pause
            jax.block_until_ready(state.step)
            self._since, self._pending = time.perf_counter(), 0
        else:
            self._pending += 1

    def pause(self, state: TrainState) -> None:
        """Waits for the steps so far and stops the clock."""
        jax.block_until_ready(state.step)
        if self._since is not None:
            now = time.perf_counter()
            self._seconds, self._steps = self._seconds + now - self._since, self._steps + self._pending
            self._since, self._pending = now, 0

    def proceed(self) -> None:
        """Goes on after a pause that left what was compiled as it is: the next step counts."""
        if self._since is not None:
            self._since = time.perf_counter()

    def resume(self) -> None:
        """Starts the clock anew with the next step."""
        self._since = None

    def mean(self) -> float:
        """Seconds a step; NaN when too few were timed."""
        return self._seconds / self._steps if self._steps else math.nan


def train_record(
    program: Program, step: int, monitor: Monitor, weights: np.ndarray | None, seconds: float
) -> dict[str, Any]:
    """The record of the steps since the last one, from a monitor and weights on the host."""
    names = sorted(program.tasks)
    mean = monitor.loss_sum / np.float32(monitor.steps)
    return {
        "step": step,
        "epoch": step / program.steps_per_epoch,
        "split": "train",
        "losses": dict(zip(names, mean.tolist(), strict=True)),
        "weights": None if weights is None else dict(zip(names, weights.tolist(), strict=True)),
        "seconds": round(seconds, 3),
    }


def evaluation_record(program: Program, split: str, step: int, metrics: Metrics, seconds: float) -> dict[str, Any]:
    """The record of an evaluation."""
    return {
        "step": step,
        "epoch": step / program.steps_per_epoch,
        "split": split,
        "metrics": metrics,
        "seconds": round(seconds, 3),
    }


def epoch_line(program: Program, step: int, total: int, metrics: Metrics, timer: StepTimer) -> str:
    """The line a terminal shows for an evaluation, with an estimate of what is left."""
    parts = []
    for name, task in sorted(program.tasks.items()):
        metric = task.metrics[0].name
        parts.append(f"{name} {metric} {metrics[name][metric]:.4f}")
    rate = timer.mean()
    speed = "" if math.isnan(rate) else f" | {1 / rate:.0f} steps/s, {(total - step) * rate:.0f} s left"
    return f"epoch {step / program.steps_per_epoch:g} step {step}/{total} | validation: {', '.join(parts)}{speed}"


_KEPT = "; the last checkpoint is from before this step"


def check_finite(program: Program, monitor: Monitor, *, checkpoints: bool = False) -> None:
    """Raises NonFiniteLossError if a loss has been NaN or infinite, by a monitor on the host."""
    if int(monitor.bad_step) < 0:
        return
    names = sorted(program.tasks)
    bad = [f"{n} = {v}" for n, v in zip(names, monitor.bad_losses.tolist(), strict=True) if not math.isfinite(v)]
    last = ", ".join(f"{n} = {v:.6g}" for n, v in zip(names, monitor.last_finite.tolist(), strict=True))
    raise NonFiniteLossError(
        f"the loss became non-finite at step {int(monitor.bad_step)}: {', '.join(bad)}; last finite losses: {last}. "
        f"Try a lower optimizer.learning_rate, optimizer.clip_norm=1.0 or optimizer.warmup_steps{_KEPT * checkpoints}"
    )


def check_evaluation(metrics: Metrics, step: int, *, checkpoints: bool = False) -> None:
    """A network whose validation metrics are not finite is neither kept nor selected."""
    bad = [f"{t} {m} = {v}" for t, values in metrics.items() for m, v in values.items() if not math.isfinite(v)]
    if bad:
        raise NonFiniteLossError(
            f"the validation metrics became non-finite at step {step}: {', '.join(bad)}. Try a lower "
            f"optimizer.learning_rate, optimizer.clip_norm=1.0, or more validation labels{_KEPT * checkpoints}"
        )
