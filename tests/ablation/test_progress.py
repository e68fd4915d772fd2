"""What a study shows while it runs."""

import io

from rich.console import Console

from mtljax.ablation.progress import best_cells, study_bar


def record(name, left, right, *, kind="multi", status="finished", lower=False):
    metrics = {task: {"accuracy": value, "loss": 1.0} for task, value in (("left", left), ("right", right))}
    return {
        "cell": name,
        "kind": kind,
        "method": name,
        "optimizer": "adam",
        "setting": {"optimizer.learning_rate": 0.003, "method.options.weights": {"left": 0.25, "right": 0.75}},
        "condition": {"batch_size": 64},
        "seed": 7,
        "status": status,
        "reason": "the loss became non-finite" if status == "failed" else None,
        "metric_directions": {task: {"accuracy": not lower} for task in metrics},
        "validation": metrics,
        "test": {task: {"accuracy": 0.123, "loss": 1.0} for task in metrics},
        "seconds": 1.0,
    }


RECORDS = [
    record("middle", 0.8, 0.6),
    record("best", 0.9, 0.9),
    record("worst", 0.1, 0.2),
    record("single", 1.0, 1.0, kind="single"),
    record("failed", 1.0, 1.0, status="failed"),
    record("undefined", float("nan"), 1.0),
]


def text(renderable):
    stream = io.StringIO()
    Console(file=stream, width=100).print(renderable)
    return stream.getvalue()


def test_the_table_ranks_finished_multi_task_cells_by_validation():
    found = text(best_cells(RECORDS))
    assert found.index("best  ") < found.index("middle") < found.index("worst") < found.index("undefined")
    assert "single " not in found
    assert "failed" not in found
    assert "learning_rate 0.003, weights 0.25/0.75, batch_size 64" in " ".join(found.split())
    assert "0.9000" in found
    assert "of 4 multi-task cells" in found


def test_where_lower_is_better_the_lowest_is_first():
    found = text(best_cells([record("high", 0.9, 0.9, lower=True), record("low", 0.1, 0.1, lower=True)]))
    assert found.index("low ") < found.index("high")


def test_plain_output_is_a_line_a_cell_with_the_time_left_and_the_table_now_and_then(capsys):
    with study_bar(Console(file=io.StringIO())) as progress:
        progress.start(40, RECORDS[:1])
        for _ in range(39):
            progress.finished(RECORDS[1])
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "40 cells, 1 of them finished before"
    assert lines[1].startswith("[2/40] best: validation left accuracy 0.9000, right accuracy 0.9000, 1.0 s, ")
    assert lines[1].endswith("left")
    assert sum("best on validation" in line for line in lines) == 5  # every eighth cell
    assert not any("0.123" in line for line in lines)  # test is for the report


def test_a_terminal_shows_bars_above_the_table():
    stream = io.StringIO()
    with study_bar(Console(file=stream, force_terminal=True, width=100)) as progress:
        progress.start(3, [])
        for each in RECORDS[:2]:
            progress.cell(each["cell"])
            progress.run.start(0, 10)
            progress.run.step(10)
            progress.finished(each)
    assert "2/3" in stream.getvalue()
    assert "best on validation" in stream.getvalue()


def test_there_is_no_table_before_the_first_multi_task_cell(capsys):
    with study_bar() as progress:
        progress.start(8, [])
        for i in range(8):
            progress.finished(record(f"single{i}", 0.5, 0.5, kind="single"))
    assert "multi-task cells so far" not in capsys.readouterr().err
