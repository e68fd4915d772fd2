"""The snippets of the tutorial pages run on a small network, one after the other, as a reader would paste them."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import pytest

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
