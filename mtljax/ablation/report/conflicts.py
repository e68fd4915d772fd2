"""The figures of gradient conflicts seen during training: violins, layers, pairs of tasks.

They draw the records of split "probe" that `mtl.analysis.sample_probe` makes. `conflicts` yields them for a report;
`overview` puts those of several groups of runs into one figure, for `mtljax analyze conflicts`.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mtljax.ablation.report.conditions import name
from mtljax.ablation.report.drawing import COLORS, WIDTH, Plot, add_legend, file_name, named, thinned, wrapped
from mtljax.ablation.statistics import SINGLE, Record, Row, Summary

Epochs: TypeAlias = dict[float, list[dict[str, Any]]]  # what each seed's probe saw, by epoch
KINDS: dict[str, tuple[str, str, Literal["low", "high"]]] = {
    "between_tasks": ("between tasks", COLORS[1], "low"),
    "between_samples": ("between examples", COLORS[0], "high"),
}
MEASURES = {"cosine": "cosine", "magnitude": "magnitude similarity", "sign_conflict": "share of opposite signs"}
_RANGES = {"cosine": (-1.02, 1.02), "magnitude": (-0.02, 1.02), "sign_conflict": (-0.02, 1.02)}
_MOST_ROWS = 3
_MOST_EPOCHS = 6
_MOST_NUMBERS = 8  # tasks of a matrix whose cells hold numbers
_LEAST_REACH = 0.3  # of the colours of cosines, so that small ones look small


def conflicts(summary: Summary, records: Sequence[Record]) -> Iterator[Plot]:
    """How alike the gradients of tasks and of examples were over training, three figures a method."""
    by_name = {record["cell"]: record for record in records}
    measured = []
    for row in summary.rows:
        if row.kind != SINGLE and row.selected and row.seeds:
            epochs = by_epoch([by_name[cell].get("history") or () for cell in row.cells])
            measured += [(row, epochs)] if epochs else []
    note = f" The first {_MOST_ROWS} of {len(measured)} methods." if len(measured) > _MOST_ROWS else ""
    for row, epochs in measured[:_MOST_ROWS]:
        yield from _plots(row, epochs, note)


def by_epoch(histories: Sequence[Sequence[Mapping[str, Any]]]) -> Epochs:
    """What the probes of several runs saw, at the epochs that every run has; {} where there is nothing."""
    runs = [
        {entry["epoch"]: entry["probe"] for entry in history if "between_tasks" in (entry.get("probe") or {})}
        for history in histories
    ]
    common = set.intersection(*map(set, runs)) if runs else set()
    return {epoch: [run[epoch] for run in runs] for epoch in sorted(common)}


def mean(seeds: Sequence[Mapping[str, Any]], kind: str, measure: str, layer: str | None = None) -> float:
    """The mean of a measure over seeds; NaN where no seed has a pair."""
    parts = [seed if layer is None else seed["layers"][layer] for seed in seeds]
    values = [value for part in parts if (value := part[kind][measure]["mean"]) is not None]
    return float(np.mean(values)) if values else float("nan")


def overview(groups: Mapping[str, Epochs]) -> Figure:
    """A row for each group of runs: both violins, the layers and the pairs of tasks.

    Args:
      groups: what the probes saw, by the name of the group.

    Returns:
      A figure.
    """
    figure = Figure(figsize=(13, 2.9 * len(groups) + 0.4), layout="constrained")
    panels = figure.subplots(len(groups), 5, squeeze=False, width_ratios=(3, 3, 1.6, 1.6, 2.2))
    for (title, epochs), row in zip(groups.items(), panels, strict=True):
        for axes, measure in zip(row, ("magnitude", "cosine"), strict=False):
            violins(axes, epochs, measure)
            axes.set_title(MEASURES[measure], fontsize=9)
            axes.set_xlabel("epoch")
        row[0].set_ylabel(wrapped(title, 24))
        for axes, kind in zip(row[2:], KINDS, strict=False):
            mesh = layer_map(axes, epochs, kind, "magnitude")
            axes.set_title(f"magnitude\n{KINDS[kind][0]}", fontsize=9)
            if axes is row[3]:
                axes.set_yticks([])
                figure.colorbar(mesh, ax=axes)
        task_matrix(row[4], epochs)
        row[4].set_title("cosine of tasks, last epoch", fontsize=9)
    _legend(figure)
    return figure


def violins(axes: Axes, epochs: Epochs, measure: str) -> None:
    """Half a violin on the left for pairs of tasks, on the right for pairs of examples, one of each an epoch."""
    shown = thinned(list(epochs), _MOST_EPOCHS)
    for x, epoch in enumerate(shown):
        for kind, (_, color, side) in KINDS.items():
            values = _sample(epochs[epoch], kind, measure)
            if values is None:
                continue
            drawn: Any = axes.violinplot([values], positions=[x], widths=0.9, side=side, showextrema=False)
            for body in drawn["bodies"]:
                body.set(facecolor=color, edgecolor=color, alpha=0.55)
            offset = -0.08 if side == "low" else 0.08
            axes.plot(x + offset, mean(epochs[epoch], kind, measure), "o", color=color, markersize=4)
    axes.set_xticks(range(len(shown)), [f"{epoch:g}" for epoch in shown])
    axes.set_ylim(*_RANGES[measure])


def layer_map(axes: Axes, epochs: Epochs, kind: str, measure: str) -> Any:
    """Layers by name from the top down, epochs to the right; colour is the mean."""
    layers, shown = list(epochs[min(epochs)][0]["layers"]), thinned(list(epochs), _MOST_EPOCHS)
    values = np.array([[mean(epochs[epoch], kind, measure, layer) for epoch in shown] for layer in layers])
    low, high, colors = (-1, 1, "RdBu") if measure == "cosine" else (0, 1, "viridis")
    mesh = axes.pcolormesh(np.ma.masked_invalid(values), vmin=low, vmax=high, cmap=colors, edgecolors="face")
    axes.invert_yaxis()
    axes.set_xticks(np.arange(len(shown)) + 0.5, [f"{epoch:g}" for epoch in shown])
    axes.set_yticks(np.arange(len(layers)) + 0.5, [layer.removeprefix("shared/") for layer in layers])
    axes.grid(visible=False)
    axes.set_xlabel("epoch")
    return mesh


def task_matrix(axes: Axes, epochs: Epochs) -> None:
    """The mean cosine of each pair of tasks in the last epoch; the diagonal, always 1, is left out."""
    seeds = epochs[max(epochs)]
    if "task_cosines" not in seeds[0]:
        axes.set_axis_off()
        return
    tasks, values = seeds[0]["tasks"], _task_cosines(seeds)
    np.fill_diagonal(values, np.nan)
    reach = float(np.nanmax(np.abs(values), initial=_LEAST_REACH)) if not np.isnan(values).all() else 1.0
    axes.pcolormesh(np.ma.masked_invalid(values), vmin=-reach, vmax=reach, cmap="RdBu", edgecolors="face")
    axes.invert_yaxis()
    places, labels = np.arange(len(tasks)) + 0.5, [wrapped(task, 14) for task in tasks]
    axes.set_xticks(places, labels, rotation=90 if len(tasks) > 2 else 0)
    axes.set_yticks(places, labels)
    axes.grid(visible=False)
    for (i, j), value in np.ndenumerate(values) if len(tasks) <= _MOST_NUMBERS else ():
        if not np.isnan(value):
            color = "#ffffff" if abs(value) > 0.6 * reach else "#000000"
            text = f"{value:.2f}".replace("-", "\N{MINUS SIGN}")
            axes.text(j + 0.5, i + 0.5, text, ha="center", va="center", color=color, fontsize=8)


def _plots(row: Row, epochs: Epochs, note: str) -> Iterator[Plot]:
    """The three figures of one method."""
    who, own = f"{name(row)}, {row.optimizer}", named(row)
    part = file_name(f"{name(row)}-{row.optimizer}")
    seeds = f"Mean over {len(row.seeds)} seeds."
    figure = Figure(figsize=(WIDTH, 5.2), layout="constrained")
    for axes, measure in zip(figure.subplots(2, sharex=True), ("magnitude", "cosine"), strict=True):
        violins(axes, epochs, measure)
        axes.set_ylabel(MEASURES[measure])
    figure.axes[-1].set_xlabel("epoch")
    _legend(figure)
    caption = (
        "Gradients of single examples over the shared parameters: of the tasks on one example, and of the examples for "
        f"one task. Dots: means. {seeds}{note}"
    )
    yield Plot(f"conflicts-{part}", "training", f"Gradient conflict: {who}", caption, figure, _rows(own, epochs))

    figure = Figure(figsize=(WIDTH, 0.5 * len(epochs[min(epochs)][0]["layers"]) + 2.6), layout="constrained")
    panels = figure.subplots(2, 2, squeeze=False, sharex=True, sharey=True)
    for line, measure in zip(panels, ("magnitude", "cosine"), strict=True):
        meshes = [layer_map(axes, epochs, kind, measure) for axes, kind in zip(line, KINDS, strict=True)]
        figure.colorbar(meshes[-1], ax=list(line), label=MEASURES[measure])
        for axes, (text, *_) in zip(line, KINDS.values(), strict=True):
            axes.set_title(text)
            axes.set_xlabel("")
    panels[0, 0].set_ylim(len(epochs[min(epochs)][0]["layers"]), 0)  # shared axes were turned four times
    figure.supxlabel("epoch", fontsize="medium")
    caption = f"Means by layer. {seeds}{note}"
    layers = [line for layer in epochs[min(epochs)][0]["layers"] for line in _rows(own, epochs, layer)]
    yield Plot(f"conflict-layers-{part}", "training", f"Conflict by layer: {who}", caption, figure, layers)

    last = epochs[max(epochs)]
    if "task_cosines" not in last[0]:
        return
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    task_matrix(figure.add_subplot(), epochs)
    tasks, values = last[0]["tasks"], _task_cosines(last)
    data = [
        own | {"epoch": max(epochs), "task": tasks[i], "other": tasks[j], "cosine": float(f"{value:.6g}")}
        for (i, j), value in np.ndenumerate(values)
    ]
    caption = f"Mean cosine of the tasks' gradients on the same example in epoch {max(epochs):g}. {seeds}{note}"
    yield Plot(f"conflict-tasks-{part}", "training", f"Tasks against each other: {who}", caption, figure, data)


def _rows(own: dict[str, Any], epochs: Epochs, layer: str | None = None) -> list[dict[str, Any]]:
    """The numbers of each seed."""
    rows = []
    for epoch, seeds in epochs.items():
        for index, seed in enumerate(seeds):
            part = seed if layer is None else seed["layers"][layer]
            for kind in KINDS:
                for measure in MEASURES:
                    numbers = {key: value for key, value in part[kind][measure].items() if key != "quantiles"}
                    where = {} if layer is None else {"layer": layer}
                    rows.append(
                        own | {"run": index, "epoch": epoch} | where | {"kind": kind, "measure": measure} | numbers
                    )
    return rows


def _sample(seeds: Sequence[Mapping[str, Any]], kind: str, measure: str) -> np.ndarray | None:
    """Two hundred values distributed as all pairs were: the mean over seeds of the quantiles, interpolated."""
    by_seed = [quantiles for seed in seeds if (quantiles := seed[kind][measure]["quantiles"])]
    if not by_seed:
        return None
    means = np.mean(by_seed, axis=0)
    return np.interp(np.linspace(0, 1, 200), np.linspace(0, 1, len(means)), means)


def _task_cosines(seeds: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """The mean over the seeds that have the pair."""
    values = np.array([seed["task_cosines"] for seed in seeds], float)
    counts = np.sum(~np.isnan(values), axis=0)
    return np.where(counts > 0, np.nansum(values, axis=0) / np.maximum(counts, 1), np.nan)


def _legend(figure: Figure) -> None:
    add_legend(
        figure, [Line2D([], [], color=color, linewidth=6, alpha=0.6, label=text) for text, color, _ in KINDS.values()]
    )
