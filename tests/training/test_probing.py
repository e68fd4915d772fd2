"""Probes: they change nothing, see the batch of the step, and what an epoch gathered outlives an interruption."""

import math
import os
import signal

import jax
import numpy as np
import pytest

import mtljax as mtl
from mtljax.ablation.cell import Cell, Context
from mtljax.ablation.strategies import STRATEGIES
from mtljax.training import MethodConfig, OptimizerConfig, Progress, train
from mtljax.training.logs import RunLog, read_records
from mtljax.training.loop import load_data
from mtljax.training.probing import GATHERED, Probe, Prober
from mtljax.training.program import build_program, data_key


def measure(losses_fn, params, rest, batch, key):
    """What there is to see: the examples, a key, and where the parameters are."""
    del losses_fn, rest
    length = sum(float(np.sum(np.square(leaf))) for leaf in jax.tree.leaves(params))
    return {
        "examples": np.asarray(batch.inputs, np.int64).sum(axis=(1, 2, 3)),
        "key": np.asarray(key),
        "length": np.array([length]),
    }


def summary(tasks, found):
    return {"tasks": list(tasks), "seen": [{name: each[name].tolist() for name in sorted(each)} for each in found]}


PROBE = Probe(measure, summary)


def probes(records):
    return [record for record in records if record["split"] == "probe"]


def others(records):
    return [{**record, "seconds": None} for record in records if record["split"] != "probe"]


def timeless(records):
    return [{**record, "seconds": None} for record in records]


@pytest.fixture(scope="module")
def shared():
    """Data and program by config, so that each structure compiles once."""
    kept = {}

    def of(config):
        key = repr((config.data, config.method, config.optimizer))
        if key not in kept:
            data = load_data(config)
            kept[key] = {"data": data, "program": build_program(config, data)}
        return kept[key]

    return of


RUNS = {}


@pytest.fixture
def watched(tiny, shared):
    """A run without and one with the package's own probe, of tasks whose losses differ by a factor of ten."""
    if not RUNS:
        for every in (0, 3):
            config = tiny(epochs=2, loss_scales={"right": 10.0}, probe_every=every)
            RUNS[every] = train(config, **shared(config), probe=mtl.analysis.sample_probe)
    return RUNS[0], RUNS[3]


def test_a_probe_changes_no_bit_of_a_run(watched):
    plain, probed = watched
    assert others(plain.records) == others(probed.records)
    for a, b in zip(jax.tree.leaves(plain.params), jax.tree.leaves(probed.params), strict=True):
        np.testing.assert_array_equal(a, b)
    assert plain.test == probed.test


def test_the_log_holds_both_kinds_of_conflict_once_an_epoch(watched):
    found = probes(watched[1].records)
    assert [(record["step"], record["epoch"], record["probe"]["looks"]) for record in found] == [(8, 1, 3), (16, 2, 3)]
    for record in found:
        seen = record["probe"]
        assert list(seen["layers"]) == ["shared/Dense_0"]
        for part in (seen, seen["layers"]["shared/Dense_0"]):
            for kind, pairs in (("between_tasks", 3 * 8), ("between_samples", 3 * 2 * 28)):
                for numbers in part[kind].values():
                    assert numbers["pairs"] == pairs
                    assert numbers["low"] <= numbers["mean"] <= numbers["high"]
        quantiles = seen["between_tasks"]["cosine"]["quantiles"]
        assert len(quantiles) == 21
        assert quantiles == sorted(quantiles)
        (one, cosine), (mirrored, itself) = seen["task_cosines"]
        assert (one, itself, cosine) == (1, 1, mirrored)
        assert cosine == pytest.approx(seen["between_tasks"]["cosine"]["mean"], rel=1e-4)
    # Ten times the loss, ten times the gradient: lengths differ between tasks, not between the examples of one.
    first = found[0]["probe"]
    assert first["between_tasks"]["magnitude"]["mean"] < 0.4 < first["between_samples"]["magnitude"]["mean"]


def test_the_probe_sees_the_batch_of_the_step_and_the_parameters_before_it(tiny, shared):
    config = tiny(
        epochs=1, method=MethodConfig("ew"), optimizer=OptimizerConfig("sgd", learning_rate=0.0), probe_every=4
    )
    kept = shared(config)
    (record,) = probes(train(config, **kept, probe=PROBE).records)
    seen = record["probe"]["seen"]
    order = np.asarray(kept["program"].shuffle(data_key(config), 0))
    images = np.asarray(kept["data"].splits["train"].inputs, np.int64).sum(axis=(1, 2, 3))
    assert record["probe"]["looks"] == 2
    for look, batch in zip(seen, (0, 4), strict=True):
        assert len(look["examples"]) == 8
        assert set(look["examples"]) <= set(images[order[64 * batch : 64 * (batch + 1)]])
    assert seen[0]["length"] == seen[1]["length"]  # nothing moved
    assert seen[0]["examples"] != seen[1]["examples"]
    assert seen[0]["key"] != seen[1]["key"]


def test_a_resumed_run_keeps_what_the_epoch_had_gathered(tiny, shared, tmp_path):
    config = tiny(epochs=3, probe_every=2, evaluate_every=5)
    kept = shared(config) | {"probe": PROBE}
    whole = train(config, workdir=tmp_path / "whole", **kept)
    stop = Progress(step=lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == 13 else None)
    stopped = train(config, workdir=tmp_path / "parts", progress=stop, **kept)
    assert (stopped.interrupted, stopped.steps) == ("SIGTERM", 13)
    assert [record["step"] for record in probes(stopped.records)] == [8]
    with np.load(tmp_path / "parts" / GATHERED) as file:
        assert {name.split("/")[0] for name in file.files} == {"8", "10", "12"}
    resumed = train(config, workdir=tmp_path / "parts", resume=True, **kept)
    assert [record["step"] for record in probes(resumed.records)] == [8, 16, 24]
    records = [timeless(read_records(tmp_path / name / "metrics.jsonl")) for name in ("whole", "parts")]
    assert records[0] == records[1]
    assert len(whole.records) == len(resumed.records)


@pytest.fixture
def prober(tiny, shared, tmp_path):
    """`prober(warnings)` is one that may look at every step, of a run in tmp_path."""
    config = tiny(probe_every=1)
    kept = shared(config)
    params = {"shared": {}, "heads": {}}

    def made(warnings):
        return Prober(config, kept["data"], kept["program"], PROBE, tmp_path, warnings.append), (params, ({}, None))

    return made


def test_an_epoch_written_leaves_what_an_older_checkpoint_needs(prober, tmp_path):
    warnings = []
    look, network = prober(warnings)
    look.look(6, network, lambda: np.arange(512))
    look.save()  # with the checkpoint at step 7
    log = RunLog(tmp_path, warnings.append, tensorboard=False, until=None)
    look.write(log, 8, 1.0)
    log.close()
    look.save()  # with the checkpoint at step 8: nothing is gathered
    assert (tmp_path / GATHERED).is_file()
    for step, kept in ((7, [6]), (6, []), (8, []), (15, [])):  # of the same epoch, before the look, later epochs
        again, _ = prober(warnings)
        again.restore(step)
        assert list(again._measured) == kept
    assert warnings == []


def test_a_damaged_file_costs_what_it_holds_and_a_warning(prober, tmp_path):
    warnings = []
    look, network = prober(warnings)
    look.look(8, network, lambda: np.arange(512))
    look.save()
    again, _ = prober(warnings)
    again.restore(9)
    assert list(again._measured) == [8]
    another, _ = prober(warnings)
    another.restore(17)  # of the next epoch
    assert (another._measured, warnings) == ({}, [])
    (tmp_path / GATHERED).write_bytes((tmp_path / GATHERED).read_bytes()[:100])
    damaged, _ = prober(warnings)
    damaged.restore(9)
    assert damaged._measured == {}
    assert warnings[0].startswith(f"{GATHERED} is damaged")


def test_without_a_probe_there_is_nothing_to_measure(tiny, shared):
    config = tiny(probe_every=5)
    with pytest.raises(ValueError, match="probe_every=5, but there is no probe: pass train"):
        train(config, **shared(config))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"probe_every": -1}, "probe_every must be at least 0, got -1"),
        ({"probe_samples": 1}, "probe_samples must be at least 2, got 1"),
    ],
)
def test_bad_fields_are_one_sentence(tiny, fields, message):
    with pytest.raises(ValueError, match=message):
        tiny(**fields)


@pytest.mark.slow  # compiles two programs
def test_many_runs_in_one_program_are_probed_like_one(tiny):
    cells = [
        Cell(f"seed{seed}", "multi", "ew", "sgd", config)
        for seed in (0, 1)
        for config in [
            tiny(
                epochs=2,
                seed=seed,
                name=f"seed{seed}",
                method=MethodConfig("ew"),
                optimizer=OptimizerConfig("sgd", learning_rate=0.1),
                probe_every=3,
                checkpoints=False,
            )
        ]
    ]
    found = {
        strategy: {
            record["cell"]: probes(record["history"]) for record in STRATEGIES[strategy](cells, Context(probe=PROBE))
        }
        for strategy in ("sequential", "vmap")
    }
    for name, expected in found["sequential"].items():
        assert len(expected) == 2
        for one, other in zip(found["vmap"][name], expected, strict=True):
            assert (one["step"], one["epoch"]) == (other["step"], other["epoch"])
            for a, b in zip(one["probe"]["seen"], other["probe"]["seen"], strict=True):
                assert (a["examples"], a["key"]) == (b["examples"], b["key"])
                assert math.isclose(a["length"][0], b["length"][0], rel_tol=1e-5)
