"""The notion of a task and of a metric, and the two reductions every task shares."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

Sums = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Metric:
    """A number that says how well a task is done, computed from sums so that it is exact over uneven batches.

    Add the pytrees of `sums` over batches and devices, then take `value` once: the result is that of one pass
    over all examples, however they were cut into batches.

    Attributes:
      name: Short name, such as `"accuracy"`.
      sums: `(outputs, targets, mask) -> {name: scalar}`, additive over examples. `mask` is `(B,)`, 1 for
        examples that count and 0 for padding or missing labels; what stands in masked rows, NaN included, is ignored.
      value: `sums -> scalar`; NaN when no example counted, because the metric is then undefined.
      higher_is_better: Direction of the metric.
    """

    name: str
    sums: Callable[[Any, Any, jax.Array], dict[str, jax.Array]]
    value: Callable[[Sums], jax.Array]
    higher_is_better: bool


@dataclasses.dataclass(frozen=True)
class Task:
    """What one task of a multi-task problem is: a head, a loss, metrics with their direction.

    Nothing here fixes the rank of outputs and targets beyond the leading batch axis, so that dense prediction
    (a loss per image, averaged over its pixels) is one more function that returns a `Task`.
    Two tasks are equal when their `spec` is.

    Attributes:
      kind: Name of the function that made the task, such as `"classification"`.
      head: Makes the linen module that maps the shared representation `(B, D)` to the task's outputs.
      loss: `(outputs, targets) -> (B,)`, one loss an example, finite where the label is missing.
      valid: `targets -> (B,)`, float 1 where the example has a label and 0 where it is missing.
      metrics: The metrics; the first is the primary one.
      spec: JSON-able description from which `from_spec` makes the task again.
    """

    kind: str
    head: Callable[[], nn.Module] = dataclasses.field(compare=False)
    loss: Callable[[Any, Any], jax.Array] = dataclasses.field(compare=False)
    valid: Callable[[Any], jax.Array] = dataclasses.field(compare=False)
    metrics: tuple[Metric, ...] = dataclasses.field(compare=False)
    spec: Mapping[str, Any]

    def __hash__(self) -> int:
        return hash(json.dumps(dict(self.spec), sort_keys=True))


def mean_metric(
    name: str,
    score: Callable[[Any, Any], jax.Array],
    *,
    higher_is_better: bool,
    finish: Callable[[jax.Array], jax.Array] = lambda mean: mean,
) -> Metric:
    """Makes a metric that is a function of the mean of a per-example score.

    Args:
      name: Name of the metric.
      score: `(outputs, targets) -> (B,)`.
      higher_is_better: Direction.
      finish: Applied to the mean, for instance `jnp.sqrt`.

    Returns:
      A `Metric` whose sums are `{"total", "count"}`.
    """

    def sums(outputs: Any, targets: Any, mask: jax.Array) -> dict[str, jax.Array]:
        scores = jnp.where(mask > 0, score(outputs, targets), 0)
        return {"total": jnp.sum(scores), "count": jnp.sum(mask)}

    def value(totals: Sums) -> jax.Array:
        count = jnp.asarray(totals["count"])
        return finish(jnp.where(count > 0, totals["total"] / jnp.maximum(count, 1), jnp.nan))

    return Metric(name, sums, value, higher_is_better)


def loss_sum(task: Task, outputs: Any, targets: Any, mask: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """The sum of a task's loss over the examples that have a label, and their number.

    As the loss of a task in `mtljax.task_gradients`, the pair is averaged exactly over devices and microbatches however
    the labels are spread, and a count of 0 makes the task absent.

    Args:
      task: The task.
      outputs: What its head returned, leading axis B.
      targets: Its targets, leading axis B, some of them possibly missing.
      mask: Optional `(B,)`, 0 for examples to leave out besides, such as padding.

    Returns:
      Two scalars.
    """
    counted = _counted(task, targets, mask)
    return jnp.sum(jnp.where(counted > 0, task.loss(outputs, targets), 0)), jnp.sum(counted)


def mean_loss(task: Task, outputs: Any, targets: Any, mask: jax.Array | None = None) -> jax.Array:
    """The quotient of `loss_sum`: a scalar; 0, with zero gradient, when no example has a label."""
    total, count = loss_sum(task, outputs, targets, mask)
    return total / jnp.where(count > 0, count, 1)


def metric_sums(
    task: Task, outputs: Any, targets: Any, mask: jax.Array | None = None
) -> dict[str, dict[str, jax.Array]]:
    """Computes the sums of all metrics of a task over one batch.

    Args:
      task: The task.
      outputs: What its head returned, leading axis B.
      targets: Its targets, leading axis B.
      mask: Optional `(B,)`, 0 for padding. Examples without a label are left out in any case.

    Returns:
      `{metric: sums}`, to be added over batches and devices and given to `metric_values`.
    """
    counted = _counted(task, targets, mask)
    return {metric.name: metric.sums(outputs, targets, counted) for metric in task.metrics}


def metric_values(task: Task, sums: Mapping[str, Sums]) -> dict[str, jax.Array]:
    """Turns the accumulated result of `metric_sums` into `{metric: scalar}`, in the order of `task.metrics`."""
    return {metric.name: metric.value(sums[metric.name]) for metric in task.metrics}


def _counted(task: Task, targets: Any, mask: jax.Array | None) -> jax.Array:
    valid = task.valid(targets)
    return valid if mask is None else valid * mask
