"""The snippets of the tutorial pages run on a small network, one after the other, as a reader would paste them."""

import ast
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import pytest

import mtljax as mtl

DOCS = Path(__file__).parents[1] / "docs"


def snippets(page: str) -> list[str]:
    """The Python blocks of a page."""
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)


def losses_fn(params, batch):
    """Two regressions on one hidden layer."""
    inputs, targets = batch
    hidden = jnp.tanh(inputs @ params["shared"]["w"])
    return {task: jnp.mean((hidden @ params["heads"][task] - targets[task]) ** 2) for task in ("left", "right")}


@pytest.fixture
def network():
    """What the pages take as given."""
    keys = jax.random.split(jax.random.PRNGKey(0), 6)
    params = {
        "shared": {"w": jax.random.normal(keys[0], (4, 8))},
        "heads": {task: jax.random.normal(key, (8,)) for task, key in zip(("left", "right"), keys[1:3], strict=True)},
    }
    targets = {task: jax.random.normal(key, (32,)) for task, key in zip(("left", "right"), keys[3:5], strict=True)}
    batch = jax.random.normal(keys[5], (32, 4)), targets
    return {"losses_fn": losses_fn, "params": params, "batch": batch, "batches": [batch]}


def test_the_ten_lines_on_flat_minima_train_and_its_probes_measure(network, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train, probes = snippets("flat_minima.md")
    exec(train, network)
    params, opt_state = network["params"], network["tx"].init(network["params"])
    before = losses_fn(params, network["batch"])
    for _ in range(20):
        params, opt_state, losses = network["step"](params, opt_state, network["batch"])
    assert sum(losses.values()) < sum(before.values())
    exec(probes, network)
    plt.close(network["figure"])
    assert (tmp_path / "surface.png").stat().st_size > 1000
    assert set(network["rises"]) == set(network["norms"]) == {"left", "right"}
    assert ((network["share"] >= 0) & (network["share"] <= 1)).all()


def test_the_diagnosis_of_a_model_of_ones_own_runs(network, capsys):
    exec(snippets("optimizer_study.md")[-1], network)
    out = capsys.readouterr().out
    assert re.match(r"lengths are alike: [\d.]+ between tasks, [\d.]+ between samples\n", out)


@pytest.mark.slow  # it compiles 15 corruptions
def test_the_robustness_of_a_network_of_ones_own_runs(capsys):
    keys = jax.random.split(jax.random.PRNGKey(0), 4)
    images = jax.random.uniform(keys[0], (60, 16, 16, 1))
    tasks = {task: mtl.tasks.classification(2) for task in ("bright", "left")}
    targets = {"bright": images.mean((1, 2, 3)) > 0.5, "left": images[:, :, :8].mean((1, 2, 3)) > 0.5}
    parts = [
        (images[part], {task: each[part] for task, each in targets.items()}) for part in (slice(40), slice(40, 60))
    ]

    def apply(params, images):
        z = jnp.tanh(images.reshape(-1, 256) @ params["body"])
        return {task: z @ head for task, head in params["heads"].items()}

    params = {
        "body": jax.random.normal(keys[1], (256, 8)),
        "heads": {task: jax.random.normal(key, (8, 2)) for task, key in zip(tasks, keys[2:], strict=True)},
    }
    params_of = {task: {"body": params["body"], "heads": {task: params["heads"][task]}} for task in tasks}
    [snippet] = [each for each in snippets("optimizer_study.md") if "robustness_deltas" in each]
    given = {"apply": apply, "params": params, "params_of": params_of, "tasks": tasks}
    exec(snippet, given | {"mtl": mtl, "train": parts[0], "test": parts[1]})
    deltas = ast.literal_eval(re.sub(r"np\.float\d+\((.*?)\)", r"\1", capsys.readouterr().out))
    assert deltas == {"bright": 0, "left": 0}  # the same network, together and a task at a time
