#!/usr/bin/env python
"""Do tasks conflict more than examples do? Trains four problems with three seeds each, and judges the paper's claim.

Multi-MNIST, the same with the right digit's loss ten times as large, Tox21 (12 assays, many labels missing) and dense
prediction on a part of NYUv2 (13 classes, depth, normals) with a small convolutional network of this script. Every
fifth step the gradients of 8 examples of the batch are compared, as in Elich et al., arXiv:2311.04698, Sec. 4.2. (The
School data has one task an example, and so no two tasks on the same example.) Runs that are finished are kept; the
directories can be shown again by `mtljax analyze conflicts runs/conflicts/*`.

example: MTLJAX_DATA=../shared/data/tfds python scripts/conflict_study.py --figure docs/conflicts.png
"""

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

import mtljax as mtl
from mtljax.analysis.conflict_runs import read_runs
from mtljax.commands.conflicts import show
from mtljax.commands.output import add_figure
from mtljax.data import MultiTaskData, from_tfds, tfds_source
from mtljax.training import DataConfig, MethodConfig, ModelConfig, OptimizerConfig, TrainConfig, train
from mtljax.training.config import to_dict
from mtljax.training.logs import METRICS, RunLog
from mtljax.training.loop import load_data
from mtljax.training.program import build_program
from mtljax.training.workdir import CONFIG, finished

SEEDS = (0, 1, 2)
DIGITS = TrainConfig(
    name="Multi-MNIST",
    data=DataConfig("multi_mnist", {"num_train": 10240, "num_validation": 500, "num_test": 500}),
    model=ModelConfig("lenet"),
    method=MethodConfig("ew"),
    optimizer=OptimizerConfig("adam", learning_rate=1e-3),
    batch_size=256,
    epochs=3,
    probe_every=5,
    checkpoints=False,
    tensorboard=False,
)
TOX21 = dataclasses.replace(
    DIGITS, name="Tox21", data=DataConfig("tox21"), model=ModelConfig("mlp", {"features": (128, 64)}), batch_size=128
)
RUNS = (DIGITS, dataclasses.replace(DIGITS, name="Multi-MNIST, losses x1 and x10", loss_scales={"right": 10.0}), TOX21)
NYU = dataclasses.replace(DIGITS, name="NYUv2, dense", data=DataConfig("nyuv2_mtl_small"), batch_size=20, probe_every=2)


def tox21() -> MultiTaskData:
    """Twelve assays, -1 where a molecule was not measured, from its fingerprint."""
    return from_tfds(
        "tox21",
        inputs="fp",
        tasks={f"assay {k:02}": ("y", "binary", k) for k in range(12)},
        preprocess=lambda packed: np.unpackbits(packed, axis=1).astype(np.float32),
    )


def trained(config: TrainConfig, workdir: Path) -> list[Path]:
    """The runs of a config, those missing trained."""
    data, program, directories = None, None, []
    for seed in SEEDS:
        run = dataclasses.replace(config, seed=seed)
        directories.append(place(workdir, run))
        if finished(directories[-1], to_dict(run)):
            continue
        if data is None:
            data = tox21() if config.data.name == "tox21" else load_data(config)
            program = build_program(config, data)
        resume = (directories[-1] / CONFIG).is_file()
        result = train(
            run, workdir=directories[-1], resume=resume, data=data, program=program, probe=mtl.analysis.sample_probe
        )
        if result.interrupted:
            sys.exit(f"{result.interrupted}: start the same command again to go on")
    return directories


def place(workdir: Path, config: TrainConfig) -> Path:
    """The directory of a run."""
    return workdir / f"{config.name.replace(' ', '_').replace(',', '')}-seed{config.seed}"


class Dense(nn.Module):
    """Four convolutions to a quarter of the resolution."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps images (B, H, W, 3) to features (B, H / 4, W / 4, 32)."""
        for index, (features, stride) in enumerate(((16, 2), (32, 2), (32, 1), (32, 1))):
            x = nn.relu(nn.Conv(features, (3, 3), strides=stride, name=f"Conv_{index}")(x))
        return x


HEADS = {"depth": nn.Conv(1, (1, 1)), "normal": nn.Conv(3, (1, 1)), "segmentation": nn.Conv(13, (1, 1))}
ENCODER = Dense()


def dense_losses(params: Any, rest: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Means over the pixels that have a label: cross-entropy, L1 in metres, one minus the cosine of the normals."""
    del rest
    z = ENCODER.apply({"params": params["shared"]}, batch["image"])
    outputs: dict[str, Any] = {task: HEADS[task].apply({"params": params["heads"][task]}, z) for task in HEADS}
    classes, depth, normal = (batch[name] for name in ("segmentation", "depth", "normal"))

    def mean(values: jax.Array, valid: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(valid, values, 0)) / jnp.maximum(jnp.sum(valid), 1)

    entropy = optax.softmax_cross_entropy_with_integer_labels(outputs["segmentation"], jnp.maximum(classes, 0))
    length = jnp.sqrt(jnp.sum(outputs["normal"] ** 2, axis=-1) + 1e-12)
    cosine = jnp.sum(outputs["normal"] * normal, axis=-1) / length
    return {
        "depth": mean(jnp.abs(outputs["depth"][..., 0] - depth), depth > 0),
        "normal": mean(1 - cosine, jnp.sum(normal**2, axis=-1) > 0.25),
        "segmentation": mean(entropy, classes >= 0),
    }


def dense_data() -> dict[str, np.ndarray]:
    """Images at half resolution and targets at an eighth, every eighth pixel."""
    examples = tfds_source.read(tfds_source.find(NYU.data.name), "train", ("image", "segmentation", "depth", "normal"))
    count, height, width, _ = examples["image"].shape
    image = examples["image"].reshape(count, height // 2, 2, width // 2, 2, 3).mean(axis=(2, 4)) / 255
    small = {
        name: examples[name].reshape(count, height, width, -1)[:, 4::8, 4::8] for name in examples if name != "image"
    }
    normal = (small["normal"].astype(np.float32) - 127) / 127
    return {
        "image": image.astype(np.float32),
        "segmentation": small["segmentation"][..., 0].astype(np.int32) - 1,
        "depth": small["depth"][..., 0].astype(np.float32) * 10 / 255,
        "normal": normal / np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-6),
    }


def trained_dense(config: TrainConfig, workdir: Path) -> list[Path]:
    """The dense runs: a loop of their own, since the package has no dense tasks; logs as those of `mtljax train`."""
    probe, data, directories = mtl.analysis.sample_probe, None, []
    tx = optax.chain(mtl.ew(), optax.adam(config.optimizer.learning_rate))

    @jax.jit
    def step(params: Any, state: Any, batch: Any) -> Any:
        losses, grads = mtl.task_gradients(dense_losses, params, (), batch)
        updates, state = tx.update(grads, state, params, losses=losses)
        return optax.apply_updates(params, updates), state, losses

    for seed in SEEDS:
        directories.append(place(workdir, dataclasses.replace(config, seed=seed)))
        record = to_dict(dataclasses.replace(config, seed=seed)) | {"model": {"encoder": "Dense of conflict_study.py"}}
        if finished(directories[-1], record):
            continue
        data, start, losses = dense_data() if data is None else data, time.perf_counter(), {}
        rng, keys = np.random.default_rng(seed), jax.random.split(jax.random.PRNGKey(seed), 1 + len(HEADS))
        shared = ENCODER.init(keys[0], jnp.asarray(data["image"][:1]))["params"]
        z = jnp.zeros((1, 1, 1, 32))
        heads = {task: HEADS[task].init(key, z)["params"] for task, key in zip(HEADS, keys[1:], strict=True)}
        params = {"shared": shared, "heads": heads}
        state, count, done = tx.init(params), len(data["image"]), 0
        directories[-1].mkdir(parents=True, exist_ok=True)
        (directories[-1] / CONFIG).write_text(json.dumps({"config": record, "data_spec": {}}))
        (directories[-1] / METRICS).unlink(missing_ok=True)
        log = RunLog(directories[-1], print, tensorboard=False, until=None)
        for epoch in range(1, config.epochs + 1):
            measured, order = [], rng.permutation(count)
            for indices in order[: count - count % config.batch_size].reshape(-1, config.batch_size):
                if done % config.probe_every == 0:
                    some = {name: each[indices[: config.probe_samples]] for name, each in data.items()}
                    measured.append(jax.device_get(probe.measure(dense_losses, params, (), some, keys[0])))
                params, state, losses = step(params, state, {name: each[indices] for name, each in data.items()})
                done += 1
            at = {"step": done, "epoch": float(epoch), "seconds": round(time.perf_counter() - start, 3)}
            log.write(at | {"split": "train", "losses": jax.tree.map(float, losses), "weights": None})
            seen = {"looks": len(measured)} | probe.summary(sorted(HEADS), measured)
            log.write(at | {"split": "probe", "probe": seen})
        log.write(at | {"split": "test", "metrics": {}})
        log.close()
    return directories


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains what is missing and shows all."""
    words = (__doc__ or "").splitlines()
    parser = argparse.ArgumentParser(description=words[0], epilog=words[-1])
    parser.add_argument("--workdir", default="runs/conflicts", help="directory of the runs (default: runs/conflicts)")
    parser.add_argument("--epochs", type=int, metavar="N", help="of each run (default: 3)")
    add_figure(parser)
    options = parser.parse_args(arguments)
    start, directories = time.perf_counter(), []
    for config in (*RUNS, NYU):
        if options.epochs is not None:
            config = dataclasses.replace(config, epochs=options.epochs)
        began = time.perf_counter()
        make = trained_dense if config.name == NYU.name else trained
        try:
            directories += make(config, Path(options.workdir))
        except ValueError as error:
            sys.exit(f"error: {error}")
        print(f"{config.name}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    show(read_runs(directories), options.figure)
    print(f"{time.perf_counter() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
