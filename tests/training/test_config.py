"""Configs: overrides are checked, round trips are exact."""

import json

import pytest

from mtljax.ablation import StudyConfig
from mtljax.training import TrainConfig
from mtljax.training.config import differences, load_config, to_dict
from mtljax.training.overrides import from_dict, override


def test_overrides_reach_nested_fields_and_options():
    config = override(
        TrainConfig(),
        [
            "--method.name=cagrad",
            "--method.options.c=0.5",
            "--optimizer.learning_rate=3e-4",
            "--optimizer.clip_norm=1",
            "--patience=none",
            "--tasks=left,right",
            "--tensorboard=false",
        ],
    )
    assert (config.method.name, config.method.options) == ("cagrad", {"c": 0.5})
    assert config.optimizer.learning_rate == 3e-4
    assert config.optimizer.clip_norm == 1.0
    assert config.tasks == ("left", "right")
    assert config.tensorboard is False


def test_overrides_reach_the_base_of_a_study():
    study = override(StudyConfig("s"), ["--base.epochs=3", "--seeds=(0, 1)"])
    assert (study.base.epochs, study.seeds) == (3, (0, 1))
    assert override(StudyConfig("s"), ["--seeds=7"]).seeds == (7,)


def test_a_key_of_another_level_is_named():
    with pytest.raises(ValueError, match=r"'epochs': did you mean 'base\.epochs'\?"):
        override(StudyConfig("s"), ["--epochs=3"])
    with pytest.raises(ValueError, match=r"'learning_rate': did you mean 'base\.optimizer\.learning_rate'\?"):
        override(StudyConfig("s"), ["--learning_rate=3"])
    with pytest.raises(ValueError, match=r"'base\.epochs': did you mean 'epochs'\?"):
        override(TrainConfig(), ["--base.epochs=3"])
    with pytest.raises(ValueError, match=r"'data\.name': did you mean 'base\.data\.name'\?"):
        override(StudyConfig("s"), ["--data.name=digits"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "--optimizer.learning_rte=1",
            r"unknown config key 'optimizer.learning_rte': did you mean 'optimizer.learning_rate'",
        ),
        ("--metod.name=ew", "unknown config key 'metod': did you mean 'method'"),
        ("--epochs=many", "epochs must be an integer, got 'many'"),
        ("--epochs=1.5", "epochs must be an integer, got 1.5"),
        ("--epochs=true", "epochs must be an integer, got True"),
        ("--optimizer.learning_rate=fast", "optimizer.learning_rate must be a number"),
        ("--mode=quick", r"mode must be one of 'auto', 'jacrev', 'loop', 'two_pass', 'features', got 'quick'"),
        ("--patience=soon", "patience must be an integer or none"),
        ("--tasks=(1, 2)", r"tasks\[0\] must be a string"),
        ("--method=cagrad", "method is a group: set one of method.name"),
        ("--epochs.more=1", "epochs is a single value"),
        ("--epochs", "overrides look like"),
        ("epochs=3", "overrides look like"),
        ("--batch_size=0", "batch_size must be at least 1, got 0"),
        ("--patience=0", "patience must be at least 1"),
        ("--tasks=left,left", "tasks lists a task twice"),
        ("--optimizer.learning_rate=-1", "learning_rate must be at least 0 and finite, got -1"),
        ("--optimizer.learning_rate=1e400", "learning_rate must be at least 0 and finite, got inf"),
        ("--optimizer.clip_norm=0", "clip_norm must be positive"),
        ("--optimizer.warmup_steps=-1", "warmup_steps must be at least 0"),
    ],
)
def test_bad_overrides_are_one_clear_sentence(text, message):
    with pytest.raises(ValueError, match=message):
        override(TrainConfig(), [text])


def test_configs_survive_json(tiny):
    config = tiny(tasks=("left",), patience=3)
    restored = from_dict(TrainConfig, json.loads(json.dumps(to_dict(config))))
    assert to_dict(restored) == to_dict(config)
    assert differences(to_dict(restored), to_dict(tiny(seed=5))) == ["patience", "seed", "tasks"]


def test_a_config_file_is_run(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("from mtljax.training import TrainConfig\ndef get_config():\n    return TrainConfig(name='mine')\n")
    assert load_config(path).name == "mine"


def test_a_missing_or_useless_config_file_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "digits.py").write_text("x = 1\n")
    with pytest.raises(ValueError, match=r"did you mean configs/digits\.py"):
        load_config("configs/digit.py")
    with pytest.raises(ValueError, match="must define get_config"):
        load_config("configs/digits.py")
    (tmp_path / "bad.py").write_text(
        "from mtljax.training import *\ndef get_config():\n    return TrainConfig(bacth_size=3)\n"
    )
    with pytest.raises(ValueError, match=r"bad.py: get_config\(\) failed: .*bacth_size"):
        load_config("bad.py")


def test_a_config_that_is_no_python_says_where(tmp_path):
    path = tmp_path / "bad.py"
    path.write_text("def get_config(:\n")
    with pytest.raises(ValueError, match=r"bad\.py is no Python file: .* in line 1"):
        load_config(path)
