"""Claims about the report: complete, self-contained, well-formed, safe and forgiving."""

import re

import pandas as pd
import pytest

from mtljax.ablation.report import read_cells, write_report
from mtljax.ablation.statistics import summarize, verdict

FIGURES = ["delta_m", "scatter", "validation", "weights", "step_time"]


def test_the_report_is_well_formed_html_with_unique_ids(page):
    assert len(page.ids) == len(set(page.ids))
    assert page.tags.count("svg") == len(FIGURES)


def test_every_reference_inside_the_page_has_its_target(parse, text):
    targets = re.findall(r'(?:href="|url\()#([^")]+)', text)
    assert len(targets) > 10
    assert set(targets) <= set(parse(text).ids)
    assert {value for name, value in parse(text).attributes if name == "aria-labelledby"} <= set(parse(text).ids)


def test_the_report_needs_no_network(parse, text):
    for name, value in parse(text).attributes:
        if name in ("src", "href", "xlink:href", "action", "srcset"):
            assert value.startswith(("data:", "#"))
    assert not re.search(r"(src|href)\s*=\s*[\"']?\s*(https?:)?//", text)
    assert not re.search(r"@import|url\((?!#)|fetch\(|XMLHttpRequest", text)
    assert "http" not in text


def test_the_report_says_everything_it_should(page, reported):
    records, problems = read_cells(reported)
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


def test_the_table_shows_what_the_summary_says(parse, text, reported):
    records, _ = read_cells(reported)
    (head, *body), (_, *failed) = parse(text).tables
    frame = pd.DataFrame(body, columns=head)
    summary = summarize(records)
    assert list(frame["method"]) == [row.method for row in summary.rows]
    shown = frame.filter(like="Δm").iloc[:, 0].str.replace("\N{MINUS SIGN}", "-").str.split(" ± ").str[0].astype(float)
    assert list(shown) == pytest.approx([row.delta_m.mean for row in summary.rows], abs=0.0051)
    assert failed == [["mgda-sgd_0.1-seed2", "the loss became NaN"]]
    values = re.findall(r'data-value="([^"]*)"', text.split("</table>")[0])
    assert len(values) == frame.size  # every cell can be sorted
    assert repr(summary.rows[2].delta_m.mean) in values


def test_all_text_is_escaped(parse, synthetic, tmp_path):
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
    assert "<script>alert" not in text
    assert nasty in parse(text).words


def test_a_damaged_cell_is_skipped_with_a_sentence(parse, study_directory):
    (study_directory / "cells" / "aaa.json").write_text('{"cell": "aaa", "kind"')
    (study_directory / "cells" / "bbb.json").write_text("[]")
    (study_directory / "cells" / "ccc.json").write_bytes(b"\xff\xfe\x00")
    told = []
    page = parse(write_report(study_directory, builders=[], warn=told.append).read_text())
    assert [re.search(r"\w+\.json", sentence)[0] for sentence in told] == ["aaa.json", "bbb.json", "ccc.json"]
    assert all(sentence in page.words for sentence in told)
    with pytest.warns(UserWarning, match="Skipped"):
        write_report(study_directory, builders=[])


def test_a_missing_study_json_costs_the_question_not_the_report(study_directory):
    (study_directory / "study.json").unlink()
    told = []
    text = write_report(study_directory, builders=[], warn=told.append).read_text()
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


def test_rows_are_marked_only_where_there_was_a_choice(parse, synthetic, tmp_path, text):
    assert 'class="selected"' in text
    assert "Marked rows" in parse(text).words
    one = write_report(synthetic.write(tmp_path, synthetic.study({"ew": 0.0})), builders=[]).read_text()
    assert 'class="selected"' not in one
    assert "Marked rows" not in parse(one).words


@pytest.mark.parametrize(("tasks", "seeds"), [(("only",), 3), (("left", "right"), 1), (tuple("abcdefghij"), 2)])
def test_other_shapes_of_study_have_reports_too(parse, synthetic, tmp_path, tasks, seeds):
    cells = synthetic.study({"ew": 0.0, "cagrad": 0.01}, tasks=tasks, seeds=seeds)
    page = parse(write_report(synthetic.write(tmp_path, cells)).read_text())
    assert page.tags.count("svg") == len(FIGURES) - (len(tasks) == 1)  # no pair of tasks, no scatter


def test_a_study_where_everything_failed_has_a_report(parse, synthetic, tmp_path):
    cells = [synthetic.cell("ew", "adam", s, {"left": 0.0}, failed="out of memory") for s in (0, 1)]
    page = parse(write_report(synthetic.write(tmp_path, cells)).read_text())
    assert "No multi-task run has finished" in page.words
    assert "svg" not in page.tags


def test_missing_times_weights_and_values_are_dashes(parse, synthetic, tmp_path):
    cells = [synthetic.cell("ew", "adam", s, {"left": 0.9, "right": 0.9}, seconds_per_step=None) for s in (0, 1)]
    for cell in cells:
        cell["test"]["left"]["accuracy"] = None
    text = write_report(synthetic.write(tmp_path, cells)).read_text()
    ((head, row),) = parse(text).tables
    assert dict(zip(head, row, strict=True)) == {
        "method": "ew",
        "optimizer": "adam",
        "Δm % ↓": "–",
        "left accuracy % ↑": "–",
        "right accuracy % ↑": "90.0 ± 0.0",
        "validation score ↑": "0.9000",
        "ms/step": "–",
        "seeds": "2",
    }


def test_the_same_cells_make_the_same_report(study_directory, text):
    assert write_report(study_directory).read_text() == text
