"""Strategies: all give the numbers of the sequential one, and what ends one cell ends no other."""

import dataclasses
import importlib
import importlib.util
import multiprocessing
import os
import re
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import pytest

from mtljax.ablation.cell import Cell, Context, StudyInterruptedError, StudyProgress
from mtljax.ablation.strategies import STRATEGIES
from mtljax.ablation.strategies.dispatch import WorkerLostError
from mtljax.training import (
    DataConfig,
    MethodConfig,
    ModelConfig,
    NonFiniteLossError,
    OptimizerConfig,
    Progress,
    Result,
    TrainConfig,
)
from mtljax.training.compilation import kept_programs

BASE = TrainConfig(
    data=DataConfig("digits", {"num_train": 256, "num_validation": 100, "num_test": 100}),
    model=ModelConfig("mlp", {"features": (16,), "dropout": 0.1}),
    batch_size=64,
    epochs=3,
    devices=1,
    log_every=3,
    checkpoints=False,
    tensorboard=False,
)
VECTORISED, PROCESSES, RAY = (
    importlib.import_module(f"mtljax.ablation.strategies.{name}") for name in ("vectorised", "processes", "ray_cluster")
)


def cell(name, method="mgda", learning_rate=1e-3, options=None, **changes):
    options = {"update_every": 3} if options is None else options
    optimizer = OptimizerConfig("adam", learning_rate=learning_rate)
    config = dataclasses.replace(BASE, name=name, method=MethodConfig(method, options), optimizer=optimizer, **changes)
    return Cell(name, "multi", method, "adam", config)


# One structure; one cell diverges, one stops early.
CELLS = [
    cell("plain"),
    cell("other", seed=1),
    cell("nan", learning_rate=1e38),
    cell("still", learning_rate=0.0, patience=1, seed=2),
    cell("fast", learning_rate=1e-2, seed=2),
]
MIXED = [cell("ew-0", "ew", options={}), *CELLS, cell("ew-1", "ew", options={}, seed=1)]


def run(strategy, cells=CELLS, **context):
    return {record["cell"]: record for record in STRATEGIES[strategy](cells, Context(**context))}


@pytest.fixture(scope="module", autouse=True)
def _compiled_once(tmp_path_factory):
    """What one test compiled, others and their processes read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("compiled")))
        with kept_programs():
            yield


@pytest.fixture(scope="module")
def sequential(_compiled_once):
    """What all others must give."""
    return run("sequential")


@pytest.fixture(scope="module")
def mixed(_compiled_once):
    """The same of two structures."""
    return run("sequential", MIXED)


def assert_same(records, expected):
    """Equal to rounding: the same steps, the same order of sums, another program."""
    assert records.keys() == expected.keys()
    for name, record in records.items():
        other = expected[name]
        assert record["status"] == other["status"]
        if record["status"] == "failed":
            assert re.findall(r"at step \d+", record["reason"]) == re.findall(r"at step \d+", other["reason"])
            continue
        assert (record["best_step"], record["steps"], record["epochs"]) == (
            other["best_step"],
            other["steps"],
            other["epochs"],
        )
        for mine, theirs in zip(_plain(record), _plain(other), strict=True):
            assert mine == (pytest.approx(theirs, rel=2e-4, abs=2e-5) if isinstance(mine, float) else theirs)
        assert record.keys() == other.keys()
        assert record["seconds_per_step"] > 0
        assert record["seconds"] > 0


def _plain(record):
    history = [{key: value for key, value in line.items() if key != "seconds"} for line in record["history"]]
    return jax.tree.leaves((record["validation"], record["test"], history))


def test_a_cell_that_diverges_fails_and_one_that_does_not_improve_stops(sequential):
    assert list(sequential) == [c.name for c in CELLS]
    assert [name for name, record in sequential.items() if record["status"] == "failed"] == ["nan"]
    assert sequential["still"]["steps"] == 8  # of 12: the second evaluation was no better than the first


def test_vmap_gives_the_numbers_of_sequential_and_a_nan_fails_alone(sequential):
    started = []
    records = run("vmap", progress=StudyProgress(cell=started.append), jobs=3)  # 3 and 2
    assert_same(records, sequential)
    assert started == list(records) == list(sequential)


@pytest.fixture
def one_device(monkeypatch):
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])


@pytest.fixture
def blocks(monkeypatch):
    """The names of the cells in each block that vmap would train; nothing is trained."""
    found = []

    def fails(configs, *_, **__):
        found.append([config.name for config in configs])
        return [NonFiniteLossError("not trained") for _ in configs]

    monkeypatch.setattr(VECTORISED, "train_block", fails)
    return found


def test_cells_of_a_structure_are_run_together_so_that_each_compiles_once(blocks, monkeypatch):
    module = importlib.import_module("mtljax.ablation.strategies.sequential")
    monkeypatch.setattr(module, "run_in", lambda cell, context: {"cell": cell.name})
    grouped = ["ew-0", "ew-1", *(c.name for c in CELLS)]
    assert list(run("sequential", MIXED)) == grouped
    assert list(run("vmap", MIXED)) == grouped
    assert blocks == [grouped[:2], grouped[2:]]


def test_numbers_of_two_types_and_two_rhythms_of_logging_are_not_stacked(blocks):
    run("vmap", [cell("int", "cagrad", options={"c": 1}), cell("float", "cagrad", options={"c": 0.5})])
    run("vmap", [cell("a"), cell("b", log_every=4), cell("c", seed=1)])
    assert blocks == [["int"], ["float"], ["a", "c"], ["b"]]


SGD = OptimizerConfig("sgd", 3e-2, {"momentum": 0.9}, schedule="cosine", clip_norm=0.5)
RESNET = ModelConfig("resnet18", {"width": 2, "blocks": (1,), "features": 8, "small_stem": True})


@pytest.mark.slow
@pytest.mark.parametrize("model", [BASE.model, RESNET], ids=["mlp", "resnet"])
def test_vmap_keeps_momentum_schedules_clipping_method_keys_and_batch_statistics_apart(model):
    configs = [cell(f"rlw-{seed}", "rlw", options={}, seed=seed, model=model, epochs=2) for seed in (0, 1)]
    cells = [c._replace(config=dataclasses.replace(c.config, optimizer=SGD)) for c in configs]
    expected = run("sequential", cells)
    assert_same(run("vmap", cells), expected)
    weights = [record["history"][0]["weights"] for record in expected.values()]
    assert weights[0] != weights[1]  # each draws its own


@pytest.mark.slow
def test_vmap_gives_the_numbers_of_sequential_for_several_structures(mixed):
    assert_same(run("vmap", MIXED), mixed)


@pytest.mark.usefixtures("one_device")
def test_vmap_takes_half_as_many_cells_when_memory_runs_out(monkeypatch):
    sizes = []

    def short_of_memory(configs, states, *, size, **_):
        sizes.append((len(configs), size))
        if size > 2:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes.")
        return [Result({}, {}, 0, 0, 0.1, [], None, None, None) for _ in configs]

    monkeypatch.setattr(VECTORISED, "train_block", short_of_memory)
    records = run("vmap")
    assert sizes == [(5, 5), (2, 2), (2, 2), (1, 2)]
    assert list(records) == [c.name for c in CELLS]
    assert {record["status"] for record in records.values()} == {"finished"}


def test_vmap_spreads_a_block_over_the_devices_and_halves_it_down_to_one_cell_each(monkeypatch):
    found = []

    def short_of_memory(configs, states, *, size, block, **_):
        found.append((len(configs), size, len(block.devices)))
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes.")

    monkeypatch.setattr(VECTORISED, "train_block", short_of_memory)
    monkeypatch.setattr(VECTORISED, "init_state", lambda *_: None)
    cells = [cell(f"{seed}", seed=seed) for seed in range(20)]
    assert {record["status"] for record in run("vmap", cells).values()} == {"failed"}
    assert found == [(20, 20, 8), (10, 10, 8), (7, 7, 8), (7, 7, 8), (6, 7, 8)]
    run("vmap", cells[:3])
    assert found[-1] == (3, 3, 3)


def test_vmap_records_what_does_not_fit_alone_and_goes_on(monkeypatch):
    def no_memory(*_, **__):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes.")

    monkeypatch.setattr(VECTORISED, "train_block", no_memory)
    records = run("vmap", CELLS[:3], jobs=2)
    assert [record["status"] for record in records.values()] == ["failed"] * 3
    assert "out of memory" in records["plain"]["reason"]


@pytest.mark.usefixtures("one_device")
def test_vmap_fails_a_block_whose_values_are_refused_and_raises_what_is_no_cells_own(monkeypatch):
    errors: list[Exception] = [ValueError("the batch is too odd"), MemoryError(), MemoryError(), MemoryError()]
    sizes = []

    def fails(configs, *_, **__):
        sizes.append(len(configs))
        raise errors.pop(0)

    monkeypatch.setattr(VECTORISED, "train_block", fails)
    records = run("vmap", CELLS[:4], jobs=2)
    assert sizes == [2, 2, 1, 1]  # halved where memory ran out
    reasons = [record["reason"] for record in records.values()]
    assert reasons[:2] == ["the batch is too odd"] * 2
    assert all(reason.startswith("out of memory") for reason in reasons[2:])
    errors = [jax.errors.JaxRuntimeError("INTERNAL: the device is gone")]
    with pytest.raises(jax.errors.JaxRuntimeError, match="the device is gone"):
        run("vmap", CELLS[:1])


def test_vmap_fails_refused_values_and_goes_on(blocks):
    bad = [cell("bad", options={"normalize": "never"}), cell("negative", "cagrad", options={"c": -1.0})]
    records = run("vmap", [*bad, CELLS[0]])
    reasons = {name: record["reason"].split(":")[0] for name, record in records.items()}
    assert reasons == {"bad": "mgda", "negative": "cagrad", "plain": "not trained"}
    assert blocks == [["plain"]]


@pytest.mark.parametrize("strategy", [pytest.param("sequential", marks=pytest.mark.slow), "vmap"])
def test_a_signal_ends_a_strategy_at_a_step(strategy):
    seen = []

    def step(number):
        seen.append(number)
        if number == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(StudyInterruptedError, match="SIGTERM"):
        run(strategy, progress=StudyProgress(run=Progress(step=step)), jobs=3)
    assert seen[-1] == 3


def test_no_cells_is_no_work():
    for name in ("sequential", "vmap"):
        assert run(name, []) == {}


def test_ray_that_is_missing_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r'pip install "mtljax\[ray\]"'):
        run("ray", CELLS[:1])


@pytest.mark.slow
def test_processes_give_the_numbers_of_sequential(mixed):
    assert_same(run("processes", MIXED, jobs=2), mixed)
    assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_a_killed_process_fails_its_cell_alone(sequential):
    def started(name):
        if name == "other":  # the worker is about to get it
            (child,) = multiprocessing.active_children()
            os.kill(child.pid, signal.SIGKILL)
            child.join()

    cells = [CELLS[0], CELLS[1], CELLS[4]]
    records = run("processes", cells, jobs=1, progress=StudyProgress(cell=started))
    assert [record["status"] for record in records.values()] == ["finished", "failed", "finished"]
    assert "was killed (SIGKILL)" in records["other"]["reason"]
    del records["other"]
    assert_same(records, {name: sequential[name] for name in records})
    assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_a_signal_stops_all_processes_and_what_is_finished_was_given():
    given = []

    def started(name):
        if name == "other":
            os.kill(os.getpid(), signal.SIGTERM)

    context = Context(jobs=1, progress=StudyProgress(cell=started))
    with pytest.raises(StudyInterruptedError, match="SIGTERM"):
        given.extend(record["cell"] for record in STRATEGIES["processes"](CELLS, context))
    assert given in (["plain"], ["plain", "other"])
    assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_an_error_in_a_process_reaches_the_caller():
    config = dataclasses.replace(BASE, data=DataConfig("no-such-data"))
    with pytest.raises(ValueError, match="no-such-data"):
        run("processes", [Cell("x", "multi", "ew", "adam", config)], jobs=1)


def test_a_process_that_does_not_start_is_an_error_of_the_system():
    worker: Any = SimpleNamespace(ready=False, process=SimpleNamespace(exitcode=1))
    assert isinstance(PROCESSES._exit_error(worker), OSError)
    assert "could not start (exit status 1;" in str(PROCESSES._exit_error(worker))
    assert isinstance(PROCESSES._exit_error(SimpleNamespace(ready=True, process=worker.process)), WorkerLostError)


def test_the_cores_are_counted_where_the_system_knows_no_affinity(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert PROCESSES.cores() == os.cpu_count()
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert PROCESSES.cores() == 1


class RayError(Exception):
    """As Ray has them: all others are of this kind."""


class RayTaskError(RayError):
    """Of the code that ran."""

    cause = ValueError("no such data")


class OutOfMemoryError(RayError):
    """Of Ray itself."""


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (RayTaskError("a long traceback"), ValueError, "no such data"),
        (OutOfMemoryError("the node is full\nand more"), WorkerLostError, r"Ray worker died \(the node is full\)"),
        (RayError(), WorkerLostError, r"Ray worker died \(RayError\)"),
    ],
)
def test_what_ray_says_of_a_worker_is_told_from_what_the_cell_raised(error, kind, message):
    def get(reference):
        raise error

    fake: Any = SimpleNamespace(get=get, exceptions=SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError))
    reply = RAY._reply(fake, None)
    assert type(reply) is kind
    assert re.search(message, str(reply))


needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason='Ray is an extra: pip install "mtljax[ray]"'
)


@pytest.mark.slow
@needs_ray
def test_ray_that_does_not_answer_is_told_at_once(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(ValueError, match=r"RAY_ADDRESS=127\.0\.0\.1:1: no Ray cluster answers there"):
        run("ray")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # Ray's own files
@needs_ray
def test_ray_gives_the_numbers_of_sequential_and_a_killed_worker_fails_alone(mixed, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    killed, nodes = [], []

    def started(name):
        if name == "nan":  # the worker is about to get it
            killed.extend(_kill_runners())
            nodes.extend(node["NodeManagerAddress"] for node in importlib.import_module("ray").nodes())

    records = run("ray", MIXED, jobs=1, progress=StudyProgress(cell=started))
    assert len(killed) == 1
    assert nodes == ["127.0.0.1"]  # nothing listens to other machines
    assert not importlib.import_module("ray").is_initialized()  # what was started was stopped
    assert records["nan"]["status"] == "failed"
    assert "Ray worker died" in records["nan"]["reason"]
    records["nan"] = mixed["nan"]
    assert_same(records, mixed)


def _kill_runners():
    """Kills the actors among the processes that this one started."""
    parents, runners = {}, []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            pid, stat = int(path.name), (path / "stat").read_text().rpartition(")")[2].split()
            parents[pid] = int(stat[1])
            if (path / "cmdline").read_bytes().startswith(b"ray::_Runner"):
                runners.append(pid)
        except OSError:
            continue
    own = []
    for pid in runners:
        above = pid
        while above > 1 and above != os.getpid():
            above = parents.get(above, 0)
        if above == os.getpid():
            os.kill(pid, signal.SIGKILL)
            own.append(pid)
    return own
