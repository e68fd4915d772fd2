"""The figures of gradient conflict in a report: there where a probe was, with their numbers, and nowhere else."""

import math

import pandas as pd
import pytest

from mtljax.ablation.report import write_report
from mtljax.ablation.report.conflicts import by_epoch, conflicts
from mtljax.ablation.report.figures import BUILDERS
from mtljax.ablation.statistics import summarize

LAYERS = ("shared/Conv_0", "shared/Dense_0")
NAMES = ["conflicts-ew-adam_0.001", "conflict-layers-ew-adam_0.001", "conflict-tasks-ew-adam_0.001"]


def numbers(mean, pairs=8):
    quantiles = [mean - 0.1 + 0.01 * i for i in range(21)]
    return {"mean": mean, "std": 0.06, "low": mean - 0.1, "high": mean + 0.1, "pairs": pairs, "quantiles": quantiles}


def seen(seed, epoch, tasks):
    """More alike with every epoch; a pair of tasks is missing."""
    kinds = {
        kind: {m: numbers(at + 0.05 * epoch + 0.01 * seed) for m in ("cosine", "magnitude", "sign_conflict")}
        for kind, at in (("between_tasks", 0.2), ("between_samples", 0.4))
    }
    cosines = [[1.0 if a == b else None if {a, b} == {"b", "c"} else 0.1 * (seed + 1) for b in tasks] for a in tasks]
    layers = {"layers": dict.fromkeys(LAYERS, kinds)}
    return {"looks": 2} | kinds | layers | {"tasks": list(tasks), "task_cosines": cosines}


@pytest.fixture
def probed(synthetic):
    """A small study whose method ew was probed."""
    cells = synthetic.study({"ew": 0.0, "cagrad": 0.01}, tasks=("a", "b", "c"))
    for cell in cells:
        if cell["method"] == "ew":
            for epoch in (1, 2, 3):
                entry = {"step": 31 * epoch, "epoch": float(epoch), "split": "probe", "seconds": 1.0}
                cell["history"].append(entry | {"probe": seen(cell["seed"], epoch, cell["tasks"])})
    return cells


def test_three_figures_hold_the_numbers_of_every_seed(probed):
    plots = {plot.name: plot for plot in conflicts(summarize(probed), probed)}
    assert list(plots) == NAMES
    frame = pd.DataFrame(plots[NAMES[0]].data)
    assert len(frame) == 3 * 3 * 2 * 3  # seeds, epochs, kinds, measures
    chosen = frame.query("epoch == 2 and kind == 'between_samples' and measure == 'magnitude'")
    assert sorted(chosen["mean"]) == pytest.approx([0.5, 0.51, 0.52])
    assert [axes.get_ylabel() for axes in plots[NAMES[0]].figure.axes] == ["magnitude similarity", "cosine"]
    assert len(plots[NAMES[0]].figure.axes[0].collections) == 2 * 3  # half a violin for each kind and epoch
    layers = pd.DataFrame(plots[NAMES[1]].data)
    assert list(layers["layer"].unique()) == list(LAYERS)
    labels = [label.get_text() for label in plots[NAMES[1]].figure.axes[0].get_yticklabels()]
    assert labels == ["Conv_0", "Dense_0"]
    pairs = pd.DataFrame(plots[NAMES[2]].data).set_index(["task", "other"])["cosine"]
    assert pairs["a", "b"] == pytest.approx(0.2)
    assert math.isnan(pairs["b", "c"])
    assert set(plots[NAMES[2]].data[0]) >= {"method", "optimizer", "epoch"}


def test_the_report_shows_them_with_their_data(probed, synthetic, tmp_path, parse):
    directory = synthetic.write(tmp_path / "study", probed)
    assert conflicts in BUILDERS
    page = parse(write_report(directory, builders=[conflicts]).read_text())
    names = [name for name, _ in page.downloads]
    for name in NAMES:
        assert f"{name}.csv" in names
        assert (directory / "figures" / f"{name}.png").is_file()
    assert "Gradient conflict: ew, adam 0.001" in page.words


def test_runs_without_a_probe_have_no_figure(synthetic):
    cells = synthetic.small()
    assert list(conflicts(summarize(cells), cells)) == []


def test_only_epochs_that_every_seed_reached_are_put_together(probed):
    histories = [cell["history"] for cell in probed if cell["method"] == "ew"]
    histories[0] = [entry for entry in histories[0] if entry["epoch"] < 3]
    epochs = by_epoch(histories)
    assert list(epochs) == [1, 2]
    assert len(epochs[1]) == 3
    assert by_epoch([[], histories[1]]) == {}
