"""Studies: every cell once, finished ones kept, failures recorded, programs shared."""

import dataclasses
import json

import pytest

from mtljax.ablation import StudyConfig, run_study, write_report
from mtljax.ablation import study as study_module
from mtljax.ablation.study import StudyProgress, cells
from mtljax.training import DataConfig, MethodConfig, ModelConfig, OptimizerConfig, TrainConfig


@pytest.fixture
def study():
    """Two methods, one optimizer, two seeds and the baselines: eight runs of a second."""
    return StudyConfig(
        name="tiny",
        question="Which?",
        base=TrainConfig(
            data=DataConfig("digits", {"num_train": 256, "num_validation": 100, "num_test": 100}),
            model=ModelConfig("mlp", {"features": (16,)}),
            batch_size=64,
            epochs=2,
            devices=1,
        ),
        methods=(MethodConfig("ew"), MethodConfig("mgda")),
        optimizers=(OptimizerConfig("adam", learning_rate=3e-3),),
        seeds=(0, 1),
    )


def test_the_grid_is_baselines_then_methods_with_seeds_innermost(study):
    names = [cell.name for cell in cells(study, ("right", "left"))]
    assert names == [
        "single-task-left-adam_0.003-seed0",
        "single-task-left-adam_0.003-seed1",
        "single-task-right-adam_0.003-seed0",
        "single-task-right-adam_0.003-seed1",
        "ew-adam_0.003-seed0",
        "ew-adam_0.003-seed1",
        "mgda-adam_0.003-seed0",
        "mgda-adam_0.003-seed1",
    ]


def test_baselines_have_the_same_encoder_and_budget(study):
    grid = cells(study, ("left", "right"))
    single, multi = grid[0].config, grid[-1].config
    assert single.tasks == ("left",)
    assert (single.model, single.epochs, single.batch_size) == (multi.model, multi.epochs, multi.batch_size)


def test_a_study_runs_every_cell_once_and_shares_compiled_programs(study, tmp_path, monkeypatch):
    built = []
    build = study_module.build_program
    monkeypatch.setattr(study_module, "build_program", lambda *a: built.append(a[0].name) or build(*a))
    started = []
    records = run_study(study, tmp_path, command="mtljax ablate x.py", progress=StudyProgress(cell=started.append))
    assert started == [record["cell"] for record in records]
    assert len(records) == len(list((tmp_path / "cells").iterdir())) == 8
    assert len(built) == 4  # left, right, ew, mgda: seeds share
    assert {record["status"] for record in records} == {"finished"}

    again = []
    assert run_study(study, tmp_path, progress=StudyProgress(cell=again.append)) == records
    assert again == []
    report = write_report(tmp_path)
    assert report.read_text().count("mgda") > 1


@pytest.mark.slow
def test_shared_programs_give_the_numbers_of_separate_runs(study, tmp_path):
    from mtljax.training import train

    records = run_study(study, tmp_path)
    last = cells(study, ("left", "right"))[-1]
    assert records[-1]["test"] == train(last.config).test


def test_an_interrupted_study_keeps_its_cells_and_goes_on(study, tmp_path):
    whole = run_study(study, tmp_path / "whole")

    def interrupt(record):
        if record["cell"].startswith("ew"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(study, tmp_path / "parts", progress=StudyProgress(finished=interrupt))
    kept = len(list((tmp_path / "parts" / "cells").iterdir()))
    assert kept == 5
    started = []
    resumed = run_study(study, tmp_path / "parts", progress=StudyProgress(cell=started.append))
    assert len(started) == 8 - kept
    assert [r["test"] for r in resumed] == [r["test"] for r in whole]


def test_a_cell_that_fails_is_recorded_and_the_study_goes_on(study, tmp_path):
    optimizers = (*study.optimizers, OptimizerConfig("sgd", learning_rate=1e12))
    records = run_study(
        dataclasses.replace(study, optimizers=optimizers, methods=(MethodConfig("ew"),), baselines=False), tmp_path
    )
    assert [record["status"] for record in records] == ["finished", "finished", "failed", "failed"]
    assert "non-finite" in records[-1]["reason"]
    assert "non-finite" in write_report(tmp_path).read_text()


def test_a_directory_of_another_study_is_refused(study, tmp_path):
    run_study(dataclasses.replace(study, methods=(MethodConfig("ew"),), seeds=(0,), baselines=False), tmp_path)
    other = dataclasses.replace(study, base=dataclasses.replace(study.base, epochs=3), baselines=False)
    with pytest.raises(ValueError, match=r"holds another study: its cell ew-adam_0\.003-seed0 differs in epochs"):
        run_study(other, tmp_path)


def test_a_damaged_cell_is_run_again(study, tmp_path):
    small = dataclasses.replace(study, methods=(MethodConfig("ew"),), seeds=(0,), baselines=False)
    before = run_study(small, tmp_path)
    path = tmp_path / "cells" / "ew-adam_0.003-seed0.json"
    path.write_text(path.read_text()[:100])
    assert run_study(small, tmp_path)[0]["test"] == before[0]["test"]
    assert json.loads(path.read_text())["status"] == "finished"


def test_an_empty_axis_and_a_repeated_run_are_refused(study):
    with pytest.raises(ValueError, match="'tiny' is empty: seeds lists nothing"):
        dataclasses.replace(study, seeds=())
    with pytest.raises(ValueError, match="lists the same run twice"):
        cells(dataclasses.replace(study, seeds=(0, 0)), ("left",))
