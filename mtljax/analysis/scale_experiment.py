"""Which optimizers do not see the scale of the losses: the small network of Elich et al., arXiv:2311.04698, App. A2."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mtljax import methods
from mtljax.analysis.scale_invariance import ScaleInvariance, scale_invariance

# The paper gives neither learning rates nor batch sizes, only that they are not tuned.
_SAMPLES, _BATCH, _EPOCHS, _FACTORS = 256, 32, 100, {"first": 2.0, "second": -0.5}


def rules(eps: float = 1e-16) -> dict[str, optax.GradientTransformationExtraArgs]:
    """The four optimizers of the experiment, and Adam without memory (β₁ = β₂ = 0), of which its appendix says more.

    Args:
      eps: Adam's ε. The usual 1e-8 is no longer small beside the gradients of units that LeakyReLU damps.
    """
    ew = methods.ew()
    return {
        "SGD with momentum": optax.chain(ew, optax.sgd(1e-3, momentum=0.9)),
        "Adam": optax.chain(ew, optax.adam(1e-3, eps=eps)),
        "UW-O, SGD with momentum": optax.chain(methods.uw_o(), optax.sgd(1e-3, momentum=0.9)),
        "per-task Adam": optax.chain(methods.adatask(eps=eps, num_tasks=2), optax.sgd(1e-3)),
        "Adam, β1 = β2 = 0": optax.chain(ew, optax.adam(1e-3, b1=0, b2=0, eps=eps)),
    }


SETTINGS: dict[str, dict[str, Any]] = {
    "frozen backbone": {"frozen": lambda path: path[0].key == "backbone"},
    "all trained": {},
    "all trained, same path": {"same_path": True},
}


def losses_fn(params: Any, batch: Any) -> dict[str, jax.Array]:
    """L1 losses of two heads on one backbone; the targets are multiples of the scalar input."""
    z = _layers(params["backbone"], batch, last=True)
    return {
        task: jnp.mean(jnp.abs(_layers(params[task], z) - factor * batch)) for task, factor in sorted(_FACTORS.items())
    }


def problem(seed: int = 0) -> tuple[Any, list[jax.Array]]:
    """Parameters (two layers of 20 units, and two in each head), and the batches of one epoch."""
    rng = np.random.default_rng(seed)

    def layers(*sizes: int) -> list[dict[str, Any]]:
        pairs = list(itertools.pairwise(sizes))
        bounds = [1 / np.sqrt(size) for size, _ in pairs]
        kernels = [rng.uniform(-bound, bound, pair) for bound, pair in zip(bounds, pairs, strict=True)]
        biases = [rng.uniform(-bound, bound, pair[1]) for bound, pair in zip(bounds, pairs, strict=True)]
        return [{"kernel": jnp.asarray(k), "bias": jnp.asarray(b)} for k, b in zip(kernels, biases, strict=True)]

    params = {"backbone": layers(1, 20, 20), "first": layers(20, 20, 1), "second": layers(20, 20, 1)}
    return params, list(jnp.asarray(rng.uniform(-1, 1, (_SAMPLES // _BATCH, _BATCH, 1))))


def experiment(
    scales: Sequence[float] = (10.0, 0.1), *, steps: int | None = None, eps: float = 1e-16, seed: int = 0
) -> Iterator[tuple[str, str, ScaleInvariance]]:
    """Trains each rule with and without scaled losses, in each of the settings, in float64.

    Args:
      scales: of the first and the second loss; the paper has 10 and 0.1 in its figures, 10 and 0.01 in its text.
      steps: of each run; None takes 100 epochs of 8 batches.
      eps: as for `rules`.
      seed: of parameters and data.

    Yields:
      `(rule, setting, comparison)`, each when it is done.
    """
    for setting, options in SETTINGS.items():
        for rule, tx in rules(eps).items():
            with jax.enable_x64(True):
                params, batches = problem(seed)
                count = _EPOCHS * len(batches) if steps is None else steps
                run = scale_invariance(losses_fn, params, batches, tx, scales, steps=count, **options)
            yield rule, setting, run


def _layers(layers: Any, x: jax.Array, last: bool = False) -> jax.Array:
    for index, layer in enumerate(layers):
        x = x @ layer["kernel"] + layer["bias"]
        if last or index < len(layers) - 1:
            x = jnp.where(x > 0, x, 0.01 * x)
    return x
