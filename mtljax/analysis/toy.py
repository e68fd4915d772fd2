"""CAGrad's two tasks of two parameters: how many steps a method needs from three starts, at any learning rate."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from mtljax import methods
from mtljax.errors import unknown
from mtljax.gradients import task_gradients

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STARTS = ((-8.5, 7.5), (-8.5, -5.0), (9.0, 9.0))
LEARNING_RATES = (10.0, 5.0, 1.0, 0.5, 0.1, 0.05, 0.01, 0.005, 0.001)
OPTIMIZERS = {"gd": optax.identity, "adam": optax.scale_by_adam}
# The losses are about -15 at the minimum, and the rules of these divide by losses or take their logarithm.
POSITIVE_LOSSES = ("db_mtl", "dwa", "famo", "gls", "gradnorm", "imtl", "imtl_l", "si", "stch", "uw", "uw_o")
_MEANS = {"ew": 0.5, "pcgrad": 0.5}  # sums in mtljax, means in the experiment
_NEAR = 15 / 15.09163  # the paper's table is matched by a mean loss below -15, where the minimum is -15.09163
_RECORDS = 200


@dataclass(frozen=True)
class ToyConfig:
    """The experiment of Elich et al., arXiv:2311.04698, Sec. 4.1, with CAGrad's constants (arXiv:2110.14048).

    Attributes:
      methods: names; ("all",) for every method that takes negative losses.
      options: hyperparameters by method.
      optimizers: "gd" or "adam", the latter with optax's defaults.
      learning_rates: they all run in one program.
      iterations: steps after which to give up.
      scale: of the first loss, positive: 1 in CAGrad's code, 0.1 in Nash-MTL's.
    """

    methods: tuple[str, ...] = ("ew", "pcgrad", "cagrad")
    options: dict[str, dict[str, Any]] = field(default_factory=lambda: {"cagrad": {"c": 0.5, "rescale": "1+c"}})
    optimizers: tuple[str, ...] = ("gd", "adam")
    learning_rates: tuple[float, ...] = LEARNING_RATES
    iterations: int = 100_000
    scale: float = 1.0

    def __post_init__(self) -> None:
        for name in self.methods if self.methods != ("all",) else ():
            methods.describe(name)
            if name in POSITIVE_LOSSES:
                raise ValueError(f"toy: {name} needs positive losses, and those of this function fall to -15")
        for name in self.optimizers:
            if name not in OPTIMIZERS:
                raise unknown("optimizer of the toy", name, OPTIMIZERS)
        for name, value in {"iterations": self.iterations, "scale": self.scale}.items():
            if not 0 < value < math.inf:
                raise ValueError(f"toy: {name} must be positive, got {value}")
        if not self.learning_rates or not all(0 < rate < math.inf for rate in self.learning_rates):
            raise ValueError(f"toy: learning_rates must be positive numbers, got {self.learning_rates}")


class ToyResult(NamedTuple):
    """What one method with one optimizer did; L learning rates, S starts.

    Attributes:
      method: its name.
      optimizer: "gd" or "adam".
      iterations: (L, S) steps until the mean loss was below `threshold`, -1 where it never was.
      times: (T,) steps done when the path was recorded, close together at first.
      path: (T, L, S, 2) the parameters; they stay where they are once they have arrived.
    """

    method: str
    optimizer: str
    iterations: np.ndarray
    times: np.ndarray
    path: np.ndarray


def losses(x: jax.Array, scale: float | jax.Array = 1.0) -> dict[str, jax.Array]:
    """The two losses: logarithmic valleys where x₂ > 0, quadratic bowls around (±7, -8) where x₂ < 0.

    Args:
      x: (2,) parameters.
      scale: of the first loss.

    Returns:
      The losses of the tasks "first" and "second".
    """
    x1, x2 = x[0], x[1]
    up, down = jnp.maximum(jnp.tanh(x2 / 2), 0), jnp.maximum(jnp.tanh(-x2 / 2), 0)

    def valley(inner: jax.Array) -> jax.Array:
        return jnp.log(jnp.maximum(jnp.abs(inner), 5e-6)) + 6

    def bowl(centre: float) -> jax.Array:
        return ((x1 - centre) ** 2 + 0.1 * (x2 + 8) ** 2) / 10 - 20

    first = valley((-x1 - 7) / 2 + jnp.tanh(x2)) * up + bowl(7.0) * down
    second = valley((-x1 + 3) / 2 - jnp.tanh(x2) + 2) * up + bowl(-7.0) * down
    return {"first": scale * first, "second": second}


def minimum(scale: float = 1.0) -> tuple[np.ndarray, float]:
    """Where the mean loss is least, and its value there.

    The bowls' weighted centre is known, x₁ = 7 (s - 1) / (s + 1); x₂ is searched to four digits.

    >>> [round(float(x), 3) for x in minimum()[0]], round(minimum()[1], 4)
    ([0.0, -8.355], -15.0916)
    """
    x2 = np.linspace(-10, -7, 30_001)
    x1 = 7 * (scale - 1) / (scale + 1)
    bowls = (scale * (x1 - 7) ** 2 + (x1 + 7) ** 2 + (1 + scale) * (0.1 * (x2 + 8) ** 2 - 200)) / 10
    values = bowls * np.tanh(-x2 / 2) / 2
    best = int(np.argmin(values))
    return np.array([x1, x2[best]]), float(values[best])


def threshold(scale: float = 1.0) -> float:
    """The mean loss below which the minimum counts as reached: -15 at scale 1, elsewhere the same share of it."""
    return -15.0 if scale == 1 else _NEAR * minimum(scale)[1]


def run_toy(method: str, optimizer: str, config: ToyConfig) -> ToyResult:
    """One method with one optimizer, all learning rates and starts in one program, in float64.

    It stops when every point has arrived or left the range of numbers. `ew` and `pcgrad` are halved to means, as in the
    experiment; every other method keeps its own scale.

    Args:
      method: its name.
      optimizer: "gd" or "adam".
      config: the rest.

    Returns:
      The result.
    """
    tx: Any = optax.chain(  # optax's types know no TaskGradients
        methods.create(method, num_tasks=2, **config.options.get(method, {})),
        optax.scale(_MEANS.get(method, 1.0)),
        OPTIMIZERS[optimizer](),
    )
    rates, starts = np.asarray(config.learning_rates), np.asarray(STARTS)
    shape = (len(rates), len(starts))
    goal = threshold(config.scale)

    def step(x: jax.Array, state: Any, rate: jax.Array) -> tuple[jax.Array, Any, jax.Array]:
        task_losses, grads = task_gradients(losses, x, config.scale)
        update, state = tx.update(grads, state, x, losses=task_losses)
        return x - rate * update, state, (task_losses["first"] + task_losses["second"]) / 2

    @jax.jit
    def advance(carry: Any, until: jax.Array, rates: jax.Array) -> Any:
        def going(carry: Any) -> jax.Array:
            count, _, _, _, active = carry
            return (count < until) & jnp.any(active)

        def body(carry: Any) -> Any:
            count, x, state, reached, active = carry
            moved, state, mean = jax.vmap(step)(x, state, rates)
            arrived = active & (mean < goal)
            active = active & ~arrived & jnp.all(jnp.isfinite(moved), axis=1)
            return count + 1, jnp.where(active[:, None], moved, x), state, jnp.where(arrived, count, reached), active

        return lax.while_loop(going, body, carry)

    with jax.enable_x64(True):
        lanes = shape[0] * shape[1]
        x = jnp.asarray(np.tile(starts, (shape[0], 1)))
        state = jax.vmap(tx.init)(x)
        carry = (jnp.int32(0), x, state, jnp.full(lanes, -1, jnp.int32), jnp.ones(lanes, bool))
        times, path = [0], [np.asarray(x)]
        # One more evaluation than steps: the last step may be the one that arrives.
        for until in np.unique(np.geomspace(1, config.iterations + 1, _RECORDS).astype(int)):
            carry = advance(carry, jnp.int32(until), jnp.asarray(np.repeat(rates, shape[1])))
            times.append(int(carry[0]))
            path.append(np.asarray(carry[1]))
            if not np.any(np.asarray(carry[4])):
                break
        reached = np.asarray(carry[3])
    return ToyResult(
        method, optimizer, reached.reshape(shape), np.array(times), np.stack(path).reshape(len(path), *shape, 2)
    )


def chosen_methods(config: ToyConfig) -> tuple[str, ...]:
    """The methods of a config, ("all",) written out."""
    if config.methods != ("all",):
        return config.methods
    return tuple(name for name in methods.names() if name not in POSITIVE_LOSSES)


def cells(result: ToyResult) -> list[str]:
    """A row of the paper's table: for each learning rate the steps from the slowest start, "-" if one never arrives."""
    return ["-" if (row < 0).any() else f"{row.max():,}" for row in result.iterations]


def plot_toy(results: Sequence[ToyResult], config: ToyConfig) -> "Figure":
    """The paths over the contours of the mean loss, one panel a result.

    Each is drawn at the learning rate at which most starts arrive, the quickest of those.

    Args:
      results: of `run_toy`.
      config: the same.

    Returns:
      A matplotlib figure.
    """
    from matplotlib.figure import Figure

    columns = min(len(results), max(2, len(results) // len(config.optimizers)))
    rows = math.ceil(len(results) / columns)
    figure = Figure(figsize=(3.2 * columns, 3.3 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    axis = np.linspace(-11, 11, 111)
    with jax.enable_x64(True):
        grid = jnp.asarray(np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2))
        values = jax.vmap(lambda x: sum(losses(x, config.scale).values()) / 2)(grid)
        mean = np.asarray(values).reshape(len(axis), -1)
    best, _ = minimum(config.scale)
    for panel in panels[len(results) :]:
        panel.set_axis_off()
    for panel, result in zip(panels, results, strict=False):
        arrived = (result.iterations >= 0).sum(axis=1)
        slowest = np.where(result.iterations < 0, config.iterations, result.iterations).max(axis=1)
        rate = int(np.lexsort((slowest, -arrived))[0])
        panel.contour(axis, axis, mean, levels=25, linewidths=0.5, cmap="viridis")
        panel.plot([-7, 7], [best[1]] * 2, color="0.6", linewidth=3, zorder=1)
        panel.plot(*best, marker="*", color="black", markersize=10)
        for start in range(len(STARTS)):
            points = result.path[:, rate, start]
            panel.plot(points[:, 0], points[:, 1], linewidth=1, marker=".", markersize=2)
            panel.plot(*points[0], marker="o", color="black", markersize=4)
        panel.set(xlim=(-11, 11), ylim=(-11, 11), aspect="equal")
        panel.set_title(
            f"{result.optimizer} {result.method}, learning rate {config.learning_rates[rate]:g}\n"
            f"{arrived[rate]} of {len(STARTS)} arrive",
            fontsize=8,
        )
    return figure
