"""The table by which mode="auto" is chosen: its rows, their forms, and what a GPU's roofline adds up. For the CPU."""

import json

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from scripts_by_name import script

from mtljax.gradients import choice
from mtljax.planning import compiler

check = script("check_compilers")


class Tiny(nn.Module):
    @nn.compact
    def __call__(self, inputs, *, train=False):
        return nn.tanh(nn.Dense(6)(inputs))


@pytest.fixture(autouse=True)
def _tiny_networks_and_a_cache_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setenv("MTLJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(check.NETWORKS, "mlp", check.Network(Tiny, (5,), 4))
    monkeypatch.setitem(check.NETWORKS, "lenet", check.Network(Tiny, (5,), 4, most_tasks=2))


def rows_of(path, *arguments):
    assert check.main(["--targets", "cpu", "--method", "ew", *arguments, "--json", str(path)]) == 0
    return json.loads(path.read_text())


def jaxpr_of(form, tasks, platform="tpu"):
    with check.assumed(check.Backend(platform, None)):
        step, args, _ = check.step_of(check.Case("mlp", "v5e:1x1", tasks, form, "mgda"))
        return str(jax.make_jaxpr(step)(*args))


def test_a_table_in_markdown_has_a_row_for_every_step(tmp_path, capsys):
    rows = rows_of(tmp_path / "rows.json", "--networks", "mlp", "--tasks", "3", "--modes", "loop", "jacrev")
    assert [(row["form"], row.get("none")) for row in rows] == [
        ("summed loss", None),
        ("loop", None),
        ("jacrev", "as loop"),
    ]
    forward, heads = 2 * 4 * 5 * 6, 3 * 2 * 4 * 6 * 10  # the inputs have no gradient
    assert rows[0]["gflop"] == pytest.approx((2 * forward + 3 * heads) / 1e9)
    assert rows[1]["gflop"] >= rows[0]["gflop"]
    assert rows[1]["params_mb"] == pytest.approx(4 * (5 * 6 + 6 + 3 * (6 * 10 + 10)) / 1e6)
    assert all(row["bound"] == 7 / 3 for row in rows)
    printed = capsys.readouterr().out
    assert "nothing was run" in printed
    lines = [line.strip() for line in printed.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 3
    assert lines[0].startswith("| K | step")
    assert "| loop (auto)" in lines[3]
    assert len({line.count("|") for line in lines}) == 1


def test_what_is_left_out_says_why(tmp_path):
    rows = rows_of(tmp_path / "rows.json", "--networks", "lenet", "--tasks", "3", "--modes", "loop")
    assert all("about an hour" in row["none"] for row in rows)


def test_a_compile_over_the_limit_is_ended_and_not_tried_again(tmp_path, monkeypatch):
    path, count = tmp_path / "rows.json", []
    monkeypatch.setattr(compiler, "_command", lambda directory: count.append(directory) or ["sleep", "60"])
    for _ in range(2):
        rows = rows_of(path, "--networks", "mlp", "--tasks", "2", "--modes", "--limit", "1")
        assert [row["none"] for row in rows] == ["> 1 s to compile"]
    assert len(count) == 1


@pytest.mark.parametrize("tasks", [3, 11])
def test_forms_are_other_programs_of_the_same_mode(tasks, monkeypatch):
    monkeypatch.setattr(choice, "MOST_OPERATIONS", 0)  # eleven tasks are many, as of a larger network
    texts = {form: jaxpr_of(form, tasks) for form in ("loop", "jacrev", *check.FORMS)}
    assert texts["jacrev"] == texts["loop" if tasks == 3 else "vmap"]
    assert len(set(texts.values())) == 4
    assert texts["lax.map"].count("scan[") == texts["loop"].count("scan[") + 1
    assert jaxpr_of("loop", tasks) == texts["loop"]  # nothing stays changed


def test_the_networks_are_what_they_are_called():
    sizes = {}
    for name, module in (("resnet50", check.ResNet50), ("transformer", check.Transformer)):
        inputs = jnp.zeros((1, *check.NETWORKS[name].inputs))
        shapes = jax.eval_shape(lambda x, module=module: module().init(jax.random.key(0), x), inputs)
        sizes[name] = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert sizes["resnet50"] == 25557032 - 1000 * 2049  # torchvision's, without its classifier
    assert 12 * 6 * 512**2 < sizes["transformer"] < 12.2 * 6 * 512**2
