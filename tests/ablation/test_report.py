"""Claims about the report: complete, self-contained, well-formed, safe and forgiving."""

import base64
import csv
import io
import json
import re
from html.parser import HTMLParser

import matplotlib
import pandas as pd
import pytest

from mtljax.ablation.drawing import COLORS, Plot
from mtljax.ablation.report import read_cells, write_report
from mtljax.ablation.statistics import summarize, tidy, verdict

VOID = {"meta", "link", "br", "hr", "img", "input"}
FIGURES = ["delta_m", "scatter", "validation", "weights", "step_time"]


class Page(HTMLParser):
    """Checks that tags balance, and collects what the tests ask for."""

    def __init__(self, text):
        super().__init__()
        self.open, self.attributes, self.ids, self.text, self.tags = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)

    @property
    def words(self):
        return re.sub(r"\s+", " ", " ".join(self.text))  # \s takes no-break spaces too


@pytest.fixture
def page(study_directory):
    return Page(write_report(study_directory).read_text())


def data_links(page):
    links = [value for name, value in page.attributes if name == "href" and value.startswith("data:text/csv")]
    return [base64.b64decode(link.split(",", 1)[1]).decode() for link in links]


def test_the_report_is_well_formed_html_with_unique_ids(page):
    assert len(page.ids) == len(set(page.ids))
    assert page.tags.count("svg") == len(FIGURES)


def test_every_reference_inside_the_page_has_its_target(study_directory):
    text = write_report(study_directory).read_text()
    targets = re.findall(r'(?:href="|url\()#([^")]+)', text)
    assert len(targets) > 10
    assert set(targets) <= set(Page(text).ids)
    assert {value for name, value in Page(text).attributes if name == "aria-labelledby"} <= set(Page(text).ids)


def test_the_report_needs_no_network(study_directory):
    text = write_report(study_directory).read_text()
    for name, value in Page(text).attributes:
        if name in ("src", "href", "xlink:href", "action", "srcset"):
            assert value.startswith(("data:", "#"))
    assert not re.search(r"(src|href)\s*=\s*[\"']?\s*(https?:)?//", text)
    assert not re.search(r"@import|url\((?!#)|fetch\(|XMLHttpRequest", text)
    assert "http" not in text


def test_the_report_says_everything_it_should(page, study_directory):
    records, problems = read_cells(study_directory)
    assert problems == []
    for line in verdict(summarize(records, command="mtljax ablate configs/digits.py")).split("\n"):
        assert line in page.words
    for text in (
        "Does any method beat equal weighting on two overlapping digits?",
        "mtljax ablate configs/digits.py",
        "digits (4000 train, 800 validation, 800 test)",
        "the loss became NaN",
        "mgda-sgd_0.1-seed2",
        "95% Student t-intervals over seeds",
        "single-task training with adam 0.001",
        "0.2.8",
        "41e0cb8",
        "cpu",
    ):
        assert text in page.words


def test_the_table_shows_what_the_summary_says(study_directory):
    text = write_report(study_directory).read_text()
    records, _ = read_cells(study_directory)
    (frame, failed) = pd.read_html(io.StringIO(text))
    summary = summarize(records)
    assert list(frame["method"]) == [row.method for row in summary.rows]
    shown = frame.filter(like="Δm").iloc[:, 0].str.replace("\N{MINUS SIGN}", "-").str.split(" ± ").str[0].astype(float)
    assert list(shown) == pytest.approx([row.delta_m.mean for row in summary.rows], abs=0.0051)
    assert list(failed["cell"]) == ["mgda-sgd_0.1-seed2"]
    values = re.findall(r'data-value="([^"]*)"', text.split("</table>")[0])
    assert len(values) == frame.size  # every cell can be sorted
    assert repr(summary.rows[2].delta_m.mean) in values


def test_every_figure_links_to_its_numbers(page, study_directory):
    results, *figures = data_links(page)
    records, _ = read_cells(study_directory)
    assert len(list(csv.DictReader(io.StringIO(results)))) == len(tidy(records))
    assert results == (study_directory / "results.csv").read_text()
    assert figures == [(study_directory / "figures" / f"{name}.csv").read_text() for name in FIGURES]
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
    write_report(study_directory)
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


def test_methods_with_fixed_weights_have_no_weight_curve(study_directory):
    write_report(study_directory)
    frame = pd.read_csv(study_directory / "figures" / "weights.csv")
    assert set(frame["method"]) == {"cagrad", "mgda"}


def test_figures_are_saved_for_papers(study_directory):
    write_report(study_directory)
    for name in FIGURES:
        assert (study_directory / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (study_directory / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF")


def test_figures_follow_the_page_in_light_and_dark(study_directory):
    text = write_report(study_directory).read_text()
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
def test_the_palette_is_readable_on_both_backgrounds(background, study_directory):
    assert min(contrast(color, background) for color in COLORS) >= 3  # WCAG 2.1, graphics
    assert background in write_report(study_directory).read_text().replace("#fff;", "#ffffff;")


def test_all_text_is_escaped(synthetic, tmp_path):
    nasty = "<script>alert('$x & y')</script>"
    cells = [synthetic.cell(nasty, nasty, s, {nasty: 0.8 + s / 100, "b": 0.7}) for s in (0, 1)]
    cells.append(synthetic.cell("ew", nasty, 0, {nasty: 0.8, "b": 0.7}, failed=nasty))
    for k, cell in enumerate(cells):
        cell["cell"] = f"cell{k}"
    directory = synthetic.write(
        tmp_path, cells, name=nasty, question=nasty, command=nasty, setting={nasty: nasty, "nested": [nasty]}
    )
    text = write_report(directory).read_text()
    assert text.count("<script>") == 1
    assert "alert('" not in text
    assert nasty in Page(text).words


def test_a_damaged_cell_is_skipped_with_a_sentence(study_directory):
    (study_directory / "cells" / "aaa.json").write_text('{"cell": "aaa", "kind"')
    (study_directory / "cells" / "bbb.json").write_text("[]")
    (study_directory / "cells" / "ccc.json").write_bytes(b"\xff\xfe\x00")
    told = []
    page = Page(write_report(study_directory, warn=told.append).read_text())
    assert [re.search(r"\w+\.json", sentence)[0] for sentence in told] == ["aaa.json", "bbb.json", "ccc.json"]
    assert all(sentence in page.words for sentence in told)
    with pytest.warns(UserWarning, match="Skipped the damaged cell"):
        write_report(study_directory)


def test_a_missing_study_json_costs_the_question_not_the_report(study_directory):
    (study_directory / "study.json").unlink()
    told = []
    text = write_report(study_directory, warn=told.append).read_text()
    assert told == [
        "Could not read study.json (it is missing), so the question, the setting and the command are not known."
    ]
    assert "<h1>study</h1>" in text


def test_no_cells_is_one_clear_sentence(synthetic, tmp_path):
    directory = synthetic.write(tmp_path / "empty", [])
    with pytest.raises(
        ValueError, match=r"nothing to report in .*empty: it has no cells; run `mtljax ablate configs/digits.py`"
    ):
        write_report(directory)
    (directory / "cells" / "a.json").write_text("{")
    with pytest.raises(ValueError, match="none of its 1 cells can be read"):
        write_report(directory)
    assert not (directory / "report.html").exists()


@pytest.mark.parametrize(("tasks", "seeds"), [(("only",), 3), (("left", "right"), 1), (tuple("abcdefghij"), 2)])
def test_other_shapes_of_study_have_reports_too(synthetic, tmp_path, tasks, seeds):
    cells = synthetic.study({"ew": 0.0, "cagrad": 0.01}, tasks=tasks, seeds=seeds)
    page = Page(write_report(synthetic.write(tmp_path, cells)).read_text())
    assert page.tags.count("svg") == len(FIGURES) - (len(tasks) == 1)  # no pair of tasks, no scatter


def test_a_study_where_everything_failed_has_a_report(synthetic, tmp_path):
    cells = [synthetic.cell("ew", "adam", s, {"left": 0.0}, failed="out of memory") for s in (0, 1)]
    page = Page(write_report(synthetic.write(tmp_path, cells)).read_text())
    assert "No multi-task run has finished" in page.words
    assert "svg" not in page.tags


def test_missing_times_weights_and_values_are_dashes(synthetic, tmp_path):
    cells = [synthetic.cell("ew", "adam", s, {"left": 0.9}, seconds_per_step=None) for s in (0, 1)]
    cells[0]["test"]["left"]["accuracy"] = cells[1]["test"]["left"]["accuracy"] = None
    text = write_report(synthetic.write(tmp_path, cells)).read_text()
    (frame,) = pd.read_html(io.StringIO(text))
    row = frame.iloc[0]
    assert [row["ms/step"], row.filter(like="left")[0], row.filter(like="Δm")[0]] == ["–"] * 3


def test_a_diverged_run_does_not_squash_the_figures(synthetic, tmp_path):
    cells = synthetic.study({"ew": 0.0, "cagrad": 0.01, "mgda": -0.01, "pcgrad": 0.005, "diverged": -0.8})
    text = write_report(synthetic.write(tmp_path, cells)).read_text()
    assert re.search(r"\+89\.\d →", Page(text).words)  # named at the edge of the frame instead
    assert "1 far off lies outside the frame" in Page(text).words


def test_the_caller_may_choose_the_figures(study_directory):
    def builder(summary, records):
        del records
        figure = matplotlib.figure.Figure()
        figure.add_subplot().plot([0, 1])
        return Plot("mine", "My figure", "A caption.", figure, [{"rows": len(summary.rows)}])

    page = Page(write_report(study_directory, builders=[builder, lambda summary, records: None]).read_text())
    assert page.tags.count("svg") == 1
    assert "My figure" in page.words
    assert data_links(page)[1] == "rows\n8\n"


def test_drawing_leaves_matplotlib_as_it_was(study_directory):
    before = dict(matplotlib.rcParams)
    write_report(study_directory)
    assert dict(matplotlib.rcParams) == before


def test_the_same_cells_make_the_same_report(study_directory):
    first = write_report(study_directory).read_bytes()
    assert write_report(study_directory).read_bytes() == first
