"""The experiment on CAGrad's function, against the paper's table and a plain NumPy loop."""

import re

import jax
import numpy as np
import pytest

from mtljax.analysis import toy
from mtljax.cli import main

PAPER = {10.0: "26", 5.0: "37", 1.0: "22", 0.5: "58", 0.1: "709"}  # Tab. 1 of arXiv:2311.04698: Adam, EW


def numpy_losses(x, scale=1.0):
    """Written from the formulas, apart from the package's."""
    a, b = x
    f1 = np.log(max(abs(0.5 * (-a - 7) - np.tanh(-b)), 5e-6)) + 6
    f2 = np.log(max(abs(0.5 * (-a + 3) + np.tanh(-b) + 2), 5e-6)) + 6
    c1, c2 = max(np.tanh(0.5 * b), 0), max(np.tanh(-0.5 * b), 0)
    g1 = ((-a + 7) ** 2 + 0.1 * (-b - 8) ** 2) / 10 - 20
    g2 = ((-a - 7) ** 2 + 0.1 * (-b - 8) ** 2) / 10 - 20
    return [scale * (f1 * c1 + g1 * c2), f2 * c1 + g2 * c2]


@pytest.fixture(scope="module")
def adam():
    config = toy.ToyConfig(methods=("ew",), optimizers=("adam",), learning_rates=tuple(PAPER), iterations=1000)
    return toy.run_toy("ew", "adam", config)


@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_losses_are_those_of_the_formulas(scale):
    points = np.random.default_rng(0).uniform(-11, 11, (40, 2))
    with jax.enable_x64(True):
        found = jax.jit(jax.vmap(lambda x: list(toy.losses(x, scale).values())))(points)
    np.testing.assert_allclose(np.transpose(found), [numpy_losses(x, scale) for x in points], rtol=1e-12)


def test_adam_on_the_mean_loss_takes_the_papers_iterations(adam):
    assert dict(zip(PAPER, toy.cells(adam), strict=True)) == PAPER


def test_quick_cells_stand_a_rounding_of_the_starts_and_slow_ones_do_not(monkeypatch):
    """Why the paper's cells at learning rates of 0.05 and less cannot be met to the step."""
    config = toy.ToyConfig(methods=("ew",), learning_rates=(0.5, 0.1, 0.05), iterations=8000)
    found, starts = [], np.array(toy.STARTS)
    for _ in range(4):
        monkeypatch.setattr(toy, "STARTS", tuple(map(tuple, starts)))
        found.append(toy.run_toy("ew", "adam", config).iterations.max(axis=1).tolist())
        starts = np.nextafter(starts, np.inf)
    quick, slow = [each[:2] for each in found], {each[2] for each in found}
    assert quick == [[58, 709]] * 4
    assert len(slow) > 1
    assert -1 not in slow


def test_a_path_stays_where_it_has_arrived(adam):
    assert (adam.times[:3] == [0, 1, 2]).all()
    np.testing.assert_array_equal(adam.path[0, 0], toy.STARTS)
    ends = adam.path[-1].reshape(-1, 2)
    assert max(np.mean(numpy_losses(x)) for x in ends) < -15
    late = adam.path[adam.times > adam.iterations[2].max()]
    assert (late[:, 2] == late[-1, 2]).all()


@pytest.mark.parametrize(("iterations", "expected"), [(21, "-"), pytest.param(22, "22", marks=pytest.mark.slow)])
def test_a_cap_below_the_iterations_gives_a_dash_and_at_them_the_number(iterations, expected):
    config = toy.ToyConfig(methods=("ew",), learning_rates=(1.0,), iterations=iterations)
    assert toy.cells(toy.run_toy("ew", "adam", config)) == [expected]


@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_the_minimum_is_one(scale):
    best, value = toy.minimum(scale)
    assert np.mean(numpy_losses(best, scale)) == pytest.approx(value, rel=1e-12)
    around = best + np.random.default_rng(0).normal(0, 0.05, (200, 2))
    assert min(np.mean(numpy_losses(x, scale)) for x in around) > value - 1e-8
    assert toy.threshold(scale) > value
    assert toy.threshold(1.0) == -15


def test_paths_are_drawn_over_the_contours(adam, tmp_path):
    config = toy.ToyConfig(methods=("ew",), optimizers=("adam",), learning_rates=tuple(PAPER), iterations=1000)
    figure = toy.plot_toy([adam], config)
    figure.savefig(tmp_path / "toy.png")
    assert "3 of 3 arrive" in figure.axes[0].get_title()
    assert "learning rate 1\n" in figure.axes[0].get_title()


def test_a_point_that_leaves_the_range_of_numbers_ends_the_run():
    config = toy.ToyConfig(methods=("ew",), learning_rates=(1e200,), iterations=10**7)
    result = toy.run_toy("ew", "gd", config)
    assert toy.cells(result) == ["-"]
    assert result.times[-1] < 100


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"methods": ("uw_o",)}, "uw_o needs positive losses"),
        ({"methods": ("cagard",)}, "did you mean 'cagrad'"),
        ({"optimizers": ("adm",)}, "did you mean 'adam'"),
        ({"iterations": 0}, "iterations must be positive, got 0"),
        ({"learning_rates": (0.1, -1.0)}, "learning_rates must be positive"),
    ],
)
def test_bad_fields_are_one_sentence(fields, message):
    with pytest.raises(ValueError, match=message):
        toy.ToyConfig(**fields)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in sorted(toy.methods.names()) if n not in toy.POSITIVE_LOSSES])
def test_every_other_method_walks_on_it(name):
    config = toy.ToyConfig(methods=(name,), learning_rates=(0.1,), iterations=200)
    assert np.isfinite(toy.run_toy(name, "adam", config).path).all()


def test_the_command_prints_a_table_and_draws(tmp_path, capsys):
    figure = tmp_path / "new" / "toy.png"
    words = ["--iterations=30", "--methods=('ew',)", "--optimizers=('adam',)", "--learning_rates=(1.0, 0.5)"]
    assert main(["analyze", "toy", *words, "--figure", str(figure)]) == 0
    out = capsys.readouterr().out
    assert re.search(r"adam +│ ew +│ 22 │ +- ", out)
    assert figure.is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["toy", "--methods=('cagard',)"], "did you mean 'cagrad'"),
        (["toy", "--iteration=3"], "unknown config key 'iteration'"),
        (["scale-invariance", "--scales=10"], "--scales takes two numbers, such as 10,0.1, got '10'"),
    ],
)
def test_the_command_on_bad_input_is_one_sentence(words, message, capsys):
    assert main(["analyze", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


@pytest.mark.parametrize("name", ["figure.xyz", "figure"])
def test_a_figure_of_another_kind_is_refused_before_the_work(name, capsys):
    with pytest.raises(SystemExit):
        main(["analyze", "scale-invariance", "--figure", name])
    assert f"'{name}' must end in .png, .pdf or .svg" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["toy", "scale-invariance"])
def test_every_analysis_has_help_with_an_example(what, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["analyze", what, "--help"])
    assert ended.value.code == 0
    assert f"example: mtljax analyze {what}" in capsys.readouterr().out
