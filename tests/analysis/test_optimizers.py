"""Two optimizers of a study: counts by a plain loop, the claims' signs, and the command."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from mtljax.ablation.grid import cells
from mtljax.ablation.statistics import summarize
from mtljax.analysis import optimizers as module
from mtljax.analysis.claims import NOT_REPRODUCED, REPRODUCED
from mtljax.cli import main
from mtljax.training.config import load_config
from mtljax.training.program import structure

CONFIGS = Path(__file__).parents[2] / "configs" / "optimizer_study"
PAIR = ("adam", "sgd(momentum=0.9)")
RATE = "optimizer.learning_rate"


def cell(method, optimizer, seed, left, right, rate, role="method"):
    """The record of one run; what a study writes, as far as statistics read it."""
    tasks = {"left": left, "right": right}
    metrics = {task: {"accuracy": value, "loss": 1 - value} for task, value in tasks.items()}
    single = role == "single"
    return {
        "cell": f"{method}-{optimizer}-{rate}-{seed}",
        "kind": "single" if single else "multi",
        "role": role,
        "method": method,
        "optimizer": optimizer,
        "setting": {RATE: rate},
        "condition": {},
        "seed": seed,
        "tasks": sorted(tasks),
        "config": {"seed": seed},
        "metric_directions": {task: {"accuracy": True} for task in tasks},
        "environment": {},
        "strategy": "sequential",
        "status": "finished",
        "reason": None,
        "validation": metrics,
        "test": metrics,
        "best_step": 1,
        "steps": 1,
        "epochs": 1,
        "seconds_per_step": 1e-3,
        "seconds": 1.0,
        "history": [],
    }


def study(gain=0.05, seeds=3):
    """Adam better by `gain` on every method and rate, with some noise; one network with both tasks as the baseline."""
    random = np.random.default_rng(0)
    cells = []
    for seed in range(seeds):
        cells.append(cell("single-task", "adam", seed, 0.8, 0.8, 0.01, role="single"))
        for optimizer in PAIR:
            for method in ("ew", "uw", "adatask" if optimizer == "adam" else "mtl_io"):
                for rate in (0.1, 0.01, 0.001):
                    base = 0.7 + (gain if optimizer == "adam" else 0) + 0.02 * (rate == 0.01)
                    left, right = (float(x) for x in base + 0.01 * random.standard_normal(2))
                    cells.append(cell(method, optimizer, seed, left, right, rate))
        cells.append(cell("ew", "signsgd", seed, 0.99, 0.99, 0.01))  # of neither optimizer: it competes with none
    return cells


@pytest.fixture(scope="module")
def summary():
    return summarize(study())


def dominates(a, b):
    return all(x >= y for x, y in zip(a, b, strict=True)) and any(x > y for x, y in zip(a, b, strict=True))


def counted(points):
    """(full, undominated by the other optimizer), each by method and optimizer, one pair of runs at a time."""
    full, other = {}, {}
    for method, optimizer, values in points:
        rivals = [v for _, _, v in points]
        elsewhere = [v for _, o, v in points if o != optimizer]
        key = method, optimizer
        full[key] = full.get(key, 0) + (not any(dominates(v, values) for v in rivals))
        other[key] = other.get(key, 0) + (not any(dominates(v, values) for v in elsewhere))
    return full, other


def test_the_counts_are_those_of_a_loop_over_pairs_of_runs(summary):
    runs = {}
    for c in study():
        if c["role"] == "method" and c["optimizer"] in PAIR:
            values = [c["test"][task]["accuracy"] for task in ("left", "right")]
            runs.setdefault((c["method"], c["optimizer"], c["setting"][RATE]), []).append(values)
    full, other = counted([(m, o, np.mean(values, axis=0)) for (m, o, _), values in runs.items()])
    *methods, total = module.pareto_counts(summary, PAIR)
    for counts in methods:
        for optimizer in PAIR:
            key = counts.method, optimizer
            assert (counts.full[optimizer], counts.other[optimizer]) == (full.get(key, 0), other.get(key, 0))
    assert [counts.method for counts in methods] == ["adatask", "ew", "mtl_io", "uw"]
    assert total.full == {o: sum(n for (_, own), n in full.items() if own == o) for o in PAIR}
    assert total.runs == {"adam": 9, "sgd(momentum=0.9)": 9}


def test_counts_by_seed_look_at_the_runs_of_that_seed_alone(summary):
    for sense, index in (("full", 0), ("other", 1)):
        found = module.pareto_counts_by_seed(summary, PAIR, sense)
        for seed in range(3):
            own = [c for c in study() if c["seed"] == seed and c["role"] == "method" and c["optimizer"] in PAIR]
            points = [(c["method"], c["optimizer"], [c["test"][t]["accuracy"] for t in ("left", "right")]) for c in own]
            expected = counted(points)[index]
            for by_seed, optimizer in zip(found, PAIR, strict=True):
                assert by_seed[seed] == sum(n for (_, o), n in expected.items() if o == optimizer)


def test_an_adam_that_is_better_reproduces_the_claims_and_a_worse_one_does_not(summary):
    found = {claim.text: claim for claim in module.claims(summary, PAIR)}
    assert found["Δm of ew: adam below sgd"].verdict == REPRODUCED
    assert found["Δm of ew: adam below sgd"].ours.interval.mean > 0
    assert found["more runs of adam than of sgd are undominated by the other"].ours.interval.mean > 5
    assert "Δm: one adam a task below one sgd a task" in found
    worse = {claim.text: claim for claim in module.claims(summarize(study(gain=-0.05)), PAIR)}
    assert worse["Δm of ew: adam below sgd"].verdict == NOT_REPRODUCED
    assert worse["Δm, mean over 2 methods: adam below sgd"].verdict == NOT_REPRODUCED


def test_ew_with_adam_is_dominated_where_a_run_of_sgd_is_better_in_everything(summary):
    assert module.dominated_seeds(summary, PAIR) == ([], [0, 1, 2])
    assert module.dominated_seeds(summarize(study(gain=-0.1)), PAIR) == ([0, 1, 2], [0, 1, 2])
    cells = study()
    cells.append(cell("uw", PAIR[1], 1, 1.0, 1.0, 0.5))
    assert module.dominated_seeds(summarize(cells), PAIR) == ([1], [0, 1, 2])


def test_one_adam_a_task_dominates_ew_where_it_is_better_in_everything():
    def with_ew(left, right):
        changed = [c for c in study() if not (c["method"] in ("ew", "adatask") and c["optimizer"] == "adam")]
        for seed in range(3):
            changed.append(cell("adatask", "adam", seed, 0.8, 0.7, 0.01))
            changed.append(cell("ew", "adam", seed, left, right if seed else 0.6, 0.01))
        return summarize(changed)

    assert module.dominating_seeds(with_ew(0.79, 0.69), PAIR) == ([0, 1, 2], [0, 1, 2])
    assert module.dominating_seeds(with_ew(0.79, 0.71), PAIR) == ([0], [0, 1, 2])
    assert module.dominating_seeds(summarize([c for c in study() if c["method"] != "adatask"]), PAIR) == ([], [])


def test_the_pair_is_found_by_name_or_asked_for(summary):
    assert module.optimizer_pair(summary) == PAIR
    assert module.optimizer_pair(summary, "signsgd", "adam") == ("signsgd", "adam")
    with pytest.raises(ValueError, match="did you mean 'adam'"):
        module.optimizer_pair(summary, "adm", "signsgd")
    with pytest.raises(ValueError, match="the two optimizers to compare are both adam: name two of adam, sgd"):
        module.optimizer_pair(summary, "adam", "adam")
    alone = summarize([c for c in study() if c["optimizer"] == "adam"])
    with pytest.raises(ValueError, match=r"0 optimizers of this study begin with 'sgd' \(adam\): name the two"):
        module.optimizer_pair(alone)


def test_conditions_are_not_mixed():
    cells = [c | {"condition": {"batch_size": 64 * (1 + i % 2)}, "cell": str(i)} for i, c in enumerate(study())]
    with pytest.raises(ValueError, match="the study compares 2 conditions"):
        module.pareto_counts(summarize(cells), PAIR)


def test_the_command_prints_markdown_and_draws(tmp_path, capsys):
    directory = tmp_path / "study"
    (directory / "cells").mkdir(parents=True)
    for record in study():
        (directory / "cells" / f"{record['cell']}.json").write_text(json.dumps(record))
    (directory / "study.json").write_text("{}")
    figure = tmp_path / "settings.png"
    assert main(["analyze", "optimizers", str(directory), "--figure", str(figure)]) == 0
    out = capsys.readouterr().out
    assert re.search(r"\| total \| 9 \| 9 \| \d \| 0 \| 9 \| 0 \|", out)
    assert re.search(r"\| ew \| adam 0\.01 \| \S+ ± \d+\.\d\d \| \d+\.\d\d \| 3 \|", out)
    assert "| Δm of ew: adam below sgd | +6.8, +47.7, +2.8, +2.5 | +" in out
    assert "Method by method: reproduced 2." in out
    assert re.search(r"ew with adam: \d of 3 settings are Pareto-optimal", out)
    assert re.search(r"adatask dominates ew, both with adam, in \d of 3 seeds", out)
    assert figure.is_file()
    assert main(["analyze", "optimizers", str(tmp_path / "none")]) == 2
    assert "no study in" in capsys.readouterr().err
    (tmp_path / "config.json").write_text("{}")
    assert main(["analyze", "optimizers", str(tmp_path)]) == 2
    assert "is a run, not a study" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "count", "programs"), [("multi_mnist", 1230, 25), ("multi_mnist_cpu", 738, 25)])
def test_the_studies_pair_every_method_with_its_optimizers(name, count, programs):
    study = load_config(CONFIGS / f"{name}.py")
    grid = cells(study, ("left", "right"))
    assert (len(grid), len({structure(cell.config) for cell in grid})) == (count, programs)
    found = {(cell.method, cell.optimizer) for cell in grid if cell.role == "method"}
    usual = {(method.name, optimizer) for method in study.methods for optimizer in PAIR}
    assert found - usual == {("adatask", "adam"), ("mtl_io", "sgd(momentum=0.9)"), ("ew", "signsgd")}
    assert all(cell.config.loss_scales["right"] == 10 for cell in grid if cell.kind == "multi")
