"""Linear scalarization: a weighted sum of the losses with fixed weights."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mtljax.methods._base import weighting
from mtljax.methods._checks import by_task, check_range, is_concrete
from mtljax.methods._signals import Signals
from mtljax.methods.registry import COMMON, register


@register(needs="nothing", paper="2209.11379", properties=(*COMMON, "linear", "sum"))
def scalarization(
    weights: Mapping[str, float] | Sequence[float] | np.ndarray | jax.Array | None = None,
    *,
    num_tasks: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Linear scalarization: d = Σ_k w_k g_k with fixed weights w.

    With tuned weights it traces much of the Pareto front that multi-task optimizers reach (Xin et al.,
    arXiv:2209.11379), though not its non-convex parts (Hu et al., arXiv:2308.13985). As in any loss weighting, a task's
    own parameters are scaled by its weight too. By default all weights are one, as in `ew`. There is no official code;
    the weights are what there is to tune. Cost: one backward pass.

    >>> import jax.numpy as jnp, mtljax as mtl
    >>> jacobian = jnp.array([[1.0, 0.0], [-0.5, 2.0]])
    >>> tx = mtl.scalarization([0.5, 2.0])
    >>> gradient, _ = tx.update(jacobian, tx.init(jnp.zeros(2)))
    >>> gradient.tolist()
    [-0.5, 4.0]

    Args:
      weights: dict by task name, or (K,) values in sorted order of the task names; None for ones. May be a tracer.
      num_tasks: K; only needed with `weights=None` to read the weights from the state.

    Returns:
      A transformation from K task gradients to one gradient.

    Raises:
      ValueError: if the weights are no finite vector, or disagree with `num_tasks` or with the tasks.

    References:
      Xin et al., `Do Current Multi-Task Optimization Methods in Deep Learning Even Help?
      <https://arxiv.org/abs/2209.11379>`_, NeurIPS 2022

      Hu et al., `Revisiting Scalarization in Multi-Task Learning: A Theoretical Perspective
      <https://arxiv.org/abs/2308.13985>`_, NeurIPS 2023
    """
    values, names = by_task(weights)
    vector = None
    if values is not None:
        vector = jnp.asarray(values, dtype=None if hasattr(values, "dtype") else jnp.float32)
        if vector.ndim != 1:
            raise ValueError(f"scalarization: weights must be one number a task, got {weights!r}")
        check_range("scalarization", "any", weights=vector)
        if num_tasks is not None and is_concrete(num_tasks) and vector.shape != (int(num_tasks),):
            raise ValueError(f"scalarization: num_tasks={num_tasks} needs as many weights, got {vector.shape[0]}")
        num_tasks = vector.shape[0]

    def weigh(memory: Any, signals: Signals) -> Any:
        if vector is not None and vector.shape != (signals.num_tasks,):
            raise ValueError(f"scalarization: got {vector.shape[0]} weights for {signals.num_tasks} tasks")
        return (jnp.ones(signals.num_tasks) if vector is None else vector), memory

    return weighting("scalarization", weigh, needs="nothing", num_tasks=num_tasks, task_names=names)
