#!/usr/bin/env python
"""Reads from compilers what M cells of a study in one program cost beside M programs of one cell; needs no device.

One step of each network and method on digits, batch 128, and the same step of M cells (strategy "vmap"), compiled for
the machines named. All figures are of one cell: what the block costs, divided by M. "ratio" is that to the step of a
cell alone, of the compiler's cycles on TPUs; for GPUs, whose compiler makes no such estimate, of the time that products
and memory take at the data sheet's peak. It leaves out what every instruction costs to start, which a block pays once
for all its cells: "instructions" says how many a cell pays. Loops of solvers count as one round. The compilers come
with `pip install -e ".[tpu]"` and `".[cuda]"`.

example: python scripts/check_blocks.py --machines v5e --networks mlp --methods ew --blocks 1 32
"""

import argparse
import sys
from typing import Any

import jax
import numpy as np
from rich.progress import track

from mtljax.data import MultiTaskData
from mtljax.markdown import markdown_table
from mtljax.planning import hlo_text
from mtljax.planning.compiler import Compiled, compile_for
from mtljax.planning.steps import Row, on
from mtljax.planning.targets import Target, parse
from mtljax.training import DataConfig, MethodConfig, ModelConfig, TrainConfig
from mtljax.training.block import build_block
from mtljax.training.loop import load_data
from mtljax.training.program import build_program, init_state

NETWORKS = {
    "mlp": ModelConfig("mlp", {"features": (64, 64)}),
    "lenet": ModelConfig("lenet", {"channels": (16, 32), "kernels": (3, 3), "padding": "SAME", "features": 64}),
}
METHODS = ("ew", "mgda")
BLOCKS = (1, 8, 32, 128)
FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call")


def config_of(network: str, method: str) -> TrainConfig:
    """A cell."""
    data = DataConfig("digits", {"num_train": 6000})
    return TrainConfig(data=data, model=NETWORKS[network], method=MethodConfig(method), batch_size=128, devices=1)


def alone(config: TrainConfig, data: MultiTaskData, target: Target) -> Compiled:
    """One step of one cell."""
    program = build_program(config, data)
    state, order = shapes(init_state(config, data, program)), jax.ShapeDtypeStruct((6000,), np.int32)

    def step(state: Any, split: Any, order: Any) -> Any:
        return program.advance(state, split, order, None)

    return compile_for(step, (state, shapes(data.splits["train"]), order), target, donate=(0,), text=True)


def together(config: TrainConfig, data: MultiTaskData, target: Target, size: int) -> Compiled:
    """The loop over steps of a block, which counts as one round."""
    program = build_program(config, data)
    states = shapes(init_state(config, data, program), size)
    arguments = states, shapes(data.splits["train"]), jax.ShapeDtypeStruct((size, 6000), np.int32)
    steps = jax.ShapeDtypeStruct((), np.int32)
    return compile_for(build_block(program).advance, (*arguments, steps), target, donate=(0,), text=True)


def shapes(tree: Any, *leading: int) -> Any:
    """Of its leaves, with further axes in front."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((*leading, *np.shape(leaf)), np.asarray(leaf).dtype), tree)


def seconds(found: Compiled) -> float:
    """The compiler's estimate, or what products and memory take at least."""
    return Row("", found, "").seconds or float("nan")


def instructions(found: Compiled) -> int:
    """What is started in one step."""
    visits = hlo_text.visits(found.text or "")[0]
    return sum(each.times for each in visits if not each.fused and each.instruction.opcode not in FREE)


def row(found: Compiled, cells: int, base: float) -> list[str]:
    """The figures of one cell."""
    if found.memory is None:
        return [*["–"] * 5, f"does not fit: {found.needed or 0:,} bytes", "–"]
    flops = sum(each.times * each.flops for each in found.products)
    return [
        f"{flops / cells / 1e6:.1f}",
        f"{found.bytes_moved / cells / 1e6:.2f}",
        f"{1e6 * seconds(found) / cells:.2f}",
        f"{seconds(found) / cells / base:.2f}",
        f"{instructions(found) / cells:.1f}",
        f"{found.memory.temporaries / cells / 1e6:.2f}",
        f"{found.memory.total / 1e6:.0f}",
    ]


def main() -> int:
    """Prints a table a machine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machines", nargs="+", default=["v5e", "h100"], metavar="NAME", help="v5e, h100, ...")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), metavar="NAME")
    parser.add_argument("--blocks", nargs="+", type=int, default=list(BLOCKS), metavar="M")
    options = parser.parse_args()
    columns = ["Mflop", "MB moved", "µs", "ratio", "instructions", "MB temporary", "MB of the program"]
    for name in options.machines:
        target, rows = parse(name), []
        pairs = [(network, method) for network in options.networks for method in options.methods]
        for network, method in track(pairs, name, transient=True):
            config = config_of(network, method)
            data = load_data(config)
            try:
                with on(target):
                    base = alone(config, data, target)
                    blocks = {size: together(config, data, target, size) for size in options.blocks}
            except (ModuleNotFoundError, RuntimeError) as error:
                print(f"{name}: {network}, {method}: {error}", file=sys.stderr)
                continue
            rows.append([network, method, "alone", *row(base, 1, seconds(base))])
            rows += [[network, method, str(size), *row(each, size, seconds(base))] for size, each in blocks.items()]
        if rows:
            print(f"{name}, jax {jax.__version__}, a cell's share of one step:\n")
            print(markdown_table(["network", "method", "M", *columns], rows))
            print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
