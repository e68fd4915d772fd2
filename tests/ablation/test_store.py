"""The directory of a study: finished cells survive a kill, one process at a time, failures are kept and tried again."""

import contextlib
import dataclasses
import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import pytest

from mtljax.ablation import cell as cell_module
from mtljax.ablation import estimate as estimate_module
from mtljax.ablation import product, run_study, write_report
from mtljax.ablation import study as study_module
from mtljax.ablation.cell import Context, StudyInterruptedError, StudyProgress
from mtljax.ablation.estimate import estimate
from mtljax.ablation.report import read_cells
from mtljax.ablation.store import locked
from mtljax.ablation.study import plan
from mtljax.training import DataConfig, NonFiniteLossError

STUDY = """
from mtljax.ablation import StudyConfig, product, run_study
from mtljax.ablation import cell as cell_module
from mtljax.training import DataConfig, ModelConfig, TrainConfig
from mtljax.training.loop import Result

study = StudyConfig(
    "kept",
    base=TrainConfig(
        data=DataConfig("digits", {"num_train": 64, "num_validation": 10, "num_test": 10}),
        model=ModelConfig("mlp", {"features": (4,)}), batch_size=64, epochs=1, devices=1,
    ),
    seeds=(0, 1, 2), axes=product({"optimizer.learning_rate": (1e-3, 1e-2)}), baselines=False, weight_grid=0,
)

def fake(config, **_):
    metrics = {task: {"accuracy": config.optimizer.learning_rate, "loss": 1.0} for task in ("left", "right")}
    return Result(metrics, metrics, 1, 1, 0.001, [], None, None, None)
"""
made: dict[str, Any] = {}
exec(STUDY, made)  # the same study as in the process that is killed
study, fake = made["study"], made["fake"]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Runs that cost nothing: what is tested here is what becomes of their records."""
    monkeypatch.setattr(cell_module, "train", fake)


def cells_of(directory):
    return sorted((Path(directory) / "cells").glob("*.json"))


def run_and_count(directory, config=None, **options):
    """The records, and the names of the cells that ran."""
    ran = []
    records = run_study(config or study, directory, progress=StudyProgress(cell=ran.append), **options)
    return records, ran


def test_a_record_says_what_the_cell_was(tmp_path):
    record = run_and_count(tmp_path)[0][0]
    assert record["role"] == "method"
    assert record["setting"] == {"optimizer.learning_rate": 0.001}
    assert record["condition"] == {}
    assert record["optimizer"] == "adam"
    assert record["strategy"] == "sequential"
    assert record["status"] == "finished"
    assert record == json.loads((tmp_path / "cells" / f"{record['cell']}.json").read_text())
    described = json.loads((tmp_path / "study.json").read_text())
    assert described["setting"]["optimizer.learning_rate"] == "0.001, 0.01 (chosen on validation)"


def test_a_grid_may_grow(tmp_path):
    run_and_count(tmp_path)
    more = dataclasses.replace(study, seeds=(0, 1, 2, 3), axes=product({"optimizer.learning_rate": (1e-3, 1e-2, 0.1)}))
    records, ran = run_and_count(tmp_path, more)
    assert (len(records), len(ran)) == (12, 6)


def test_cells_of_an_earlier_grid_are_left_out(tmp_path):
    run_and_count(tmp_path)
    smaller = dataclasses.replace(study, seeds=(0,))
    assert len(run_and_count(tmp_path, smaller)[0]) == 2
    records, problems = read_cells(tmp_path)
    assert [record["seed"] for record in records] == [0, 0]
    assert problems == ["4 cells of an earlier grid in this directory are left out."]
    run_and_count(tmp_path, dataclasses.replace(study, axes=product({"optimizer.learning_rate": (0.1,)}), seeds=(0,)))
    assert [record["setting"]["optimizer.learning_rate"] for record in read_cells(tmp_path)[0]] == [0.1]
    cells_of(tmp_path)[0].with_name("ew-adam-learning_rate=0.1-seed0.json").unlink()
    with pytest.raises(ValueError, match=r"it has no cells \(6 cells of an earlier grid .* are left out\); run `"):
        write_report(tmp_path, warn=print)


def test_metrics_that_are_not_finite_are_null_on_disk_and_nan_when_read(tmp_path, monkeypatch):
    history = [
        {"step": 1, "split": "train", "losses": {"left": math.nan, "right": 1.0}, "weights": None, "seconds": 0.1},
        {"step": 1, "split": "validation", "metrics": {"left": {"accuracy": math.inf}}, "seconds": 0.1},
    ]

    def undefined(config, **options):
        metrics = {"left": {"accuracy": math.nan, "loss": 1.0}, "right": {"accuracy": 0.5, "loss": 1.0}}
        return fake(config, **options)._replace(test=metrics, records=history)

    monkeypatch.setattr(cell_module, "train", undefined)
    run_and_count(tmp_path)

    def refuse(token):
        raise AssertionError(f"{token} is no JSON")

    on_disk = json.loads(cells_of(tmp_path)[0].read_text(), parse_constant=refuse)
    assert on_disk["test"]["left"] == {"accuracy": None, "loss": 1.0}
    (again, *_), ran = run_and_count(tmp_path)
    assert ran == []
    for record in (again, read_cells(tmp_path)[0][0]):
        assert math.isnan(record["test"]["left"]["accuracy"])
        assert record["test"]["right"]["accuracy"] == 0.5
        assert math.isnan(record["history"][0]["losses"]["left"])
        assert record["history"][0]["weights"] is None
        assert math.isnan(record["history"][1]["metrics"]["left"]["accuracy"])


def test_an_infinite_value_in_a_config_is_the_same_run_when_read(tmp_path):
    unclipped = dataclasses.replace(study.optimizers[0], clip_norm=math.inf)
    infinite = dataclasses.replace(study, optimizers=(unclipped,))
    assert run_and_count(tmp_path, infinite)[1]
    assert run_and_count(tmp_path, infinite)[1] == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "other"}, "differs in name"),
        ({"base": dataclasses.replace(study.base, epochs=3)}, "differs in base.epochs"),
        ({"tuned": ()}, "differs in tuned"),
        ({"axes": product({"optimizer.learning_rate": (1e-3,), "epochs": (1,)})}, "differs in axes"),
    ],
)
def test_a_directory_of_another_study_is_refused_and_left_as_it_is(tmp_path, changes, message):
    run_and_count(tmp_path)
    before = (tmp_path / "study.json").read_text()
    with pytest.raises(ValueError, match=f"holds another study: it {message}.*; choose another --workdir"):
        run_study(dataclasses.replace(study, **changes), tmp_path)
    assert (tmp_path / "study.json").read_text() == before
    assert len(cells_of(tmp_path)) == 6


def test_without_study_json_the_records_tell(tmp_path):
    run_and_count(tmp_path)
    (tmp_path / "study.json").unlink()
    other = dataclasses.replace(study, base=dataclasses.replace(study.base, epochs=3))
    message = r"holds another study: its cell ew-adam-learning_rate=0\.001-seed0 differs in epochs"
    with pytest.raises(ValueError, match=message):
        run_study(other, tmp_path)


def test_an_interrupted_study_keeps_its_cells_and_goes_on(tmp_path):
    def interrupt(record):
        if len(cells_of(tmp_path)) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(study, tmp_path, progress=StudyProgress(finished=interrupt))
    assert len(run_and_count(tmp_path)[1]) == 2


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (NonFiniteLossError("the loss became non-finite at step 3"), "the loss became non-finite at step 3"),
        (MemoryError(), "out of memory"),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes."), "smaller batch_size"),
        (ValueError("the batch is too odd"), "the batch is too odd"),
    ],
)
def test_a_cell_that_fails_is_recorded_and_the_grid_goes_on(tmp_path, monkeypatch, error, reason):
    def sometimes(config, **options):
        if config.seed == 1:
            raise error
        return fake(config, **options)

    monkeypatch.setattr(cell_module, "train", sometimes)
    records, _ = run_and_count(tmp_path)
    assert [record["status"] for record in records] == ["finished", "failed", "finished"] * 2
    assert reason in records[1]["reason"]
    assert "\n" not in records[1]["reason"]

    monkeypatch.setattr(cell_module, "train", fake)
    assert run_and_count(tmp_path)[1] == []  # a failure is a result
    records, ran = run_and_count(tmp_path, retry_failed=True)
    assert [name[-5:] for name in ran] == ["seed1", "seed1"]
    assert {record["status"] for record in records} == {"finished"}


def test_an_error_that_is_no_cells_own_ends_the_study(tmp_path, monkeypatch):
    def broken(config, **options):
        raise jax.errors.JaxRuntimeError("INTERNAL: the device is gone")

    monkeypatch.setattr(cell_module, "train", broken)
    with pytest.raises(jax.errors.JaxRuntimeError, match="the device is gone"):
        run_study(study, tmp_path)
    assert cells_of(tmp_path) == []


def test_a_program_that_cannot_be_built_fails_its_cells_alone(tmp_path):
    sizes = dataclasses.replace(study, axes=product({"batch_size": (64, 65)}), seeds=(0,))
    records, _ = run_and_count(tmp_path, sizes)
    assert [record["status"] for record in records] == ["finished", "failed"]
    assert "batch size 65 is larger than the data, 64 examples" in records[1]["reason"]


def test_bad_values_are_found_before_anything_runs(tmp_path):
    for axes, message in (
        (product({"model.options.feature": (4,)}), "did you mean 'features'"),
        (product({"data.options.num_trian": (4,)}), "did you mean 'num_train'"),
        (product({"optimizer.options.b1": ("high",)}), "option b1 of optimizer adam must be"),
    ):
        with pytest.raises(ValueError, match=message):
            run_study(dataclasses.replace(study, axes=axes), tmp_path / "new")
    with pytest.raises(ValueError, match="unknown strategy 'vmp': did you mean 'vmap'"):
        run_study(study, tmp_path / "new", strategy="vmp")
    with pytest.raises(ValueError, match="jobs must be at least 1, got 0"):
        run_study(study, tmp_path / "new", jobs=0)
    assert not (tmp_path / "new").exists()


def test_a_damaged_record_and_half_a_record_are_nothing(tmp_path):
    run_and_count(tmp_path)
    damaged = cells_of(tmp_path)[0]
    damaged.write_text(damaged.read_text()[:60])
    half = tmp_path / "cells" / f".{damaged.name}.4711"
    half.write_text("{")
    assert run_and_count(tmp_path)[1] == [damaged.stem]
    assert not half.exists()


def test_a_second_user_of_a_directory_is_told_who_has_it(tmp_path):
    with locked(tmp_path):
        message = f"is in use by process {os.getpid()} on .*: wait until it has finished, stop it, or choose another"
        with pytest.raises(ValueError, match=message):
            run_study(study, tmp_path)
    assert len(run_study(study, tmp_path)) == 6


def test_a_study_that_began_between_the_check_and_the_lock_is_seen(tmp_path, monkeypatch):
    run_and_count(tmp_path / "other", dataclasses.replace(study, name="other"))

    @contextlib.contextmanager
    def late(directory):
        with locked(directory):
            shutil.copy(tmp_path / "other" / "study.json", directory)
            yield

    monkeypatch.setattr(study_module, "locked", late)
    with pytest.raises(ValueError, match="holds another study: it differs in name"):
        run_study(study, tmp_path / "own")
    assert json.loads((tmp_path / "own" / "study.json").read_text())["name"] == "other"


def test_where_there_are_no_locks_one_is_told(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.warns(UserWarning, match=r"cannot be locked \(No locks available\): see that no other") as told:
        assert len(run_study(study, tmp_path)) == 6
    assert len(told) == 1


def test_sigterm_while_a_program_is_built_interrupts_and_the_handler_is_restored(tmp_path, monkeypatch):
    def killed(*_):
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(cell_module, "build_program", killed)
    with pytest.raises(StudyInterruptedError, match="SIGTERM"):
        run_study(study, tmp_path)
    assert signal.getsignal(signal.SIGTERM) is before
    with locked(tmp_path):
        pass  # the directory is free


def test_a_directory_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot write to the workdir"):
        run_study(study, tmp_path / "file" / "study")


def test_kill_and_run_again_keeps_finished_cells_and_frees_the_directory(tmp_path):
    script = STUDY + (
        "import sys, time\n"
        "left = [4]\n"
        "def stuck(config, **options):\n"
        "    left[0] -= 1\n"
        "    if not left[0]: time.sleep(10000)\n"
        "    return fake(config, **options)\n"
        "cell_module.train = stuck\n"
        "run_study(study, sys.argv[1])\n"
    )
    directory = tmp_path / "study"
    process = subprocess.Popen([sys.executable, "-c", script, str(directory)])
    try:
        while len(cells_of(directory)) < 3:
            assert process.poll() is None
            time.sleep(0.1)
        with pytest.raises(ValueError, match=f"in use by process {process.pid} on "):
            run_study(study, directory)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    kept = {path: path.stat().st_mtime_ns for path in cells_of(directory)}
    records, ran = run_and_count(directory)
    assert (len(kept), len(ran), len(records)) == (3, 3, 6)
    assert all(path.stat().st_mtime_ns == time_ for path, time_ in kept.items())


@pytest.mark.parametrize(("seconds", "advanced"), [(60.0, 1 + estimate_module._STEPS), (0.0, 2)])
def test_steps_are_timed_after_the_one_that_compiles_and_one_is_enough(tmp_path, monkeypatch, seconds, advanced):
    monkeypatch.setattr(estimate_module, "_STEP_SECONDS", seconds)
    fresh, count = plan(study, tmp_path), []
    config = fresh.cells[0].config
    program = fresh.context.program(config)

    def advance(*arguments):
        count.append(1)
        return program.advance(*arguments)

    monkeypatch.setattr(Context, "program", lambda self, config: program._replace(advance=advance))
    once, each = estimate_module._time(config, fresh.context)
    assert len(count) == advanced
    assert once > 0
    assert each > 0


def test_the_estimate_rests_on_finished_cells_or_on_timed_steps_or_says_that_it_knows_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(estimate_module, "_time", lambda config, context: (10.0, 2.0))
    fresh = plan(study, tmp_path)
    assert not any(tmp_path.iterdir())  # a plan writes nothing
    assert estimate(fresh)[0] == 10 + 6 * 2
    assert "of 1 of 1 programs" in estimate(fresh).source

    records, _ = run_and_count(tmp_path)
    for path in cells_of(tmp_path)[:4]:
        path.unlink()
    left = plan(study, tmp_path)
    finished = [record["seconds"] for record in records if record["cell"] in left.done]
    assert estimate(left).seconds == pytest.approx(4 * sum(finished) / 2)
    assert estimate(left).source == "from 2 finished cells"

    def impossible(config, context):
        raise ValueError("no")

    monkeypatch.setattr(estimate_module, "_time", impossible)
    assert estimate(fresh).seconds is None


def test_data_sets_are_loaded_once(monkeypatch):
    loaded = []
    monkeypatch.setattr(
        cell_module.data_sets, "load", lambda name, **options: loaded.append(options) or fake_data(options)
    )
    configs = [
        dataclasses.replace(study.base, data=DataConfig("digits", {"num_train": count})) for count in (1, 2, 3, 1)
    ]
    context = Context()
    assert [context.tasks(config) for config in [*configs, *configs]] == [("left", "right")] * 8
    assert len(loaded) == 3


def fake_data(options):
    del options
    return SimpleNamespace(tasks={"right": None, "left": None})
