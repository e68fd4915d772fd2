"""The scripts that judge FS-MTL: which cell is which network, and what follows from numbers whose truth is known."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripts_by_name import script

from mtljax.ablation.grid import cells
from mtljax.analysis.claims import NOT_DECIDED, NOT_REPRODUCED, REPRODUCED
from mtljax.training import DataConfig, ModelConfig, OptimizerConfig, TrainConfig
from mtljax.training.config import load_config, to_dict

ROOT = Path(__file__).parents[1]
TASKS = ("left", "right")


conflicts, verdict = script("fs_mtl_conflicts"), script("fs_mtl_verdict")


def records(study: str, accuracy: Any) -> list[dict[str, Any]]:
    """Finished records of a study of configs/fs_mtl; `accuracy(data, network, seed)` is that of every task."""
    found = []
    for cell in cells(load_config(ROOT / "configs" / "fs_mtl" / f"{study}.py"), TASKS):
        record = {"kind": cell.kind, "config": to_dict(cell.config), "seed": cell.config.seed, "status": "finished"}
        record["tasks"] = list(cell.config.tasks or TASKS)
        value = accuracy(cell.config.data.name, verdict.network(record), cell.config.seed)
        curve: list[dict[str, Any]] = [{"split": "validation"}]
        for step, change in enumerate((-0.1, 0.02, 0.01)):
            metrics = {task: {"accuracy": value + change} for task in record["tasks"]}
            curve.append({"split": "test_curve", "step": step, "metrics": metrics})
        record |= {"test": {task: {"accuracy": value} for task in record["tasks"]}, "history": curve, "seconds": 1.0}
        curve.append({"split": "train", "losses": dict.fromkeys(record["tasks"], 0.5)})
        record |= {"best_step": 2 if record["seed"] else 1, "steps": 2}
        found.append(record)
    return found


def known(data: str, network: tuple[str, str], seed: int) -> float:
    """Flat parts add 2 points, "direct" only 1; nothing does on MultiFashion, and there single networks lose."""
    noise = 1e-4 * np.random.default_rng([seed, len(network[0]), len(network[1])]).normal()
    gain = {"plain": 0.0, "direct": 0.01}.get(network[1], 0.02)
    if data == "multi_fashion":
        gain = -0.02 if network == ("stl", "flat") else 0.0
        noise *= 10
    return 0.8 + gain + noise


def test_the_cpu_profile_runs_every_network_of_every_claim_on_every_set():
    found = records("cpu", known)
    for data in verdict.SETS:
        selected, best = verdict.accuracies(found, data)
        named = {network for _, *pair in verdict.CLAIMS for network in pair}
        assert set(selected) == set(best) == named
        assert all(set(seeds) == {0, 1, 2} for seeds in selected.values())


def test_verdicts_follow_the_truth_and_the_test_selected_number_is_the_best_of_the_curve():
    found = records("cpu", known)
    selected, best = verdict.accuracies(found, "multi_mnist")
    for network, seeds in selected.items():
        assert best[network] == pytest.approx({seed: value + 2 for seed, value in seeds.items()})
    judged = {claim.text.removeprefix("Multi-MNIST: "): claim for claim in verdict.claims("multi_mnist", selected)}
    assert judged["F-mgda > mgda"].verdict == REPRODUCED
    assert judged["F-mgda > mgda"].ours.interval.mean == pytest.approx(2, abs=0.05)
    assert judged["flat > plain, mean of 7"].paper == "+0.82"
    assert judged["decomposed > direct"].verdict == REPRODUCED
    assert judged["F-LS > direct"].paper == "+0.44"
    fashion = {
        claim.text: claim.verdict
        for claim in verdict.claims("multi_fashion", verdict.accuracies(found, "multi_fashion")[0])
    }
    assert fashion["MultiFashion: F-STL > STL"] == NOT_REPRODUCED
    assert fashion["MultiFashion: decomposed > each"] == NOT_DECIDED


def test_a_seed_whose_second_network_failed_does_not_count():
    found = records("cpu", known)
    broken = next(
        r for r in found if r["kind"] == "single" and verdict.network(r) == ("stl", "plain") and r["seed"] == 1
    )
    broken["status"] = "failed"
    assert set(verdict.accuracies(found, broken["config"]["data"]["name"])[0]["stl", "plain"]) == {0, 2}


def test_the_full_profiles_are_those_of_the_paper():
    for name in ("multi_mnist", "multi_fashion", "fashion_and_mnist"):
        study = load_config(ROOT / "configs" / "fs_mtl" / f"{name}.py")
        grid = cells(study, TASKS)
        assert len(grid) == 3 * (2 * 7 + 2 * 2)
        base = study.base
        assert (base.data.name, base.model.encoder, base.batch_size, base.epochs) == (name, "resnet18", 256, 200)
        flats = [method.options for method in study.methods if method.name == "fs_mtl"]
        assert {(o["rho"], o["adaptive"], o["norm"]) for o in flats} == {(2.0, True, "joint")}
        assert {o.get("aggregate", "decomposed") for o in flats} == {"decomposed"}


def test_the_profile_for_one_accelerator_pairs_two_methods_on_two_sets():
    found = records("accelerator", known)
    assert len(found) == 36
    for data in ("multi_mnist", "multi_fashion"):
        selected, _ = verdict.accuracies(found, data)
        assert set(selected) == {
            ("stl", "plain"),
            *((base, kind) for base in ("ew", "cagrad") for kind in ("plain", "decomposed")),
        }
        assert all(set(seeds) == {0, 1, 2} for seeds in selected.values())


def test_a_directory_without_cells_is_one_sentence(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(verdict, "read_cells", lambda directory: ([], []))
    monkeypatch.setattr(sys, "argv", ["fs_mtl_verdict", str(tmp_path)])
    assert verdict.main() == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "holds no finished cells" in printed.err


def test_the_tables_are_printed(capsys, monkeypatch):
    monkeypatch.setattr(verdict, "read_cells", lambda directory: (records("aggregation", known), []))
    monkeypatch.setattr(sys, "argv", ["fs_mtl_verdict", "somewhere"])
    assert verdict.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("| Multi-MNIST: ") for line in lines) == 8
    assert "| MultiFashion | some | 67 | 0.50 |" in lines
    assert lines[-1] == "54 cells finished, 0 failed; they took 54 s in all"


def test_the_conflict_tables_compare_both_ways_by_epoch_and_at_the_end():
    runs = {
        way: [
            conflicts.Run(share + np.arange(21.0) + seed, {"error rate, %": end + seed + 0.1 * gap * seed})
            for seed in range(3)
        ]
        for way, share, end, gap in (("ERM", 40.0, 50.0, 0), ("FS", 10.0, 48.0, 1))
    }
    lines = conflicts.share_table(runs).splitlines()
    assert lines[0] == "| epoch | ERM, % | FS, % |"
    assert [int(line.split("|")[1]) for line in lines[2:]] == [1, *range(2, 21, 2), 21]
    assert lines[2] == "| 1 | 41.0 ± 2.5 | 11.0 ± 2.5 |"
    assert (
        conflicts.end_table(runs, (0, 1, 2)).splitlines()[2] == "| error rate, % | 51 ± 2.5 | 49.1 ± 2.7 | reproduced |"
    )
    axes = conflicts.plot(runs, "title").axes[0]
    np.testing.assert_allclose(axes.lines[1].get_ydata(), 11 + np.arange(21.0))


def test_the_claims_on_conflicts_are_of_the_last_quarter_of_the_epochs():
    def runs(late):
        return [conflicts.Run(np.array([90.0] * 6 + [late + 2 * seed] * 2), {}) for seed in range(3)]

    fewer, half = conflicts.claims_of({"ERM": runs(50.0), "FS": runs(10.0)[::-1]}, (0, 1, 2))
    assert (fewer.verdict, half.verdict) == (REPRODUCED, REPRODUCED)
    assert fewer.ours.interval.mean == pytest.approx(40)
    assert half.ours.interval.mean == pytest.approx(26 - 12)
    more, half = conflicts.claims_of({"ERM": runs(30.0), "FS": runs(60.0)[::-1]}, (0, 1, 2))
    assert (more.verdict, half.verdict) == (NOT_REPRODUCED, NOT_REPRODUCED)


@pytest.mark.slow
def test_conflicts_are_counted_while_both_ways_train():
    config = TrainConfig(
        data=DataConfig("digits", {"num_train": 256, "num_validation": 50, "num_test": 100}),
        model=ModelConfig("mlp", {"features": (32,)}),
        optimizer=OptimizerConfig("adam", learning_rate=3e-3),
        batch_size=64,
        epochs=4,
    )
    runs = conflicts.run_all(config, [0])
    for (run,) in runs.values():
        assert run.shares.shape == (4,)
        assert set(run.shares) <= {0, 25, 50, 75, 100}
        assert all(np.isfinite(value) for value in run.end.values())
    assert runs["FS"][0].end != runs["ERM"][0].end
