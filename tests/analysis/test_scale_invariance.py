"""What constant factors on the losses change, on a linear model in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mtljax as mtl
from mtljax.analysis import ScaleInvariance, scale_experiment, scale_invariance

# Gradients over the backbone; task a pulls the coordinates down, b some of them up.
ROWS = np.array([[3.0, 1.0, 2.0, 1.0], [-1.0, 2.0, -2.5, 3.0]])
HEADS = {"a": np.array([0.5, -4.0]), "b": np.array([2.0])}
SCALES = {"a": 10.0, "b": 0.1}
FACTORS = np.array([10.0, 0.1])


def linear_losses(params, batch):
    """Losses whose gradients are constant: far above 0, so that no step changes them much."""
    del batch
    rows = jnp.asarray(ROWS) @ params["backbone"]
    return {task: 1e6 + rows[k] + jnp.asarray(HEADS[task]) @ params[task] for k, task in enumerate("ab")}


def compare(tx, **options):
    with jax.enable_x64(True):
        params = {"backbone": jnp.zeros(4), "a": jnp.zeros(2), "b": jnp.zeros(1)}
        options = {"steps": 4, "tolerance": 1e-6} | options
        return scale_invariance(linear_losses, params, [0.0], tx, options.pop("scales", SCALES), **options)


def relative(u, v):
    return np.linalg.norm(u - v) / max(np.linalg.norm(u), np.linalg.norm(v))


def test_sgd_sees_scales_everywhere():
    run = compare(optax.chain(mtl.ew(), optax.sgd(0.1, momentum=0.9)))
    expected = {"backbone": relative(ROWS.sum(axis=0), FACTORS @ ROWS), "head a": 0.9, "head b": 0.9}
    assert set(run.verdicts().values()) == {"not"}
    for group, difference in expected.items():
        np.testing.assert_allclose(run.differences[group], difference, rtol=1e-9)
    momentum = 0.1 * (1 - 0.9 ** np.arange(1, 5)) / (1 - 0.9)
    np.testing.assert_allclose(run.norms["head a"][0], momentum * np.linalg.norm(HEADS["a"]), rtol=1e-9)
    np.testing.assert_allclose(run.norms["head a"][1], 10 * run.norms["head a"][0], rtol=1e-9)
    np.testing.assert_allclose(run.norms["backbone"][1], momentum * np.linalg.norm(FACTORS @ ROWS), rtol=1e-9)


@pytest.mark.parametrize("memory", [{}, {"b1": 0, "b2": 0}])
def test_adam_sees_scales_in_the_backbone_alone_with_memory_or_without(memory):
    """With β₁ = β₂ = 0 too: a step is the sign of the sum, and the scales turn one of four signs."""
    run = compare(optax.chain(mtl.ew(), optax.adam(0.1, **memory)))
    assert run.verdicts() == {"backbone": "not", "head a": "invariant", "head b": "invariant"}
    signs = np.sign(ROWS.sum(axis=0)), np.sign(FACTORS @ ROWS)
    assert (signs[0] != signs[1]).sum() == 1
    np.testing.assert_allclose(run.differences["backbone"], relative(*signs), rtol=1e-5)
    assert run.differences["head a"].max() > 0  # ε


def test_adam_without_memory_is_invariant_where_tasks_agree_in_sign():
    """There the sign of the weighted sum is that of the sum: the condition the appendix leaves out."""
    agree = lambda p, _: {t: 1e6 + r @ p for t, r in zip("ab", jnp.array([[1.0, -2.0], [5.0, -0.1]]), strict=True)}  # noqa: E731
    with jax.enable_x64(True):
        tx = optax.chain(mtl.ew(), optax.adam(0.1, b1=0, b2=0))
        run = scale_invariance(agree, jnp.zeros(2), [0.0], tx, SCALES, steps=3, tolerance=1e-6)
    assert run.verdicts() == {"backbone": "invariant"}


@pytest.mark.parametrize(
    "tx",
    [
        pytest.param(optax.chain(mtl.uw_o(), optax.sgd(0.1, momentum=0.9)), id="uw_o sgd"),
        pytest.param(optax.chain(mtl.uw_o(), optax.adam(0.1)), id="uw_o adam", marks=pytest.mark.slow),
        pytest.param(optax.chain(mtl.adatask(eps=1e-20, num_tasks=2), optax.sgd(0.1)), id="adatask"),
        pytest.param(
            optax.chain(mtl.per_task(optax.scale_by_adam(eps=1e-20), num_tasks=2), mtl.ew(), optax.sgd(0.1)),
            id="per_task",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_optimal_weighting_and_adam_per_task_see_no_scale(tx):
    run = compare(tx)
    assert run.verdicts() == dict.fromkeys(("backbone", "head a", "head b"), "invariant")
    assert max(difference.max() for difference in run.differences.values()) < 1e-12
    np.testing.assert_allclose(run.losses["a"][0], run.losses["a"][1], rtol=1e-12)


@pytest.mark.slow
def test_equal_scales_and_scales_of_one():
    sgd, adam = (optax.chain(mtl.ew(), rule) for rule in (optax.sgd(0.1), optax.adam(0.1)))
    assert set(compare(adam, scales={"a": 7.0, "b": 7.0}).verdicts().values()) == {"invariant"}
    same = compare(sgd, scales=(1.0, 1.0))
    assert all((difference == 0).all() for difference in same.differences.values())


def test_frozen_parameters_stay_and_are_left_out():
    tx = optax.chain(mtl.ew(), optax.adam(0.1))
    run = compare(tx, frozen=lambda path: path[0].key == "backbone")
    assert list(run.norms) == ["head a", "head b"]
    still = compare(tx, frozen={"backbone": False, "a": True, "b": True})
    assert list(still.norms) == ["backbone"]
    # Only the backbone moves the loss of a: by -lr * sign of the summed gradient at every step.
    step = -0.1 * ROWS[0] @ np.sign(ROWS.sum(axis=0))
    np.testing.assert_allclose(still.losses["a"][0] - 1e6, step * np.arange(4), atol=1e-6)


def test_on_the_same_path_differences_are_of_the_rule_alone():
    """On curved losses heads agree at the first step, and at all of them when the backbone is the same."""
    batch = jnp.asarray(np.random.default_rng(0).normal(size=(8, 1)))

    def losses_fn(params, x):
        return {task: jnp.mean((x * params["body"] @ params[task] - 1) ** 2) for task in "ab"}

    def verdicts(**options):
        with jax.enable_x64(True):
            params = {"body": jnp.asarray([0.5, -1.0]), "a": jnp.asarray([1.0, 0.3]), "b": jnp.asarray([-1.0, 1.0])}
            tx = optax.chain(mtl.ew(), optax.adam(0.1))
            options = {"steps": 10, "tolerance": 1e-4} | options
            return scale_invariance(losses_fn, params, [batch], tx, (10.0, 0.1), **options).verdicts()

    assert verdicts() == {"backbone": "not", "head a": "first step", "head b": "first step"}
    assert verdicts(same_path=True) == {"backbone": "not", "head a": "invariant", "head b": "invariant"}


@pytest.mark.slow
def test_split_losses_stay_split():
    losses_fn = mtl.split(
        lambda p, x: x * p["body"], lambda p, z, x: {t: jnp.sum((z @ p[t] - 1) ** 2) for t in ("a", "b")}
    )
    params = {"body": jnp.array([0.5, -1.0]), "a": jnp.array([1.0, 0.3]), "b": jnp.array([-1.0, 1.0])}
    tx = optax.chain(mtl.cagrad(), optax.sgd(0.01))
    run = scale_invariance(losses_fn, params, [jnp.ones((3, 1))], tx, (2.0, 2.0), steps=1, mode="features")
    for difference in run.differences.values():
        np.testing.assert_allclose(difference, 0.5, rtol=1e-5)  # CAGrad is homogeneous


def test_a_run_that_diverges_says_so():
    run = ScaleInvariance({"backbone": np.array([1e-9, 1e-9, np.nan]), "head a": np.array([0.9, np.inf])}, {}, {}, 1e-3)
    assert run.verdicts() == {
        "backbone": "first 2 steps, not finite from step 3 on",
        "head a": "not, not finite from step 2 on",
    }


@pytest.mark.parametrize("runs", [{}, {"SGD": ScaleInvariance({}, {}, {}, 1e-3)}, {"all": {}}])
def test_results_that_are_not_by_setting_and_name_are_refused(runs):
    with pytest.raises(ValueError, match="results by setting and by name"):
        mtl.analysis.plot_scale_invariance(runs)


def test_runs_are_drawn(tmp_path):
    groups = ("backbone", "head a")
    norms = dict.fromkeys(groups, np.ones((2, 5)))
    free = ScaleInvariance({"backbone": np.full(5, 0.9), "head a": np.zeros(5)}, norms, {}, 1e-3)
    frozen = ScaleInvariance({"head a": np.full(5, 1e-9)}, norms, {}, 1e-3)
    runs = {"all": {"SGD": free, "Adam": free}, "frozen": {"Adam": frozen}}
    figure = mtl.analysis.plot_scale_invariance(runs, "scaled by 10 and 0.1")
    figure.savefig(tmp_path / "scales.png", dpi=30)
    drawn = {
        panel.get_title(): {line.get_label(): line.get_ydata()[-1] for line in panel.lines[:-1]}
        for panel in figure.axes
    }
    assert drawn == {
        "all: backbone": {"SGD": 0.9, "Adam": 0.9},
        "all: head a": {"SGD": 1e-17, "Adam": 1e-17},
        "frozen: backbone": {},
        "frozen: head a": {"Adam": 1e-9},
    }
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["SGD", "Adam"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scales": {"a": 1.0}}, "one scale for each of the tasks a, b, got {'a': 1.0}"),
        ({"scales": (1.0, 2.0, 3.0)}, "one scale for each of the tasks a, b"),
        ({"scales": (1.0, 0.0)}, "must be positive and finite"),
        ({"scales": 10}, "a list of batches, and a scale for each task"),
        ({"steps": 0}, "at least one batch and one step"),
        ({"frozen": lambda path: True}, "leaves no parameter"),
    ],
)
def test_bad_arguments_are_one_sentence(options, message):
    with pytest.raises(ValueError, match=message):
        compare(optax.chain(mtl.ew(), optax.sgd(0.1)), **options)


def test_in_the_papers_network_scales_are_learning_rates_of_heads_under_sgd():
    rule, setting, run = next(scale_experiment.experiment(steps=2))
    assert (rule, setting) == ("SGD with momentum", "frozen backbone")
    assert run.verdicts() == {"head first": "not", "head second": "not"}
    for head, scale in {"head first": 10, "head second": 0.1}.items():
        np.testing.assert_allclose(run.norms[head][1, 0] / run.norms[head][0, 0], scale, rtol=1e-9)


def test_verdicts_say_for_how_long_updates_agree():
    differences = {"a": [0.0, 1e-4], "b": [0.0, 0.1], "c": [0.1, 0.0], "d": [np.nan, 0.0]}
    run = ScaleInvariance({group: np.array(each) for group, each in differences.items()}, {}, {}, 1e-3)
    assert run.verdicts() == {"a": "invariant", "b": "first step", "c": "not", "d": "not, not finite from step 1 on"}
    run = ScaleInvariance({"e": np.array([0.0, 0.0, 1.0, 0.0])}, {}, {}, 1e-3)
    assert run.agreed() == {"e": 2}
    assert run.verdicts() == {"e": "first 2 steps"}


@pytest.mark.slow
@pytest.mark.parametrize("scales", [(10.0, 0.1), (10.0, 0.01)])
def test_the_papers_verdicts(scales):
    for rule, setting, run in scale_experiment.experiment(scales, steps=20):
        verdicts = set(run.verdicts().items())
        if rule in ("UW-O, SGD with momentum", "per-task Adam"):
            assert {verdict for _, verdict in verdicts} == {"invariant"}, (rule, setting)
        elif rule == "SGD with momentum":
            assert {verdict for _, verdict in verdicts} == {"not"}, setting
        else:
            heads = "first step" if setting == "all trained" else "invariant"
            assert {verdict for group, verdict in verdicts if group != "backbone"} == {heads}, (rule, setting)
            assert run.verdicts().get("backbone", "not") == "not", (rule, setting)
