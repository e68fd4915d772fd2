#!/usr/bin/env python
"""Holds the claims of FS-MTL (arXiv:2211.13723) against a study of configs/fs_mtl.

A claim is a difference of the mean accuracy of the two tasks, in percentage points, paired by seed. Every network is
selected on validation and measured on test; beside it stands the paper's own way, the best epoch on test, which is
biased upward. Both are 95% t-intervals over seeds. Markdown, so that it can go into a document as it is.

example: python scripts/fs_mtl_verdict.py runs/fs_mtl_cpu
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mtljax.ablation.report import read_cells
from mtljax.ablation.statistics import t_interval
from mtljax.analysis.claims import RULE, Claim, claim, claims_table, mean_by_seed
from mtljax.markdown import markdown_table

SETS = {"multi_fashion": "MultiFashion", "multi_mnist": "Multi-MNIST", "fashion_and_mnist": "Fashion+MNIST"}
BASES = ("ew", "mgda", "pcgrad", "cagrad", "imtl_g", "nash_mtl", "fairgrad")
HOMOGENEOUS = 5  # of them, the first, whose result is in proportion to the gradients
WAYS = ("selected on validation", "best epoch on test, as in the paper")

# A network is a method and how it aggregates flat parts, "plain" for not at all; "stl" is one network a task.
Network = tuple[str, str]
BySeed = dict[int, float]

# Mean accuracy in % (Table 1 and the aggregation ablation; "ew" from the authors' repository; the third set is not at
# hand), plain and decomposed.
_TABLE = {
    "multi_fashion": {
        "ew": (86.40, 87.72), "mgda": (86.27, 87.73), "pcgrad": (86.57, 87.76), "cagrad": (86.51, 87.82),
        "imtl_g": (86.90, 87.80), "nash_mtl": (86.54, 87.81), "fairgrad": (86.51, 87.73),
    },
    "multi_mnist": {
        "ew": (94.88, 95.67), "mgda": (95.05, 95.68), "pcgrad": (95.06, 95.92), "cagrad": (95.01, 95.95),
        "imtl_g": (95.28, 95.85), "nash_mtl": (95.01, 95.94), "fairgrad": (94.92, 95.91),
    },
}  # fmt: skip
_AGGREGATION = {
    "multi_fashion": {"direct": 86.72, "second": 87.90, "each": 87.59},
    "multi_mnist": {"direct": 95.23, "second": 95.86, "each": 95.92},
}
PAPER: dict[str, dict[Network, float]] = {
    data: {(base, kind): pair[i] for base, pair in table.items() for i, kind in enumerate(("plain", "decomposed"))}
    | {("cagrad", kind): value for kind, value in _AGGREGATION[data].items()}
    for data, table in _TABLE.items()
}

CLAIMS: tuple[tuple[str, Network, Network], ...] = (
    ("F-LS > ew", ("ew", "decomposed"), ("ew", "plain")),
    *((f"F-{base} > {base}", (base, "decomposed"), (base, "plain")) for base in BASES[1:]),
    ("F-STL > STL", ("stl", "flat"), ("stl", "plain")),
    ("direct > cagrad", ("cagrad", "direct"), ("cagrad", "plain")),
    ("decomposed > direct", ("cagrad", "decomposed"), ("cagrad", "direct")),
    ("decomposed > F-LS (SAM for each task, summed)", ("cagrad", "decomposed"), ("ew", "decomposed")),
    ("F-LS > direct", ("ew", "decomposed"), ("cagrad", "direct")),
    ("decomposed > second", ("cagrad", "decomposed"), ("cagrad", "second")),
    ("decomposed > each", ("cagrad", "decomposed"), ("cagrad", "each")),
)


def network(record: Mapping[str, Any]) -> Network:
    """What a cell trained, but for data and seed."""
    name, options = (record["config"]["method"][key] for key in ("name", "options"))
    flat = name == "fs_mtl" and options.get("rho") != 0
    if record["kind"] == "single":
        return "stl", "flat" if flat else "plain"
    base = options.get("base", "cagrad") if name == "fs_mtl" else name
    return base, options.get("aggregate", "decomposed") if flat else "plain"


def accuracies(records: Sequence[Mapping[str, Any]], data: str) -> tuple[dict[Network, BySeed], dict[Network, BySeed]]:
    """Mean test accuracy of the tasks in % by network and seed: selected on validation, and at the best test epoch.

    A seed counts when the networks of all tasks have finished; the second lacks runs without a `test_curve`.
    """
    by_way: tuple[dict[Network, Any], dict[Network, Any]] = ({}, {})
    own = [record for record in records if record["config"]["data"]["name"] == data and record["status"] == "finished"]
    tasks = {task for record in own for task in record["tasks"]}
    for record in own:
        curve = [entry["metrics"] for entry in record["history"] if entry["split"] == "test_curve"]
        best = max(curve, key=lambda metrics: sum(m["accuracy"] for m in metrics.values()), default={})
        for way, metrics in zip(by_way, (record["test"], best), strict=True):
            seeds = way.setdefault(network(record), {})
            seeds.setdefault(record["seed"], {}).update({t: 100 * m["accuracy"] for t, m in metrics.items()})
    first, second = (
        {
            name: {s: sum(by_task.values()) / len(tasks) for s, by_task in seeds.items() if by_task.keys() == tasks}
            for name, seeds in way.items()
        }
        for way in by_way
    )
    return first, second


def claims(data: str, by_network: Mapping[Network, BySeed]) -> Iterator[Claim]:
    """The claims about one set; those whose networks have not run have no seeds."""
    paper, where = PAPER.get(data, {}), SETS.get(data, data)

    def expected(pairs: Sequence[tuple[Network, Network]]) -> float | None:
        if not all(name in paper for pair in pairs for name in pair):
            return None
        return sum(paper[better] - paper[worse] for better, worse in pairs) / len(pairs)

    def held(text: str, better: BySeed, worse: BySeed, number: float | None) -> Claim:
        """The claim in the direction of the paper's number."""
        if number is not None and number < 0:
            text, better, worse, number = " > ".join(reversed(text.split(" > "))), worse, better, -number
        return claim(f"{where}: {text}", better, worse, paper="–" if number is None else f"{number:+.2f}")

    for text, better, worse in CLAIMS:
        yield held(text, by_network.get(better, {}), by_network.get(worse, {}), expected([(better, worse)]))
        if text == f"F-{BASES[-1]} > {BASES[-1]}":
            for count, which in (
                (len(BASES), f"mean of {len(BASES)}"),
                (HOMOGENEOUS, f"mean of the first {HOMOGENEOUS}"),
            ):
                pairs = [(better, worse) for _, better, worse in CLAIMS[:count]]
                flat, plain = (mean_by_seed(by_network.get(pair[i], {}) for pair in pairs) for i in (0, 1))
                yield held(f"flat > plain, {which}", flat, plain, expected(pairs))


def accuracy_table(sets: Mapping[str, Mapping[Network, BySeed]]) -> str:
    """Mean accuracy by network, a column a set."""
    networks = sorted(
        {name for by_network in sets.values() for name in by_network}, key=lambda name: (name[0] != "stl", name)
    )
    lines = []
    for name in networks:
        values = [t_interval(list(by_network.get(name, {}).values())) for by_network in sets.values()]
        lines.append([*name, *(value.text() for value in values)])
    return markdown_table(["network", "flat parts", *(SETS.get(data, data) for data in sets)], lines)


def training_table(records: Sequence[Mapping[str, Any]]) -> str:
    """How far the multi-task networks were trained: those still best at the last evaluation had more to come."""
    lines = []
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for record in records:
        kind = "none" if network(record)[1] == "plain" else "some"
        if record["kind"] == "multi":
            groups.setdefault((record["config"]["data"]["name"], kind), []).append(record)
    for (data, kind), several in sorted(groups.items()):
        late = 100 * sum(record["best_step"] == record["steps"] for record in several) / len(several)
        last = [[entry for entry in record["history"] if entry["split"] == "train"][-1]["losses"] for record in several]
        loss = sum(sum(losses.values()) / len(losses) for losses in last) / len(last)
        lines.append([SETS.get(data, data), kind, f"{late:.0f}", f"{loss:.2f}"])
    return markdown_table(["set", "flat parts", "best at the last evaluation, %", "training loss at the end"], lines)


def main() -> int:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", help="of a study")
    directory = parser.parse_args().directory
    records, _ = read_cells(directory)
    if not records:
        print(f"{directory} holds no finished cells: mtljax ablate configs/fs_mtl/cpu.py makes them", file=sys.stderr)
        return 2
    present = {record["config"]["data"]["name"] for record in records}
    ways = {data: accuracies(records, data) for data in (*SETS, *sorted(present - set(SETS))) if data in present}
    rows = [
        forms
        for data, both in ways.items()
        for forms in zip(*(claims(data, way) for way in both), strict=True)
        if any(form.ours.interval.n for form in forms)
    ]
    finished = [record for record in records if record["status"] == "finished"]
    print(f"{claims_table(rows, WAYS)}\n\n{RULE}.\n")
    print(f"Mean test accuracy of the tasks in %, {WAYS[0]}:\n")
    print(accuracy_table({data: both[0] for data, both in ways.items()}))
    print(f"\nHow far the multi-task networks were trained, means:\n\n{training_table(finished)}")
    seconds = sum(record["seconds"] for record in finished)
    print(f"\n{len(finished)} cells finished, {len(records) - len(finished)} failed; they took {seconds:.0f} s in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
