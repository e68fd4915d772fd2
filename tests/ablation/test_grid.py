"""Grids: which cells follow from which axes, what they are called, and what cannot be one."""

import dataclasses
import math
from typing import Any

import jax
import pytest

from mtljax.ablation import Axis, Pair, StudyConfig, product, zipped
from mtljax.ablation.cell import Context, run_in
from mtljax.ablation.grid import WEIGHTS, cells, weight_grid
from mtljax.training import DataConfig, MethodConfig, ModelConfig, OptimizerConfig, TrainConfig, train
from mtljax.training.program import structure

TASKS = ("left", "right")
BASE = TrainConfig(
    data=DataConfig("digits", {"num_train": 256, "num_validation": 100, "num_test": 100}),
    model=ModelConfig("mlp", {"features": (16,)}),
    batch_size=64,
    epochs=1,
    devices=1,
)
METHODS = (MethodConfig("ew"), MethodConfig("cagrad"), MethodConfig("mgda"))
ADAM, SGD = OptimizerConfig("adam"), OptimizerConfig("sgd", options={"momentum": 0.9})


def study(axes=(), **changes):
    plain = {"methods": METHODS[:1], "seeds": (0,), "baselines": False, "weight_grid": 0}
    return StudyConfig("tiny", base=BASE, axes=axes, **{**plain, **changes})


def names(axes=(), **changes):
    return [cell.name for cell in cells(study(axes, **changes), TASKS)]


def test_axes_multiply_and_seeds_are_innermost():
    axes = product({"optimizer.learning_rate": (1e-3, 3e-3), "batch_size": (64, 128)})
    found = cells(study(axes, seeds=(0, 1)), TASKS)
    points = [(c.config.optimizer.learning_rate, c.config.batch_size, c.config.seed) for c in found]
    assert points == [(rate, size, seed) for rate in (1e-3, 3e-3) for size in (64, 128) for seed in (0, 1)]
    assert found[1].name == "ew-adam-learning_rate=0.001-batch_size=64-seed1"


def test_zipped_fields_vary_together_beside_other_axes():
    axes = zipped({"batch_size": (32, 64), "model.options.features": ((8,), (16, 16))}) + product({"epochs": (1, 2)})
    configs = [cell.config for cell in cells(study(axes), TASKS)]
    assert [(c.batch_size, c.model.options["features"], c.epochs) for c in configs] == [
        (32, (8,), 1), (32, (8,), 2), (64, (16, 16), 1), (64, (16, 16), 2),
    ]  # fmt: skip


def test_hyperparameters_are_chosen_and_other_fields_compared():
    axes = product({"optimizer.learning_rate": (1e-3,), "method.options.c": (0.2,), "batch_size": (64,)})
    cell = cells(study(axes, methods=(MethodConfig("cagrad", {"rescale": 1}),)), TASKS)[0]
    assert cell.setting == {"optimizer.learning_rate": 1e-3, "method.options.c": 0.2}
    assert cell.condition == {"batch_size": 64}
    assert (cell.method, cell.optimizer, cell.role) == ("cagrad(rescale=1)", "adam", "method")
    compared = cells(study(axes, methods=(MethodConfig("cagrad"),), tuned=()), TASKS)[0]
    assert compared.setting == {}
    assert compared.condition == {"optimizer.learning_rate": 1e-3, "method.options.c": 0.2, "batch_size": 64}


def test_a_method_without_an_option_has_one_cell_for_all_its_values():
    axes = product({"method.options.c": (0.2, 0.4), "optimizer.options.momentum": (0.0, 0.9)})
    assert names(axes, methods=METHODS[:2], optimizers=(ADAM, SGD)) == [
        "ew-adam_0.001-seed0",
        "ew-sgd_0.001-momentum=0-seed0",
        "ew-sgd_0.001-momentum=0.9-seed0",
        "cagrad-adam_0.001-c=0.2-seed0",
        "cagrad-adam_0.001-c=0.4-seed0",
        "cagrad-sgd_0.001-c=0.2-momentum=0-seed0",
        "cagrad-sgd_0.001-c=0.2-momentum=0.9-seed0",
        "cagrad-sgd_0.001-c=0.4-momentum=0-seed0",
        "cagrad-sgd_0.001-c=0.4-momentum=0.9-seed0",
    ]


def test_a_pair_adds_one_method_with_its_own_optimizer():
    pairs = (
        Pair(MethodConfig("adatask"), OptimizerConfig("sgd"), label="adam"),
        Pair(MethodConfig("ew"), OptimizerConfig("signsgd")),
    )
    axes = product({"optimizer.learning_rate": (1e-3, 3e-3)})
    grid = study(axes, optimizers=(ADAM, SGD), pairs=pairs, baselines=True, weight_grid=1)
    found = cells(grid, TASKS)
    own = [(cell.method, cell.optimizer, cell.config.optimizer.name) for cell in found if cell.role == "method"]
    assert own[::2] == own[1::2] == [  # at both learning rates
        ("ew", "adam", "adam"), ("ew", "sgd(momentum=0.9)", "sgd"), ("adatask", "adam", "sgd"),
        ("ew", "signsgd", "signsgd"),
    ]  # fmt: skip
    assert found[-4].name == "adatask-adam-learning_rate=0.001-seed0"
    assert {cell.optimizer for cell in found if cell.role != "method"} == {"adam", "sgd(momentum=0.9)"}
    with pytest.raises(ValueError, match=f"has about {len(found)} cells"):
        cells(grid, TASKS, most=len(found) - 1)
    with pytest.raises(ValueError, match="unknown config key"):
        study(product({"optimizer.options.b3": (0.9,)}), pairs=pairs)


def test_a_baseline_keeps_the_scale_of_its_own_loss():
    scaled = dataclasses.replace(BASE, loss_scales={"right": 10.0})
    grid = dataclasses.replace(study(baselines=True), base=scaled)
    found = {cell.name.split("-")[2]: cell.config.loss_scales for cell in cells(grid, TASKS) if cell.kind == "single"}
    assert found == {"left": {}, "right": {"right": 10.0}}
    axes = product({"loss_scales": ({}, {"right": 10.0})})
    both = [cell for cell in cells(study(axes, baselines=True), TASKS) if cell.kind == "single"]
    assert [cell.condition["loss_scales"] for cell in both] == [{}, {}, {"right": 10.0}, {"right": 10.0}]
    assert [cell.config.loss_scales for cell in both] == [{}, {}, {}, {"right": 10.0}]


def test_methods_may_be_an_axis_too():
    found = cells(study(product({"method.name": ("ew", "cagrad"), "method.options.c": (0.2, 0.4)})), TASKS)
    assert [(cell.method, cell.config.method.options.get("c")) for cell in found] == [
        ("ew", None), ("cagrad", 0.2), ("cagrad", 0.4),
    ]  # fmt: skip
    assert all(cell.condition == {} for cell in found)


def test_baselines_are_trained_under_every_condition_with_every_optimizer_setting():
    axes = product({"optimizer.learning_rate": (1e-3, 3e-3), "batch_size": (32, 64), "method.options.c": (0.2, 0.4)})
    grid = cells(study(axes, methods=METHODS[1:2], optimizers=(ADAM, SGD), baselines=True, weight_grid=3), TASKS)
    single = [cell for cell in grid if cell.role == "single"]
    assert len(single) == len({cell.name for cell in single}) == 2 * 2 * 2 * 2  # optimizers, rates, sizes, tasks
    assert all("method.options.c" not in {**cell.setting, **cell.condition} for cell in single)
    weighted = [cell for cell in grid if cell.role == "scalarization"]
    assert len(weighted) == 2 * 2 * 2 * 3
    assert {cell.method for cell in weighted} == {"scalarization (tuned)"}
    assert weighted[0].setting == {"optimizer.learning_rate": 1e-3, WEIGHTS: {"left": 0.5, "right": 1.5}}
    assert weighted[0].config.method == MethodConfig("scalarization", {"weights": {"left": 0.5, "right": 1.5}})
    assert weighted[0].name == "scalarization-adam-learning_rate=0.001-batch_size=32-weights=0.5_1.5-seed0"


def test_the_weight_grid_is_even_for_two_tasks_and_log_uniform_for_more():
    assert [round(point["a"], 9) for point in weight_grid("ab", 9)] == [k / 5 for k in range(1, 10)]
    many = weight_grid("abcd", 2000)
    assert many[:5] == weight_grid("abcd", 5)  # the same in every study
    assert all(math.isclose(sum(point.values()), 4, rel_tol=1e-5) for point in many)
    ratios = sorted(math.log(point["a"] / point["b"]) for point in many)
    assert abs(ratios[len(ratios) // 2]) < 0.15  # no task is favoured
    assert math.log(30) < ratios[-1] < math.log(100)  # two decades
    assert weight_grid("a", 9) == []


def test_names_are_unique_file_names(tmp_path):
    axes = product({"data.options.note": ("a/b", "a b", "A b"), "subset": ("Dense_0|Conv" * 40, None)})
    found = names(axes)
    assert len({name.lower() for name in found}) == 6
    for name in found:
        (tmp_path / f"{name}.json").touch()


def test_two_fields_of_one_name_are_told_apart():
    axes = product({"data.options.seed": (1,), "method.options.seed": (2,)})
    assert names(axes, methods=(MethodConfig("rlw"),)) == [
        "rlw-adam_0.001-data.options.seed=1-method.options.seed=2-seed0"
    ]


def test_optimizers_that_differ_in_what_surrounds_them_have_labels_of_their_own():
    both = (ADAM, dataclasses.replace(ADAM, schedule="cosine", clip_norm=1.0))
    assert names(optimizers=both) == [
        "ew-adam_0.001-seed0",
        "ew-adam_0.001_clip_norm=1.0_schedule=cosine_-seed0",
    ]


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        (
            {"optimizer.learning_rat": (1,)},
            r"unknown config key 'optimizer.learning_rat': did you mean 'optimizer\.lea",
        ),
        ({"method.options.cc": (1,)}, r"unknown config key 'method.options.cc': did you mean 'method.options.c'"),
        ({"optimizer.options.momentun": (1,)}, "did you mean 'optimizer.options.momentum'"),
        ({"method.options.c": ("high",)}, "option c of method cagrad must be a number, got 'high'"),
        ({"epochs": (1, "two")}, "epochs must be an integer, got 'two'"),
        ({"optimizer.learning_rate": (1e-3, -1.0)}, "optimizer.learning_rate must be at least 0 and finite, got -1.0"),
        ({"optimizer": ("adam",)}, "optimizer is a group: set one of optimizer.name"),
        ({"seed": (0, 1)}, "seed cannot be an axis: list seeds in `seeds`"),
        ({"epochs": ()}, "the grid is empty: the axis epochs lists nothing"),
        ({"epochs": 3}, r"the axis epochs needs several values, such as \(1, 2\), got 3"),
        ({"method.name": ("cagard",), "method.options.c": (0.4,)}, "unknown method 'cagard': did you mean 'cagrad'"),
    ],
)
def test_an_axis_that_cannot_be_is_one_sentence(axes, message):
    with pytest.raises(ValueError, match=message):
        study(product(axes), methods=METHODS, optimizers=(ADAM, SGD))


def test_other_grids_that_cannot_be():
    with pytest.raises(
        ValueError, match="pairs values by position and needs as many of each field, got epochs 2, batch"
    ):
        zipped({"epochs": (1, 2), "batch_size": (64,)})
    with pytest.raises(ValueError, match="the axis epochs, batch_size needs 2 values at every point"):
        Axis(("epochs", "batch_size"), ((1,),))
    with pytest.raises(ValueError, match="epochs is in two axes"):
        study(product({"epochs": (1,)}) + product({"epochs": (2,)}))
    with pytest.raises(ValueError, match="lists the same run twice: ew-adam_0"):
        names(product({"epochs": (1, 1)}))
    with pytest.raises(ValueError, match="did you mean 'epochs'"):
        study(product({"epochs": (1,)}), tuned=("epoch",))
    with pytest.raises(ValueError, match="weight_grid must be at least 0, got -1"):
        study(weight_grid=-1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": ("a",)}, r"seeds\[0\] must be an integer, got 'a'"),
        ({"seeds": (0.5, 1)}, r"seeds\[0\] must be an integer, got 0.5"),
        ({"seeds": 3}, "seeds must be a tuple of an integer, got 3"),
        (
            {"methods": ("ew",)},
            r"methods\[0\] must be a MethodConfig, on the command line a dict such as {'name': ...}, got 'ew'",
        ),
        ({"optimizers": ("adam",)}, r"optimizers\[0\] must be an OptimizerConfig, .*, got 'adam'"),
        ({"weight_grid": 2.5}, "weight_grid must be an integer, got 2.5"),
        ({"baselines": "no"}, "baselines must be true or false, got 'no'"),
        ({"tuned": "epochs"}, "tuned must be a tuple of a string or none, got 'epochs'"),
        (
            {"axes": {"epochs": (1, 2)}},
            r"axes must be made with product\(...\) and zipped\(...\), joined by \+, got {'ep",
        ),
        ({"axes": product({"epochs": (1, 2)})[0]}, r"axes must be made with .*, got Axis\(fields=\('epochs',"),
        ({"axes": ("epochs",)}, r"axes must be made with .*, got \('epochs',\)"),
    ],
)
def test_a_value_of_the_wrong_type_is_one_sentence(changes, message):
    with pytest.raises(ValueError, match=message):
        study(**changes)


def test_lists_in_a_config_do_as_tuples():
    listed = study([*product({"epochs": (1, 2)})], seeds=[0, 1], methods=[{"name": "cagrad", "options": {"c": 0.2}}])
    assert listed == study(product({"epochs": (1, 2)}), seeds=(0, 1), methods=(MethodConfig("cagrad", {"c": 0.2}),))


def test_of_many_repeated_runs_three_are_shown():
    message = (
        r"the same run twice: ew-adam_0\.001-seed0, (\S+, )?\S+ and 5 more; take the repeated seed, method, optimi"
    )
    with pytest.raises(ValueError, match=message):
        names(seeds=(*range(8), *range(8)))


def test_a_huge_grid_is_counted_not_made():
    axes = product({f"data.options.{letter}": tuple(range(100)) for letter in "abcd"})
    with pytest.raises(ValueError, match=r"has about 1,200,000,000 cells, more than 10,000: add --yes if you mean it"):
        cells(study(axes, seeds=(0, 1, 2), weight_grid=3), TASKS, most=10_000)


def test_the_count_is_that_of_the_cells():
    axes = product({"method.options.c": (0.2, 0.4), "optimizer.learning_rate": (1e-3, 3e-3), "epochs": (1, 2)})
    grid = study(axes, methods=METHODS, optimizers=(ADAM, SGD), baselines=True, weight_grid=9, seeds=(0, 1))
    grid = dataclasses.replace(grid, single_methods=METHODS[1:])
    count = len(cells(grid, TASKS))
    assert len(cells(grid, TASKS, most=count)) == count
    with pytest.raises(ValueError, match=f"has about {count} cells, more than {count - 1}"):
        cells(grid, TASKS, most=count - 1)


def test_single_methods_train_one_network_a_task_beside_the_baselines():
    sam = MethodConfig("fs_mtl", {"base": "ew", "rho": 0.1})
    axes = product({"method.options.rho": (0.5,), "epochs": (1,)})
    grid = cells(study(axes, methods=(sam,), single_methods=(sam,), baselines=True), TASKS)
    shown = [(cell.kind, cell.role, cell.config.tasks, cell.config.method) for cell in grid]
    ew, other = MethodConfig("ew"), MethodConfig("fs_mtl", {"base": "ew", "rho": 0.5})
    assert shown == [
        ("single", "single", ("left",), ew),
        ("single", "single", ("right",), ew),
        ("single", "method", ("left",), sam),
        ("single", "method", ("right",), sam),
        ("multi", "method", (), other),
    ]
    assert (grid[0].method, grid[2].method) == ("single-task", "single-task fs_mtl(base=ew, rho=0.1)")


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("optimizer.learning_rate", (1e-3, 1)),
        ("method.options.c", (0.4, 1)),
        ("optimizer.options.weight_decay", (0, 1e-4)),
        ("optimizer.clip_norm", (1, 0.5)),
        (WEIGHTS, ({"left": 0.1, "right": 0.9}, {"left": 1, "right": 0})),
        (WEIGHTS, ((0.1, 0.9), (1, 0))),
        ("loss_scales", ({}, {"right": 10.0}, {"left": 1, "right": 0.1})),
        ("loss_scales.right", (1, 10.0)),
    ],
)
def test_traced_values_leave_the_structure_alone(field, values):
    method = MethodConfig("scalarization" if field == WEIGHTS else "cagrad")
    grid = study(product({field: values}), methods=(method,), optimizers=(OptimizerConfig("adamw"),), seeds=(0, 1))
    assert len({structure(cell.config) for cell in cells(grid, TASKS)}) == 1


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("method.name", ("ew", "mgda")),
        ("optimizer.name", ("adam", "sgd")),
        ("model.options.features", ((8,), (16,))),
        ("optimizer.clip_norm", (None, 1.0)),
        ("method.options.update_every", (1, 2)),
        (WEIGHTS, (None, (1.0, 1.0))),
    ],
)
def test_structural_values_change_it(field, values):
    method = MethodConfig("scalarization" if field == WEIGHTS else "mgda")
    grid = study(product({field: values}), methods=(method,))
    assert len({structure(cell.config) for cell in cells(grid, TASKS)}) == 2


@pytest.mark.parametrize(
    ("method", "option", "values"),
    [("fairgrad", "alpha", (1, 2.0)), ("fs_mtl", "rho", (0.05, 2.0)), ("moco", "rho", (0, 0.1))],
)
def test_numbers_of_other_methods_do_so_too(method, option, values):
    grid = study(product({f"method.options.{option}": values}), methods=(MethodConfig(method),))
    assert len({structure(cell.config) for cell in cells(grid, TASKS)}) == 1


def test_thirty_two_cells_that_differ_in_numbers_compile_once():
    numbers = {
        "optimizer.learning_rate": (1e-3, 2e-3, 8e-3, 0.1),
        "optimizer.options.weight_decay": (1e-4, 1.0),
        "loss_scales": ({}, {"left": 0.1, "right": 10.0}),
    }
    grid = cells(study(product(numbers), optimizers=(OptimizerConfig("adamw"),), seeds=(0, 1)), TASKS)
    assert len(grid) == 32
    context, compiled = Context(), []

    def count(event: str, duration_secs: float, **_: str | int) -> None:
        del duration_secs
        if event.endswith("backend_compile_duration"):
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        first = run_in(grid[0], context)
        assert compiled
        compiled.clear()
        records = [run_in(cell, context) for cell in grid[1:]]
    finally:
        jax.monitoring.unregister_event_duration_listener(count)
    assert compiled == []  # not even a small one
    advance: Any = context.program(grid[0].config).advance
    assert advance._cache_size() == 1
    assert {record["status"] for record in [first, *records]} == {"finished"}
    losses = {record["validation"]["left"]["loss"] for record in [first, *records]}
    assert len(losses) == 32  # none got another's learning rate or seed
    assert run_in(grid[0], context)["test"] == first["test"]  # training left the drawn network as it was


def test_cells_of_one_program_keep_their_own_weights_and_numbers():
    context = Context()
    weights = product({WEIGHTS: ({"left": 1, "right": 0}, {"left": 0.25, "right": 0.75})})
    first, second = cells(study(weights, methods=(MethodConfig("scalarization"),)), TASKS)
    shared = [run_in(cell, context) for cell in (first, second)]
    advance: Any = context.program(first.config).advance
    assert advance._cache_size() == 1
    assert shared[0]["history"][-3]["weights"] == {"left": 1.0, "right": 0.0}
    assert shared[1]["history"][-3]["weights"] == {"left": 0.25, "right": 0.75}
    assert shared[1]["test"] == train(second.config).test


def test_weights_for_other_tasks_are_refused():
    config = dataclasses.replace(BASE, method=MethodConfig("scalarization", {"weights": {"left": 1.0, "up": 1.0}}))
    message = r"option weights of method scalarization is for \['left', 'up'\], but the tasks are \['left', 'right'\]"
    with pytest.raises(ValueError, match=message):
        Context().program(config)
