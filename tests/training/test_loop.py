"""Runs: they learn, select on validation only, stop when they should, and say why."""

import dataclasses
import json
import math
import re

import numpy as np
import pytest

import mtljax as mtl
from mtljax.data import MultiTaskData, Split
from mtljax.training import DataConfig, MethodConfig, NonFiniteLossError, OptimizerConfig, Progress, Result, train
from mtljax.training.block import build_block, train_block
from mtljax.training.logs import RunLog, read_records
from mtljax.training.loop import load_data
from mtljax.training.program import build_program, data_key, init_state


def validation_accuracy(result):
    return [
        np.mean([record["metrics"][task]["accuracy"] for task in record["metrics"]])
        for record in result.records
        if record["split"] == "validation"
    ]


def test_a_run_learns(tiny):
    result = train(tiny(epochs=30))
    losses = [list(record["losses"].values()) for record in result.records if record["split"] == "train"]
    assert np.mean(losses[-1]) < 0.7 * np.mean(losses[0])
    # Chance is 0.1; 512 images are few.
    assert min(values["accuracy"] for values in result.test.values()) > 0.2


def test_the_same_seed_gives_the_same_run_and_another_does_not(tiny):
    first, second, other = train(tiny()), train(tiny()), train(tiny(seed=1))
    without_time = [[{**r, "seconds": None} for r in result.records] for result in (first, second, other)]
    assert without_time[0] == without_time[1]
    assert without_time[0] != without_time[2]


def test_the_best_validation_score_is_selected(tiny):
    # A learning rate at which later is not better.
    result = train(tiny(epochs=12, optimizer=OptimizerConfig("sgd", learning_rate=1.5)))
    scores = validation_accuracy(result)
    best = int(np.argmax(scores))
    assert result.best_step == (best + 1) * 8
    assert np.mean([v["accuracy"] for v in result.validation.values()]) == pytest.approx(scores[best])


def test_a_test_curve_shows_the_test_split_at_every_evaluation_and_changes_nothing(tiny):
    config = tiny(epochs=2, test_curve=True)
    data = load_data(config)
    program = build_program(config, data)
    plain, shown = (train(each, data=data, program=program) for each in (tiny(epochs=2), config))
    curve = {record["step"]: record["metrics"] for record in shown.records if record["split"] == "test_curve"}
    assert list(curve) == [8, 16]
    assert curve[shown.best_step] == shown.test
    rest = [[r | {"seconds": 0} for r in run.records if r["split"] != "test_curve"] for run in (plain, shown)]
    assert rest[0] == rest[1]


@pytest.mark.slow
def test_a_test_curve_of_stacked_runs_has_the_same_steps(tiny):
    config = tiny(epochs=2, test_curve=True)
    data = load_data(config)
    program = build_program(config, data)
    (stacked,) = train_block([config], [init_state(config, data, program)], data=data, block=build_block(program))
    assert isinstance(stacked, Result)
    curve = {record["step"]: record["metrics"] for record in stacked.records if record["split"] == "test_curve"}
    assert list(curve) == [8, 16]
    assert curve[stacked.best_step] == stacked.test


def test_the_test_split_has_no_say_in_anything_but_the_test_metrics(tiny):
    config = tiny(epochs=4)
    data = load_data(config)
    wrong = {task: (target + 1) % 10 for task, target in data.splits["test"].targets.items()}
    corrupted = MultiTaskData(data.name, data.tasks, {**data.splits, "test": Split(data.splits["test"].inputs, wrong)})
    honest, other = train(config, data=data), train(config, data=corrupted)
    assert honest.best_step == other.best_step
    assert honest.validation == other.validation
    assert honest.test != other.test


def test_patience_stops_after_that_many_evaluations_without_a_better_one(tiny):
    config = tiny(epochs=60, patience=3, optimizer=OptimizerConfig("sgd", learning_rate=1.0))
    result = train(config)
    scores = validation_accuracy(result)
    assert len(scores) < 60
    assert len(scores) - 1 - int(np.argmax(scores)) == 3


def test_a_single_task_baseline_is_an_ordinary_run(tiny):
    result = train(tiny(tasks=("right",), method=MethodConfig("ew")))
    assert list(result.test) == ["right"]
    assert set(result.params["heads"]) == {"right"}


@pytest.mark.parametrize("method", ["ew", "pcgrad", "mgda", "cagrad", "scalarization"])
def test_every_method_trains_a_single_task(tiny, method):
    result = train(tiny(tasks=("right",), epochs=1, method=MethodConfig(method)))
    assert math.isfinite(result.test["right"]["loss"])


def with_infinite_image(config, index):
    """The data of a config with one training image infinite."""
    data = load_data(config)
    inputs = data.splits["train"].inputs.astype(np.float32) / 255
    inputs[index] = np.inf
    return MultiTaskData(data.name, data.tasks, {**data.splits, "train": Split(inputs, data.splits["train"].targets)})


def test_a_loss_that_explodes_stops_the_run_and_keeps_the_last_good_checkpoint(tiny, tmp_path):
    # 540 examples make 8 batches of 64: the 28 left out of the first epoch come in the second.
    config = tiny(data=DataConfig("digits", {"num_train": 540, "num_validation": 200, "num_test": 200}), log_every=8)
    program = build_program(config, load_data(config))
    first, second = (np.asarray(program.shuffle(data_key(config), epoch)) for epoch in (0, 1))
    index = next(i for i in first[512:] if i in second[:512])
    broken = with_infinite_image(config, index)
    with pytest.raises(NonFiniteLossError) as caught:
        train(config, data=broken, workdir=tmp_path)
    step = 8 + int(np.flatnonzero(second == index)[0]) // 64 + 1
    message = str(caught.value)
    assert f"non-finite at step {step}: left = " in message
    assert re.search(r"last finite losses: left = [\d.]+, right = [\d.]+", message)
    assert "optimizer.learning_rate" in message
    assert message.endswith("; the last checkpoint is from before this step")
    assert [path.name for path in (tmp_path / "checkpoints" / "last").iterdir() if path.name.isdigit()] == ["8"]
    run = mtl.load(tmp_path)
    outputs, _ = run.model.apply(run.params, run.model_state, load_data(config).splits["test"].inputs)
    assert np.all(np.isfinite(outputs["left"]))


def test_a_network_whose_validation_loss_is_not_finite_is_not_kept(tiny, tmp_path):
    config = tiny(evaluate_every=1, method=MethodConfig("ew"), optimizer=OptimizerConfig("sgd", learning_rate=1e38))
    with pytest.raises(NonFiniteLossError, match="validation metrics became non-finite at step 1: left loss = "):
        train(config, workdir=tmp_path)
    assert not [path for path in (tmp_path / "checkpoints").glob("*/*") if path.name.isdigit()]


def test_the_exact_step_and_the_last_finite_losses_are_reported(tiny):
    """One image is infinite; the step that meets it is known from the order of the data."""
    config = tiny(epochs=2, log_every=8, method=MethodConfig("ew"))
    broken = with_infinite_image(config, 17)
    program = build_program(config, broken)
    order = np.asarray(program.shuffle(data_key(config), 0))
    step = int(np.flatnonzero(order == 17)[0]) // config.batch_size + 1
    with pytest.raises(NonFiniteLossError, match=f"non-finite at step {step}:") as caught:
        train(config, data=broken, program=program)
    assert "checkpoint" not in str(caught.value)  # it kept none


def test_progress_and_time_left_are_told(tiny):
    lines, steps = [], []
    train(tiny(epochs=2), progress=Progress(start=lambda *a: steps.append(a), step=steps.append, line=lines.append))
    assert steps[0] == (0, 16)
    assert steps[1:] == list(range(1, 17))
    assert "step 16/16" in lines[-1]
    assert "steps/s" in lines[-1]


def test_the_log_is_json_lines_with_weights_and_metrics(tiny, tmp_path):
    result = train(tiny(epochs=1, tensorboard=True), workdir=tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == result.records
    assert [line["split"] for line in lines] == ["train", "train", "train", "validation", "test"]
    assert lines[0]["step"] == 3
    assert set(lines[0]["weights"]) == {"left", "right"}
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_a_log_line_cut_short_by_a_kill_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "split": "train"}\n{"step": 2, "sp')
    assert read_records(path) == [{"step": 1, "split": "train"}]


def test_a_log_that_cannot_be_written_costs_a_warning_not_the_run(tmp_path):
    class Full:
        def write(self, text):
            raise OSError(28, "No space left on device")

        def close(self):
            pass

    warnings = []
    log = RunLog(tmp_path, warnings.append, tensorboard=False, until=None)
    log._file.close()
    log._file = Full()
    log.write({"step": 1, "split": "train"})
    log.write({"step": 2, "split": "train"})
    log.close()
    assert warnings == ["cannot write metrics.jsonl (No space left on device); the run goes on without its log"]
    assert len(log.records) == 2


def test_dropout_runs_and_evaluation_is_without_it(tiny):
    config = tiny(epochs=1)
    config = dataclasses.replace(
        config, model=dataclasses.replace(config.model, options={"features": (32,), "dropout": 0.5})
    )
    first, second = train(config), train(config)
    assert first.test == second.test
