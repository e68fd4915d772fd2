import subprocess
import sys

import jax
import numpy as np
import pytest

from mtljax import data, tasks
from mtljax.data import MultiTaskData, Split


def two_tasks(n=4):
    split = Split(np.zeros((n, 3), np.float32), {"a": np.zeros(n, np.int32), "b": np.zeros(n, np.float32)})
    return MultiTaskData(
        "two", {"a": tasks.classification(3), "b": tasks.regression()}, dict.fromkeys(data.SPLITS, split)
    )


def test_every_name_is_listed_and_digits_loads():
    assert data.names() == ("digits", "fashion_and_mnist", "multi_fashion", "multi_mnist")
    assert data.load("digits", num_train=20, seed=5).splits["train"].num_examples == 20


def test_unknown_data_set_names_the_nearest():
    with pytest.raises(ValueError, match="unknown data set 'digit': did you mean 'digits'"):
        data.load("digit")


def test_unknown_argument_names_the_nearest():
    with pytest.raises(ValueError, match="unknown argument of digits 'num_trian': did you mean 'num_train'"):
        data.load("digits", num_trian=3)


def test_select_keeps_the_chosen_tasks_and_shares_the_inputs():
    made = two_tasks()
    only = made.select(["b"])
    assert list(only.tasks) == list(only.splits["test"].targets) == ["b"]
    assert only.splits["train"].inputs is made.splits["train"].inputs
    assert made.select("a").tasks == {"a": tasks.classification(3)}


def test_select_of_an_unknown_task_names_the_nearest():
    with pytest.raises(ValueError, match="unknown task of data set digits 'rigth': did you mean 'right'"):
        data.digits(num_train=10).select(["rigth"])


def test_select_of_nothing_is_refused():
    with pytest.raises(ValueError, match="has no task"):
        two_tasks().select([])


def test_targets_that_do_not_fit_are_refused():
    made = two_tasks()
    with pytest.raises(ValueError, match="are not those of"):
        MultiTaskData("x", {"a": made.tasks["a"]}, made.splits)
    with pytest.raises(ValueError, match="needs the splits"):
        MultiTaskData("x", made.tasks, {"train": made.splits["train"]})
    short = Split(np.zeros((5, 3)), made.splits["train"].targets)
    with pytest.raises(ValueError, match="5 inputs but 4 targets"):
        MultiTaskData("x", made.tasks, dict.fromkeys(data.SPLITS, short))


def test_spec_rebuilds_the_tasks():
    made = two_tasks()
    rebuilt = {name: tasks.from_spec(spec) for name, spec in made.spec["tasks"].items()}
    assert rebuilt == made.tasks


def test_a_split_moves_to_the_device_as_a_pytree():
    split = jax.device_put(two_tasks().splits["train"])
    assert isinstance(split, Split)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(split))


def test_importing_and_loading_digits_does_not_import_tfds():
    code = "import sys, mtljax.data as d; d.digits(num_train=9); assert 'tensorflow_datasets' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
