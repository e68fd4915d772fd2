"""What `optimizers.py` finds as Markdown: tables 2, A2 and A4 to A7 of arXiv:2311.04698, its claims and verdicts."""

import math
from collections.abc import Sequence

from mtljax.ablation.statistics import Summary
from mtljax.ablation.statistics.labels import optimizer_text
from mtljax.ablation.statistics.tables import signed
from mtljax.analysis.claims import RULE, claims_table
from mtljax.analysis.optimizers import (
    MethodCounts,
    claims,
    claims_by_method,
    dominated_seeds,
    dominating_seeds,
    method_rows,
    pareto_counts,
    short,
)
from mtljax.markdown import markdown_table


def markdown(summary: Summary, pair: tuple[str, str]) -> str:
    """All of it as Markdown: the counts, the best Δm with the chosen settings, the claims and their verdicts."""
    counts = pareto_counts(summary, pair)
    return "\n\n".join(
        [
            _counts_table(counts, pair),
            _best_table(summary),
            claims_table([[each] for each in claims(summary, pair)], ["paired by seed"]),
            *_notes(summary, pair, counts),
            "± half of the 95% t-interval over seeds; of Δm that of the method's runs against the mean of the "
            "single-task networks, whose own spread is in the report's comparisons with them. Ours: number of runs, "
            f"{short(pair[0])} minus {short(pair[1])}, or difference of Δm in points, positive on the claimed side; "
            f"the paper: Cityscapes with SegNet and DeepLabV3+, NYUv2 with both. {RULE[0].upper()}{RULE[1:]}.",
        ]
    )


def _notes(summary: Summary, pair: tuple[str, str], counts: Sequence[MethodCounts]) -> list[str]:
    """The claims that are counts, without intervals."""
    notes, each = [], [claim.verdict for claim in claims_by_method(summary, pair)]
    if each:
        notes.append(f"Method by method: {', '.join(f'{word} {each.count(word)}' for word in dict.fromkeys(each))}.")
    for own in counts:
        if own.method == "ew" and own.runs[pair[0]]:
            notes.append(
                f"ew with {pair[0]}: {own.full[pair[0]]} of {own.runs[pair[0]]} settings are Pareto-optimal (the "
                "paper: one or two in 3 of its 4 setups)."
            )
    dominated, seeds = dominated_seeds(summary, pair)
    if seeds:
        notes.append(
            f"ew with {pair[0]} is dominated by a run of a specialised method with {pair[1]} in {len(dominated)} of "
            f"{len(seeds)} seeds (the paper: in none of its setups)."
        )
    dominated, seeds = dominating_seeds(summary, pair)
    if seeds:
        notes.append(
            f"adatask dominates ew, both with {pair[0]}, in {len(dominated)} of {len(seeds)} seeds (the paper: in "
            "almost all cases)."
        )
    return notes


def _counts_table(counts: Sequence[MethodCounts], pair: tuple[str, str]) -> str:
    """Tables 2 and A2 in one."""
    names = list(map(short, pair))
    heads = ["method", *(f"{n} runs" for n in names), *(f"{n} Pareto-optimal" for n in names)]
    heads += [f"{a} undominated by {b}" for a, b in (names, names[::-1])]
    lines = [[c.method, *(str(by[o]) for by in (c.runs, c.full, c.other) for o in pair)] for c in counts]
    return markdown_table(heads, lines)


def _best_table(summary: Summary) -> str:
    """Tables A4 to A7: the best Δm of every method with every optimizer."""
    lines = []
    for row in sorted(method_rows(summary), key=lambda row: (row.method, row.optimizer)):
        change = row.delta_m
        width, std = (f"{x:.2f}" if math.isfinite(x) else "–" for x in (change.half_width, change.std))
        lines.append([row.method, optimizer_text(row), f"{signed(change.mean)} ± {width}", std, str(change.n)])
    return markdown_table(["method", "optimizer, learning rate chosen", "Δm %", "std over seeds", "seeds"], lines)
