"""Synthetic studies whose truth is known, and a parser for their reports."""

import base64
import json
import math
import random
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from mtljax.ablation.report import write_report

TASKS = ("left", "right")
EPOCHS = 10
STEPS = 31


def make_cell(
    method: str,
    optimizer: str,
    seed: int,
    accuracy: dict[str, float],
    *,
    kind: str = "multi",
    validation: dict[str, float] | None = None,
    failed: str | None = None,
    seconds_per_step: float | None = 0.003,
    weights: Callable[[int], dict[str, float] | None] = lambda step: None,
    role: str | None = None,
    setting: dict[str, Any] | None = None,
    condition: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """One cell; `accuracy` by task is that on test, and on validation too unless `validation` says otherwise."""
    tasks = sorted(accuracy)
    found = accuracy if validation is None else validation
    varied = [f"{key.rpartition('.')[2]}={value}" for key, value in {**(condition or {}), **(setting or {})}.items()]
    parts = [method, *(tasks if kind == "single" else ()), optimizer, *varied, f"seed{seed}"]
    name = re.sub(r"[^A-Za-z0-9._=-]+", "_", "-".join(parts)) if varied else "-".join(parts).replace(" ", "_")
    cell = {
        "cell": name,
        "kind": kind,
        "method": method,
        "optimizer": optimizer,
        "seed": seed,
        "tasks": tasks,
        "config": {"seed": seed},
        "metric_directions": {task: {"accuracy": True} for task in tasks},
        "environment": {
            "versions": {"jax": "0.12.0", "optax": "0.2.8"},
            "python": "3.13.1",
            "git_commit": "41e0cb8",
            "device": "cpu",
        },
    }
    if role is not None:
        cell |= {"role": role, "setting": setting or {}, "condition": condition or {}, "strategy": "sequential"}
    if failed is not None:
        return cell | {"status": "failed", "reason": failed, "seconds": 1.0}
    return cell | {
        "status": "finished",
        "reason": None,
        "validation": _metrics(found),
        "test": _metrics(accuracy),
        "best_step": EPOCHS * STEPS,
        "steps": EPOCHS * STEPS,
        "epochs": EPOCHS,
        "seconds_per_step": seconds_per_step,
        "seconds": 3.2,
        "history": _history(found, weights),
    }


def make_baseline(optimizer: str, seed: int, accuracy: dict[str, float], **changes: Any) -> list[dict[str, Any]]:
    """The single-task cells of one seed, one a task."""
    return [make_cell("single-task", optimizer, seed, {t: a}, kind="single", **changes) for t, a in accuracy.items()]


def make_study(
    effects: dict[str, float],
    *,
    optimizers: dict[str, float] | None = None,
    seeds: int = 3,
    noise: float = 0.002,
    tasks: tuple[str, ...] = TASKS,
) -> list[dict[str, Any]]:
    """A study with single-task accuracy 0.9, plus a method's effect, plus an optimizer's, plus noise."""
    random_ = random.Random(0)
    cells = []
    for optimizer, shift in (optimizers or {"adam 0.001": 0.0}).items():
        for seed in range(seeds):
            for name, effect in {"single-task": 0.0, **effects}.items():
                accuracy = {
                    task: 0.9 + effect + shift - 0.01 * k + random_.gauss(0, noise) for k, task in enumerate(tasks)
                }
                if name == "single-task":
                    cells += make_baseline(optimizer, seed, accuracy, seconds_per_step=0.002)
                else:
                    cells.append(make_cell(name, optimizer, seed, accuracy, weights=_weights(name, tasks)))
    return cells


RATES = (0.0003, 0.001, 0.003, 0.01)
GRID = {"ew": 0.0, "cagrad": 0.012, "mgda": -0.03, "pcgrad": 0.004}


def make_grid(
    effects: dict[str, float] | None = None,
    *,
    optimizers: dict[str, float] | None = None,
    rates: tuple[float, ...] = RATES,
    seeds: int = 3,
    tasks: tuple[str, ...] = TASKS,
    weightings: int = 9,
    conditions: tuple[dict[str, Any], ...] = ({},),
    noise: float = 0.002,
) -> list[dict[str, Any]]:
    """A study with learning rates tuned, the best 0.001, and tuned scalarization, whose best weights are equal."""
    random_ = random.Random(0)
    share = 1 / len(tasks)
    weighted = [{t: round(random_.random(), 3) for t in tasks} for _ in range(weightings)]
    if len(tasks) == 2:
        weighted = [
            dict(zip(tasks, (i / (weightings + 1), 1 - i / (weightings + 1)), strict=True))
            for i in range(1, weightings + 1)
        ]
    weighted = [{t: round(w[t] / sum(w.values()), 3) for t in tasks} for w in weighted]
    cells = []
    for i, condition in enumerate(conditions):
        for optimizer, shift in (optimizers or {"adam": 0.0, "sgd": -0.02}).items():
            for rate in rates:
                for seed in range(seeds):
                    base = 0.88 + shift + 0.01 * i - 0.02 * math.log10(rate / 0.001) ** 2
                    accuracy = {t: base - 0.01 * k + random_.gauss(0, noise) for k, t in enumerate(tasks)}
                    rated = {"setting": {"optimizer.learning_rate": rate}, "condition": condition}
                    cells += make_baseline(optimizer, seed, accuracy, role="single", **rated)
                    for weights in weighted if len(tasks) > 1 else ():
                        found = {
                            t: a - 0.1 * (weights[t] - share) ** 2 + 0.06 * (weights[t] - share)
                            for t, a in accuracy.items()
                        }
                        setting = {**rated["setting"], "method.options.weights": weights}
                        cells.append(
                            make_cell(
                                "scalarization (tuned)",
                                optimizer,
                                seed,
                                {t: a + random_.gauss(0, noise) for t, a in found.items()},
                                weights=lambda step, weights=weights: weights,
                                role="scalarization",
                                setting=setting,
                                condition=condition,
                            )
                        )
                    for k, (name, effect) in enumerate((GRID if effects is None else effects).items()):
                        found = {t: a + effect + random_.gauss(0, noise) for t, a in accuracy.items()}
                        per_step = 0.002 * (1 + 0.4 * k)
                        changing = _weights(name, tasks)
                        cells.append(
                            make_cell(
                                name,
                                optimizer,
                                seed,
                                found,
                                role="method",
                                weights=changing,
                                seconds_per_step=per_step,
                                **rated,
                            )
                        )
    return cells


def make_failed(cell: dict[str, Any]) -> dict[str, Any]:
    """The same cell, had it failed."""
    outcome = ("validation", "test", "best_step", "steps", "epochs", "seconds_per_step", "history")
    left = {key: value for key, value in cell.items() if key not in outcome}
    return left | {"status": "failed", "reason": "the loss became NaN"}


def write_study(directory: Path, cells: list[dict[str, Any]], **study: Any) -> Path:
    """Writes a study's directory and returns it."""
    (directory / "cells").mkdir(parents=True, exist_ok=True)
    for cell in cells:
        (directory / "cells" / f"{cell['cell']}.json").write_text(json.dumps(cell))
    described = {
        "name": "digits",
        "question": "Does any method beat equal weighting on two overlapping digits?",
        "command": "mtljax ablate configs/digits.py",
        "setting": {"data": "digits (4000 train, 800 validation, 800 test)", "encoder": "lenet", "epochs": 10},
    }
    (directory / "study.json").write_text(json.dumps(described | study))
    return directory


VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
    """Checks that tags balance, and collects what the tests ask for."""

    def __init__(self, text):
        super().__init__()
        self.open, self.attributes, self.ids, self.text, self.tags = [], [], [], [], []
        self.tables = []  # of rows of cells
        self.regions = []  # what each table holds
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)
        if ("role", "region") in attrs:
            self.regions.append(dict(attrs)["aria-label"])
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)
        if {"th", "td"} & set(self.open):
            self.tables[-1][-1][-1] += data

    @property
    def words(self):
        return re.sub(r"\s+", " ", " ".join(self.text))  # \s takes no-break spaces too

    def frame(self, region):
        """The table of a region, without the headings of its groups."""
        head, *lines = self.tables[self.regions.index(region)]
        return pd.DataFrame([line for line in lines if len(line) == len(head)], columns=head)

    @property
    def downloads(self):
        """The names and contents of all embedded CSV files, that of the results first."""
        names = [value for name, value in self.attributes if name == "download"]
        links = [value for name, value in self.attributes if name == "href" and value.startswith("data:text/csv")]
        texts = [base64.b64decode(link.split(",", 1)[1]).decode() for link in links]
        return list(zip(names, texts, strict=True))


@pytest.fixture
def parse() -> type[Page]:
    """Parses a report."""
    return Page


@pytest.fixture
def text(reported: Path) -> str:
    """The source of the report that all read."""
    return (reported / "report.html").read_text()


@pytest.fixture
def page(text: str) -> Page:
    """The same, parsed."""
    return Page(text)


@pytest.fixture
def synthetic() -> SimpleNamespace:
    """The builders, since test modules cannot import each other."""
    return SimpleNamespace(
        cell=make_cell,
        baseline=make_baseline,
        study=make_study,
        grid=make_grid,
        write=write_study,
        small=small_study,
        failed=make_failed,
    )


@pytest.fixture
def study_directory(tmp_path: Path) -> Path:
    """A small study on disk, with two optimizers and one failed run."""
    return write_study(tmp_path / "study", small_study())


@pytest.fixture(scope="session")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same study with its report, drawn once for all tests that only read it."""
    directory = write_study(tmp_path_factory.mktemp("reported") / "study", small_study())
    write_report(directory)
    return directory


def small_study() -> list[dict[str, Any]]:
    """Two optimizers, three methods, and one failed run."""
    cells = make_study({"ew": 0.0, "cagrad": 0.02, "mgda": -0.03}, optimizers={"adam 0.001": 0.0, "sgd 0.1": -0.05})
    last, failed = cells[-1], "the loss became NaN"
    cells[-1] = make_cell(last["method"], last["optimizer"], last["seed"], dict.fromkeys(TASKS, 0.0), failed=failed)
    return cells


def _metrics(accuracy: dict[str, float]) -> dict[str, dict[str, float]]:
    return {
        task: {"accuracy": value, "loss": -math.log(value) if 0 < value < 1 else 1.0}
        for task, value in accuracy.items()
    }


def _history(final: dict[str, float], weights: Callable[[int], dict[str, float] | None]) -> list[dict[str, Any]]:
    records = []
    for epoch in range(1, EPOCHS + 1):
        position = {"step": epoch * STEPS, "epoch": float(epoch), "seconds": 0.3 * epoch}
        losses = {task: 2.0 * math.exp(-epoch / 3) + 1 - value for task, value in final.items()}
        records.append(position | {"split": "train", "losses": losses, "weights": weights(epoch * STEPS)})
        metrics = _metrics({task: value * (1 - math.exp(-epoch / 1.5)) for task, value in final.items()})
        records.append(position | {"split": "validation", "metrics": metrics})
    return records


def _weights(method: str, tasks: tuple[str, ...]) -> Callable[[int], dict[str, float] | None]:
    if method == "pcgrad":
        return lambda step: None
    if method == "ew":
        return lambda step: dict.fromkeys(tasks, 1.0)
    return lambda step: {task: 1 / len(tasks) + 0.2 * math.sin(step / 60 + k) for k, task in enumerate(tasks)}
