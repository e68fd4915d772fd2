"""Checkpoints: resuming is bit for bit, damage costs one checkpoint, a full disk costs none."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from marks import mostly_slow

import mtljax as mtl
from mtljax.training import MethodConfig, ModelConfig, OptimizerConfig, Progress, train
from mtljax.training import checkpoint as ckpt
from mtljax.training.logs import read_records
from mtljax.training.loop import load_data
from mtljax.training.program import build_program, init_state

RUN = """
import sys
from mtljax.cli import main
sys.exit(main(sys.argv[1:]))
"""
CONFIG = """
from mtljax.training import *
def get_config():
    return TrainConfig(
        name="killed", data=DataConfig("digits", {"num_train": 512, "num_validation": 200, "num_test": 200}),
        model=ModelConfig("mlp", {"features": (32,), "dropout": 0.2}), method=MethodConfig("pcgrad"),
        optimizer=OptimizerConfig("adam", learning_rate=3e-3, schedule="cosine"),
        batch_size=64, epochs=30, log_every=3, evaluate_every=12, tensorboard=False, devices=1,
    )
"""


def launch(*arguments):
    return subprocess.Popen(
        [sys.executable, "-c", RUN, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def wait_for(condition, process, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "the run did not get there"
        time.sleep(0.002)


def last_state(workdir, config):
    data = load_data(config)
    checkpoints = ckpt.open_checkpoints(workdir, lambda text: None, create=False)
    try:
        return ckpt.restore_last(checkpoints, init_state(config, data, build_program(config, data)))
    finally:
        ckpt.close(checkpoints)


def timeless(workdir):
    return [{**record, "seconds": None} for record in read_records(workdir / "metrics.jsonl")]


def assert_equal_runs(a, b):
    """Every logged number and every bit of the last state and of the selected network."""
    assert timeless(a) == timeless(b)
    config = mtl.load(a).config
    for x, y in zip(jax.tree.leaves(last_state(a, config)), jax.tree.leaves(last_state(b, config)), strict=True):
        np.testing.assert_array_equal(x, y)
    for x, y in zip(jax.tree.leaves(mtl.load(a).params), jax.tree.leaves(mtl.load(b).params), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The config file, and the workdir of a run nobody disturbed."""
    directory = tmp_path_factory.mktemp("uninterrupted")
    config = directory / "config.py"
    config.write_text(CONFIG)
    process = launch("train", config, "--workdir", directory / "run")
    output = process.communicate()[0]
    assert process.returncode == 0, output
    return config, directory / "run"


def test_a_run_killed_between_two_steps_resumes_bit_for_bit(uninterrupted, tmp_path):
    config, reference = uninterrupted
    process = launch("train", config, "--workdir", tmp_path / "run")
    wait_for(lambda: len(read_records(tmp_path / "run" / "metrics.jsonl")) > 40, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert len(timeless(tmp_path / "run")) < len(timeless(reference))
    resumed = launch("train", config, "--workdir", tmp_path / "run", "--resume")
    output = resumed.communicate()[0]
    assert resumed.returncode == 0, output
    assert_equal_runs(tmp_path / "run", reference)


@pytest.mark.slow  # test_a_run_stopped_in_the_middle_of_an_epoch_resumes_there does it in this process
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_says_how_to_resume_and_loses_nothing(uninterrupted, tmp_path, number):
    config, reference = uninterrupted
    process = launch("train", config, "--workdir", tmp_path / "run")
    wait_for(lambda: len(read_records(tmp_path / "run" / "metrics.jsonl")) > 20, process)
    process.send_signal(number)
    output = process.communicate()[0]
    assert process.returncode == 128 + number, output
    assert "Traceback" not in output
    assert f"continue with: mtljax train {config} --workdir {tmp_path / 'run'} --resume" in output
    resumed = launch("train", config, "--workdir", tmp_path / "run", "--resume")
    output = resumed.communicate()[0]
    assert resumed.returncode == 0, output
    assert_equal_runs(tmp_path / "run", reference)


def interrupt_after(steps):
    """Progress that sends this process SIGTERM after some steps."""
    return Progress(step=lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == steps else None)


def test_a_run_stopped_in_the_middle_of_an_epoch_resumes_there(tiny, tmp_path):
    config = tiny(epochs=3)
    train(config, workdir=tmp_path / "whole")
    stopped = train(config, workdir=tmp_path / "parts", progress=interrupt_after(13))
    assert (stopped.interrupted, stopped.steps) == ("SIGTERM", 13)
    steps = []
    train(config, workdir=tmp_path / "parts", resume=True, progress=Progress(step=steps.append))
    assert steps[0] == 14
    assert_equal_runs(tmp_path / "parts", tmp_path / "whole")


@pytest.mark.slow
def test_a_finished_run_can_be_extended(tiny, tmp_path):
    train(tiny(epochs=2), workdir=tmp_path / "run")
    lines = []
    train(tiny(epochs=4), workdir=tmp_path / "run", resume=True, progress=Progress(line=lines.append))
    assert "goes on with epochs 2 -> 4" in lines
    train(tiny(epochs=4), workdir=tmp_path / "whole")
    assert_equal_runs(tmp_path / "run", tmp_path / "whole")


def test_a_checkpoint_of_eight_devices_resumes_on_one(tiny, tmp_path):
    config = tiny(
        epochs=2, optimizer=OptimizerConfig("sgd", learning_rate=0.1), model=ModelConfig("mlp", {"features": (8,)})
    )
    train(tiny(epochs=1, devices=8, optimizer=config.optimizer, model=config.model), workdir=tmp_path / "run")
    resumed = train(config, workdir=tmp_path / "run", resume=True)
    whole = train(config, workdir=tmp_path / "whole")
    for a, b in zip(jax.tree.leaves(resumed.params), jax.tree.leaves(whole.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def damage(checkpoint, how):
    files = [path for path in checkpoint.rglob("*") if path.is_file()]
    if how == "truncated":
        for path in files:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif how == "emptied":
        shutil.rmtree(checkpoint / "state")
    else:
        for path in files:
            path.write_bytes(b"not a checkpoint")


@pytest.mark.parametrize("how", mostly_slow(["truncated", "emptied", "foreign bytes"], quick=["truncated"]))
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tiny, tmp_path, how):
    config = tiny(epochs=3)
    train(config, workdir=tmp_path / "run")
    train(config, workdir=tmp_path / "whole")
    damage(tmp_path / "run" / "checkpoints" / "last" / "24", how)
    lines, steps = [], []
    train(config, workdir=tmp_path / "run", resume=True, progress=Progress(line=lines.append, step=steps.append))
    assert any("step 24 is unreadable" in line and "falling back to one before" in line for line in lines)
    assert steps[0] == 17
    assert_equal_runs(tmp_path / "run", tmp_path / "whole")


def test_checkpoints_that_are_all_unreadable_are_an_error_not_a_fresh_start(tiny, tmp_path):
    config = tiny(epochs=2)
    train(config, workdir=tmp_path)
    for step in (8, 16):
        damage(tmp_path / "checkpoints" / "last" / str(step), "foreign bytes")
    with pytest.raises(ValueError, match="no readable checkpoint"):
        train(config, workdir=tmp_path, resume=True)


def test_a_checkpoint_of_another_model_is_not_read_into_this_one(tiny, tmp_path):
    train(tiny(epochs=1), workdir=tmp_path / "small")
    bigger = tiny(epochs=1, model=ModelConfig("mlp", {"features": (64,)}))
    train(bigger, workdir=tmp_path / "big")
    shutil.rmtree(tmp_path / "big" / "checkpoints")
    shutil.copytree(tmp_path / "small" / "checkpoints", tmp_path / "big" / "checkpoints")
    with pytest.raises(ValueError, match="damaged or of another model"):
        train(bigger, workdir=tmp_path / "big", resume=True)


@pytest.mark.parametrize("how", mostly_slow(["removed", "foreign bytes"], quick=["removed"]))
def test_a_lost_best_network_is_said_and_the_run_goes_on(tiny, tmp_path, how):
    config = tiny(epochs=6, optimizer=OptimizerConfig("sgd", learning_rate=1.5))
    first = train(config, workdir=tmp_path)
    assert first.best_step < 48, "the case needs a best that is not the last"
    if how == "removed":
        shutil.rmtree(tmp_path / "checkpoints" / "best")
    else:
        damage(tmp_path / "checkpoints" / "best" / str(first.best_step), how)
    lines = []
    train(
        tiny(epochs=7, optimizer=config.optimizer), workdir=tmp_path, resume=True, progress=Progress(line=lines.append)
    )
    assert any(f"the best network (step {first.best_step}) is lost" in line for line in lines)


def test_a_best_network_lost_between_two_saves_is_saved_again(tiny, tmp_path):
    """A kill after the last state and before the best network of the same step is on disk."""
    first = train(tiny(epochs=2), workdir=tmp_path)
    assert first.best_step == 16, "the case needs a best that is the last"
    shutil.rmtree(tmp_path / "checkpoints" / "best" / "16")
    again = train(tiny(epochs=2), workdir=tmp_path, resume=True)
    assert again.best_step == 16
    for a, b in zip(jax.tree.leaves(mtl.load(tmp_path).params), jax.tree.leaves(first.params), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_failing_save_costs_a_warning_and_the_previous_checkpoint_stays(tiny, tmp_path, monkeypatch):
    from orbax.checkpoint import CheckpointManager

    saved = CheckpointManager.save

    def save(self, step, *args, **kwargs):
        if step == 16:
            raise OSError(28, "No space left on device")
        return saved(self, step, *args, **kwargs)

    monkeypatch.setattr(CheckpointManager, "save", save)
    lines = []
    result = train(tiny(epochs=3), workdir=tmp_path, progress=Progress(line=lines.append))
    assert result.steps == 24
    assert sum("step 16 could not be saved" in line and "No space left" in line for line in lines) >= 1
    assert {path.name for path in (tmp_path / "checkpoints" / "last").iterdir() if path.name.isdigit()} == {"8", "24"}


@pytest.mark.slow
# A save under way when the disk fills up leaves orbax with coroutines that nobody awaits.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="mounting a small disk needs root")
def test_a_disk_that_is_really_full_leaves_a_usable_run(tiny, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("this machine does not let root mount")
    try:
        config = tiny(epochs=6, model=ModelConfig("mlp", {"features": (150,)}))
        lines = []
        filler = disk / "filler"

        def fill(step):
            if step == 17:  # after the second checkpoint
                free = shutil.disk_usage(disk).free
                filler.write_bytes(b"x" * max(free - 200_000, 0))

        result = train(config, workdir=disk / "run", progress=Progress(line=lines.append, step=fill))
        assert result.steps == 48
        assert any("could not be saved" in line for line in lines)
        filler.unlink()
        steps = []
        again = train(config, workdir=disk / "run", resume=True, progress=Progress(step=steps.append))
        assert steps, "the last checkpoint on disk is from before the disk was full"
        assert again.test == result.test
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_workdir_of_this_run_or_another_is_not_overwritten(tiny, tmp_path):
    train(tiny(epochs=1), workdir=tmp_path)
    with pytest.raises(ValueError, match="already holds this run: continue it with --resume"):
        train(tiny(epochs=1), workdir=tmp_path)
    with pytest.raises(ValueError, match=r"another run \(it differs in method.name, seed\)"):
        train(tiny(epochs=1, seed=3, method=MethodConfig("ew")), workdir=tmp_path)
    with pytest.raises(ValueError, match="cannot be resumed: the config differs in batch_size"):
        train(tiny(epochs=1, batch_size=32), workdir=tmp_path, resume=True)


def test_config_json_is_complete(tiny, tmp_path):
    train(tiny(epochs=1), workdir=tmp_path)
    record = json.loads((tmp_path / "config.json").read_text())
    assert record["config"]["optimizer"]["learning_rate"] == 3e-3
    assert record["versions"]["jax"] == jax.__version__
    assert record["data_spec"]["tasks"]["left"] == {"kind": "classification", "num_classes": 10}
    assert {"git_commit", "python", "device"} <= record.keys()


@pytest.mark.parametrize(
    "model",
    [
        ModelConfig("mlp", {"features": (16,)}),
        pytest.param(ModelConfig("resnet18", {"width": 2, "blocks": (1,), "small_stem": True}), marks=pytest.mark.slow),
    ],
)
def test_a_trained_run_can_be_loaded_and_applied(tiny, tmp_path, model):
    config = tiny(epochs=2, model=model)
    result = train(config, workdir=tmp_path)
    run = mtl.load(tmp_path)
    assert run.config == mtl.load(str(tmp_path)).config
    split = load_data(config).splits["test"]
    outputs, _ = run.model.apply(run.params, run.model_state, split.inputs)
    for task in run.tasks:
        accuracy = np.mean(np.argmax(outputs[task], axis=1) == split.targets[task])
        assert accuracy == pytest.approx(result.test[task]["accuracy"], abs=1e-6)


def test_loading_nothing_says_so(tmp_path, tiny):
    with pytest.raises(ValueError, match="holds no run"):
        mtl.load(tmp_path)
    train(tiny(epochs=1, checkpoints=False), workdir=tmp_path)
    with pytest.raises(ValueError, match="holds no checkpoint"):
        mtl.load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is damaged"):
        mtl.load(tmp_path)


def test_a_workdir_that_cannot_be_made_is_one_clear_sentence(tiny, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot write to the workdir"):
        train(tiny(epochs=1), workdir=Path(tmp_path / "file" / "run"))
