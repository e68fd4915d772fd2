"""What a task is: its head, its loss, its metrics and which direction of them is better.

`task.py` holds `Task` and `Metric` and the reductions over a batch; every other file holds one kind of task, as a
function that returns a `Task`; this file is the registry of the kinds. Imports jax, flax.linen, optax, numpy and
`mtljax.errors`, and nothing else of mtljax.
"""

from collections.abc import Callable, Mapping
from typing import Any

from mtljax.errors import unknown
from mtljax.tasks.binary import binary
from mtljax.tasks.classification import classification
from mtljax.tasks.regression import regression
from mtljax.tasks.task import Metric, Task, loss_sum, mean_loss, mean_metric, metric_sums, metric_values

__all__ = [
    "Metric",
    "Task",
    "binary",
    "classification",
    "from_spec",
    "kinds",
    "loss_sum",
    "mean_loss",
    "mean_metric",
    "metric_sums",
    "metric_values",
    "regression",
]

_KINDS: dict[str, Callable[..., Task]] = {
    "binary": binary,
    "classification": classification,
    "regression": regression,
}


def kinds() -> tuple[str, ...]:
    """Lists the kinds of task that `from_spec` knows, sorted."""
    return tuple(sorted(_KINDS))


def from_spec(spec: Mapping[str, Any]) -> Task:
    """Makes a task from its description, the inverse of `Task.spec`.

    Args:
      spec: `{"kind": ...}` and the arguments of the function of that name.

    Returns:
      The task.

    Raises:
      ValueError: If the kind is missing or unknown, or its arguments are not what the kind takes.

    Example:
      >>> from_spec({"kind": "classification", "num_classes": 10}) == classification(10)
      True
    """
    arguments = dict(spec)
    kind = arguments.pop("kind", None)
    if kind is None:
        raise ValueError(f"a task spec needs the key 'kind', one of {', '.join(kinds())}; got {dict(spec)}")
    if kind not in _KINDS:
        raise unknown("kind of task", kind, _KINDS)
    try:
        return _KINDS[kind](**arguments)
    except TypeError as error:
        raise ValueError(f"task spec {dict(spec)}: {error}") from None
