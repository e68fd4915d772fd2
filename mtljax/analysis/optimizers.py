"""Which optimizer wins a study whatever the method: Pareto counts, best Δm, and the claims of arXiv:2311.04698.

Two optimizers of one study are compared over all methods and settings, as in that paper's tables 2, A2 and A4 to A7.
Settings are chosen on validation; everything shown is measured on test.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mtljax.ablation.statistics import Row, Summary, pareto, pareto_optimal, undominated_by_others
from mtljax.ablation.statistics.candidates import SCALARIZATION, SINGLE, frozen
from mtljax.analysis.claims import Claim, claim, mean_by_seed
from mtljax.errors import unknown

# Δm with SGD minus Δm with Adam in the paper's tables A4 to A7: Cityscapes and NYUv2, each with SegNet and DeepLabV3+.
PAPER = {
    "ew": "+6.8, +47.7, +2.8, +2.5",
    "uw": "+83.0, +48.1, −1.0, +1.0",
    "rlw": "+14.3, +48.6, +2.5, +2.2",
    "imtl": "+73.7, +53.7, −1.3, +1.7",
    "pcgrad": "+3.5, +48.5, +4.2, +2.8",
    "cagrad": "+50.1, +49.2, +2.7, +0.3",
    "aligned_mtl": "+55.6, +48.7, +3.2, +1.3",
}
_PER_TASK = "+65.2, +51.3, +11.7, +5.4"  # MTL-IO, one SGD a task, minus AdaTask, one Adam a task
_ADATASK = "+58.2, +1.0, +9.1, +3.1"  # EW with Adam minus AdaTask
_FULL, _OTHER = "5:0, 10:0, 11:1, 16:6", "24:0, 24:0, 21:1, 21:6"  # table 2, in the same order


class MethodCounts(NamedTuple):
    """How many settings of a method are Pareto-optimal, each by optimizer.

    Attributes:
      method: its label; "total" for all.
      runs: settings with finite metrics.
      full: those that no other dominates.
      other: those that none of the other optimizer dominates.
    """

    method: str
    runs: dict[str, int]
    full: dict[str, int]
    other: dict[str, int]


class _Run(NamedTuple):
    method: str
    optimizer: str
    seed: int | None  # None for the mean over seeds
    chosen: bool
    gains: tuple[float, ...]  # test metrics, signed so that up is better


def optimizer_pair(summary: Summary, first: str = "", second: str = "") -> tuple[str, str]:
    """The labels of the two optimizers to compare; by default the ones that begin with "adam" and with "sgd".

    Raises:
      ValueError: if there is no such optimizer, or several that begin so.
    """
    labels = sorted({row.optimizer for row in method_rows(summary)})

    def one(name: str, start: str) -> str:
        if name and name not in labels:
            raise unknown("optimizer of this study", name, labels)
        matches = [label for label in labels if label == name or (not name and label.startswith(start))]
        if len(matches) != 1:
            raise ValueError(
                f"{len(matches)} optimizers of this study begin with {start!r} ({', '.join(labels) or 'it has none'}): "
                "name the two to compare, such as --pair adam 'sgd(momentum=0.9)'"
            )
        return matches[0]

    pair = one(first, "adam"), one(second, "sgd")
    if pair[0] == pair[1]:
        raise ValueError(f"the two optimizers to compare are both {pair[0]}: name two of {', '.join(labels)}")
    return pair


def pareto_counts(summary: Summary, pair: tuple[str, str]) -> list[MethodCounts]:
    """Tables 2 and A2: Pareto-optimal settings, means over seeds, by method and optimizer.

    Only the methods' runs with the two optimizers compete; tuned scalarization is left out, as in the paper.

    Args:
      summary: of the study.
      pair: labels of the optimizers.

    Returns:
      One entry a method, sorted by name, then the total.
    """
    runs = _runs(summary, pair, "settings")
    full, other = _undominated(runs)

    def count(method: str, chosen: np.ndarray) -> MethodCounts:
        by = [
            {o: int(sum(own & np.array([r.optimizer == o for r in runs]))) for o in pair}
            for own in (chosen, chosen & full, chosen & other)
        ]
        return MethodCounts(method, *by)

    methods = np.array([run.method for run in runs])
    return [count(name, methods == name) for name in sorted(set(methods))] + [count("total", methods == methods)]


def pareto_counts_by_seed(
    summary: Summary, pair: tuple[str, str], sense: str = "full"
) -> tuple[dict[int, float], dict[int, float]]:
    """How many runs of each optimizer are Pareto-optimal among the runs of their seed.

    Args:
      summary: of the study.
      pair: labels of the optimizers.
      sense: "full" or "other", as in `MethodCounts`.

    Returns:
      For each of the pair, the count by seed.
    """
    counts: tuple[dict[int, float], dict[int, float]] = {}, {}
    runs = _runs(summary, pair, "seeds")
    for seed in sorted({run.seed for run in runs if run.seed is not None}):
        own = [run for run in runs if run.seed == seed]
        best = _undominated(own)[sense == "other"]
        for by_seed, optimizer in zip(counts, pair, strict=True):
            by_seed[seed] = sum(run.optimizer == optimizer for run, is_best in zip(own, best, strict=True) if is_best)
    return counts


def bestmethod_rows(summary: Summary, pair: tuple[str, str]) -> dict[str, tuple[Row | None, Row | None]]:
    """By method, its row with each of the two optimizers, the setting chosen on validation; None for none."""
    rows: dict[str, tuple[Row | None, Row | None]] = {}
    for name in sorted({row.method for row in method_rows(summary)}):
        own = {row.optimizer: row for row in method_rows(summary) if row.method == name and row.seeds}
        rows[name] = own.get(pair[0]), own.get(pair[1])
    return rows


def claims(summary: Summary, pair: tuple[str, str]) -> list[Claim]:
    """The paper's claims on Adam (the first of the pair) and SGD, each with our paired difference and its verdict."""
    first, second = map(short, pair)
    full, other = (pareto_counts_by_seed(summary, pair, sense) for sense in ("full", "other"))
    all_claims = [
        claim(f"more runs of {first} than of {second} are Pareto-optimal", *full, paper=_FULL),
        claim(f"more runs of {first} than of {second} are undominated by the other", *other, paper=_OTHER),
    ]
    rows = bestmethod_rows(summary, pair)
    both = {name: (a, b) for name, (a, b) in rows.items() if a is not None and b is not None}
    if both:
        a, b = (mean_by_seed(row.delta_m_by_seed for row in own) for own in zip(*both.values(), strict=True))
        all_claims.append(claim(f"Δm, mean over {len(both)} methods: {first} below {second}", a, b, lower=True))
    all_claims += claims_by_method(summary, pair)
    adatask, mtl_io = rows.get("adatask", (None,))[0], rows.get("mtl_io", (None,))[-1]
    if adatask is not None and mtl_io is not None:
        all_claims.append(_below(f"Δm: one {first} a task below one {second} a task", adatask, mtl_io, _PER_TASK))
    if adatask is not None and (plain := rows.get("ew", (None,))[0]) is not None:
        all_claims.append(_below(f"Δm: one {first} a task below ew with one {first}", adatask, plain, _ADATASK))
    return all_claims


def claims_by_method(summary: Summary, pair: tuple[str, str]) -> list[Claim]:
    """That a method's Δm is lower with the first optimizer than with the second, for each method that has both."""
    first, second = map(short, pair)
    return [
        _below(f"Δm of {name}: {first} below {second}", a, b, PAPER.get(name, "–"))
        for name, (a, b) in bestmethod_rows(summary, pair).items()
        if a is not None and b is not None
    ]


def dominated_seeds(summary: Summary, pair: tuple[str, str], method: str = "ew") -> tuple[list[int], list[int]]:
    """Seeds in which a method's chosen run with the first optimizer is dominated by a run of another with the second.

    `mtl_io`, which is `ew` with one SGD a task, does not count as another.

    Args:
      summary: of the study.
      pair: labels of the optimizers.
      method: whose run is looked at.

    Returns:
      The seeds in which it is dominated, and all its seeds.
    """
    runs = _runs(summary, pair, "seeds")
    others = [run for run in runs if run.optimizer == pair[1] and run.method not in (method, "mtl_io")]
    return _dominated(_chosen(runs, method, pair[0]), others)


def dominating_seeds(
    summary: Summary, pair: tuple[str, str], better: str = "adatask", worse: str = "ew"
) -> tuple[list[int], list[int]]:
    """Seeds in which one method's chosen run dominates another's, both with the first optimizer; and all seeds."""
    runs = _runs(summary, pair, "seeds")
    return _dominated(*(_chosen(runs, method, pair[0]) for method in (worse, better)))


def _chosen(runs: Sequence[_Run], method: str, optimizer: str) -> list[_Run]:
    return [run for run in runs if (run.method, run.optimizer, run.chosen) == (method, optimizer, True)]


def _dominated(own: Sequence[_Run], others: Sequence[_Run]) -> tuple[list[int], list[int]]:
    """Seeds in which a run of the first is dominated by one of the second, and the seeds that both have."""
    dominated, seeds = [], []
    for run in own:
        rivals = [other for other in others if other.seed == run.seed]
        if run.seed is not None and rivals:
            seeds.append(run.seed)
            if not _undominated([run, *rivals])[0][0]:
                dominated.append(run.seed)
    return dominated, seeds


def short(label: str) -> str:
    """An optimizer without its options."""
    return label.partition("(")[0]


def _below(text: str, low: Row, high: Row, paper: str) -> Claim:
    return claim(text, low.delta_m_by_seed, high.delta_m_by_seed, paper=paper, lower=True)


def method_rows(summary: Summary) -> list[Row]:
    """Those of the methods: neither one network a task nor tuned scalarization."""
    return [row for row in summary.rows if row.kind != SINGLE and row.role != SCALARIZATION]


def _runs(summary: Summary, pair: tuple[str, str], over: str) -> list[_Run]:
    """The methods' runs with the two optimizers whose metrics are finite."""
    conditions = {frozen(row.condition) for row in method_rows(summary)}
    if len(conditions) > 1:
        raise ValueError(
            f"the study compares {len(conditions)} conditions, but optimizers are compared under one: make a study of "
            "each, or have those fields chosen on validation with tuned=(...)"
        )
    return [
        _Run(
            point.candidate.method,
            point.candidate.optimizer,
            point.seed,
            point.candidate.chosen,
            tuple(value if summary.directions[key] else -value for key, value in point.values.items()),
        )
        for point in pareto(summary, "optimizer", over=over).points
        if point.candidate.role != SCALARIZATION and point.candidate.optimizer in pair and not point.left_out
    ]


def _undominated(runs: Sequence[_Run]) -> tuple[np.ndarray, np.ndarray]:
    """Which runs no other dominates, and which none of another optimizer does."""
    gains = np.array([run.gains for run in runs]).reshape(len(runs), -1)
    up = [True] * gains.shape[1]
    return pareto_optimal(gains, up), undominated_by_others(gains, up, [run.optimizer for run in runs])
