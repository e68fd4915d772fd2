#!/usr/bin/env python
"""Bytes and time of a train step on 1, 2, 4, 8 devices, for each way to share it.

K tasks on a multilayer perceptron with P shared parameters, a Gramian method and SGD. The bytes are read from the
compiled program: what each device sends, an all-reduce counted twice (it is a reduce-scatter and an all-gather), the
factor (D-1)/D of a ring left out. Averaging the Jacobian sends 2KP floats, scattering it (K+1)P, features 2P; heads and
K x K products come on top. Under jit the compiler places the collectives. Without accelerators the devices are threads
of one CPU: then the bytes are what counts, the times show the overhead alone. The batch is that of all devices.

example: python scripts/bench_devices.py --devices 1 8 --tasks 10
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

WAYS = (("pmap", "mean"), ("pmap", "scatter"), ("pmap", "features"), ("jit", "mean"), ("jit", "features"))


def arguments() -> argparse.Namespace:
    description, example = (__doc__ or "").rsplit("\n\n", 1)
    parser = argparse.ArgumentParser(
        description=description, epilog=example, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2, 4, 8], help="default: 1 2 4 8")
    parser.add_argument("--tasks", type=int, default=3, help="K, default 3")
    parser.add_argument("--width", type=int, default=256, help="of the two hidden layers and the input, default 256")
    parser.add_argument("--batch", type=int, default=256, help="examples a step, default 256")
    parser.add_argument("--method", default="cagrad", help="default: cagrad")
    parser.add_argument("--steps", type=int, default=20, help="timed steps, default 20")
    return parser.parse_args()


def problem(options: argparse.Namespace) -> tuple[Any, Any, Any]:
    """Parameters, losses split at the representation, and a batch of inputs."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    import mtljax as mtl

    width, tasks = options.width, [f"task{k:02d}" for k in range(options.tasks)]
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape) / np.sqrt(shape[0]), jnp.float32)

    params = {
        "layers": [normal(width, width), normal(width, width)],
        "heads": {task: normal(width) for task in tasks},
    }
    goals = {task: normal(width) for task in tasks}

    def encode(p: Any, x: jax.Array) -> jax.Array:
        for layer in p["layers"]:
            x = jax.nn.relu(x @ layer)
        return x

    losses_fn = mtl.split(
        encode, lambda p, z, x: {task: jnp.mean((z @ p["heads"][task] - x @ goals[task]) ** 2) for task in tasks}
    )
    return params, losses_fn, normal(options.batch, width)


def prepared(options: argparse.Namespace, count: int, style: str, way: str) -> tuple[Any, Callable[[], Any]]:
    """The compiled step on `count` devices, and what runs it once."""
    import jax
    import numpy as np
    import optax
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    import mtljax as mtl
    from mtljax.training.parallel import AXIS

    params, losses_fn, inputs = problem(options)
    tx = optax.chain(mtl.methods.create(options.method, num_tasks=options.tasks), optax.sgd(1e-2))
    axis_name = AXIS if style == "pmap" and count > 1 else None
    mode = "features" if way == "features" else "auto"
    reduce = "scatter" if way == "scatter" and axis_name else "mean"

    def step(params: Any, state: Any, x: jax.Array) -> tuple[Any, Any]:
        losses, grads = mtl.task_gradients(losses_fn, params, x, mode=mode, axis_name=axis_name, reduce=reduce)
        updates, state = tx.update(grads, state, params, losses=losses)
        return optax.apply_updates(params, updates), state

    carry = (params, tx.init(params))
    devices = jax.devices()[:count]
    if axis_name is not None:
        function = jax.pmap(step, axis_name=AXIS, devices=devices)
        carry = jax.tree.map(lambda leaf: np.stack([leaf] * count), carry)
        inputs = np.asarray(inputs).reshape(count, -1, options.width)
    else:
        mesh = Mesh(np.asarray(devices), (AXIS,))
        whole, cut = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(AXIS))
        function = jax.jit(step, out_shardings=whole)
        carry, inputs = jax.device_put(carry, whole), jax.device_put(inputs, cut)
    compiled = function.lower(*carry, inputs).compile()
    carry = jax.block_until_ready(function(*carry, inputs))  # on the devices, where it stays

    def once() -> None:
        nonlocal carry
        carry = jax.block_until_ready(function(*carry, inputs))

    return compiled, once


def main() -> int:
    options = arguments()
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        flag = f"--xla_force_host_platform_device_count={max(options.devices)}"  # of the CPU; others do not mind
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import jax
    from rich.console import Console
    from rich.table import Table

    from mtljax.planning.hlo import collective_bytes

    available = len(jax.devices())
    for count in options.devices:
        if not 1 <= count <= available or options.batch % count:
            print(
                f"bench_devices: --devices {count} must be from 1 to {available} and divide --batch {options.batch}",
                file=sys.stderr,
            )
            return 2
    params, _, _ = problem(options)
    shared = sum(leaf.size for leaf in params["layers"])
    kind = jax.devices()[0].device_kind
    table = Table(title=f"{options.method}, K={options.tasks}, P={shared:,}, batch {options.batch}, {kind}")
    for column in ("devices", "style", "way", "MB sent a step", "in units of P floats", "ms a step"):
        table.add_column(column, justify="right")
    for count in options.devices:
        for style, way in WAYS:
            if count == 1 and (style, way) not in (("jit", "mean"), ("jit", "features")):
                continue  # one device averages with nobody
            compiled, once = prepared(options, count, style, way)
            sent = sum(collective_bytes(compiled.as_text(), count).values())
            once()
            times = []
            for _ in range(options.steps):
                start = time.perf_counter()
                once()
                times.append(time.perf_counter() - start)
            table.add_row(
                str(count),
                style,
                way,
                f"{sent / 1e6:.2f}",
                f"{sent / 4 / shared:.2f}",
                f"{1e3 * statistics.median(times):.1f}",
            )
    console = Console() if sys.stdout.isatty() else Console(width=110)
    console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
