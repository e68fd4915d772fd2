"""The multi-task methods, one file each, as optax transformations, and the registry that builds them by name.

A method goes first in a chain: `optax.chain(mtl.cagrad(), optax.clip_by_global_norm(1.0), optax.adam(1e-3))`. Wrappers
such as `optax.masked`, `optax.MultiSteps` or `optax.apply_if_finite` work on one gradient, so they go around what
follows the method, never around or before it: there, `per_task` applies a transformation to each task's gradient.
`optax.inject_hyperparams` works around a method; name `num_tasks` and `update_every`, if set, in its `static_args`.

Every Gramian method takes `update_every=n`: it then solves every n updates and reuses the weights in between, where an
update costs one backward pass. `update(..., solve=True)` or `solve=False` picks the branch when tracing, so that a host
loop can compile both and choose; `solve=None` decides inside the program.

This package imports `gradients` and `solvers`, and knows nothing of models, data or training.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import optax

from mtljax.errors import check_options, unknown
from mtljax.methods._base import MethodState, task_weights
from mtljax.methods.cagrad import cagrad
from mtljax.methods.ew import ew
from mtljax.methods.mgda import mgda
from mtljax.methods.pcgrad import pcgrad
from mtljax.methods.per_task import per_task
from mtljax.methods.scalarization import scalarization

__all__ = [
    "Method",
    "MethodState",
    "cagrad",
    "create",
    "describe",
    "ew",
    "mgda",
    "names",
    "pcgrad",
    "per_task",
    "scalarization",
    "task_weights",
]


@dataclass(frozen=True)
class Method:
    """What the registry knows of a method.

    Attributes:
      build: the constructor.
      needs: what it reads: "nothing", "losses" or "gramian".
      paper: arXiv id.
      permutable: whether permuting the tasks leaves the result as it is (false for rules that draw an order).
      homogeneous: whether scaling all gradients scales the result by the same factor.
      plain_jacobian: whether it accepts an explicit Jacobian in place of `TaskGradients`.
      losses_after: whether it wants the extra argument `losses_after`, the losses of the batch before at the current
        parameters, for one more forward pass.
      batches: independent batches its estimate is unbiased with; `update` then takes a tuple of gradients.
    """

    build: Callable[..., optax.GradientTransformationExtraArgs]
    needs: str
    paper: str
    permutable: bool = True
    homogeneous: bool = True
    plain_jacobian: bool = True
    losses_after: bool = False
    batches: int = 1

    @property
    def backward_passes(self) -> str:
        """Backward passes of one update: "1" or "K"."""
        return "K" if self.needs == "gramian" else "1"


_REGISTRY = {
    "cagrad": Method(cagrad, needs="gramian", paper="2110.14048"),
    "ew": Method(ew, needs="nothing", paper="2201.04122"),
    "mgda": Method(mgda, needs="gramian", paper="1810.04650"),
    "pcgrad": Method(pcgrad, needs="gramian", paper="2001.06782", permutable=False),
    "scalarization": Method(scalarization, needs="nothing", paper="2209.11379"),
}


def names(*, plain_jacobian: bool = False) -> tuple[str, ...]:
    """The names of the methods, sorted.

    Args:
      plain_jacobian: only those that accept an explicit Jacobian in place of `TaskGradients`.
    """
    return tuple(name for name, method in sorted(_REGISTRY.items()) if method.plain_jacobian or not plain_jacobian)


def describe(name: str) -> Method:
    """What the registry knows of a method; raises ValueError naming the nearest one when there is none."""
    if name not in _REGISTRY:
        raise unknown("method", name, _REGISTRY)
    return _REGISTRY[name]


def create(name: str, num_tasks: int | None = None, **hyperparameters: Any) -> optax.GradientTransformationExtraArgs:
    """Builds a method by name.

    Whatever it is, optax wrappers of one gradient (`masked`, `MultiSteps`, `apply_if_finite`, clipping) go around what
    follows it in the chain; around or before it they cannot work, use `per_task` there.

    >>> import mtljax as mtl
    >>> tx = mtl.methods.create("cagrad", num_tasks=2, c=0.5)

    Args:
      name: one of `names()`.
      num_tasks: K.
      **hyperparameters: the method's own, by name.

    Returns:
      The transformation.

    Raises:
      ValueError: on an unknown method or hyperparameter, naming the nearest valid one, and on invalid values.
    """
    method = describe(name)
    check_options(f"method {name}", hyperparameters, method.build, exclude=("num_tasks",))
    return method.build(num_tasks=num_tasks, **hyperparameters)
