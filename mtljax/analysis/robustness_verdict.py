"""What measured runs say: multi-task methods against single-task runs of the same seed, and a verdict.

Imports `robustness_runs` and the statistics of studies.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mtljax.ablation.statistics.intervals import Interval, t_interval
from mtljax.analysis.claims import NOT_DECIDED, NOT_REPRODUCED, REPRODUCED
from mtljax.analysis.robustness import Robustness, robustness_deltas
from mtljax.analysis.robustness_runs import Run, baselines, labels, multi_task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROBUSTNESS_RULE = (
    "reproduced: the 95% interval of the mean δ of one method lies below 0 and that of another above; not reproduced: "
    "those of all methods, two or more, lie on the same side; else not decided. Intervals are over seeds on one test "
    "set and one draw of corruptions, not corrected for the number of methods."
)


class Comparison(NamedTuple):
    """A multi-task method against single-task networks of the same seeds.

    Attributes:
      method: its name, with what else distinguishes it among the runs.
      seeds: the seeds.
      tasks: by task, δ_t and its interval over the seeds.
      mean: of the tasks, likewise.
      before_tuning: the same, with the clean metrics taken before the heads were fine-tuned.
      cells: (C, 5) what each corruption and severity adds, the mean over tasks and seeds.
      corruptions: their C names.
    """

    method: str
    seeds: tuple[int, ...]
    tasks: dict[str, Interval]
    mean: Interval
    before_tuning: Interval
    cells: np.ndarray
    corruptions: tuple[str, ...]


def compare(runs: Sequence[Run], results: Mapping[Path, Robustness]) -> list[Comparison]:
    """Compares each multi-task method with the single-task runs of the same seeds.

    Args:
      runs: from `read_runs`.
      results: from `measure_runs`.

    Returns:
      A comparison for each method, in the order of the runs; intervals are Student's over the seeds, at 95%.
    """
    single, called = baselines(runs), labels(runs)
    groups: dict[str, list[Run]] = {}
    for run in multi_task(runs):
        groups.setdefault(called[run.directory], []).append(run)
    comparisons = []
    for label, members in groups.items():
        deltas, before = [], []
        for run in members:
            others = {task: results[single[task, run.config.seed].directory] for task in run.tasks}
            deltas.append(robustness_deltas(results[run.directory], others, run.tasks))
            before.append(robustness_deltas(results[run.directory], others, run.tasks, before_tuning=True))
        by_task = {task: t_interval([delta[task].mean() for delta in deltas]) for task in members[0].tasks}
        mean, earlier = (
            t_interval([float(np.mean([each.mean() for each in delta.values()])) for delta in several])
            for several in (deltas, before)
        )
        cells = np.mean([list(delta.values()) for delta in deltas], axis=(0, 1))
        seeds = tuple(sorted(run.config.seed for run in members))
        corruptions = tuple(results[members[0].directory].corrupted)
        comparisons.append(Comparison(label, seeds, by_task, mean, earlier, cells, corruptions))
    return comparisons


def sign(interval: Interval) -> str:
    """What the interval of a δ says."""
    if interval.high < 0:
        return "more robust"
    return "less robust" if interval.low > 0 else "undecided"


def averages(runs: Sequence[Run], results: Mapping[Path, Robustness]) -> dict[str, dict[str, tuple[float, float]]]:
    """The primary metric by method and task, clean and over all corruptions, means over seeds; single-task first."""
    called = labels(runs)
    values: dict[str, dict[str, list[tuple[float, float]]]] = {"single-task": {}}
    for run in runs:
        result = results[run.directory]
        for name, task in run.tasks.items():
            metric = task.metrics[0].name
            corrupted = [each[name][metric] for by_severity in result.corrupted.values() for each in by_severity]
            pair = result.clean[name][metric], float(np.mean(corrupted))
            values.setdefault(called.get(run.directory, "single-task"), {}).setdefault(name, []).append(pair)
    return {
        label: {name: tuple(np.mean(pairs, axis=0).tolist()) for name, pairs in sorted(tasks.items())}
        for label, tasks in values.items()
    }


def consistent(comparisons: Sequence[Comparison]) -> str:
    """What the comparisons say of "mixed signs, no consistent benefit", the claim of arXiv:2311.04698.

    Returns:
      "reproduced", "not reproduced" or "not decided", by `ROBUSTNESS_RULE`.
    """
    if len(comparisons) < 2:
        return NOT_DECIDED
    below = [each.mean.high < 0 for each in comparisons]
    above = [each.mean.low > 0 for each in comparisons]
    if all(below) or all(above):
        return NOT_REPRODUCED
    return REPRODUCED if any(below) and any(above) else NOT_DECIDED


def plot_robustness(comparisons: Sequence[Comparison]) -> "Figure":
    """Draws δ by task with intervals, and what each corruption adds.

    Args:
      comparisons: from `compare`.

    Returns:
      A matplotlib figure; `figure.savefig(path)` writes it.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 1.8 + 0.5 * len(comparisons)), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2, 3))
    places = np.arange(len(comparisons))
    tasks = list(comparisons[0].tasks)
    for k, task in enumerate(tasks):
        at = places + 0.5 * ((k + 0.5) / len(tasks) - 0.5)
        intervals = [each.tasks.get(task, Interval(np.nan, np.nan, 0)) for each in comparisons]
        widths = np.nan_to_num([each.half_width for each in intervals])
        left.errorbar([each.mean for each in intervals], at, xerr=widths, fmt="o", capsize=3, label=task)
    left.axvline(0, color="black", linewidth=0.8)
    left.set(xlabel="δ: below 0 the multi-task network is more robust")
    left.legend(fontsize=8)
    cells = np.array([each.cells.mean(1) for each in comparisons])
    largest = np.abs(cells).max() or 1.0
    shown = right.imshow(cells, cmap="RdBu_r", vmin=-largest, vmax=largest, aspect="auto")
    figure.colorbar(shown, ax=right, label="δ by corruption")
    words = [name.replace("_", " ") for name in comparisons[0].corruptions]
    right.set_xticks(np.arange(len(words)), words, rotation=60, ha="right", fontsize=8)
    for panel in (left, right):
        panel.set_yticks(places, [each.method for each in comparisons])
    left.set_ylim(len(comparisons) - 0.5, -0.5)
    return figure
