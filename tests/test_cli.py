"""The command line, as a person uses it: real processes' main, its output and its exit status."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import mtljax as mtl
from mtljax.cli import main

ROOT = Path(__file__).parents[1]
TINY = """
from mtljax.ablation import StudyConfig
from mtljax.training import *
def get_config():
    return StudyConfig(
        name="cli", question="Which?", seeds=(0,), weight_grid=0, methods=(MethodConfig("ew"), MethodConfig("cagrad")),
        base=TrainConfig(
            name="cli", data=DataConfig("digits", {"num_train": 256, "num_validation": 100, "num_test": 100}),
            model=ModelConfig("mlp", {"features": (16,)}), batch_size=64, epochs=1, tensorboard=False, devices=1,
        ),
    )
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A small study's config file, in an empty current directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MTLJAX_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "cli.py"
    path.write_text(TINY)
    return str(path)


@pytest.mark.parametrize("command", ["train", "evaluate", "ablate", "report", "analyze", "methods"])
def test_every_command_has_help_with_an_example(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert f"example: mtljax {command}" in capsys.readouterr().out


@pytest.mark.parametrize(("words", "status"), [(["methods"], 1), (["methods", "--markdown"], 128 + signal.SIGPIPE)])
def test_a_reader_that_has_left_gets_no_traceback(words, status):  # rich itself ends with 1
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "mtljax.cli", *words]
    ended = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (status, "")


def test_train_then_evaluate_prints_the_same_test_metrics(config, capsys):
    assert main(["train", config, "--method.name=cagrad", "--method.options.c=0.5"]) == 0
    trained = capsys.readouterr().out
    workdir = Path("runs/cli-cagrad-seed0")
    assert str(workdir) in trained
    assert main(["evaluate", str(workdir), "--split", "test"]) == 0
    evaluated = capsys.readouterr().out
    for task in ("left", "right"):
        train_row = re.search(rf"{task}.*", trained).group()
        test_row = re.search(rf"{task}.*", evaluated).group()
        assert re.findall(r"[\d.]+", train_row)[2:] == re.findall(r"[\d.]+", test_row)


def test_ablate_prints_a_table_and_where_the_report_is(config, capsys, monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    assert main(["ablate", config, "--base.epochs=2"]) == 0
    out = capsys.readouterr().out
    assert "Δm" in out
    assert "cagrad" in out
    assert "single-task" in out
    assert Path("runs/cli/report.html").is_file()
    assert Path("runs/cli/results.csv").is_file()
    Path("runs/cli/report.html").unlink()
    assert main(["report", "runs/cli"]) == 0
    assert Path("runs/cli/report.html").is_file()
    assert list(Path("cache/compiled").iterdir())  # programs are kept for the next process

    assert main(["ablate", config, "--base.epochs=2", "--dry-run"]) == 0
    assert "4 cells, 0 left to run" in capsys.readouterr().out
    assert main(["ablate", config, "--base.epochs=2", "--seeds=(0, 1)", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "8 cells, 4 left to run; they share 4 programs, each compiled once" in out
    assert "(from 4 finished cells)" in out
    assert len(list(Path("runs/cli/cells").iterdir())) == 4


def test_methods_lists_every_method(capsys):
    assert main(["methods"]) == 0
    out = capsys.readouterr().out
    for name in mtl.methods.names():
        assert name in out
        assert mtl.methods.describe(name).paper in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "CONFIG", "--method.name=cagard"], "unknown method 'cagard': did you mean 'cagrad'"),
        (["train", "CONFIG", "--data.name=digit"], "unknown data set 'digit': did you mean 'digits'"),
        (["train", "CONFIG", "--learning_rate=1"], "unknown config key 'learning_rate'"),
        (["train", "CONFIG", "--epochs=few"], "epochs must be an integer, got 'few'"),
        (["train", "CONFIG", "--tasks=lft"], "unknown task of data set digits 'lft': did you mean 'left'"),
        (["train", "missing.py"], "no config file missing.py"),
        (["evaluate", "nowhere"], "nowhere holds no run"),
        (["report", "nowhere"], "nowhere"),
        (["ablate", "CONFIG", "--base.method.name=cagard", "--seeds=()"], "is empty: seeds lists nothing"),
        (
            ["ablate", "CONFIG", "--weight_grid=9999"],
            "has about 10,003 cells, more than 10,000: add --yes if you mean it",
        ),
        (["ablate", "CONFIG", "--strategy=vmpa", "--dry-run"], "unknown strategy 'vmpa': did you mean 'vmap'"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_status_2(config, capsys, arguments, message):
    assert main([config if argument == "CONFIG" else argument for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_absent_tfds_data_says_what_to_set(config, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("MTLJAX_DATA", str(tmp_path / "nothing"))
    monkeypatch.setenv("MTLJAX_CACHE", str(tmp_path / "cache"))
    arguments = ["train", config, "--data.name=multi_mnist", "--data.options={'num_train': 100, 'download': False}"]
    assert main(arguments) == 2
    assert "MTLJAX_DATA" in capsys.readouterr().err


def test_a_loss_that_explodes_is_exit_status_1(config, capsys):
    assert main(["train", config, "--optimizer.name=sgd", "--optimizer.learning_rate=1e12", "--epochs=9"]) == 1
    assert "non-finite" in capsys.readouterr().err


def test_the_shipped_configs_can_be_read():
    from mtljax.ablation import StudyConfig
    from mtljax.analysis.toy import ToyConfig
    from mtljax.training.config import load_config

    commands = {StudyConfig: "mtljax ablate", ToyConfig: "mtljax analyze"}
    paths = sorted((ROOT / "configs").rglob("*.py"))
    assert {"digits.py", "multi_mnist.py"} <= {path.name for path in paths}
    for path in paths:
        assert commands[type(load_config(path))] in path.read_text()


def test_ablate_leaves_strategy_and_jobs_to_the_machine(tmp_path, monkeypatch):
    seen = {}

    def run_study(*args, **options):
        del args
        seen.update(options)
        raise ValueError("enough")

    monkeypatch.setattr("mtljax.commands.ablate.run_study", run_study)
    assert main(["ablate", "configs/digits.py", "--workdir", str(tmp_path)]) == 2
    assert (seen["strategy"], seen["jobs"]) == (None, None)
