"""Runs that were probed: read, put together over seeds, judged by the stated rule, printed and drawn."""

import json
from pathlib import Path

import numpy as np
import pytest

from mtljax.analysis.claims import NOT_DECIDED, NOT_REPRODUCED, REPRODUCED
from mtljax.analysis.conflict_runs import angle_verdict, magnitude_verdict, over_epochs, read_runs, sign_verdict
from mtljax.analysis.epoch_probe import KINDS, default_every, summary
from mtljax.analysis.similarity import MEASURES
from mtljax.cli import main
from mtljax.training.config import TrainConfig, to_dict

TASKS, LAYERS = ("left", "right"), ("shared/Conv_0", "shared/Dense_0")


def look(rng, magnitude, cosine, signs=(0.4, 0.4)):
    """What one look would find: 8 examples, 2 tasks; means (between tasks, between samples) as given."""
    found = {"tasks": np.arange(2)}
    for kind, shape, m, c, s in zip(KINDS, ((8, 1), (2, 28)), magnitude, cosine, signs, strict=True):
        for layer in ("", *(f"/{layer}" for layer in LAYERS)):
            found[f"{kind}/magnitude{layer}"] = m + 0.02 * rng.normal(size=shape)
            found[f"{kind}/cosine{layer}"] = c + 0.02 * rng.normal(size=shape)
            found[f"{kind}/sign_conflict{layer}"] = s + 0.02 * rng.normal(size=shape)
    return found


def history(seed, magnitude=(0.3, 0.7), cosine=(0.1, 0.0), signs=(0.4, 0.4), epochs=3):
    rng = np.random.default_rng(seed)
    records = []
    for epoch in range(1, epochs + 1):
        looks = [look(rng, magnitude, cosine, signs) for _ in range(4)]
        at = {"step": 10 * epoch, "epoch": float(epoch), "seconds": 1.0}
        records.append(at | {"split": "train", "losses": dict.fromkeys(TASKS, 1.0), "weights": None})
        records.append(at | {"split": "probe", "probe": {"looks": 4} | summary(TASKS, looks)})
    return records


def histories(seeds=3, **means):
    return {seed: history(seed, **means) for seed in range(seeds)}


def test_an_epoch_is_summed_up_over_its_looks():
    rng = np.random.default_rng(0)
    looks = [look(rng, (0.3, 0.7), (0.1, 0.0)) for _ in range(4)]
    looks[0]["between_tasks/cosine"][0] = np.nan  # a zero gradient
    found = summary(TASKS, looks)
    values = np.concatenate([each["between_tasks/cosine"].ravel() for each in looks])
    kept = values[~np.isnan(values)]
    numbers = found["between_tasks"]["cosine"]
    expected = (kept.mean(), kept.std(), *np.percentile(kept, (2.5, 97.5)), 31)
    assert [numbers[name] for name in ("mean", "std", "low", "high", "pairs")] == pytest.approx(expected, rel=1e-5)
    assert numbers["quantiles"] == pytest.approx(np.percentile(kept, np.arange(0, 101, 5)), rel=1e-5, abs=1e-9)
    assert found["task_cosines"] == [[1, numbers["mean"]], [numbers["mean"], 1]]
    layer = found["layers"]["shared/Dense_0"]["between_samples"]["magnitude"]
    values = np.concatenate([each["between_samples/magnitude/shared/Dense_0"].ravel() for each in looks])
    assert layer["mean"] == pytest.approx(values.mean(), rel=1e-5)
    assert json.loads(json.dumps(found)) == found


def test_tasks_that_were_drawn_find_their_place_in_the_matrix_and_none_is_null():
    looks = []
    for tasks, values in (((0, 2), [[0.5], [0.7]]), ((2, 3), [[-0.2], [np.nan]])):
        found = {f"{kind}/{measure}": np.full((2, 1), np.nan) for kind in KINDS for measure in MEASURES}
        looks.append(found | {"between_tasks/cosine": np.array(values), "tasks": np.array(tasks)})
    found = summary("abcd", looks)
    null = None
    assert found["task_cosines"] == [
        [1, null, 0.6, null],
        [null, 1, null, null],
        [0.6, null, 1, -0.2],
        [null, null, -0.2, 1],
    ]
    assert found["between_samples"]["cosine"] | {"quantiles": 0} == {
        **dict.fromkeys(("mean", "std", "low", "high")),
        "pairs": 0,
        "quantiles": 0,
    }


def test_verdicts_follow_the_rule():
    lower, higher, equal = (over_epochs(histories(magnitude=m)) for m in ((0.3, 0.7), (0.7, 0.3), (0.5, 0.5)))
    assert [magnitude_verdict(each) for each in (lower, higher, equal)] == [REPRODUCED, NOT_REPRODUCED, NOT_DECIDED]
    assert magnitude_verdict([*lower, *higher[:1]]) == NOT_REPRODUCED
    assert magnitude_verdict(over_epochs(histories(seeds=1))) == NOT_DECIDED
    positive, negative = (over_epochs(histories(cosine=(c, 0.0))) for c in (0.2, -0.2))
    assert angle_verdict([positive, negative]) == REPRODUCED
    assert angle_verdict([positive, positive]) == NOT_REPRODUCED
    assert angle_verdict([positive, over_epochs(histories(cosine=(0.0, 0.0)))]) == NOT_DECIDED
    more, fewer = (over_epochs(histories(signs=s)) for s in ((0.5, 0.4), (0.3, 0.4)))
    assert [sign_verdict(each) for each in ([equal, more], [fewer], [equal])] == [NOT_REPRODUCED] * 2 + [NOT_DECIDED]
    assert sign_verdict([[more[0], fewer[0]]]) == NOT_DECIDED
    epoch = lower[0]
    assert epoch.difference["magnitude"].interval.mean == pytest.approx(-0.4, abs=0.02)
    assert epoch.between_tasks["magnitude"].n == 3


def write_run(directory, seed, name="digits", batch_size=64, **means):
    directory.mkdir(parents=True)
    config = to_dict(TrainConfig(name=name, seed=seed, batch_size=batch_size))
    (directory / "config.json").write_text(json.dumps({"config": config, "data_spec": {}}))
    (directory / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in history(seed, **means)))
    return str(directory)


def test_the_command_prints_every_epoch_the_verdicts_and_draws(tmp_path, capsys):
    runs = [write_run(tmp_path / f"a{seed}", seed) for seed in range(3)]
    runs += [write_run(tmp_path / f"b{seed}", seed, "other", magnitude=(0.5, 0.5)) for seed in range(3)]
    figure = tmp_path / "new" / "conflicts.png"
    assert main(["analyze", "conflicts", *runs, "--figure", str(figure)]) == 0
    out = capsys.readouterr().out
    assert "digits: reproduced" in out
    assert "other: not decided" in out
    lines = [line.split("│") for line in out.splitlines() if line.startswith("│ digits")]
    assert [line[3].strip() for line in lines] == ["1", "2", "3"]
    assert all(abs(float(line[4].split("±")[0]) - 0.3) < 0.02 for line in lines)
    assert figure.is_file()


def test_a_study_is_read_without_its_baselines_and_its_methods_apart(tmp_path):
    cells = tmp_path / "study" / "cells"
    cells.mkdir(parents=True)
    for method, kind in (("ew", "multi"), ("cagrad", "multi"), ("single-task", "single")):
        for seed in (0, 1):
            record = {
                "cell": f"{method}-{seed}",
                "kind": kind,
                "method": method,
                "optimizer": "adam 0.001",
                "seed": seed,
            }
            record |= {"tasks": list(TASKS), "status": "finished", "metric_directions": {}, "history": history(seed)}
            (cells / f"{method}-{seed}.json").write_text(json.dumps(record))
    found = read_runs([tmp_path / "study"])
    assert {name: sorted(runs) for name, runs in found.items()} == {
        "study ew, adam 0.001": [0, 1],
        "study cagrad, adam 0.001": [0, 1],
    }


def test_bad_input_is_one_sentence(tmp_path, capsys):
    run = write_run(tmp_path / "run", 0)
    again = write_run(tmp_path / "again", 0)
    blind = tmp_path / "blind"
    write_run(blind, 1, epochs=0)
    other = write_run(tmp_path / "other", 1, batch_size=32)
    config = tmp_path / "config.py"
    config.write_text("from mtljax.analysis.toy import ToyConfig\ndef get_config():\n    return ToyConfig()\n")
    config_path = Path(again) / "config.json"
    record = json.loads(config_path.read_text())
    record["config"] |= {"seed": 2, "tensorboard": False}  # which changes nothing in training
    (tmp_path / "third").mkdir()
    (tmp_path / "third" / "config.json").write_text(json.dumps(record))
    (tmp_path / "third" / "metrics.jsonl").write_text((Path(again) / "metrics.jsonl").read_text())
    assert sorted(read_runs([run, tmp_path / "third"])["digits"]) == [0, 2]
    for words, message in (
        ([str(tmp_path)], "holds neither a run (config.json) nor a study (cells/)"),
        ([str(blind)], "was trained without a probe: train it anew with --probe_every=30"),
        ([run, again], "was trained with seed 0 twice"),
        ([run, other], "are both digits ew, but differ in batch_size: give runs that differ in the seed alone"),
        ([run, "--epochs=3"], "--epochs=3: fields are overridden in configs, and these are finished runs"),
        ([str(config)], "needs a TrainConfig or a StudyConfig"),
    ):
        assert main(["analyze", "conflicts", *words]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert "Traceback" not in error


def test_the_default_interval_grows_with_the_number_of_gradients():
    assert [default_every("mlp", tasks) for tasks in (2, 4, 6, 8, 40)] == [200, 200, 450, 800, 800]
    assert default_every("lenet") == 30


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["analyze", "conflicts", "--help"])
    assert ended.value.code == 0
    assert "example: mtljax analyze conflicts" in capsys.readouterr().out


@pytest.mark.slow  # it trains
def test_a_config_is_trained_with_three_seeds_and_kept(tmp_path, monkeypatch, capsys):
    config = tmp_path / "config.py"
    config.write_text(
        "from mtljax.training import *\ndef get_config():\n"
        '    return TrainConfig(name="tiny", data=DataConfig("digits", {"num_train": 512, "num_validation": 100, '
        '"num_test": 100}), model=ModelConfig("mlp", {"features": (16,)}), batch_size=64, devices=1)\n'
    )
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert main(["analyze", "conflicts", str(config), "--base.epochs=2"]) == 0
        out = capsys.readouterr().out
        assert "tiny-conflicts" in out
        assert len(list((tmp_path / "runs" / "tiny-conflicts" / "cells").glob("*.json"))) == 3
