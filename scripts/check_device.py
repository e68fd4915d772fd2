#!/usr/bin/env python
"""Checks and times mtljax on the accelerator of this machine, within --minutes; prints one section of Markdown.

Each part is a process of its own, which is ended when its time is over; what does not fit is left out and named.
"correctness" compares every method and engine with the CPU; "steps" times whole steps of every engine beside the summed
loss, and beside PyTorch's libraries where they are installed; "blocks" times cells of a study in one program;
"estimates" holds what compilers say of the steps beside what they took. The exit status is 1 if a check of correctness
fails or none could be made. Without an accelerator the device is the CPU.

example: python scripts/check_device.py --minutes 8 --output device.md
"""

import argparse
import contextlib
import datetime
import functools
import importlib
import json
import os
import queue
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console

import mtljax as mtl
from mtljax.gradients.backend import Backend, assumed
from mtljax.planning import hlo, roofline, targets
from mtljax.training import block as blocks_of
from mtljax.training import loop, program

sys.path.append(str(Path(__file__).parent))
bench_step, compilers, check_blocks = map(importlib.import_module, ("bench_step", "check_compilers", "check_blocks"))

PARTS = {"correctness": 0.38, "steps": 0.34, "blocks": 0.12, "estimates": 0.16}  # shares of the time
TOLERANCE = 1e-4  # see WHY
WHY = (
    "Float32, the network's products at the highest precision, on both. Differences are relative ones of norms, the "
    f"largest of three steps, or of one at that scale. {TOLERANCE:g} passes: rounding and a device's own exponentials "
    "err by 1e-6 or so, which none of these problems enlarges more than 15 times; a product in TF32 errs by 5e-4."
)
SMALL = {  # networks of the checks of correctness, with their inputs
    "mlp": ("mlp", {"features": (32, 16)}, (8, 8, 1)),
    "conv": ("lenet", {"channels": (4, 8), "kernels": (3, 3), "padding": "SAME", "features": 16}, (8, 8, 1)),
}
K, MANY, SCALES, LOOPED = 3, 12, (1e-8, 1e8), 20
AUTO, SUM = "auto", compilers.SUM
ENGINES = ("loop", "jacrev", "vmap", "lax.map", "two_pass", "features")
CHIPS = {"v5 ?lite|v5e": "v5e", r"v5p?\b": "v5p", "v6 ?lite|v6e": "v6e", r"TPU v4\b": "v4"} | {
    rf"\b{name}\b": name.lower() for name in ("A100", "H100", "H200", "B200")
}
PEERS = {"mlp": "mlp", "lenet": "lenet", "resnet18": "resnet18-3"}  # as bench_step calls them
Emit = Callable[[str, Any], None]  # of a kind: "say", "heads", "row", "device", "measured" or "checked"


class Sizes(NamedTuple):
    """How much is done."""

    methods: tuple[str, ...] = mtl.methods.names()
    small: tuple[str, ...] = tuple(SMALL)
    engines: tuple[str, ...] = ENGINES
    networks: tuple[str, ...] = ("mlp", "resnet18", "transformer", "lenet")  # a TPU compiles the last for minutes
    forms: tuple[str, ...] = (SUM, "loop", "vmap", "two_pass", "features")  # "jacrev" is "loop" for few tasks
    cells: tuple[int, ...] = (1, 8, 32)
    blocks: tuple[tuple[str, str], ...] = (("mlp", "mgda"), ("lenet", "mgda"), ("mlp", "ew"), ("lenet", "ew"))
    batch: int | None = None
    seconds: float = 2.0  # of timing each


TINY = Sizes(("cagrad",), ("mlp",), ("vmap",), ("mlp",), (SUM, "loop"), (1, 2), (("mlp", "ew"),), 8, 0.05)


def sentence(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}".replace("|", "/")


def compiled(jobs: Iterable[tuple[Any, Callable[[], list[Any]]]], until: float) -> Iterator[tuple[Any, Any]]:
    """Traces jobs one by one and compiles them in threads; yields the programs of each, an error, or None if late."""
    workers = min(8, os.cpu_count() or 1)
    pool, waiting = ThreadPoolExecutor(workers), deque[tuple[Any, list[Any]]]()

    def first() -> tuple[Any, Any]:
        key, futures = waiting.popleft()
        try:
            return key, [each.result(max(until - time.time(), 0)) for each in futures]
        except TimeoutError:
            return key, [each.cancel() for each in futures] and None
        except Exception as error:
            return key, error

    for key, lower in jobs:
        try:
            if time.time() < until:
                waiting.append((key, [pool.submit(each.compile) for each in lower()]))
            else:
                yield key, None
        except Exception as error:
            yield key, error
        while waiting and (len(waiting) > workers or all(each.done() for each in waiting[0][1])):
            yield first()  # tracing runs a little ahead only: it would take the processors from compiling
    while waiting:
        yield first()
    pool.shutdown(wait=False, cancel_futures=True)


def drawn(shapes: Any) -> Any:
    """Random parameters on the host, where drawing compiles nothing."""
    rng = np.random.default_rng(1)

    def draw(path: Any, leaf: Any) -> np.ndarray:
        values = rng.standard_normal(leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1])) if leaf.ndim > 1 else 0.1
        return np.full(leaf.shape, values + ("scale" in jax.tree_util.keystr(path)), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def method_step(network: str, name: str, form: str, tasks: int) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """A step of a method by an engine; its arguments: parameters, state, losses after the last step, the batch."""
    encoder, options, inputs = SMALL[network]
    names, rng, method = [f"t{k:02}" for k in range(tasks)], np.random.default_rng(0), mtl.methods.describe(name)
    heads = {task: mtl.tasks.classification(10).head() for task in names}
    model = mtl.models.MultiTaskModel(mtl.models.encoder(encoder, **options), heads)

    def losses(params: Any, z: jax.Array, x: jax.Array, y: jax.Array, scales: jax.Array) -> dict[str, jax.Array]:
        out, entropy = model.decode(params, z), optax.softmax_cross_entropy_with_integer_labels
        return {task: scales[k] * entropy(out[task], y[:, k]).mean() for k, task in enumerate(names)}

    losses_fn = mtl.split(lambda params, x, y, scales: model.encode(params, {}, x, train=True)[0], losses)
    tx = mtl.methods.create(name, num_tasks=tasks)

    def step(params: Any, state: Any, after: jax.Array, x: jax.Array, y: jax.Array, scales: jax.Array) -> Any:
        batch = [mtl.IndependentBatches(*jnp.split(each, 3)) if method.batches > 1 else each for each in (x, y)]
        extra = {"losses_after": after} if method.losses_after else {}
        with compilers.form_of(form, tasks) as mode:
            gradient_fn = mtl.value_and_grad(losses_fn, tx, mode=mode)
            (_, gradient), state = gradient_fn(params, state, *batch, scales, method_args=extra)
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient)
        if method.losses_after:
            after = jnp.stack(list(losses_fn(params, x, y, scales).values()))
        return (params, state, after), (gradient, mtl.task_weights(state))

    params = drawn(jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, *inputs)))[0]))
    with jax.default_device(jax.devices("cpu")[0]):
        state = jax.device_get(mtl.value_and_grad(losses_fn, tx).init(params))
    x, y = rng.standard_normal((48, *inputs), np.float32), rng.integers(0, 10, (48, tasks), np.int32)
    return step, (params, state, np.full(tasks, np.nan, np.float32), x, y, np.ones(tasks, np.float32))


def outcomes(made: Any, args: Any, device: Any) -> tuple[list[Any], bool]:
    """Gradients and weights of a few steps, then of one at each scale; whether a NaN leaves the state as it was."""
    *start, x, y, ones = jax.device_put(args, device)
    flat = lambda tree: np.concatenate([[0.0], *map(np.ravel, jax.tree.leaves(jax.device_get(tree)))])  # noqa: E731
    carry, found = start, []
    for _ in range(3):
        carry, outcome = made(*carry, x, y, ones)
        found.append(outcome)
    found += [made(*start, x, y, ones * np.float32(scale))[1] for scale in SCALES]
    (_, after, _), (gradient, _) = made(*start, x, y, jax.device_put(args[-1], device).at[1].set(np.nan))
    same = jax.tree.map(lambda a, b: np.array_equal(a, b, equal_nan=True), jax.device_get(after), args[1])
    return [[*map(flat, each)] for each in found], all(jax.tree.leaves(same)) and not np.isfinite(flat(gradient)).all()


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    """Relative; infinite where there are numbers that are not finite."""
    gap = np.linalg.norm(found.astype(float) - expected) / max(np.linalg.norm(expected.astype(float)), 1e-300)
    return float(gap) if np.isfinite(gap) else np.inf


def correctness(sizes: Sizes, until: float, emit: Emit) -> None:
    """Every method and engine against the CPU, where choices are made as on a CPU."""
    devices, late, arguments = (jax.devices()[0], jax.devices("cpu")[0]), [], {}
    engines = [("cagrad", form, MANY, "highest") for form in sizes.engines]
    engines += [("cagrad", form, MANY, "default") for form in ("loop", "two_pass") if form in sizes.engines]
    keys = [(net, name, AUTO, K, "highest") for net in sizes.small for name in sizes.methods]
    keys[len(sizes.methods) : len(sizes.methods)] = [(net, *engine) for net in sizes.small for engine in engines]

    def lower(key: Any) -> list[Any]:
        *names, precision = key
        step, arguments[key] = method_step(*names)
        ways = (precision, contextlib.nullcontext()), ("highest", assumed(Backend("cpu", None)))
        lowered = []
        for (multiply, choices), device in zip(ways, devices, strict=True):
            with jax.default_matmul_precision(multiply), choices:  # a new function, or what was traced would be reused
                placed = jax.device_put(arguments[key], device)
                lowered.append(jax.jit(lambda *args: step(*args)).lower(*placed))
        return lowered

    emit("say", WHY)
    scaled = [f"losses x {scale:g}" for scale in SCALES]
    emit("heads", ["network", "method", "engine", "K", "precision", "gradient", "weights", *scaled, "NaN", "passes"])
    for key, programs in compiled([(key, functools.partial(lower, key)) for key in keys], until):
        if programs is None:
            late.append(f"{key[0]} {key[1]} ({key[2]})")
            continue
        try:
            if isinstance(programs, Exception):
                raise programs
            ours, theirs = (outcomes(*each) for each in zip(programs, [arguments.pop(key)] * 2, devices, strict=True))
            gaps = [[*map(difference, *both)] for both in zip(ours[0], theirs[0], strict=True)]
            cells = [max(gap[0] for gap in gaps[:3]), max(gap[1] for gap in gaps[:3]), *map(max, gaps[3:])]
            passes = ours[1] and max(cells) <= TOLERANCE
            cells.append("skipped" if ours[1] else "NOT skipped")
        except Exception as error:
            cells, passes = [sentence(error), *[None] * (2 + len(SCALES))], False
        if key[-1] == "highest":
            emit("checked", bool(passes))
        emit("row", [*key, *cells, ("yes" if passes else "**NO**") if key[-1] == "highest" else "not asked"])
    if late:
        emit("say", f"No time was left for {len(late)}: {', '.join(late)}.")


def set_networks(sizes: Sizes, platform: str) -> None:
    """Makes the networks of `check_compilers` those that PyTorch is timed with, and batches fit for the device."""
    mlp = bench_step.NETWORKS["mlp"]
    encoder = functools.partial(mtl.models.encoder, mlp.encoder, **mlp.options)
    compilers.NETWORKS["mlp"] = compilers.Network(encoder, mlp.inputs, mlp.batch)
    for name, network in compilers.NETWORKS.items():
        batch = sizes.batch or (32 if platform == "cpu" else network.batch)
        compilers.NETWORKS[name] = network._replace(batch=batch)


def runs(made: Any, shapes: Any) -> Callable[..., None]:
    """What makes some steps one after the other, and waits for the last."""
    params, state, x, y = shapes
    rng, zeros = np.random.default_rng(0), jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), state)
    held = [*jax.device_put((drawn(params), zeros))]
    batch = jax.device_put((rng.standard_normal(x.shape, np.float32), rng.integers(0, 10, y.shape, np.int32)))

    def call(times: int = 1) -> None:
        for _ in range(times):
            held[:] = made(*held, *batch)[:2]
        jax.block_until_ready(held)

    return call


def target_of(kind: str) -> targets.Target | None:
    """One device of this kind, if mtljax plans for it."""
    return next((targets.parse(chip) for pattern, chip in CHIPS.items() if re.search(pattern, kind)), None)


def figures(made: Any, target: targets.Target | None) -> dict[str, float]:
    """What the program that ran says of itself."""
    memory, listing = made.memory_analysis(), made.as_text() if target else ""
    found = {"gflop": (made.cost_analysis() or {}).get("flops", np.nan) / 1e9}
    found["temporaries_mb"] = np.nan if memory is None else memory.temp_size_in_bytes / 1e6
    if target and target.platform == "cuda":
        found["program_ms"] = 1e3 * max(roofline.roofline(hlo.products(listing), hlo.bytes_moved(listing), target))
    elif target and target.clock and (estimate := hlo.cycles(listing)):
        found["program_ms"] = 1e3 * estimate.cycles / target.clock
    return found


def steps(sizes: Sizes, until: float, emit: Emit) -> None:
    """Whole steps, timed in turns."""
    set_networks(sizes, jax.default_backend())
    in_row = 2 if jax.default_backend() == "cpu" else 10  # a CPU starts a step at once
    emit(
        "say",
        f"PCGrad and adam (PyTorch's: SGD), {K} tasks, the device's default precision; medians. A step is awaited, "
        f"or {in_row} in a row are, which hides what the host takes to start one. Up to ten tasks `jacrev` is the "
        "program of `loop`, and beyond that of `vmap`. The bound is (1 + 2K) / 3.",
    )
    columns = ["ms", "ratio to the sum", "ms in a row", "ratio to the sum", "bound", "temporaries MB", "GFLOP"]
    emit("heads", ["network", "batch", "step", *columns])
    for i, name in enumerate(sizes.networks):
        batch, shapes, programs, peers = compilers.NETWORKS[name].batch, {}, {}, []
        end = time.time() + (until - time.time()) / (len(sizes.networks) - i)

        def lower(form: str, name: str = name, shapes: dict[str, Any] = shapes) -> list[Any]:
            step, shapes[form], _ = compilers.step_of(compilers.Case(name, "", K, form, "pcgrad"))
            return [jax.jit(step, donate_argnums=(0, 1)).lower(*shapes[form])]

        jobs = [(form, functools.partial(lower, form)) for form in sizes.forms]
        for form, made in compiled(jobs, (time.time() + 2 * end) / 3):
            if isinstance(made, list):
                programs[form] = made[0]
            else:
                emit(
                    "row", [name, batch, form, "not compiled in time" if made is None else sentence(made), *[None] * 6]
                )
        try:
            if name in PEERS:
                peers = bench_step.torch_steps(bench_step.NETWORKS[PEERS[name]]._replace(tasks=K, batch=batch))
        except Exception as error:
            emit("row", [name, batch, "PyTorch", sentence(error), *[None] * 6])
        once = [runs(made, shapes[form]) for form, made in programs.items()]
        calls = [*once, *(functools.partial(call, in_row) for call in once), *(peer.call for peer in peers)]
        seconds = min(sizes.seconds, max(end - time.time(), 0) / (len(calls) + 1))
        times = bench_step.medians(calls, seconds)
        singles, rows = times[: len(once)], [ms / in_row for ms in times[len(once) : 2 * len(once)]]
        single, row = (singles[0], rows[0]) if SUM in programs else (np.nan, np.nan)
        for (form, made), ms, fast in zip(programs.items(), singles, rows, strict=True):
            facts, bound = figures(made, target_of(jax.devices()[0].device_kind)), (1 + 2 * K) / 3
            cells = [ms, ms / single, fast, fast / row, None if form == SUM else bound]
            emit("row", [name, batch, form, *cells, facts["temporaries_mb"], facts["gflop"]])
            emit("measured", {"network": name, "form": form, "ms": fast, **facts})
        for peer, ms in zip(peers, times[2 * len(once) :], strict=True):
            emit("row", [name, batch, peer.name, ms, ms / single, *[None] * 5])
    if not bench_step.INSTALLED:
        emit("say", "PyTorch is not installed here.")


def advanced(made: Any, held: list[Any], split: Any, size: int) -> None:
    """Some steps of a block of cells, or of one cell, for `size` 0, by a call each."""
    for _ in range(1 if size else LOOPED):
        held[0] = made(held[0], split, held[1], *[np.int32(LOOPED)] * bool(size))[0]
    jax.block_until_ready(held[0])


def blocks(sizes: Sizes, until: float, emit: Emit) -> None:
    """Cells of a study in one program, and one after the other."""
    emit(
        "say",
        "Training steps alone: MultiDigits, batch 128, cells of 10 epochs. A cell `alone` makes one call a step, as "
        "`mtljax train` does; M cells are one program that loops over steps.",
    )
    emit("heads", ["network", "method", "M", "µs a step of a cell", "ratio to alone", "cells a minute"])
    put = lambda tree, size: jax.device_put(jax.tree.map(lambda x: np.stack([x] * size) if size else x, tree))  # noqa: E731
    for name, method in sizes.blocks:
        config = check_blocks.config_of(name, method)
        data = loop.load_data(config)
        one, split = program.build_program(config, data), jax.device_put(data.splits["train"])
        with jax.default_device(jax.devices("cpu")[0]):
            host = program.init_state(config, data, one), np.arange(6000, dtype=np.int32)
        advance, calls = blocks_of.build_block(one).advance, {}

        def lower(size: int, one: Any = one, split: Any = split, advance: Any = advance, host: Any = host) -> list[Any]:
            state, order = put(host, size)
            return [
                advance.lower(state, split, order, np.int32(0))
                if size
                else one.advance.lower(state, split, order, None)
            ]

        jobs = [(size, functools.partial(lower, size)) for size in (0, *sizes.cells)]
        for size, made in compiled(jobs, until):
            if not isinstance(made, list):
                why = "no time was left" if made is None else sentence(made)
                emit("row", [name, method, size or "alone", why, None, None])
                continue
            calls[size] = functools.partial(advanced, made[0], [*put(host, size)], split, size)
        times = bench_step.medians([*calls.values()], min(sizes.seconds, 1.0))
        each = {size: 1e3 * ms / LOOPED / max(size, 1) for size, ms in zip(calls, times, strict=True)}
        for size, us in each.items():
            rate = 60e6 / (us * 10 * one.steps_per_epoch)
            emit("row", [name, method, size or "alone", us, us / each.get(0, np.nan), f"{rate:.0f}"])


def estimates(sizes: Sizes, until: float, emit: Emit, device: dict[str, Any], measured: list[Any]) -> None:
    """What compilers say of the steps beside what they took; opens no device."""
    target = target_of(device["kind"])
    if target is None or target.devices > 1:
        emit(
            "say",
            f"mtljax plans for no {device['kind']} alone: the arithmetic is by XLA's own count, without an estimate.",
        )
        emit("heads", ["network", "step", "ms in a row", "GFLOP", "TFLOP/s"])
        for row in measured:
            emit("row", [row["network"], row["form"], row["ms"], row["gflop"], row["gflop"] / row["ms"]])
        return
    set_networks(sizes, device["platform"])
    emit(
        "say",
        f"Of {target.name}, {'cycles' if target.platform == 'tpu' else 'roofline'}: of the program as compiled ahead "
        "of time (`mtljax plan`), and of the one that ran. Quotients are measured by estimated.",
    )
    columns = ["ahead of time", "quotient", "as it ran", "quotient", "temporaries MB ahead", "as it ran"]
    emit("heads", ["network", "step", "ms in a row", *columns])
    for row in measured:
        limit, ms, ran = int(min(until - time.time(), 90)), row["ms"], row.get("program_ms")
        case, found = (
            compilers.Case(row["network"], target.name, K, row["form"], "pcgrad"),
            {"none": "no time was left"},
        )
        try:
            found = compilers.measured(case, target, limit) if limit > 1 else found
        except Exception as error:
            found = {"none": sentence(error)}
        ahead = found.get("ms")
        cells = [ahead or found.get("none"), ahead and ms / ahead, ran, ran and ms / ran, found.get("temporaries_mb")]
        emit("row", [row["network"], row["form"], ms, *cells, row["temporaries_mb"]])


def child() -> None:
    """Makes the part that stdin asks for, and writes what it finds to stdout, a line of JSON each."""
    part, tiny, until, device, measured = json.load(sys.stdin)
    sizes, emit = TINY if tiny else Sizes(), lambda kind, value: print(json.dumps([kind, value]), flush=True)
    try:
        if part == "estimates":
            estimates(sizes, until, emit, device or {"kind": "unknown device"}, measured)
        else:
            first = jax.devices()[0]
            emit("device", {"kind": first.device_kind, "platform": first.platform, "count": len(jax.devices())})
            {"correctness": correctness, "steps": steps, "blocks": blocks}[part](sizes, until, emit)
    except Exception as error:
        emit("say", f"This part ended with an error. {sentence(error)}")
        emit("checked", False)
    os._exit(0)  # whatever still compiles


def made_by(part: str, tiny: bool, until: float, *known: Any) -> Iterator[tuple[str, Any]]:
    """What a part finds, as it comes; ends its process when the time is over."""
    variables, lines, pipe = dict(os.environ), queue.SimpleQueue[str | None](), subprocess.PIPE
    if part == "estimates":
        variables["JAX_PLATFORMS"] = "cpu"
    elif (platforms := variables.get("JAX_PLATFORMS")) and "cpu" not in platforms:
        variables["JAX_PLATFORMS"] = f"{platforms},cpu"
    command = [sys.executable, str(Path(__file__).resolve()), "--child"]
    process = subprocess.Popen(command, env=variables, stdin=pipe, stdout=pipe, text=True, start_new_session=True)
    reader = threading.Thread(target=lambda: [*map(lines.put, process.stdout), lines.put(None)], daemon=True)
    reader.start()
    try:
        process.stdin.write(json.dumps([part, tiny, until - 8, *known]))
        process.stdin.close()
        while (line := lines.get(timeout=max(until - time.time(), 0.01))) is not None:
            if line.startswith('["'):  # libraries print too
                yield tuple(json.loads(line))
        if code := process.wait():
            yield "say", f"This part died with exit code {code}."
            yield "checked", False
    except queue.Empty:
        yield "say", "This part was ended: its time was over."
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        reader.join()
        process.stdout.close()


def markdown(kind: str, value: Any) -> str:
    if kind == "say":
        return f"\n{value}"
    cells = ["–" if x is None or x != x else f"{x:.3g}" if isinstance(x, float) else str(x) for x in value]
    line = f"| {' | '.join(cells)} |"
    return line if kind == "row" else f"\n{line}\n| {' | '.join(['---'] * len(cells))} |"


def main(arguments: list[str] | None = None) -> int:
    """Prints the section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0, help="within which all ends, default 8")
    parser.add_argument("--parts", default=",".join(PARTS), metavar="NAMES", help=f"default: {','.join(PARTS)}")
    parser.add_argument("--output", type=Path, metavar="FILE", help="writes the Markdown there too")
    for hidden in ("--child", "--tiny"):
        parser.add_argument(hidden, action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        child()
    if unknown := set(options.parts.split(",")) - set(PARTS):
        parser.error(f"--parts {','.join(sorted(unknown))}: use {', '.join(PARTS)}")
    parts = [part for part in PARTS if part in options.parts.split(",")]
    end, device, written, shown = time.time() + 60 * options.minutes - 3, None, [], 0
    measured, checks, console = [], [], Console(stderr=True)
    for i, part in enumerate(parts):
        seconds = (end - time.time()) * PARTS[part] / sum(PARTS[each] for each in parts[i:])
        console.print(f"{part}: {seconds:.0f} s at most")
        written.append(f"\n### {part.capitalize()}")
        for kind, value in made_by(part, options.tiny, time.time() + seconds, device, measured):
            if kind == "device" and device is None:
                device, words = value, shlex.join(sys.argv[1:] if arguments is None else arguments)
                head = f"## {value['kind']}, jax {jax.__version__}, {datetime.date.today()}"
                about = f"{value['count']} {value['platform']} device(s), one used; {os.cpu_count()} cores"
                written.insert(0, f"{head}\n\n`python scripts/check_device.py {words}`; {about}.")
            measured += [value] * (kind == "measured")
            checks += [value] * (kind == "checked" and part == "correctness")
            if kind in ("say", "heads", "row"):
                written.append(markdown(kind, value))
            if device is not None and written[shown:]:  # the heading comes first
                print(*written[shown:], sep="\n", flush=True)
                shown = len(written)
    written += [f"\n{sum(checks)} of {len(checks)} checks of correctness pass."] * ("correctness" in parts)
    print(*written[shown:], sep="\n")
    if options.output:
        options.output.write_text("\n".join(written) + "\n", encoding="utf-8")
    return int("correctness" in parts and not (checks and all(checks)))


if __name__ == "__main__":
    sys.exit(main())
