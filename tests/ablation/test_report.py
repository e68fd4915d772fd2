"""Claims about the report: complete, self-contained, well-formed, safe and forgiving."""

import re
import shutil

import browser
import pytest

from mtljax.ablation.report import read_cells, write_report
from mtljax.ablation.report.figures import delta_m, scatter, step_time
from mtljax.ablation.statistics import equal_time, pareto, summarize, verdict

FIGURES = ["delta_m", "scatter-left-right", "curves-left", "curves-right", "weights", "step_time", "equal_time"]


def test_the_report_is_well_formed_html_with_unique_ids(page):
    assert len(page.ids) == len(set(page.ids))
    assert page.tags.count("svg") == len(FIGURES)
    assert set(FIGURES) <= set(page.ids)


def test_every_reference_inside_the_page_has_its_target(page, text):
    targets = re.findall(r'(?:href="|url\()#([^")]+)', text)
    assert len(targets) > 10
    assert set(targets) <= set(page.ids)
    assert {value for name, value in page.attributes if name == "aria-labelledby"} <= set(page.ids)


def test_the_report_needs_no_network(page, text):
    for name, value in page.attributes:
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
        "30 runs, 1 of them failed",
        "95% Student t-intervals over seeds",
        "single-task training with adam 0.001",
        "0.2.8",
        "41e0cb8",
        "cpu",
    ):
        assert text in page.words


def test_the_table_shows_what_the_summary_says(page, text, reported):
    records, _ = read_cells(reported)
    frame = page.frame("Results on test")
    summary = summarize(records)
    assert list(frame["method"]) == [row.method for row in summary.rows]
    shown = frame["Δm % ↓"].str.replace("\N{MINUS SIGN}", "-").str.split(" ± ").str[0].astype(float)
    assert list(shown) == pytest.approx([row.delta_m.mean for row in summary.rows], abs=0.0051)
    assert page.frame("Failed runs").values.tolist() == [["mgda-sgd_0.1-seed2", "the loss became NaN"]]
    keys = [float(value) for value in re.findall(r'data-value="([^"]*)"', text.split("</table>")[0])]
    assert len(keys) == len(frame) * (len(frame.columns) - 2)  # every number can be sorted
    assert keys[0] == pytest.approx(summary.rows[0].delta_m.mean, abs=1e-9)


def test_standard_deviations_over_seeds_appear_where_a_number_is_pointed_at(page, reported):
    summary = summarize(read_cells(reported)[0])
    titles = [value for name, value in page.attributes if name == "title"]
    for row in summary.rows:
        assert f"standard deviation {row.delta_m.std:.3g}% over {row.delta_m.n} seeds" in titles
        accuracy = row.test["left", "accuracy"]
        assert f"standard deviation {100 * accuracy.std:.3g}% over {accuracy.n} seeds" in titles


def test_the_time_of_runs_that_shared_the_machine_is_a_dash_with_a_note(parse, synthetic, tmp_path):
    cells = synthetic.study({"ew": 0.0, "cagrad": 0.01})
    cells = [c | {"strategy": "vmap"} if c["method"] == "cagrad" else c for c in cells]
    page = parse(write_report(synthetic.write(tmp_path, cells), builders=[step_time]).read_text())
    times = page.frame("Results on test").set_index("method")["ms/step"]
    assert times.to_dict() == {"single-task": "4", "ew": "3", "cagrad": "–"}
    assert "ms/step: a dash where several runs shared the machine" in page.words
    assert "Left out: rows whose runs shared the machine" in page.words
    drawn = dict(page.downloads)["step_time.csv"]
    assert "ew" in drawn
    assert "cagrad" not in drawn


def test_pareto_counts_ranks_and_times_come_from_the_statistics(page, reported):
    records, _ = read_cells(reported)
    summary = summarize(records)
    for axis in ("method", "optimizer"):
        frame = page.frame(f"Pareto-optimal settings by {axis}").set_index(axis).astype(int)
        for count in pareto(summary, axis).counts:
            assert frame.loc[count.value].tolist() == [count.runs, count.full, count.other]
    ranks = page.frame("Mean rank").set_index("method")["mean rank ↓"].astype(float)
    assert ranks.to_dict() == {
        row.method: pytest.approx(row.mean_rank, abs=0.006)
        for row in summary.rows
        if row.selected and row.kind == "multi"
    }
    (entry,) = equal_time(summary, records)
    timed = page.frame("Equal steps and equal time")
    assert list(timed["method"]) == [t.row.method for t in entry.rows]
    assert f"{entry.steps} steps, or {entry.seconds:.3g} s" in page.words


def test_tuned_settings_are_shown_with_all_that_was_tried(parse, synthetic, tmp_path):
    page = parse(write_report(synthetic.write(tmp_path, small_grid(synthetic)), builders=[]).read_text())
    results = page.frame("Results on test")
    assert results.set_index(["method", "optimizer"])["setting"]["cagrad", "adam"] == "learning rate 0.001"
    assert set(results["settings tried"]) == {"2", "6"}  # 2 learning rates, times 3 weightings
    assert "All 28 settings tried" in page.words
    assert len(page.frame("All settings tried")) == 28  # 2 optimizers x 2 rates x (2 tasks + 3 weightings + 2 methods)
    compared = page.frame("Methods against tuned scalarization")
    assert list(compared["method"]) == ["cagrad"]
    assert list(compared["settings tried"]) == ["4"]
    assert "Settings it had: scalarization (tuned): 12." in page.words
    assert "Pareto-optimal settings by learning rate" in page.regions


def test_conditions_are_groups_of_the_table(parse, synthetic, tmp_path):
    conditions = ({"model.options.features": 8}, {"model.options.features": 16})
    cells = small_grid(synthetic, conditions=conditions, rates=(0.001,), optimizers={"adam": 0.0})
    page = parse(write_report(synthetic.write(tmp_path, cells), builders=[]).read_text())
    groups = [line[0] for line in page.tables[0] if len(line) == 1]
    assert groups == ["features 8", "features 16"]  # by value, not by letters
    assert list(page.frame("Results on test")["method"]).count("cagrad") == 2
    assert "Pareto-optimal settings by features" in page.regions


def test_all_text_is_escaped(parse, synthetic, tmp_path):
    nasty = "<script>alert('$x & y')</script>"
    cells = [synthetic.cell(nasty, nasty, s, {nasty: 0.8 + s / 100, "b": 0.7}) for s in (0, 1)]
    cells.append(synthetic.cell("ew", nasty, 0, {nasty: 0.8, "b": 0.7}, failed=nasty))
    for k, cell in enumerate(cells):
        cell["cell"] = f"cell{k}"
        cell |= {"setting": {nasty: nasty}, "condition": {nasty: nasty}}
    directory = synthetic.write(
        tmp_path, cells, name=nasty, question=nasty, command=nasty, setting={nasty: nasty, "nested": [nasty]}
    )
    text = write_report(directory, builders=[delta_m, scatter]).read_text()
    assert text.count("<svg") == 1  # without a baseline there is no Δm
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


def test_the_tables_alone_make_the_same_report(parse, synthetic, tmp_path):
    cells = small_grid(synthetic)
    for cell in cells:
        cell["environment"] = None  # the tables do not hold it
    directory = synthetic.write(tmp_path, cells)
    before = write_report(directory, builders=[]).read_text()
    shutil.rmtree(directory / "cells")
    after = parse(write_report(directory, builders=[]).read_text())
    assert after.tables == parse(before).tables
    assert "Not known: this page was made from results.csv" in after.words
    assert "Not known" not in parse(before).words


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


def test_a_missing_baseline_is_a_sentence_that_says_what_to_run(parse, synthetic, tmp_path):
    cells = [cell for cell in small_grid(synthetic) if cell["kind"] != "single"]
    page = parse(write_report(synthetic.write(tmp_path, cells), builders=[]).read_text())
    command = "mtljax ablate configs/digits.py --baselines=true"
    assert page.words.count(f"run `{command}` to make it") == 2  # in the verdict and the method
    assert set(page.frame("Results on test")["Δm % ↓"]) == {"–"}


def test_a_study_where_everything_failed_has_a_report(parse, synthetic, tmp_path):
    cells = [synthetic.cell("ew", "adam", s, {"left": 0.0}, failed="out of memory") for s in (0, 1)]
    page = parse(write_report(synthetic.write(tmp_path, cells)).read_text())
    assert "No multi-task run has finished" in page.words
    assert "svg" not in page.tags


def test_what_is_missing_is_a_dash_and_what_is_nan_says_so(parse, synthetic, tmp_path):
    cells = [synthetic.cell("ew", "adam", s, {"left": 0.9, "right": 0.9}, seconds_per_step=None) for s in (0, 1, 2)]
    for cell in cells:
        cell["test"]["left"]["accuracy"] = None
    cells[0]["test"]["right"]["accuracy"] = None
    page = parse(write_report(synthetic.write(tmp_path, cells), builders=[]).read_text())
    assert page.frame("Results on test").iloc[0].to_dict() == {
        "method": "ew",
        "optimizer": "adam",
        "Δm % ↓": "–",
        "left accuracy % ↑": "NaN",
        "right accuracy % ↑": "90.0 ± 0.0 (1 NaN)",
        "validation score ↑": "0.9000",
        "ms/step": "–",
        "seeds": "3",
    }


@pytest.mark.slow
def test_the_same_cells_make_the_same_report(study_directory, text):
    assert write_report(study_directory).read_text() == text


@pytest.mark.slow
@pytest.mark.skipif(browser.CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
def test_a_browser_shows_sorts_and_prints_the_report(synthetic, tmp_path):
    conditions = ({"model.options.features": 8}, {"model.options.features": 16})
    tasks = ("left", "right", "a_task_with_a_rather_long_name")
    cells = small_grid(synthetic, conditions=conditions, tasks=tasks)
    directory = synthetic.write(tmp_path, cells, question="A long question: " + "which " * 30)
    page = write_report(directory)
    with browser.chromium() as tab:
        for width in (380, 1400):
            backgrounds = set()
            for dark in (False, True):
                tab.open(page, width, dark=dark)
                assert tab.value("innerWidth") == width
                assert tab.value("document.scrollingElement.scrollWidth <= innerWidth")
                assert tab.value("[...document.querySelectorAll('svg')].every((svg) => svg.clientHeight > 50)")
                backgrounds.add(tab.value("getComputedStyle(document.body).backgroundColor"))
                ink = tab.value("getComputedStyle(document.querySelector('svg text')).fill")
                assert ink == tab.value("getComputedStyle(document.body).color")
            assert len(backgrounds) == 2
        heads = "[...document.querySelector('table').tHead.rows[0].cells]"
        tab.value(f"{heads}[2].querySelector('button').focus()")
        for order in ("ascending", "descending"):
            tab.press("Enter")
            assert tab.value(f"{heads}[2].getAttribute('aria-sort')") == order
            for body in (0, 1):  # the groups stay, each is sorted
                rows = f"[...document.querySelector('table').tBodies[{body}].rows].slice(1)"
                values = tab.value(f"{rows}.map((row) => row.cells[2].dataset.value)")
                numbers = [float(value) for value in values]
                assert numbers == sorted(numbers, reverse=order == "descending")
                assert len(numbers) > 2
        tab.press("Tab")
        assert tab.value(f"document.activeElement === {heads}[3].querySelector('button')")
        last = "heads[heads.length - 1]"
        tab.value(f"(() => {{ const heads = {heads}; {last}.querySelector('button').click(); }})()")
        settings = tab.value(
            "[...document.querySelectorAll('tbody')[0].rows].slice(1).map((r) => r.lastChild.textContent)"
        )
        rates = [re.match(r"learning rate (\S+)$", setting) for setting in settings]
        rates = [float(found[1]) for found in rates if found]
        assert rates == sorted(rates)
        tab.pdf(tmp_path / "report.pdf")
        assert tab.problems == []
        assert set(tab.requests) <= {page.resolve().as_uri()[:100]}
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")


def small_grid(synthetic, **changes):
    options = {"effects": {"ew": 0.0, "cagrad": 0.02}, "rates": (0.001, 0.003), "weightings": 3, "seeds": 2}
    return synthetic.grid(**options | changes)
