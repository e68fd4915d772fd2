"""Claims about the figures: right numbers, readable in light and dark, saved for papers, each with its data."""

import csv
import io
import math
import re
from collections import defaultdict

import matplotlib
import pandas as pd
import pytest

from mtljax.ablation.report import read_cells, write_report
from mtljax.ablation.report.curves import task_weights, training_curves
from mtljax.ablation.report.drawing import COLORS, Plot
from mtljax.ablation.report.figures import BUILDERS, delta_m, scatter
from mtljax.ablation.report.sweeps import sweeps
from mtljax.ablation.statistics import summarize, tidy

FIGURES = ["delta_m", "scatter-left-right", "curves-left", "curves-right", "weights", "step_time", "equal_time"]
RATE = "optimizer.learning_rate"


def plots(builder, cells):
    """What a builder draws of some cells, by name."""
    return {plot.name: plot for plot in builder(summarize(cells), cells)}


def test_every_figure_links_to_its_numbers(page, reported):
    files = {name: text for name, text in page.downloads if name != "results.csv"}
    records, _ = read_cells(reported)
    results = dict(page.downloads)["results.csv"]
    assert len(list(csv.DictReader(io.StringIO(results)))) == len(tidy(records))
    assert results == (reported / "results.csv").read_text()
    assert files == {f"{name}.csv": (reported / "figures" / f"{name}.csv").read_text() for name in FIGURES}
    summary = summarize(records)
    drawn = pd.read_csv(io.StringIO(files["delta_m.csv"])).set_index(["method", "optimizer"])["mean"]
    for row in summary.rows:
        assert drawn[row.method, row.optimizer] == pytest.approx(row.delta_m.mean)


def test_curves_are_means_over_seeds_of_validation_not_test(synthetic):
    cells = synthetic.small()
    for cell in cells:  # a test record at a validation step must not replace it
        if cell["status"] == "finished":
            metrics = {task: {"accuracy": 0.0} for task in cell["tasks"]}
            cell["history"].append({"step": 310, "epoch": 10.0, "split": "test", "metrics": metrics, "seconds": 3.0})
    frame = pd.DataFrame(plots(training_curves, cells)["curves-left"].data)
    for method, kind in (("cagrad", "multi"), ("single-task", "single")):
        own = [
            cell
            for cell in cells
            if (cell["method"], cell["optimizer"], cell["kind"]) == (method, "adam 0.001", kind)
            and "left" in cell["tasks"]
        ]
        for quantity, split, path in (
            ("validation accuracy", "validation", ("metrics", "left", "accuracy")),
            ("training loss", "train", ("losses", "left")),
        ):
            last = [reach(e, path) for c in own for e in c["history"] if e["split"] == split and e["epoch"] == 10]
            chosen = frame.query("method == @method and optimizer == 'adam 0.001' and epoch == 10")
            found = chosen[chosen["quantity"] == quantity].iloc[0]
            assert len(last) == 3
            assert found["mean"] == pytest.approx(sum(last) / 3)
            assert (found["lowest"], found["highest"]) == (pytest.approx(min(last)), pytest.approx(max(last)))
            assert found["seeds"] == 3


def reach(value, path):
    for key in path:
        value = value[key]
    return value


def test_curves_show_the_chosen_setting_only(synthetic):
    cells = synthetic.grid(effects={"ew": 0.0}, rates=(0.001, 0.01), weightings=0, seeds=2)
    frame = pd.DataFrame(plots(training_curves, cells)["curves-left"].data)
    assert set(frame["setting"]) == {"learning rate 0.001"}
    assert set(frame["seeds"]) == {2}


def test_methods_with_fixed_weights_or_none_have_no_weight_curve(synthetic):
    cells = synthetic.grid(rates=(0.001,), weightings=2, seeds=2, optimizers={"adam": 0.0})
    plot = plots(task_weights, cells)["weights"]
    assert {line["method"] for line in plot.data} == {"cagrad", "mgda"}
    for method in ("ew", "pcgrad", "scalarization (tuned)"):
        assert method in plot.caption
    assert plots(task_weights, [cell for cell in cells if cell["method"] not in ("cagrad", "mgda")]) == {}


def test_a_sweep_holds_every_learning_rate_of_every_method_and_optimizer(synthetic):
    cells = synthetic.grid(effects={"ew": 0.0, "cagrad": 0.02}, weightings=2, seeds=2)
    cells = [synthetic.failed(c) if (c["method"], c["setting"].get(RATE)) == ("ew", 0.01) else c for c in cells]
    plot = plots(sweeps, cells)["sweep-optimizer.learning_rate"]
    assert [axes.get_title() for axes in plot.figure.axes] == ["adam", "sgd"]
    assert plot.figure.axes[0].get_xscale() == "log"
    assert [label.get_text() for label in plot.figure.axes[-1].get_xticklabels()] == [
        "0.0003",
        "0.001",
        "0.003",
        "0.01",
    ]
    means = defaultdict(dict)
    for line in plot.data:
        means[line["method"], line["optimizer"]].setdefault(line[RATE], line["mean"])
    assert {tuple(found) for found in means.values()} == {(0.0003, 0.001, 0.003, 0.01)}
    summary = summarize(cells)
    for row in summary.rows:
        for candidate in row.candidates if row.method == "cagrad" else ():
            rate = candidate.setting[RATE]
            assert means["cagrad", row.optimizer][rate] == pytest.approx(candidate.delta_m.mean)
    assert math.isnan(means["ew", "adam"][0.01])
    assert "no run finished" in plot.caption
    assert {line["setting"] for line in plot.data if line["chosen"] and line["method"] == "cagrad"} == {
        "learning rate 0.001"
    }


def test_a_scatter_marks_the_pareto_optimal_settings(synthetic):
    effects = {"ew": 0.0, "mgda": -0.05}
    cells = synthetic.grid(effects=effects, rates=(0.001,), weightings=5, seeds=2, optimizers={"adam": 0.0})
    plot = plots(scatter, cells)["scatter-left-right"]
    frame = pd.DataFrame(plot.data).query("method != 'single-task'")
    frame = frame.pivot(index=["method", "setting"], columns="task", values=["mean", "pareto_optimal"])
    points = frame["mean"].to_numpy(float)
    assert len(points) == 7
    dominated = [any((other >= point).all() and (other > point).any() for other in points) for point in points]
    assert list(~frame["pareto_optimal"]["left"].astype(bool)) == dominated
    assert 0 < sum(dominated) < 6


def test_many_tasks_have_some_pairs_drawn_and_say_so(synthetic):
    cells = synthetic.study({"ew": 0.0}, tasks=tuple("abcdefghijkl"), seeds=2)
    drawn = plots(scatter, cells)
    assert len(drawn) == 6
    assert "The first 6 of 66 pairs of tasks are drawn." in drawn["scatter-a-b"].caption
    curves = plots(training_curves, cells)
    assert len(curves) == 4
    assert all("The first 4 of 12 tasks" in plot.caption for plot in curves.values())


def test_one_task_and_one_seed_have_figures_without_pairs_or_bands(synthetic):
    cells = synthetic.study({"ew": 0.0, "cagrad": 0.01}, tasks=("only",), seeds=1)
    found = {name for builder in BUILDERS for name in plots(builder, cells)}
    assert found == {"delta_m", "curves-only", "weights", "step_time", "equal_time"}


def test_conditions_have_figures_of_their_own(parse, synthetic, tmp_path):
    conditions = ({"model.options.features": 8}, {"model.options.features": 16})
    cells = synthetic.grid(
        effects={"ew": 0.0}, conditions=conditions, rates=(0.001,), weightings=0, seeds=2, optimizers={"adam": 0.0}
    )
    page = parse(write_report(synthetic.write(tmp_path, cells), builders=[delta_m]).read_text())
    assert [name for name, _ in page.downloads[1:]] == ["delta_m-features_8.csv", "delta_m-features_16.csv"]
    assert "Δm against single-task training: features 16" in page.words
    for (_, text), condition in zip(page.downloads[1:], conditions, strict=True):
        lines = list(csv.DictReader(io.StringIO(text)))
        assert {line["method"] for line in lines} == {"single-task", "ew"}
        assert {line["condition"] for line in lines} == {f"features {condition['model.options.features']}"}


def test_figures_are_saved_for_papers(reported):
    for name in FIGURES:
        assert (reported / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (reported / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF")


def test_figures_follow_the_page_in_light_and_dark(text):
    svgs = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    colors = {color for svg in svgs for color in re.findall(r"#[0-9a-f]{6}\b", svg)}
    assert colors <= {*COLORS, "#808080"}  # a grey line is seen on both; all else is currentColor
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
        for _ in range(2):
            figure = matplotlib.figure.Figure()
            figure.add_subplot().plot([0, 1], label="Größe 图")  # letters that the font lacks
            yield Plot("mine", "figures", "My figure 图", "A caption.", figure, [{"rows": len(summary.rows)}])

    page = parse(write_report(study_directory, builders=[builder, lambda summary, records: ()]).read_text())
    assert page.tags.count("svg") == 2
    assert "My figure" in page.words
    assert page.downloads[1:] == [("mine.csv", "rows\n8\n"), ("mine~2.csv", "rows\n8\n")]  # none overwritten


def test_large_tables_are_files_beside_the_page(parse, synthetic, tmp_path, monkeypatch):
    from mtljax.ablation.report import write

    monkeypatch.setattr(write, "_MOST_EMBEDDED", 1000)
    text = write_report(synthetic.write(tmp_path, synthetic.study({"ew": 0.0})), builders=[delta_m]).read_text()
    assert [name for name, _ in parse(text).downloads] == ["delta_m.csv"]
    assert 'href="results.csv"' in text


def test_drawing_leaves_matplotlib_as_it_was(study_directory):
    before = dict(matplotlib.rcParams)
    write_report(study_directory, builders=BUILDERS[:1])
    assert dict(matplotlib.rcParams) == before
