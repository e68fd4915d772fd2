"""Claims about the verdict, on studies whose truth is known."""

import math
import random

import pytest

from mtljax.ablation.statistics import (
    summarize,
    verdict,
)

LEFT, RIGHT = ("left", "accuracy"), ("right", "accuracy")


def sentence(text, start):
    """The sentences of a verdict that begin so, from all its paragraphs."""
    return " ".join(line for line in text.split("\n") if line.startswith(start))


def test_the_verdict_finds_clear_winners_and_losers(synthetic):
    text = verdict(summarize(synthetic.study({"ew": 0.0, "cagrad": 0.03, "mgda": -0.03}, noise=0.001, seeds=4)))
    against_ew, against_single = text.split("\n")[:2]
    assert against_ew.startswith("Better than equal weighting over 4 seeds: cagrad \N{MINUS SIGN}3.")
    assert "Worse than equal weighting over 4 seeds: mgda +3." in against_ew
    assert "No difference" not in against_ew
    assert against_single.startswith("Better than single-task training over 4 seeds: cagrad")
    assert "No difference shown: ew" in against_single
    assert "Holm" in text


def test_the_verdict_does_not_find_what_is_not_there(synthetic):
    text = verdict(summarize(synthetic.study({"ew": 0.0, "cagrad": 0.0, "mgda": 0.0, "pcgrad": 0.0}, noise=0.01)))
    assert text.startswith("No method is shown to be better or worse than equal weighting over 3 seeds: ")
    assert "Better than" not in text
    assert "Worse than" not in text


def test_what_only_survives_uncorrected_is_called_a_hint(synthetic):
    # Differences to ew of mean d and deviation 1 over 3 seeds: t = d sqrt(3), p = 0.05 at t = 4.30, 0.025 at 6.21.
    def study(d):
        shift = {0: -1.0, 1: 0.0, 2: 1.0}
        cells = []
        for s in range(3):
            cells += synthetic.baseline("adam", s, {"left": 0.5})
            cells.append(synthetic.cell("ew", "adam", s, {"left": 0.5}))
            cells.append(synthetic.cell("close", "adam", s, {"left": 0.5 - 0.005 * (d + shift[s])}))
            cells.append(synthetic.cell("same", "adam", s, {"left": 0.5 - 0.005 * shift[s]}))
        return verdict(summarize(cells)).split("\n")[0]

    assert "a hint" not in study(4.2 / math.sqrt(3))
    assert "Without correction for 2 comparisons close would differ: a hint" in study(5.0 / math.sqrt(3))
    assert study(5.0 / math.sqrt(3)).startswith("No method is shown")
    assert study(6.4 / math.sqrt(3)).startswith("Worse than equal weighting over 3 seeds: close")


def test_the_family_wise_error_is_what_holm_promises(synthetic):
    generator, wrong = random.Random(0), 0
    for _ in range(300):
        cells = []
        for s in range(3):
            cells += synthetic.baseline("adam", s, {"left": 0.5})
            cells += [
                synthetic.cell(m, "adam", s, {"left": generator.gauss(0.5, 0.01)}) for m in ("ew", "a", "b", "c", "d")
            ]
        wrong += not verdict(summarize(cells)).startswith("No method is shown")
    assert wrong / 300 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 300)


def test_one_seed_shows_no_difference(synthetic):
    text = verdict(summarize(synthetic.study({"ew": 0.0, "cagrad": 0.1}, seeds=1)))
    assert "no difference is shown: an interval needs two or more seeds" in text
    assert "Better than" not in text


def test_the_verdict_names_failed_runs_and_goes_on(synthetic):
    cells = synthetic.study({"ew": 0.0, "cagrad": 0.03}, noise=0.001)
    cells[-1] = synthetic.cell("cagrad", "adam 0.001", 2, {"left": 0, "right": 0}, failed="the loss became NaN.")
    text = verdict(summarize(cells))
    assert "1 run failed and is left out of every number: cagrad with adam 0.001, seed 2 (the loss became NaN)." in text
    assert "over 2 seeds" in text


def test_a_study_where_everything_failed_says_so(synthetic):
    cells = [synthetic.cell("ew", "adam", s, {"left": 0, "right": 0}, failed="out of memory") for s in (0, 1)]
    text = verdict(summarize(cells))
    assert "No multi-task run has finished" in text
    assert "2 runs failed and are left out of every number: ew with adam, seeds 0 and 1 (out of memory)." in text


def test_without_equal_weighting_the_verdict_says_so(synthetic):
    text = verdict(summarize(synthetic.study({"cagrad": 0.0, "mgda": 0.0})))
    assert text.startswith("Equal weighting (`ew`) has no finished run")


@pytest.mark.parametrize(
    ("effects", "optimizers", "conclusion"),
    [
        ({"ew": 0.0, "cagrad": 0.001}, {"adam": 0.0, "sgd": -0.1}, "the optimizer matters more than the method"),
        ({"ew": 0.0, "cagrad": 0.1}, {"adam": 0.0, "sgd": -0.001}, "the method matters more than the optimizer"),
        ({"ew": 0.0, "cagrad": 0.05}, {"adam": 0.0, "sgd": -0.05}, "they matter about as much"),
    ],
)
def test_the_verdict_weighs_methods_and_optimizers(synthetic, effects, optimizers, conclusion):
    summary = summarize(synthetic.study(effects, optimizers=optimizers, noise=0.0005))
    assert conclusion in verdict(summary)
    shift = 100 * next(-shift for name, shift in optimizers.items() if name == "sgd") / 0.895
    line = sentence(verdict(summary), "Method or optimizer")
    assert float(line.split("with the same method by ")[1].split(". ")[0]) == pytest.approx(shift, abs=0.15)


def test_seed_noise_is_not_taken_for_an_effect(synthetic):
    effects = dict.fromkeys(("ew", "a", "b", "c", "d"), 0.0)
    text = verdict(summarize(synthetic.study(effects, optimizers={"adam": 0.0, "sgd": 0.0}, noise=0.01)))
    assert "Neither stands out from the seeds." in text
