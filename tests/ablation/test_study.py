"""Studies: every cell once, finished ones kept, failures recorded, programs shared."""

import dataclasses

import pytest

from mtljax.ablation import StudyConfig, run_study, write_report
from mtljax.ablation import cell as cell_module
from mtljax.ablation.cell import StudyProgress
from mtljax.ablation.grid import cells
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
        weight_grid=0,
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
    build = cell_module.build_program
    monkeypatch.setattr(cell_module, "build_program", lambda *a: built.append(a[0].name) or build(*a))
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


def test_an_empty_axis_and_a_repeated_run_are_refused(study):
    with pytest.raises(ValueError, match="'tiny' is empty: seeds lists nothing"):
        dataclasses.replace(study, seeds=())
    with pytest.raises(ValueError, match="lists the same run twice"):
        cells(dataclasses.replace(study, seeds=(0, 0)), ("left",))
