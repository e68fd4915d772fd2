"""Conflicts between tasks and between examples during a training run, summed up epoch by epoch."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtljax.analysis.conflicts import SampleConflicts, drawn_conflicts
from mtljax.analysis.similarity import MEASURES, Similarity, summed_up
from mtljax.gradients import PyTree
from mtljax.training.probing import Measurement, Probe

KINDS = ("between_tasks", "between_samples")
_TASKS = 8  # as in arXiv:2311.04698; with more, so many are drawn anew at each look
_MEMORY = 2**30
_MOST_IN_MATRIX = 30  # tasks
_QUANTILES = np.linspace(0, 1, 21)


def default_every(encoder: str, tasks: int = 2) -> int:
    """Steps between looks in `mtljax analyze conflicts`, so that looking takes less than 5% of the training time.

    As measured by scripts/bench_probe.py: 30, and 200 for the quick steps of a perceptron; with more than four of
    `tasks` as many times more as there are more pairs of gradients.
    """
    least = 200 if encoder == "mlp" else 30
    return round(least * max(1, min(tasks, _TASKS) ** 2 / 16))


def measure(losses_fn: Callable[..., Any], params: PyTree, rest: PyTree, batch: PyTree, key: jax.Array) -> Measurement:
    """One look: every pair of tasks on each example, and every pair of examples for each task.

    Args:
      losses_fn: `(params, rest, batch) -> {task: loss}`.
      params: `{"shared": ..., "heads": ...}`.
      rest: what else the losses need.
      batch: all of its examples are compared.
      key: draws the tasks, if there are more than 8.

    Returns:
      "tasks", the indices of the tasks compared, and by "KIND/MEASURE" and "KIND/MEASURE/LAYER" the values of all
      pairs, NaN where a gradient is zero: (examples, pairs of tasks) or (tasks, pairs of examples).
    """
    count = len(jax.tree.leaves(batch)[0])
    conflicts, tasks = drawn_conflicts(
        losses_fn,
        params,
        rest,
        batch,
        key=key,
        samples=count,
        tasks=_TASKS,
        shared=_is_shared,
        argnums=(-1,),
        memory=_MEMORY,
    )
    return _pairs(conflicts) | {"tasks": tasks}


def summary(tasks: Sequence[str], measured: Sequence[Measurement]) -> dict[str, Any]:
    """What the looks of an epoch saw.

    Args:
      tasks: the sorted names of all tasks.
      measured: from `measure`, on the host.

    Returns:
      By kind ("between_tasks", "between_samples") and measure ("cosine", "magnitude", "sign_conflict") the mean, std,
      2.5 and 97.5 percentile ("low", "high"), the number of "pairs" and 21 even "quantiles"; under "layers" the same
      by layer, without quantiles; under "task_cosines" the mean cosine of each pair of tasks, for up to 30 tasks.
      None where there was no pair.
    """
    names = [name for name in measured[0] if name != "tasks"]
    spreads = {name: _spread([each[name] for each in measured]) for name in names}
    result: dict[str, Any] = {kind: {m: spreads[f"{kind}/{m}"] for m in MEASURES} for kind in KINDS}
    layers = dict.fromkeys(parts[2] for name in names if len(parts := name.split("/", 2)) == 3)
    result["layers"] = {
        layer: {kind: {m: _without_quantiles(spreads[f"{kind}/{m}/{layer}"]) for m in MEASURES} for kind in KINDS}
        for layer in layers
    }
    if 2 <= len(tasks) <= _MOST_IN_MATRIX:
        result["tasks"], result["task_cosines"] = list(tasks), _task_cosines(len(tasks), measured)
    return result


sample_probe = Probe(measure, summary)


def _is_shared(path: tuple[Any, ...]) -> bool:
    return path[0].key == "shared"


@jax.jit
def _pairs(conflicts: SampleConflicts) -> dict[str, jax.Array]:
    """The upper triangles, by name."""

    def upper(similarity: Similarity) -> dict[str, jax.Array]:
        i, j = np.triu_indices(similarity.cosine.shape[-1], 1)
        present = similarity.present[..., i, j]
        return {m: jnp.where(present, getattr(similarity, m)[..., i, j], jnp.nan) for m in MEASURES}

    values = {}
    for kind, similarities in zip(KINDS, conflicts, strict=True):
        values |= {f"{kind}/{m}": each for m, each in upper(similarities.whole).items()}
        for layer, similarity in similarities.layers.items():
            values |= {f"{kind}/{m}/{layer}": each for m, each in upper(similarity).items()}
    return values


def _spread(parts: Sequence[np.ndarray]) -> dict[str, Any]:
    """The distribution of some values, six digits of each number."""
    values = np.concatenate([np.ravel(part) for part in parts]).astype(np.float64)
    values = values[~np.isnan(values)]
    spread = summed_up(values)
    quantiles = [_rounded(each) for each in np.quantile(values, _QUANTILES)] if len(values) else None
    numbers = {name: _rounded(number) for name, number in spread._asdict().items() if name != "pairs"}
    return numbers | {"pairs": spread.pairs, "quantiles": quantiles}


def _without_quantiles(spread: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in spread.items() if name != "quantiles"}


def _task_cosines(count: int, measured: Sequence[Measurement]) -> list[list[float | None]]:
    """The mean cosine of each pair of tasks over examples and looks."""
    sums, pairs = np.zeros((count, count)), np.zeros((count, count))
    for each in measured:
        i, j = np.triu_indices(len(each["tasks"]), 1)
        rows, columns = each["tasks"][i], each["tasks"][j]
        values = np.asarray(each["between_tasks/cosine"], np.float64)
        np.add.at(sums, (rows, columns), np.nansum(values, axis=0))
        np.add.at(pairs, (rows, columns), np.sum(~np.isnan(values), axis=0))
    sums, pairs = sums + sums.T, pairs + pairs.T
    means = np.divide(sums, pairs, out=np.full_like(sums, np.nan), where=pairs > 0)
    np.fill_diagonal(means, 1)
    return [[_rounded(value) for value in row] for row in means]


def _rounded(value: float) -> float | None:
    return None if np.isnan(value) else float(f"{value:.6g}")
