"""Claims about the figures: right numbers, readable in light and dark, saved for papers, each with its data."""

import csv
import io
import json
import re

import matplotlib
import pandas as pd
import pytest

from mtljax.ablation.drawing import COLORS, Plot
from mtljax.ablation.figures import BUILDERS, delta_m, scatter, validation_curves
from mtljax.ablation.report import read_cells, write_report
from mtljax.ablation.statistics import summarize, tidy

FIGURES = ["delta_m", "scatter", "validation", "weights", "step_time"]


def test_every_figure_links_to_its_numbers(page, reported):
    results, *figures = page.csvs
    records, _ = read_cells(reported)
    assert len(list(csv.DictReader(io.StringIO(results)))) == len(tidy(records))
    assert results == (reported / "results.csv").read_text()
    assert figures == [(reported / "figures" / f"{name}.csv").read_text() for name in FIGURES]
    summary = summarize(records)
    drawn = pd.read_csv(io.StringIO(figures[0])).set_index(["method", "optimizer"])["mean"]
    for row in summary.rows:
        assert drawn[row.method, row.optimizer] == pytest.approx(row.delta_m.mean)


def test_curves_are_means_over_seeds_of_validation_not_test(study_directory):
    for path in (study_directory / "cells").glob("*.json"):  # a test record at a validation step must not replace it
        cell = json.loads(path.read_text())
        if cell["status"] == "finished":
            metrics = {task: {"accuracy": 0.0} for task in cell["tasks"]}
            cell["history"].append({"step": 310, "epoch": 10.0, "split": "test", "metrics": metrics, "seconds": 3.0})
            path.write_text(json.dumps(cell))
    write_report(study_directory, builders=[validation_curves])
    records, _ = read_cells(study_directory)
    frame = pd.read_csv(study_directory / "figures" / "validation.csv")
    for method, kind in (("cagrad", "multi"), ("single-task", "single")):
        last = [
            entry["metrics"]["left"]["accuracy"]
            for record in records
            if (record["method"], record["optimizer"], record["kind"]) == (method, "adam 0.001", kind)
            and "left" in record["tasks"]
            for entry in record["history"]
            if entry["split"] == "validation" and entry["epoch"] == 10
        ]
        found = frame.query("method == @method and optimizer == 'adam 0.001' and task == 'left' and epoch == 10").iloc[
            0
        ]
        assert len(last) == 3
        assert found["mean"] == pytest.approx(sum(last) / 3)
        assert (found["lowest"], found["highest"], found["seeds"]) == (
            pytest.approx(min(last)),
            pytest.approx(max(last)),
            3,
        )


def test_methods_with_fixed_weights_have_no_weight_curve(reported):
    frame = pd.read_csv(reported / "figures" / "weights.csv")
    assert set(frame["method"]) == {"cagrad", "mgda"}


def test_figures_are_saved_for_papers(reported):
    for name in FIGURES:
        assert (reported / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (reported / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF")


def test_figures_follow_the_page_in_light_and_dark(text):
    svgs = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    colors = {color for svg in svgs for color in re.findall(r"#[0-9a-f]{6}\b", svg)}
    assert colors <= set(COLORS)  # all else is currentColor
    assert all("currentColor" in svg and "viewBox" in svg.split(">")[0] for svg in svgs)


def contrast(color, background):
    def luminance(text):
        parts = [int(text[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    light, dark = sorted((luminance(color), luminance(background)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("background", ["#ffffff", "#16181d"])
def test_the_palette_is_readable_on_both_backgrounds(background, text):
    assert min(contrast(color, background) for color in COLORS) >= 3  # WCAG 2.1, graphics
    assert background in text.replace("#fff;", "#ffffff;")


def test_a_diverged_run_does_not_squash_the_figures(parse, synthetic, tmp_path):
    cells = synthetic.study({"ew": 0.0, "cagrad": 0.01, "mgda": -0.01, "pcgrad": 0.005, "diverged": -0.8})
    text = write_report(synthetic.write(tmp_path, cells), builders=[delta_m, scatter]).read_text()
    assert re.search(r"\+89\.\d →", parse(text).words)  # named at the edge of the frame instead
    assert "1 far off lies outside the frame" in parse(text).words


def test_the_caller_may_choose_the_figures(parse, study_directory):
    def builder(summary, records):
        del records
        figure = matplotlib.figure.Figure()
        figure.add_subplot().plot([0, 1])
        return Plot("mine", "My figure", "A caption.", figure, [{"rows": len(summary.rows)}])

    page = parse(write_report(study_directory, builders=[builder, lambda summary, records: None]).read_text())
    assert page.tags.count("svg") == 1
    assert "My figure" in page.words
    assert page.csvs[1] == "rows\n8\n"


def test_drawing_leaves_matplotlib_as_it_was(study_directory):
    before = dict(matplotlib.rcParams)
    write_report(study_directory, builders=BUILDERS[:1])
    assert dict(matplotlib.rcParams) == before
