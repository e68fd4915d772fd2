#!/usr/bin/env python
"""Estimates one whole train step of every engine on TPUs and GPUs that are not there: what mode="auto" goes by.

Each step (losses, a method, adam) is compiled ahead of time; nothing runs, and every time is an estimate. For a TPU it
is the compiler's: its cycles, by the chip's clock. For a GPU it is a roofline: the arithmetic of the products at their
precision's peak or the bytes that kernels move at the memory's bandwidth, whichever takes longer, as if no kernel
waited. Loops of unknown length, such as a solver's, count as one round, what devices send each other as nothing, nor
does the branch in which a Gramian is taken again because squares of gradients under- or overflow.

Beside the modes stand, with --all-forms, other programs for the same K backward passes: "vmap" and "lax.map" over one
pullback, and "held otherwise", mode "loop" with its K gradients apart where it has one Jacobian, or the reverse. The
bound is what a step costs whose backward passes take twice as long as its forward pass: (1 + 2K) / 3 summed losses.
Tables are Markdown. Results are kept in mtljax's cache, so that an interrupted run goes on; `mtljax[tpu]` or
`mtljax[cuda]` brings the compilers.

example: JAX_PLATFORMS=cpu python scripts/check_compilers.py --networks mlp --tasks 3 10 --targets v5e --all-forms
"""

import argparse
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast
from unittest import mock

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.sharding import PartitionSpec
from rich import box
from rich.console import Console
from rich.table import Table

import mtljax as mtl
from mtljax.gradients import backward, evaluate
from mtljax.gradients.backend import Backend, assumed, platform
from mtljax.gradients.choice import MOST_WRITTEN_OUT
from mtljax.planning import compiler, hlo, hlo_text, targets
from mtljax.planning.roofline import roofline
from mtljax.planning.targets import Target


class ResNet50(nn.Module):
    """The 50-layer residual network (He et al., arXiv:1512.03385) with group normalisation."""

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool = False) -> jax.Array:
        """Maps images (B, H, W, C) to (B, 2048)."""
        norm = lambda x: nn.GroupNorm(num_groups=32)(x)  # noqa: E731
        conv = lambda x, *args: nn.Conv(*args, use_bias=False)(x)  # noqa: E731
        x = nn.max_pool(nn.relu(norm(conv(inputs, 64, (7, 7), 2))), (3, 3), (2, 2), "SAME")
        for stage, blocks in enumerate((3, 4, 6, 3)):
            for block in range(blocks):
                width, stride = 64 * 2**stage, 2 if stage and not block else 1
                y = nn.relu(norm(conv(x, width, (1, 1))))
                y = norm(conv(nn.relu(norm(conv(y, width, (3, 3), stride))), 4 * width, (1, 1)))
                x = nn.relu(y + (x if block else norm(conv(x, 4 * width, (1, 1), stride))))
        return x.mean((1, 2))


class Transformer(nn.Module):
    """Encoder blocks, normalised first, on tokens that are vectors already; the mean over tokens."""

    layers: int = 6
    width: int = 512

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool = False) -> jax.Array:
        """Maps (B, tokens, C) to (B, width)."""
        x = nn.Dense(self.width)(inputs)
        x = x + self.param("places", nn.initializers.normal(0.02), x.shape[1:])
        for _ in range(self.layers):
            x = x + nn.MultiHeadDotProductAttention(self.width // 64)(nn.LayerNorm()(x))
            x = x + nn.Dense(self.width)(nn.gelu(nn.Dense(4 * self.width)(nn.LayerNorm()(x))))
        return nn.LayerNorm()(x).mean(1)


class Network(NamedTuple):
    """What is trained: an encoder, with one classifier of ten classes a task."""

    encoder: Callable[[], nn.Module]
    inputs: tuple[int, ...]
    batch: int
    most_tasks: int = 40


_RESNET = {"width": 32, "features": 0, "small_stem": True, "norm": "group"}
NETWORKS = {
    "lenet": Network(lambda: mtl.models.encoder("lenet"), (36, 36, 1), 256),
    "mlp": Network(lambda: mtl.models.encoder("mlp", features=(1024, 1024)), (36, 36, 1), 256),
    "resnet18": Network(lambda: mtl.models.encoder("resnet18", **_RESNET), (32, 32, 3), 256),
    "resnet50": Network(ResNet50, (224, 224, 3), 64, 10),
    "transformer": Network(Transformer, (128, 64), 64),
}
SUM = "summed loss"
MODES = ("loop", "jacrev", "two_pass", "features")
FORMS = {"vmap": "mapped", "lax.map": "looped", "held otherwise": "unrolled"}
_NO_KERNEL = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call")


class Case(NamedTuple):
    """One row."""

    network: str
    target: str
    tasks: int
    form: str
    method: str


@contextmanager
def form_of(form: str, tasks: int) -> Iterator[str]:
    """Inside, the mode that is returned makes its backward passes in this form."""
    chosen, where = evaluate.choose, platform()
    otherwise = 0 if tasks <= backward.MOST_SEPARATE.get(where, 1) else tasks
    with ExitStack() as stack:
        if form in FORMS:
            changed = lambda *args, **options: chosen(*args, **options)._replace(passes=FORMS[form])  # noqa: E731
            stack.enter_context(mock.patch.object(evaluate, "choose", changed))
        if form == "held otherwise":
            stack.enter_context(mock.patch.dict(backward.MOST_SEPARATE, {where: otherwise}))
        yield "jacrev" if form in FORMS else form


def step_of(case: Case) -> tuple[Callable[..., Any], tuple[Any, ...], Callable[..., Any]]:
    """A step, the shapes of its arguments (parameters, state, inputs, labels), and the losses."""
    network = NETWORKS[case.network]
    tasks = [f"t{k:02}" for k in range(case.tasks)]
    heads = {task: mtl.tasks.classification(10).head() for task in tasks}
    model = mtl.models.MultiTaskModel(network.encoder(), heads)
    x = jax.ShapeDtypeStruct((network.batch, *network.inputs), jnp.float32)
    y = jax.ShapeDtypeStruct((network.batch, case.tasks), jnp.int32)
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, *network.inputs)))[0])

    def encode(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        del y
        return model.encode(params, {}, x, train=True)[0]

    def losses_of(params: Any, z: jax.Array, x: jax.Array, y: jax.Array) -> dict[str, jax.Array]:
        del x
        outputs, entropy = model.decode(params, z), optax.softmax_cross_entropy_with_integer_labels
        return {task: entropy(outputs[task], y[:, k]).mean() for k, task in enumerate(tasks)}

    losses_fn = mtl.split(encode, losses_of)
    rule = optax.identity() if case.form == SUM else mtl.methods.create(case.method, num_tasks=case.tasks)
    tx = optax.with_extra_args_support(optax.chain(rule, optax.adam(1e-3)))

    def step(params: Any, state: Any, x: jax.Array, y: jax.Array) -> Any:
        losses: dict[str, jax.Array] = {}
        with form_of(case.form, case.tasks) as mode:
            if case.form == SUM:
                grads: Any = jax.grad(lambda p: sum(losses_fn(p, x, y).values()))(params)
            else:
                losses, grads = mtl.task_gradients(losses_fn, params, x, y, mode=cast(Any, mode))
            updates, state = tx.update(grads, state, params, losses=losses)
        return optax.apply_updates(params, updates), state, losses

    return step, (params, jax.eval_shape(tx.init, params), x, y), losses_fn


def backend_of(target: Target) -> Backend:
    """What choices are to be made for."""
    return Backend("gpu" if target.platform == "cuda" else target.platform, target.memory)


def late(limit: int) -> str:
    """Of a compile that the limit ended."""
    return f"> {limit} s to compile"


def auto_of(network: str, tasks: int, target: Target) -> str:
    """The mode that "auto" chooses there."""
    with assumed(backend_of(target)):
        _, (params, _, x, y), losses_fn = step_of(Case(network, target.name, tasks, "auto", "ew"))
        return mtl.explain(losses_fn, params, x, y).removeprefix("mode ").split(":")[0]


def measured(case: Case, target: Target, limit: int) -> dict[str, Any]:
    """One row's figures, or why there are none; a compile that takes longer is ended."""
    if case.tasks > NETWORKS[case.network].most_tasks:
        return {"none": f"left out: with {case.tasks} tasks a compile would take about an hour"}
    if case.form == "held otherwise" and case.tasks > 20:
        return {"none": "left out: products of so many pairs compile for minutes"}
    if case.form == "jacrev" and case.tasks <= MOST_WRITTEN_OUT:
        return {"none": "as loop"}
    batch = PartitionSpec("devices")
    layout = {"specs": (None, None, batch, batch), "out_specs": PartitionSpec()} if target.devices > 1 else {}
    command, gpu, start = compiler._command, target.platform == "cuda", time.monotonic()
    ended = lambda directory: ["timeout", "-s", "KILL", str(limit), *command(directory)]  # noqa: E731
    jax.clear_caches()  # what was traced before names the functions of a program, by which it is found in the cache
    try:
        with assumed(backend_of(target)), mock.patch.object(compiler, "_command", ended):
            step, args, _ = step_of(case)
            found = compiler.compile_for(step, args, target, donate=(0, 1), text=True, **layout)
    except RuntimeError as error:
        return {"none": str(error) if time.monotonic() - start < limit else late(limit)}
    params = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(args[0]))
    if found.memory is None:
        return {"none": f"does not fit: {(found.needed or 0) / 1e9:.1f} GB", "params_mb": params / 1e6}
    text = found.text or ""
    estimate, products, moved = hlo.cycles(text), hlo.products(text), hlo.bytes_moved(text)
    visits = [each for each in hlo_text.visits(text)[0] if not each.fused]
    figures = {
        "gflop": sum(each.times * each.flops for each in products) / 1e9,
        "gb_moved": moved / 1e9,
        "temporaries_mb": found.memory.temporaries / 1e6,
        "sent_mb": sum(each.times * each.bytes for each in found.collectives) / 1e6,
        "kernels": sum(each.times for each in visits if each.instruction.opcode not in _NO_KERNEL),
        "params_mb": params / 1e6,
        "compile_s": found.seconds,
    }
    if estimate and target.clock:
        figures["ms"] = 1e3 * estimate.cycles / target.clock
    if gpu:
        arithmetic, memory = roofline(products, moved, target)
        figures |= {"ms": 1e3 * max(arithmetic, memory), "ms_arithmetic": 1e3 * arithmetic, "ms_memory": 1e3 * memory}
    return figures


def table_of(rows: list[dict[str, Any]], target: Target, autos: dict[int, str]) -> Table:
    """One network's rows on one target."""
    network, gpu, many = rows[0]["network"], target.platform == "cuda", target.devices > 1
    params = max(row.get("params_mb", 0) for row in rows)
    inputs = "x".join(map(str, NETWORKS[network].inputs))
    title = f"{network}, {inputs}, batch {NETWORKS[network].batch}, {params:.1f} MB of parameters: {target.name}"
    table = Table(title=title, box=box.MARKDOWN)
    shown = {"ms": "ms (roofline)" if gpu else "ms (estimate)", "ratio": "ratio to the sum", "bound": "bound"}
    shown |= {"gflop": "GFLOP", "gb_moved": "GB moved", "temporaries_mb": "temporaries MB"}
    shown |= ({"kernels": "kernels"} if gpu else {}) | ({"sent_mb": "MB sent"} if many else {})
    for name in ("K", "step", *(shown | {"compile_s": "compile s"}).values()):
        table.add_column(name, justify="left" if name == "step" else "right")
    for row in rows:
        name = row["form"] + (" (auto)" if row["form"] == autos.get(row["tasks"]) else "")
        cells = [f"{row[key]:.4g}" if row.get(key) is not None else "–" for key in (*shown, "compile_s")]
        table.add_row(str(row["tasks"]), name, *([row["none"], *cells[1:]] if "none" in row else cells))
    return table


def main(arguments: list[str] | None = None) -> int:
    """Prints one table a network and target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS), metavar="NAME")
    parser.add_argument("--tasks", nargs="+", type=int, default=[2, 3, 10, 40], metavar="K")
    parser.add_argument("--modes", nargs="*", default=list(MODES), choices=MODES, metavar="MODE")
    parser.add_argument("--all-forms", action="store_true", help="other forms of the backward passes too")
    parser.add_argument("--targets", nargs="+", default=["v5e"], metavar="NAME", help="v5e, v6e, v5e:2x2, h100, ...")
    parser.add_argument("--method", default="nash_mtl", metavar="NAME")
    parser.add_argument("--limit", type=int, default=360, help="seconds after which a compile is ended")
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes the rows; those the limit ended stay so")
    options = parser.parse_args(arguments)
    console, known = Console(width=200), []
    if options.json and options.json.exists():
        known = json.loads(options.json.read_text(encoding="utf-8"))
    console.print(f"Estimates of compilers, jax {jax.__version__}, {options.method} and adam; nothing was run.\n")
    forms = (SUM, *options.modes, *(FORMS if options.all_forms else ()))
    every, total = [], None
    ended = [Case(*map(row.get, Case._fields)) for row in known if row.get("none") == late(options.limit)]
    for network in options.networks:
        for target in map(targets.parse, options.targets):
            rows, autos = [], {tasks: auto_of(network, tasks, target) for tasks in options.tasks}
            for tasks, form in itertools.product(options.tasks, forms):
                case = Case(network, target.name, tasks, form, options.method)
                row: dict[str, Any] = (
                    {"none": late(options.limit)} if case in ended else measured(case, target, options.limit)
                )
                if form == SUM:
                    total = row.get("ms")
                if total and "ms" in row:
                    row["ratio"] = row["ms"] / total
                rows.append({**case._asdict(), "bound": (1 + 2 * tasks) / 3, **row})
                if options.json:
                    options.json.write_text(json.dumps([*every, *rows], indent=1), encoding="utf-8")
            every += rows
            console.print(table_of(rows, target, autos), "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
