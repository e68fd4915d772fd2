"""Robustness of tiny networks on real digits, δ in closed form, and of runs from their directories."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mtljax as mtl
from mtljax.analysis import (
    Robustness,
    corrupted_data,
    robustness,
    robustness_deltas,
    robustness_runs,
    robustness_verdict,
)
from mtljax.analysis.corruptions import corrupt_each, names
from mtljax.analysis.robustness import fine_tuned, measuring
from mtljax.cli import main
from mtljax.data import Split
from mtljax.training import DataConfig, MethodConfig, ModelConfig, TrainConfig, train
from mtljax.training import checkpoint as ckpt
from mtljax.training.loop import load_data
from mtljax.training.program import build_model, example
from mtljax.training.workdir import prepare

NOISES = ("gaussian_noise", "brightness", "contrast")
TASKS = {"left": mtl.tasks.classification(10), "right": mtl.tasks.classification(10)}


@pytest.fixture(scope="module")
def digits():
    return mtl.data.load("digits", num_train=1500, num_validation=1, num_test=500).splits


@pytest.fixture(scope="module")
def data(digits):
    return corrupted_data(digits["train"], digits["test"], corruptions=NOISES, num_train=500)


def encode(params, images):
    return jax.nn.relu(images.reshape(len(images), -1) / 255 @ params["body"])


def decode(params, z):
    return {task: z @ kernel for task, kernel in params["heads"].items()}


def apply(params, images):
    return decode(params, encode(params, images))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": TASKS | {"colour": mtl.tasks.classification(2)}}, "the outputs of apply lack the task colour; they"),
        ({"tasks": list(TASKS)}, "takes tasks by name, and data made by corrupted_data"),
        ({"data": ()}, "takes tasks by name, and data made by corrupted_data"),
    ],
)
def test_what_does_not_belong_together_is_one_sentence(data, changes, message):
    given = {"tasks": TASKS, "data": data} | changes
    with pytest.raises(ValueError, match=message):
        robustness(apply, drawn(), **given)


def drawn(seed=0):
    keys = jax.random.split(jax.random.PRNGKey(seed), 3)
    heads = {task: 0.1 * jax.random.normal(key, (48, 10)) for task, key in zip(TASKS, keys[1:], strict=True)}
    return {"body": 0.1 * jax.random.normal(keys[0], (144, 48)), "heads": heads}


@pytest.fixture(scope="module")
def trained(digits):
    """A network trained on clean images and one trained on noisy ones, equal but for that."""

    @jax.jit
    def step(params, state, images, targets):
        def loss(params):
            outputs = apply(params, images)
            return sum(mtl.tasks.mean_loss(task, outputs[name], targets[name]) for name, task in TASKS.items())

        updates, state = tx.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    tx, found = optax.adam(1e-2), []
    train_split = digits["train"]
    rng = np.random.default_rng(0)
    which = np.array([names().index(name) for name in NOISES])[rng.integers(0, 3, 1500)]
    noisy = corrupt_each(jax.random.PRNGKey(9), train_split.inputs, which, rng.integers(1, 6, 1500))
    for images in (train_split.inputs, noisy):
        params = drawn()
        state = tx.init(params)
        for k in range(150):
            part = np.arange(k * 250, (k + 1) * 250) % 1500
            targets = {name: target[part] for name, target in train_split.targets.items()}
            params, state = step(params, state, images[part], targets)
        found.append(params)
    return found


@pytest.fixture(scope="module")
def measured(trained, data):
    return [robustness(apply, params, TASKS, data, epochs=1) for params in trained]


def test_a_network_trained_on_noise_is_the_more_robust_one(measured):
    clean, noisy = measured
    deltas = robustness_deltas(noisy, {"left": clean, "right": clean}, TASKS)
    assert {task: delta.shape for task, delta in deltas.items()} == {"left": (3, 5), "right": (3, 5)}
    assert max(delta.mean() for delta in deltas.values()) < -0.05
    turned = robustness_deltas(clean, {"left": noisy, "right": noisy}, TASKS)
    np.testing.assert_allclose([turned[task].mean() for task in TASKS], [-deltas[task].mean() for task in TASKS])


def test_equal_networks_have_a_delta_of_zero(measured, trained, data):
    again = robustness(apply, trained[0], TASKS, data, epochs=1)
    deltas = robustness_deltas(again, dict.fromkeys(TASKS, measured[0]), TASKS)
    assert all((delta == 0).all() for delta in deltas.values())


def test_metrics_are_those_of_the_tuned_network_on_corrupted_images(measured, trained, data, digits):
    def accuracy(params, images):
        return np.mean(np.argmax(apply(params, images)["left"], -1) == digits["test"].targets["left"])

    params = fine_tuned(measuring(apply, trained[0], TASKS), trained[0], data.train, epochs=1, batch_size=128)
    found = measured[0]
    np.testing.assert_allclose(
        found.trained["left"]["accuracy"], accuracy(trained[0], digits["test"].inputs), rtol=1e-6
    )
    np.testing.assert_allclose(found.clean["left"]["accuracy"], accuracy(params, digits["test"].inputs), rtol=1e-6)
    images = mtl.analysis.corrupted_data(*(digits[k] for k in ("train", "test")), num_train=1).images
    dark = images("contrast", 4)
    np.testing.assert_array_equal(dark, data.images("contrast", 4))  # whatever the other corruptions are
    np.testing.assert_allclose(found.corrupted["contrast"][3]["left"]["accuracy"], accuracy(params, dark), rtol=1e-6)


def test_fine_tuning_moves_the_heads_and_not_a_bit_of_the_backbone(trained, data):
    tuned = fine_tuned(measuring(apply, trained[0], TASKS), trained[0], data.train, epochs=2, batch_size=100)
    assert np.asarray(tuned["body"]).tobytes() == np.asarray(trained[0]["body"]).tobytes()
    for task in TASKS:
        assert np.abs(tuned["heads"][task] - trained[0]["heads"][task]).max() > 1e-3
    one = measuring(apply, trained[0], {"left": TASKS["left"]}, heads=lambda path: path[-1].key == "left")
    tuned = fine_tuned(one, trained[0], data.train, epochs=1, batch_size=100)
    np.testing.assert_array_equal(tuned["heads"]["right"], trained[0]["heads"]["right"])
    assert np.abs(tuned["heads"]["left"] - trained[0]["heads"]["left"]).max() > 1e-3


def test_an_encoder_only_saves_time(trained, data):
    """Up to the order in which numbers are added."""
    whole, parts = measuring(apply, trained[0], TASKS), measuring(decode, trained[0], TASKS, encode=encode)
    first, second = (fine_tuned(each, trained[0], data.train, epochs=1, batch_size=100) for each in (whole, parts))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), first, second)


def test_training_images_have_a_corruption_and_severity_each(data, digits):
    clean = digits["train"].inputs[:500]
    changed = (data.train.inputs != clean).reshape(500, -1).mean(1)
    assert changed.min() > 0.1
    level = data.train.inputs.reshape(500, -1).min(1)  # of the background: brightness is one of five
    assert all(np.abs(level - 25.5 * severity).min() <= 1 for severity in range(1, 6))
    np.testing.assert_array_equal(data.test.inputs, digits["test"].inputs)


def metrics(values):
    """A result whose metrics are all the same."""
    return {"t": dict.fromkeys(("rmse", "mae"), values)}


def test_delta_is_that_of_the_formula_in_both_directions():
    task = {"t": mtl.tasks.regression()}
    network = Robustness(metrics(1.0), metrics(2.0), {"fog": [metrics(v) for v in (2, 3, 4, 5, 6)]})
    single = Robustness(metrics(1.0), metrics(4.0), {"fog": [metrics(v) for v in (4, 5, 6, 7, 8)]})
    expected = np.array([2, 3, 4, 5, 6]) / 2 - np.array([4, 5, 6, 7, 8]) / 4
    np.testing.assert_allclose(robustness_deltas(network, {"t": single}, task)["t"], [expected])
    higher = {
        "t": dataclasses.replace(task["t"], metrics=(dataclasses.replace(task["t"].metrics[0], higher_is_better=True),))
    }
    np.testing.assert_allclose(robustness_deltas(network, {"t": single}, higher)["t"], [-expected])
    none = Robustness(metrics(0.0), metrics(0.0), network.corrupted)
    assert np.isnan(robustness_deltas(none, {"t": single}, task)["t"]).all()
    two = [
        each._replace(corrupted=each.corrupted | {"snow": each.corrupted["fog"][::-1]}) for each in (network, single)
    ]
    turned = two[1]._replace(corrupted=dict(reversed(two[1].corrupted.items())))
    np.testing.assert_allclose(robustness_deltas(two[0], {"t": turned}, task)["t"], [expected, expected[::-1]])
    with pytest.raises(ValueError, match="needs a single-task network for t too"):
        robustness_deltas(network, {}, task)
    with pytest.raises(ValueError, match="same corruptions"):
        robustness_deltas(network, {"t": single._replace(corrupted={})}, task)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": lambda path: True}, "all of the parameters belong to heads"),
        ({"heads": lambda path: False}, "none of the parameters belong to heads"),
        ({"learning_rate": 0.0}, "learning_rate must be positive and finite, got 0"),
        ({"epochs": 0}, "epochs and batch_size must be at least 1, got 0 and 128"),
    ],
)
def test_bad_arguments_are_one_sentence(data, options, message):
    with pytest.raises(ValueError, match=message):
        robustness(apply, drawn(), TASKS, data, **options)


def test_bad_data_is_one_sentence(digits):
    rows = Split(np.zeros((3, 7), np.float32), {})
    with pytest.raises(ValueError, match=r"are for images.* these inputs are float32 of shape \(3, 7\)"):
        corrupted_data(rows, rows)
    bright = Split(np.full((3, 8, 8, 1), 2.0, np.float32), {})
    with pytest.raises(ValueError, match="values from 0 to 1, these go from 2 to 2"):
        corrupted_data(bright, bright)
    with pytest.raises(ValueError, match="num_test must be at least 1, got 0"):
        corrupted_data(digits["train"], digits["test"], num_test=0)
    with pytest.raises(ValueError, match="unknown corruption 'fogg': did you mean 'fog'"):
        corrupted_data(digits["train"], digits["test"], corruptions=["fogg"])
    with pytest.raises(ValueError, match="corruptions is empty: name at least one of"):
        corrupted_data(digits["train"], digits["test"], corruptions=[])


# Runs.

BASE = TrainConfig(
    data=DataConfig("digits", {"num_train": 64, "num_validation": 16, "num_test": 40}),
    model=ModelConfig("mlp", {"features": (16,)}),
    batch_size=32,
    epochs=1,
    devices=1,
    tensorboard=False,
)


RUNS = {"left": {"tasks": ("left",)}, "right": {"tasks": ("right",)}, "ew": {}}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Directories of two single-task runs and a multi-task one, as `train` leaves them, but of networks as drawn."""
    root = tmp_path_factory.mktemp("runs")
    for name, changes in RUNS.items():
        config = dataclasses.replace(BASE, **changes)
        spec = load_data(config).spec
        prepare(root / name, config, spec, resume=False)
        network = build_model(config, spec).init(jax.random.PRNGKey(0), jnp.asarray(example(spec)))
        checkpoints = ckpt.open_checkpoints(root / name, lambda text: None)
        ckpt.save_best(checkpoints, 1, *network)
        ckpt.close(checkpoints)
    return root


@pytest.fixture
def quick(monkeypatch):
    """Two corruptions, to compile less."""
    few = ("brightness", "contrast")
    monkeypatch.setattr(
        robustness_runs, "corrupted_data", lambda *args, **options: corrupted_data(*args, corruptions=few, **options)
    )


SMALL = ["--num_train=48", "--num_test=40", "--epochs=1"]


def command(runs, *words):
    return main(["analyze", "robustness", *(str(runs / name) for name in RUNS), *SMALL, *words])


@pytest.mark.usefixtures("quick")
def test_a_run_is_measured_from_its_directory(runs):
    config = robustness_runs.RobustnessConfig(num_train=48, num_test=40, epochs=1)
    read = robustness_runs.read_runs([runs / name for name in RUNS])
    (found,) = robustness_runs.measure_runs(read[2:], config).values()
    network, test = mtl.load(runs / "ew"), load_data(read[2].config).splits["test"]
    outputs, _ = network.model.apply(network.params, network.model_state, jnp.asarray(test.inputs))
    for task in TASKS:
        accuracy = np.mean(np.argmax(outputs[task], -1) == test.targets[task])
        np.testing.assert_allclose(found.trained[task]["accuracy"], accuracy, rtol=1e-6)
    assert list(found.corrupted) == ["brightness", "contrast"]
    record = json.loads((runs / "ew" / "robustness.json").read_text())
    assert record["options"] == dataclasses.asdict(config)
    assert record["clean"] == found.clean


def test_results_are_kept_until_options_network_or_force_say_otherwise(runs, monkeypatch, capsys):
    measured = []
    monkeypatch.setattr(robustness_runs, "_data", lambda runs, config: None)

    def canned(network, *rest):
        measured.append(sorted(network.tasks))
        return result(network.tasks, 0.4 if len(network.tasks) == 1 else 0.9)

    monkeypatch.setattr(robustness_runs, "_measured", canned)
    assert command(runs, "--seed=5", "--figure", str(runs / "robustness.png")) == 0
    assert measured == [["left"], ["right"], ["left", "right"]]
    out, err = capsys.readouterr()
    assert all(words in out for words in ("single-task", "ew", "-0.2500", "undecided", "not decided"))
    assert "3 of 3" in err
    assert (runs / "robustness.png").stat().st_size > 10_000
    assert command(runs, "--seed=5") == 0
    assert len(measured) == 3
    assert "3 of 3 runs were measured before" in capsys.readouterr().err
    (runs / "ew" / "robustness.json").write_text("{half")
    assert command(runs, "--seed=5") == 0
    assert measured[3:] == [["left", "right"]]
    record = json.loads((runs / "left" / "robustness.json").read_text())
    (runs / "left" / "robustness.json").write_text(json.dumps(record | {"network": "another"}))
    assert command(runs, "--seed=5") == 0
    assert measured[4:] == [["left"]]
    for words in (["--seed=6"], ["--seed=6", "--force"]):
        measured.clear()
        assert command(runs, *words) == 0
        assert len(measured) == 3


def copied(runs, tmp_path, name, to="copy", **changes):
    """A run's directory with another config."""
    made = tmp_path / to
    made.mkdir()
    record = json.loads((runs / name / "config.json").read_text())
    record["config"].update(changes)
    (made / "config.json").write_text(json.dumps(record))
    return made


def test_runs_that_cannot_be_compared_are_one_sentence(runs, tmp_path, capsys):
    def refused(*directories, words=()):
        status = main(["analyze", "robustness", *map(str, directories), *words])
        lines = capsys.readouterr().err.strip().splitlines()
        assert (status, len(lines)) == (2, 1)
        return lines[0]

    left, right, ew = (runs / name for name in ("left", "right", "ew"))
    assert "holds no run: there is no config.json in it" in refused(tmp_path)
    assert "no single-task baseline of task 'right' with seed 0: train one with mtljax train" in refused(left, ew)
    assert "all runs are of a single task" in refused(left, right)
    later = copied(runs, tmp_path, "ew", seed=3)
    assert "no single-task baseline of task 'left' with seed 3" in refused(left, right, ew, later)
    again = copied(runs, tmp_path, "left", "again")
    assert "both single-task runs of task 'left' with seed 0" in refused(left, again, right, ew)
    other = copied(runs, tmp_path, "ew", "other", data={"name": "digits", "options": {"num_train": 65}})
    assert "differ in data: compare runs that share data and model" in refused(left, right, other)
    assert "num_test is 41, but the data set has 40" in refused(
        left, right, ew, words=["--num_train=8", "--num_test=41"]
    )
    assert "epochs must be at least 1, got 0" in refused(left, right, ew, words=["--epochs=0"])


def test_a_run_without_checkpoint_or_images_is_one_sentence(runs, tmp_path, capsys):
    empty = copied(runs, tmp_path, "ew")
    assert main(["analyze", "robustness", *(str(runs / name) for name in ("left", "right")), str(empty)]) == 2
    assert "holds no checkpoint" in capsys.readouterr().err
    path = empty / "config.json"
    record = json.loads(path.read_text())
    record["data_spec"]["inputs"] = {"shape": [21], "dtype": "float32"}
    path.write_text(json.dumps(record))
    assert main(["analyze", "robustness", str(empty)]) == 2
    assert "corruptions are for images" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_runs_of_train_are_measured_from_their_directories(tmp_path, capsys):
    changes = {**RUNS, "cagrad": {"method": MethodConfig("cagrad")}}
    for name, each in changes.items():
        train(dataclasses.replace(BASE, **each), workdir=tmp_path / name)
    for kept in ("4 of 4: ", "4 of 4 runs were measured before"):
        assert main(["analyze", "robustness", *(str(tmp_path / name) for name in changes), *SMALL]) == 0
        out, err = capsys.readouterr()
        assert "cagrad" in out
        assert kept in err


def run_of(method, seed, tasks=("left", "right"), **options):
    config = dataclasses.replace(BASE, method=MethodConfig(method, options), seed=seed, tasks=tasks)
    directory = Path(f"{method}{options}{tasks}{seed}")
    return robustness_runs.Run(directory, config, {task: TASKS[task] for task in tasks})


def result(tasks, level):
    """Accuracy 1 in clean and `level` in corrupted images; in fog it is kept."""
    clean, dark = ({task: {"accuracy": value} for task in tasks} for value in (1.0, level))
    return Robustness(clean, clean, {"snow": [dark] * 5, "fog": [clean] * 5})


def test_seeds_are_paired_and_intervals_decide_the_verdict():
    single = [run_of("ew", seed, (task,)) for seed in (0, 1, 2) for task in TASKS]
    multi = [run_of(method, seed) for method in ("ew", "cagrad") for seed in (0, 1, 2)]
    hard = (0.9, 0.5, 0.7)  # the seeds differ more than the methods do
    found = {run.directory: result(run.tasks, hard[run.config.seed]) for run in single}
    gain = {"ew": (0.05, 0.06, 0.07), "cagrad": (-0.05, -0.06, -0.07)}
    for run in multi:
        seed = run.config.seed
        found[run.directory] = result(run.tasks, hard[seed] + gain[run.config.method.name][seed])
    comparisons = robustness_verdict.compare([*single, *multi], found)
    assert [each.method for each in comparisons] == ["ew", "cagrad"]
    np.testing.assert_allclose([each.mean.mean for each in comparisons], [-0.03, 0.03])
    np.testing.assert_allclose([each.mean.half_width for each in comparisons], 4.3027 * 0.005 / 3**0.5, rtol=1e-4)
    assert comparisons[0].corruptions == ("snow", "fog")
    np.testing.assert_allclose(comparisons[0].cells, [[-0.06] * 5, [0.0] * 5], atol=1e-12)
    assert [robustness_verdict.sign(each.mean) for each in comparisons] == ["more robust", "less robust"]
    assert robustness_verdict.consistent(comparisons) == "reproduced"
    assert robustness_verdict.consistent([comparisons[0]] * 2) == "not reproduced"
    assert robustness_verdict.consistent(comparisons[:1]) == "not decided"
    vague = comparisons[0]._replace(mean=comparisons[0].mean._replace(half_width=1.0))
    assert robustness_verdict.consistent([vague, comparisons[1]]) == "not decided"


def test_runs_of_a_method_are_told_apart_by_what_differs():
    members = [run_of("cagrad", 0, c=0.2), run_of("cagrad", 0, c=0.4), run_of("ew", 0)]
    assert list(robustness_runs.labels(members).values()) == ["cagrad (c 0.2)", "cagrad (c 0.4)", "ew"]
    with pytest.raises(ValueError, match="are the same run, ew with seed 0"):
        robustness_runs.labels([run_of("ew", 0), run_of("ew", 0)._replace(directory=Path("twin"))])
