"""What FS-MTL takes: the method it goes around, and gradients that can be evaluated again."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import optax

from mtljax.gradients import TaskGradients


def base_and_pair(
    base: Any, options: Mapping[str, Any] | None, num_tasks: int | None, paired: bool
) -> tuple[optax.GradientTransformationExtraArgs, Any]:
    """The base method, and where pairs are aggregated the same for two."""
    if not isinstance(base, str):
        if options is not None:
            raise ValueError("fs_mtl: base_options go with a base given by name; set them where the base is built")
        if not (callable(getattr(base, "init", None)) and callable(getattr(base, "update", None))):
            raise ValueError(f"fs_mtl: base must be the name of a method or a transformation, got {base!r}")
        whole = optax.with_extra_args_support(base)
        return whole, whole if paired else None
    if base == "fs_mtl":
        raise ValueError("fs_mtl: the base must be another method, such as 'cagrad'")
    from mtljax.methods.registry import create  # the registry lists this method too

    whole = create(base, num_tasks, **(options or {}))
    return whole, create(base, 2, **(options or {})) if paired else None


def check_evaluable(grads: TaskGradients, num_tasks: int | None, any_mode: bool) -> None:
    """Refuses gradients that cannot be taken again elsewhere, or not of every task unless in `any_mode`."""
    if num_tasks is not None and grads.num_tasks != num_tasks:
        raise ValueError(f"fs_mtl: built with num_tasks={num_tasks}, but got the gradients of {grads.num_tasks}")
    if grads.choice is None:
        raise ValueError(
            "fs_mtl evaluates gradients again at perturbed parameters, which an explicit Jacobian cannot: pass the "
            "result of mtl.task_gradients(losses_fn, params, ...)"
        )
    if grads.changed:
        raise ValueError(
            "fs_mtl evaluates gradients again, and what changed these before would miss the new ones: put it into the "
            "base, as in mtl.fs_mtl(optax.chain(mtl.per_task(...), mtl.ew()))"
        )
    if grads.choice.mode == "features" and not any_mode:
        raise ValueError(
            'fs_mtl perturbs parameters by the gradient of every task, which mode="features" saves: use another mode, '
            'or aggregate="direct" with shared_perturbation=True'
        )


def is_zero(rho: Any) -> bool:
    """Whether this is the number 0 of Python or NumPy; jax arrays count as traced, so that one program fits all."""
    return isinstance(rho, (int, float, np.number)) and rho == 0
