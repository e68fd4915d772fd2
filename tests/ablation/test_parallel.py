"""Pareto counts by method and optimizer, and the figure of all settings in parallel coordinates."""

import io
import math

import numpy as np
import pytest
from rich.console import Console

from mtljax.ablation.report.parallel import parallel_coordinates
from mtljax.ablation.report.sections import trade_offs
from mtljax.ablation.statistics import counts_by_method, pareto, pareto_table, summarize

RATE = "optimizer.learning_rate"


@pytest.fixture
def cells(synthetic):
    """Two optimizers, two methods, three learning rates, two seeds."""
    return synthetic.grid({"ew": 0.0, "cagrad": 0.01}, rates=(0.001, 0.01, 0.1), seeds=2, weightings=0)


@pytest.fixture
def summary(cells):
    return summarize(cells)


def drawn(cells):
    return list(parallel_coordinates(summarize(cells), cells))


def test_counts_by_method_add_up_to_those_by_optimizer(summary):
    found = pareto(summary, "optimizer")
    methods = counts_by_method(found)
    assert list(methods) == ["cagrad", "ew"]
    for total in found.counts:
        own = [count for counts in methods.values() for count in counts if count.value == total.value]
        assert [sum(column) for column in list(zip(*own, strict=True))[1:]] == list(total[1:])


def test_the_terminal_and_the_page_show_them(summary):
    console = Console(width=100, file=io.StringIO())
    console.print(pareto_table(summary))
    text = console.file.getvalue()
    for method, counts in counts_by_method(pareto(summary, "optimizer")).items():
        line = next(line for line in text.splitlines() if line.strip().startswith(method))
        assert all(f"{count.full} of {count.runs} ({count.other})" in line for count in counts)
    assert 'aria-label="Pareto-optimal settings by method and optimizer"' in trade_offs(summary)


def test_one_optimizer_or_one_setting_each_has_neither(cells):
    alone = [cell for cell in cells if cell["optimizer"] == "adam"]
    assert pareto_table(summarize(alone)) is None
    assert drawn(alone) == []
    assert drawn([cell for cell in cells if cell["setting"][RATE] == 0.01]) == []


def test_every_setting_is_a_line_and_its_numbers_are_data(cells, summary):
    (plot,) = drawn(cells)
    rows = {(row["method"], row["optimizer"], row["learning rate"]): row for row in plot.data}
    candidates = [c for row in summary.rows if row.kind == "multi" for c in row.candidates]
    assert len(rows) == len(candidates) == 12
    best = {frozenset(p.candidate.cells) for p in pareto(summary, "optimizer").points if p.full}
    for c in candidates:
        row = rows[c.method, c.optimizer, c.setting[RATE]]
        assert row["left accuracy %"] == pytest.approx(100 * c.test["left", "accuracy"].mean, rel=1e-6)
        assert row["Δm %"] == pytest.approx(c.delta_m.mean, rel=1e-6)
        assert row["pareto_optimal"] == (frozenset(c.cells) in best)
    lines = [line for line in plot.figure.axes[0].get_lines() if len(line.get_xdata()) == 4 and line.get_alpha()]
    assert len(lines) == 12
    assert sum(line.get_alpha() == 1.0 for line in lines) == sum(row["pareto_optimal"] for row in plot.data)


def test_up_is_better_on_every_axis(cells):
    """The setting with the best metrics is above the worst everywhere but on the learning rate."""
    (plot,) = drawn(cells)
    lines = [line for line in plot.figure.axes[0].get_lines() if len(line.get_xdata()) == 4 and line.get_alpha()]
    heights = sorted((np.asarray(line.get_ydata()) for line in lines), key=lambda y: y[1])
    assert (heights[-1][1:] > heights[0][1:]).all()
    assert all(math.isfinite(height) for line in heights for height in line)
    assert {round(float(height[0]), 9) for height in heights} == {0.0, 0.5, 1.0}  # evenly on a logarithmic axis


def test_a_setting_that_is_not_finite_has_no_line(cells):
    broken = [
        cell | {"test": {t: {"accuracy": math.nan, "loss": 1.0} for t in cell["tasks"]}}
        if cell["method"] == "ew" and cell["optimizer"] == "adam" and cell["setting"][RATE] == 0.1
        else cell
        for cell in cells
    ]
    assert len(drawn(broken)[0].data) == 11
