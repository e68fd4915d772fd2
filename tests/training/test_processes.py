"""Two processes of four devices each, on localhost, train what one device trains; if one dies, all is not lost."""

import os
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import mtljax as mtl
from mtljax.cli import main
from mtljax.training import processes
from mtljax.training.logs import read_records

CONFIG = """
from mtljax.training import *
def get_config():
    return TrainConfig(
        name="several", data=DataConfig("digits", {"num_train": 512, "num_validation": 200, "num_test": 200}),
        model=ModelConfig("mlp", {"features": (32,)}), method=MethodConfig("pcgrad"),
        optimizer=OptimizerConfig("sgd", learning_rate=0.1),
        batch_size=64, epochs=3, log_every=3, tensorboard=False,
    )
"""
RUN = "import sys; from mtljax.cli import main; sys.exit(main(sys.argv[1:]))"
PATIENCE = 240  # seconds, on a slow machine; a death is noticed after processes.HEARTBEAT_SECONDS


def free_port():
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


class Pair:
    """Two processes with one command; only the first has a workdir that is used, there is no shared file system."""

    def __init__(self, directory, *arguments, workdirs=("first", "second")):
        address = f"--distributed=localhost:{free_port()}"
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        }
        self.processes = []
        self.outputs = []
        for i, workdir in enumerate(workdirs):
            command = ["train", directory / "several.py", address, "--num_processes=2", f"--process_id={i}"]
            command += ["--workdir", directory / workdir, *arguments]
            output = directory / f"output{len(list(directory.glob('output*')))}"
            self.outputs.append(output)
            with output.open("w") as file:
                self.processes.append(
                    subprocess.Popen(
                        [sys.executable, "-c", RUN, *map(str, command)],
                        stdout=file,
                        stderr=subprocess.STDOUT,
                        env=environment,
                    )
                )

    def wait(self):
        """Both exit statuses, and what both said."""
        try:
            statuses = [process.wait(PATIENCE) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
        return statuses, self.said()

    def said(self):
        return [output.read_text(errors="replace") for output in self.outputs]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The directory of the config, and the parameters that one process with one device trains."""
    directory = tmp_path_factory.mktemp("several")
    (directory / "several.py").write_text(CONFIG)
    assert main(["train", str(directory / "several.py"), "--devices=1", "--workdir", str(directory / "one")]) == 0
    return directory


def assert_like_one(workdir, one):
    for a, b in zip(jax.tree.leaves(mtl.load(workdir).params), jax.tree.leaves(mtl.load(one).params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * float(np.abs(b).max()))
    steps = [[(r["step"], r["split"]) for r in read_records(w / "metrics.jsonl")] for w in (workdir, one)]
    assert steps[0] == steps[1]


@pytest.mark.slow
@pytest.mark.parametrize("options", [("--parallel=pmap", "--reduce=scatter"), ("--parallel=jit",)], ids=" ".join)
def test_two_processes_of_four_devices_train_what_one_device_trains(one, tmp_path, options):
    (tmp_path / "several.py").write_text(CONFIG)
    statuses, said = Pair(tmp_path, *options).wait()
    assert statuses == [0, 0], said
    assert_like_one(tmp_path / "first", one / "one")
    assert not (tmp_path / "second").exists()
    assert "selected at step" in said[0]
    assert not [line for line in said[1].splitlines() if line and "[Gloo]" not in line and "peer ranks" not in line]


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_when_a_process_is_killed_the_other_says_so_and_the_run_resumes(one, tmp_path, victim):
    (tmp_path / "several.py").write_text(CONFIG)
    pair = Pair(tmp_path, "--epochs=2000")
    deadline = time.monotonic() + PATIENCE
    while not (tmp_path / "first" / "checkpoints" / "last" / "8").exists():
        assert time.monotonic() < deadline, pair.said()
        assert all(process.poll() is None for process in pair.processes), pair.said()
        time.sleep(0.05)
    pair.processes[victim].send_signal(signal.SIGKILL)
    start = time.monotonic()
    statuses, said = pair.wait()
    assert time.monotonic() - start < 2 * processes.HEARTBEAT_SECONDS
    assert statuses[1 - victim] == 1, said
    sentence = said[1 - victim].strip().splitlines()[-1]
    assert re.match(rf"mtljax: process {1 - victim}: the run in .* lost another of its processes and cannot", sentence)
    again = re.search(r"continue with: mtljax (train .*)", sentence).group(1)
    assert "--resume" in again
    assert f"--process_id={1 - victim}" in again

    # Resumed alone and by both; where it was when the other died does not matter.
    saved = (tmp_path / "first" / "checkpoints" / "last").iterdir()
    done = max(int(path.name) for path in saved if path.name.isdigit())
    epochs = f"--epochs={done // 8 + 2}"
    assert main(["train", str(one / "several.py"), "--devices=1", epochs, "--workdir", str(tmp_path / "whole")]) == 0
    statuses, said = Pair(tmp_path, epochs, "--resume").wait()
    assert statuses == [0, 0], said
    assert_like_one(tmp_path / "first", tmp_path / "whole")


@pytest.mark.slow
def test_a_signal_to_any_process_stops_all_after_saving(tmp_path):
    (tmp_path / "several.py").write_text(CONFIG)
    pair = Pair(tmp_path, "--epochs=2000")
    deadline = time.monotonic() + PATIENCE
    while not (tmp_path / "first" / "checkpoints" / "last" / "8").exists():
        assert time.monotonic() < deadline, pair.said()
        time.sleep(0.05)
    pair.processes[1].send_signal(signal.SIGTERM)
    statuses, said = pair.wait()
    assert statuses == [143, 143], said
    step = re.search(r"SIGTERM: stopped at step (\d+) of .*; continue with: mtljax train .*--resume", said[0]).group(1)
    assert (tmp_path / "first" / "checkpoints" / "last" / step).exists()
    assert "stopped" not in said[1]


@pytest.mark.slow
def test_an_error_of_the_first_process_stops_all(one, tmp_path):
    (tmp_path / "several.py").write_text(CONFIG)
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "config.json").write_text((one / "one" / "config.json").read_text())
    statuses, said = Pair(tmp_path).wait()
    assert statuses == [2, 1], said
    assert "process 0: " in said[0]
    assert "already holds another run (it differs in devices)" in said[0]
    assert "process 1: the first process cannot go on, and says why" in said[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--distributed=localhost:1234"], "several processes need all of --distributed=HOST:PORT, --num_processes=N"),
        (["--distributed=localhost", "--num_processes=2", "--process_id=0"], "expected HOST:PORT of the first process"),
        (["--distributed=h:1", "--num_processes=2", "--process_id=2"], "--process_id=2 is not one of 0 to 1"),
        (["--num_processes=2"], "--num_processes and --process_id go with --distributed=HOST:PORT"),
    ],
)
def test_options_that_do_not_fit_are_one_sentence(tmp_path, capsys, arguments, message):
    (tmp_path / "several.py").write_text(CONFIG)
    assert main(["train", str(tmp_path / "several.py"), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_alone_everything_is_agreed():
    tree = {"a": np.float32([-0.0, np.nan]), "b": 3}
    assert processes.from_main(tree) is tree
    assert processes.text_from_main("text") == "text"
    assert processes.first(lambda: 5) == 5
    assert processes.largest(7) == 7
    assert processes.is_main()
