"""The studies of `scripts/`: which runs they make, that finished ones stay, and the dense losses in closed form."""

import dataclasses
import os

import jax
import numpy as np
import pytest
from scripts_by_name import script

import mtljax as mtl
from mtljax.training import DataConfig, ModelConfig, TrainConfig

conflicts, robustness = script("conflict_study"), script("robustness_study")
TINY = TrainConfig(
    name="tiny",
    data=DataConfig("digits", {"num_train": 128, "num_validation": 50, "num_test": 50}),
    model=ModelConfig("mlp", {"features": (16,)}),
    batch_size=64,
    epochs=1,
    probe_every=1,
    tensorboard=False,
    devices=1,
)


def test_every_method_and_every_task_is_trained_with_every_seed(tmp_path):
    groups = robustness.configs()
    assert [len(group) for group in groups] == [3] * 6
    for group in groups:  # one program for all seeds
        assert all(dataclasses.replace(config, seed=0) == group[0] for config in group)
    places = [robustness.place(tmp_path, config).name for group in groups for config in group]
    assert len(set(places)) == 18
    assert {"left-seed0", "right-seed2", "cagrad-seed1"} <= set(places)


def unwanted(*args, **kwargs):
    raise AssertionError("trained again")


@pytest.mark.slow
def test_robustness_runs_that_are_finished_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(robustness, "BASE", dataclasses.replace(TINY, probe_every=0))
    for name, value in {"TASKS": ("left",), "METHODS": ("ew",), "SEEDS": (0, 1)}.items():
        monkeypatch.setattr(robustness, name, value)
    made = robustness.run_all(tmp_path)
    assert [path.name for path in made] == ["left-seed0", "left-seed1", "ew-seed0", "ew-seed1"]
    assert mtl.load(made[0]).tasks.keys() == {"left"}
    monkeypatch.setattr(robustness, "train", unwanted)
    assert robustness.run_all(tmp_path) == made
    monkeypatch.setattr(robustness, "BASE", dataclasses.replace(TINY, probe_every=0, batch_size=32))
    with pytest.raises(ValueError, match=r"left-seed0 holds another run \(it differs in batch_size\)"):
        robustness.run_all(tmp_path)


@pytest.mark.slow
def test_the_conflict_study_trains_shows_and_keeps_what_is_finished(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(conflicts, "RUNS", (TINY,))
    monkeypatch.setattr(conflicts, "NYU", dataclasses.replace(TINY, name="dense", batch_size=2))
    monkeypatch.setattr(conflicts, "dense_data", dense_batch)
    monkeypatch.setattr(conflicts, "SEEDS", (0, 1))
    command = ["--workdir", str(tmp_path / "runs"), "--figure", str(tmp_path / "figure.png")]
    assert conflicts.main(command) == 0
    first = capsys.readouterr().out
    assert "magnitude" in first
    assert (tmp_path / "figure.png").stat().st_size > 1000
    monkeypatch.setattr(conflicts, "train", unwanted)
    monkeypatch.setattr(conflicts, "dense_data", unwanted)
    assert conflicts.main(command) == 0
    assert capsys.readouterr().out.splitlines()[:-1] == first.splitlines()[:-1]
    with pytest.raises(SystemExit, match=r"tiny-seed0 holds another run \(it differs in epochs\): choose another"):
        conflicts.main([*command, "--epochs=2"])


def dense_batch():
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.random((2, 16, 16, 3), np.float32),
        "segmentation": rng.integers(0, 13, (2, 4, 4)).astype(np.int32),
        "depth": rng.random((2, 4, 4), np.float32) + 0.1,
        "normal": rng.normal(size=(2, 4, 4, 3)).astype(np.float32),
    }
    batch["normal"] /= np.linalg.norm(batch["normal"], axis=-1, keepdims=True)
    batch["segmentation"][0, :2] = -1
    batch["depth"][1] = 0
    batch["normal"][:, 3] = 0
    return batch


def test_dense_losses_are_means_over_the_pixels_with_a_label():
    batch, keys = dense_batch(), jax.random.split(jax.random.PRNGKey(0), 4)
    shared = conflicts.ENCODER.init(keys[0], batch["image"])["params"]
    z = conflicts.ENCODER.apply({"params": shared}, batch["image"])
    assert z.shape == (2, 4, 4, 32)
    heads = {
        task: head.init(key, z)["params"] for (task, head), key in zip(conflicts.HEADS.items(), keys[1:], strict=True)
    }
    found = conflicts.dense_losses({"shared": shared, "heads": heads}, (), batch)
    out = {
        task: np.asarray(z, np.float64) @ np.asarray(head["kernel"][0, 0], np.float64) + np.asarray(head["bias"])
        for task, head in heads.items()
    }
    known = batch["segmentation"] >= 0
    logits = out["segmentation"][known]
    chosen = np.take_along_axis(logits, batch["segmentation"][known][:, None], axis=1)[:, 0]
    assert found["segmentation"] == pytest.approx(np.mean(np.log(np.exp(logits).sum(axis=1)) - chosen), rel=1e-5)
    assert found["depth"] == pytest.approx(np.abs(out["depth"][0, ..., 0] - batch["depth"][0]).mean(), rel=1e-5)
    ours, true = out["normal"][:, :3], batch["normal"][:, :3]
    cosines = (ours * true).sum(axis=-1) / np.linalg.norm(ours, axis=-1)
    assert found["normal"] == pytest.approx(np.mean(1 - cosines), rel=1e-5)


@pytest.mark.skipif("MTLJAX_DATA" not in os.environ, reason="needs nyuv2_mtl_small in MTLJAX_DATA")
def test_the_dense_data_has_unit_normals_metres_and_classes():
    data = conflicts.dense_data()
    assert len({len(each) for each in data.values()}) == 1
    assert data["image"].shape[1] == 4 * data["depth"].shape[1]
    assert 0 <= data["image"].min() <= data["image"].max() <= 1
    assert set(np.unique(data["segmentation"])) <= set(range(-1, 13))
    assert 0 <= data["depth"].min() <= data["depth"].max() <= 10
    lengths = np.linalg.norm(data["normal"], axis=-1)
    assert np.all((lengths < 1e-3) | (np.abs(lengths - 1) < 1e-3))
