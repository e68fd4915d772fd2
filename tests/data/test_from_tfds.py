import contextlib
import logging
import shutil
import sys

import numpy as np
import pytest

from mtljax import data, tasks
from mtljax.data import tfds_decode

ENB = {"inputs": "x", "tasks": {"heating": ("y", "regression", 0), "cooling": ("y", "regression", 1)}}


def copy(tfds_dir, tmp_path, name):
    shutil.copytree(tfds_dir / name, tmp_path / "data" / name)
    return tmp_path / "data"


def test_components_of_a_vector_become_tasks(tfds_dir):
    made = data.from_tfds("enb", **ENB)
    whole = data.from_tfds("enb", inputs="x", tasks={"both": ("y", "regression")})
    assert {name: split.num_examples for name, split in made.splits.items()} == {
        "train": 553,
        "validation": 61,
        "test": 154,
    }
    assert whole.tasks == {"both": tasks.regression(size=2)}
    for split in data.SPLITS:
        both = whole.splits[split].targets["both"]
        np.testing.assert_array_equal(made.splits[split].targets["heating"], both[:, 0])
        np.testing.assert_array_equal(made.splits[split].targets["cooling"], both[:, 1])
        assert both.dtype == made.splits[split].inputs.dtype == np.float32


def test_validation_is_held_out_by_the_seed_and_loses_nothing(tfds_dir):
    made = data.from_tfds("enb", **ENB, validation_fraction=0.25)
    again = data.from_tfds("enb", **ENB, validation_fraction=0.25)
    other = data.from_tfds("enb", **ENB, validation_fraction=0.25, seed=1)
    train, validation = made.splits["train"].inputs, made.splits["validation"].inputs
    assert len(validation) == 154
    rows = np.concatenate([train, validation])
    everything = data.from_tfds("enb", **ENB, splits={"train": "train", "validation": "test", "test": "test"})
    expected = everything.splits["train"].inputs
    np.testing.assert_array_equal(rows[np.lexsort(rows.T)], expected[np.lexsort(expected.T)])
    np.testing.assert_array_equal(validation, again.splits["validation"].inputs)
    assert (validation != other.splits["validation"].inputs).any()


def test_splits_may_be_slices(tfds_dir):
    made = data.from_tfds("enb", **ENB, splits={"train": "train[:50%]", "validation": "train[50%:]", "test": "test"})
    assert made.splits["train"].num_examples == made.splits["validation"].num_examples == 307


def test_tox21_has_twelve_assays_with_missing_labels(tfds_dir):
    made = data.from_tfds(
        "tox21",
        inputs="fp",
        tasks={f"assay_{k}": ("y", "binary", k) for k in range(12)},
        preprocess=lambda packed: np.unpackbits(packed, axis=1).astype(np.float32),
    )
    assert len(made.tasks) == 12
    assert made.splits["train"].inputs.shape == (5764, 1024)
    assert set(np.unique(made.splits["train"].inputs)) == {0, 1}
    for target in made.splits["test"].targets.values():
        assert set(target.tolist()) == {-1, 0, 1}


def test_school_tasks_are_chosen_by_the_value_of_a_feature(tfds_dir):
    schools = {f"school_{k}": data.Target("y", "regression", where=("task", k)) for k in range(139)}
    made = data.from_tfds("school", inputs="x", tasks=schools)
    labels = np.stack(list(made.splits["test"].targets.values()))
    assert labels.shape == (139, 3845)
    np.testing.assert_array_equal((~np.isnan(labels)).sum(axis=0), 1)
    assert (~np.isnan(labels)).any(axis=1).all()


@pytest.mark.parametrize(
    ("name", "inputs", "target", "shape", "task"),
    [
        ("sarcos_small", "x", ("y", "regression", 6), (21,), tasks.regression()),
        ("ml_yeast", "x", ("y", "binary", 13), (103,), tasks.binary()),
        ("multi_digits", "image", ("label_left", "classification"), (12, 12, 1), tasks.classification(10)),
        ("qm9/dimenet", ("charges", "positions"), ("mu", tasks.regression(loss="l1")), (116,), None),
        ("nyuv2_mtl_small", "image", ("index", "regression"), (96, 128, 3), tasks.regression()),
        ("school", "x", ("task", "classification"), (28,), tasks.classification(139)),
    ],
)
def test_real_sets_read(tfds_dir, name, inputs, target, shape, task):
    small = {"train": "train[:100]", "validation": "train[100:120]", "test": "test[:50]"}
    splits = None if name == "school" else small
    made = data.from_tfds(name, inputs=inputs, tasks={"t": target}, splits=splits)
    assert made.splits["test"].inputs.shape[1:] == shape
    assert made.splits["test"].inputs.dtype == (np.uint8 if len(shape) == 3 else np.float32)
    assert made.tasks["t"] == (task or target[1])
    assert np.isfinite(made.splits["train"].targets["t"]).all()


def test_fashion_mnist_labels_read(tfds_dir):
    splits = {"train": "train[:200]", "validation": "train[200:300]", "test": "test[:100]"}
    made = data.from_tfds("fashion_mnist", inputs="image", tasks={"t": ("label", "classification")}, splits=splits)
    assert made.splits["train"].inputs.shape == (200, 28, 28, 1)
    assert made.tasks["t"] == tasks.classification(10)


def test_records_are_decoded_once(tfds_dir, monkeypatch):
    first = data.from_tfds("enb", **ENB)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)  # importing it now fails
    monkeypatch.setattr(tfds_decode, "decode", None)
    second = data.from_tfds("enb", **ENB)
    np.testing.assert_array_equal(first.splits["train"].inputs, second.splits["train"].inputs)


def test_a_damaged_cache_file_is_decoded_again(tfds_dir, cache_dir, caplog):
    first = data.from_tfds("enb", **ENB)
    path = next(cache_dir.glob("enb-*/train/x.npy"))
    path.write_bytes(path.read_bytes()[:-1])
    second = data.from_tfds("enb", **ENB)
    np.testing.assert_array_equal(first.splits["train"].inputs, second.splits["train"].inputs)
    assert len(caplog.records) == 1
    caplog.clear()
    data.from_tfds("enb", **ENB)
    assert not caplog.records


def test_a_set_prepared_anew_is_not_served_from_the_cache(tfds_dir, tmp_path, caplog):
    copied = copy(tfds_dir, tmp_path, "enb")
    with caplog.at_level(logging.INFO, "mtljax"):
        data.from_tfds("enb", **ENB, data_dir=copied)
        before = len(caplog.records)
        next(copied.glob("enb/*/*train*")).touch()
        data.from_tfds("enb", **ENB, data_dir=copied)
    assert len(caplog.records) == 2 * before


def test_a_read_only_cache_does_not_stop_the_run(tfds_dir, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MTLJAX_CACHE", str(tmp_path / "file"))
    assert data.from_tfds("enb", **ENB).splits["train"].num_examples == 553
    assert len(caplog.records) == 1


def test_unknown_feature_lists_the_features(tfds_dir):
    with pytest.raises(ValueError, match=r"unknown feature of tox21 'fb': did you mean 'fp'\? Valid: fp, smiles, y"):
        data.from_tfds("tox21", inputs="fb", tasks={"t": ("y", "binary", 0)})
    with pytest.raises(ValueError, match=r"unknown feature of tox21 'label'.*alid: fp, smiles, y"):
        data.from_tfds("tox21", inputs="fp", tasks={"t": ("label", "binary", 0)})


def test_unknown_set_names_the_nearest_and_where_it_looked(tfds_dir):
    with pytest.raises(ValueError, match=r"unknown TFDS data set 'tox2': did you mean 'tox21'.*MTLJAX_DATA"):
        data.from_tfds("tox2", inputs="fp", tasks={"t": ("y", "binary", 0)})


def test_unknown_config_says_which_are_there(tfds_dir):
    with pytest.raises(FileNotFoundError, match=r"'qm9' is not in .* \(which has qm9/dimenet\)"):
        data.from_tfds("qm9", inputs="charges", tasks={"t": ("mu", "regression")}, download=False)


def test_unknown_kind_names_the_nearest(tfds_dir):
    with pytest.raises(ValueError, match="unknown kind of task 'regresion': did you mean 'regression'"):
        data.from_tfds("enb", inputs="x", tasks={"t": ("y", "regresion", 0)})


@pytest.mark.parametrize(
    ("name", "inputs", "entry", "message"),
    [
        ("tox21", "fp", ("y", "binary"), "choose a component"),
        ("tox21", "fp", ("y", "binary", 12), "has no component 12"),
        ("tox21", "smiles", ("y", "binary", 0), "is not a number"),
        ("school", "x", ("y", "binary"), "labels must be integers from 0 to 1"),
        ("multi_digits", "image", ("label_left", tasks.classification(5)), "labels must be integers from 0 to 4"),
        ("enb", "x", ("y",), "must be"),
        ("enb", "x", "y", "must be"),
        ("enb", (), ("y", "regression"), "at least one input"),
    ],
)
def test_features_that_cannot_serve_are_refused(tfds_dir, name, inputs, entry, message):
    with pytest.raises(ValueError, match=message):
        data.from_tfds(name, inputs=inputs, tasks={"t": entry})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"splits": {"train": "trian", "test": "test"}}, "unknown split of enb 'trian': did you mean 'train'"),
        ({"splits": {"train": "train[:8", "test": "test"}}, "cannot be opened"),
        ({"splits": {"trian": "train", "test": "test"}}, "unknown split 'trian'"),
        ({"splits": {"train": "train"}}, "needs a test split"),
        ({"validation_fraction": 0.0}, "leaves a split empty"),
        ({"validation_fraction": 1.0}, "leaves a split empty"),
    ],
)
def test_senseless_splits_are_refused(tfds_dir, arguments, message):
    with pytest.raises(ValueError, match=message):
        data.from_tfds("enb", **ENB, **arguments)


def test_truncated_records_are_one_clear_error(tfds_dir, tmp_path):
    copied = copy(tfds_dir, tmp_path, "enb")
    records = next(copied.glob("enb/*/*train*"))
    records.write_bytes(records.read_bytes()[:1000])
    with pytest.raises((OSError, ValueError), match=r"'enb'.*cannot be"):
        data.from_tfds("enb", **ENB, data_dir=copied)


def test_unreadable_metadata_is_one_clear_error(tfds_dir, tmp_path):
    copied = copy(tfds_dir, tmp_path, "enb")
    next(copied.glob("enb/*/features.json")).write_text("{")
    with pytest.raises(ValueError, match="metadata of data set 'enb'"):
        data.from_tfds("enb", **ENB, data_dir=copied)


def test_another_record_format_says_what_to_do(tfds_dir, tmp_path):
    copied = copy(tfds_dir, tmp_path, "enb")
    for records in copied.glob("enb/*/*.array_record*"):
        records.rename(records.with_name(records.name.replace("array_record", "tfrecord")))
    with pytest.raises(ValueError, match="not in array_record format"):
        data.from_tfds("enb", **ENB, data_dir=copied)


def test_the_newest_version_is_read(tfds_dir, tmp_path):
    copied = copy(tfds_dir, tmp_path, "enb")
    for version in ("0.9.0", "1.10.0", "1.9.0"):
        (copied / "enb" / version).mkdir()
        (copied / "enb" / version / "dataset_info.json").write_text("{}")
    with pytest.raises(ValueError, match=r"1\.10\.0 is not in array_record"):
        data.from_tfds("enb", **ENB, data_dir=copied)
    assert data.from_tfds("enb:1.0.0", **ENB, data_dir=copied).splits["test"].num_examples == 154


def test_absent_data_says_what_to_set(no_data):
    with pytest.raises(FileNotFoundError, match=r"'mnist' is not in .*no network.*set MTLJAX_DATA"):
        data.from_tfds("mnist", inputs="image", tasks={"t": ("label", "classification")})


def test_missing_tfds_says_what_to_install(no_data, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ImportError, match="needs the packages tensorflow-datasets"):
        data.from_tfds("mnist", inputs="image", tasks={"t": ("label", "classification")})


def test_a_registered_set_is_prepared_by_tfds_itself(no_data, tmp_path, monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets")

    class MtljaxTinyNumbers(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.2.3")

        def _info(self):
            features = {
                "x": tfds.features.Tensor(shape=(2,), dtype=np.float32),
                "y": tfds.features.ClassLabel(num_classes=4),
            }
            return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(0, 40), "test": self._generate_examples(40, 50)}

        def _generate_examples(self, start, stop):
            for n in range(start, stop):
                yield n, {"x": np.array([n, -n], np.float32), "y": n % 4}

    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: contextlib.nullcontext())
    made = data.from_tfds(
        "mtljax_tiny_numbers", inputs="x", tasks={"t": ("y", "classification")}, data_dir=tmp_path / "data"
    )
    assert made.tasks["t"] == tasks.classification(4)
    for split in made.splits.values():
        np.testing.assert_array_equal(split.inputs[:, 0] % 4, split.targets["t"])
    assert sum(split.num_examples for split in made.splits.values()) == 50
