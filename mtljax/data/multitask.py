"""A multi-task data set in memory: three splits of arrays, and the tasks that say what the targets are."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np

from mtljax.errors import unknown
from mtljax.tasks import Task

Array: TypeAlias = np.ndarray | jax.Array

SPLITS = ("train", "validation", "test")


class Split(NamedTuple):
    """The examples of one split. A pytree: `jax.device_put(split)` moves it to a device.

    Attributes:
      inputs: `(N, ...)`. Images stay uint8, a quarter of the memory; the model divides by 255 within the step.
      targets: `{task: (N, ...)}`; see the task for dtype and for how a missing label is marked.
    """

    inputs: Array
    targets: dict[str, Array]

    @property
    def num_examples(self) -> int:
        """N."""
        return self.inputs.shape[0]


@dataclasses.dataclass(frozen=True, eq=False)
class MultiTaskData:
    """A named multi-task data set.

    Attributes:
      name: Name of the data set.
      tasks: The tasks by name.
      splits: `{"train", "validation", "test"}` to `Split`, each with a target for every task.

    Raises:
      ValueError: If a split is missing, its targets are not those of the tasks, or lengths differ.
    """

    name: str
    tasks: Mapping[str, Task]
    splits: Mapping[str, Split]

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ValueError(f"data set {self.name!r} has no task")
        if set(self.splits) != set(SPLITS):
            raise ValueError(
                f"data set {self.name!r} needs the splits {', '.join(SPLITS)}, got {', '.join(self.splits)}"
            )
        for name, split in self.splits.items():
            if set(split.targets) != set(self.tasks):
                raise ValueError(
                    f"data set {self.name!r}: the {name} targets ({', '.join(sorted(split.targets))}) are not those of "
                    f"the tasks ({', '.join(sorted(self.tasks))})"
                )
            for task, target in split.targets.items():
                if target.shape[0] != split.num_examples:
                    raise ValueError(
                        f"data set {self.name!r}: {name} has {split.num_examples} inputs but {target.shape[0]} targets "
                        f"of task {task!r}"
                    )

    @property
    def spec(self) -> dict[str, Any]:
        """JSON-able: shape and dtype of one input, and the spec of every task.

        Enough to build the model and the tasks of a finished run without its data (`mtljax.tasks.from_spec`).
        """
        inputs = self.splits["train"].inputs
        return {
            "inputs": {"shape": list(inputs.shape[1:]), "dtype": str(inputs.dtype)},
            "tasks": {name: dict(task.spec) for name, task in self.tasks.items()},
        }

    def select(self, tasks: Iterable[str]) -> "MultiTaskData":
        """Restricts the data set to some of its tasks, as a single-task baseline needs.

        Args:
          tasks: Names of the tasks to keep, at least one.

        Returns:
          The same inputs, not copied, with those tasks only.

        Raises:
          ValueError: If a task is unknown (the nearest one is named) or none is given.
        """
        chosen = (tasks,) if isinstance(tasks, str) else tuple(tasks)
        for task in chosen:
            if task not in self.tasks:
                raise unknown(f"task of data set {self.name}", task, self.tasks)
        return MultiTaskData(
            name=self.name,
            tasks={task: self.tasks[task] for task in chosen},
            splits={
                name: Split(split.inputs, {task: split.targets[task] for task in chosen})
                for name, split in self.splits.items()
            },
        )
