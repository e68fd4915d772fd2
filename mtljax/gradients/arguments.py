"""What callers pass, checked and brought into one form."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.interpreters import partial_eval

PyTree: TypeAlias = Any
Mask: TypeAlias = Callable[[tuple[Any, ...]], bool] | PyTree


def loss_vector(
    losses: Mapping[str, Any] | jax.Array, tasks: tuple[str, ...] | None, num_tasks: int, what: str = "losses"
) -> jax.Array:
    """Task values as a (K,) array in sorted task order.

    Args:
      losses: dict of K scalars by task name, or a (K,) array already in that order.
      tasks: the sorted task names, None when unknown (a dict is then ordered by its own sorted names).
      num_tasks: K.
      what: what the values are, for the error.

    Returns:
      (K,) array.

    Raises:
      ValueError: if names or shape do not match.
    """
    if isinstance(losses, Mapping):
        names = tuple(sorted(losses))
        if (tasks is not None and names != tasks) or len(names) != num_tasks:
            expected = f"the tasks {list(tasks)}" if tasks is not None else f"{num_tasks} tasks"
            raise ValueError(f"{what}: got the keys {list(names)}, expected those of {expected}")
        return jnp.stack([jnp.asarray(losses[name]) for name in names])
    vector = jnp.asarray(losses)
    if vector.shape != (num_tasks,):
        raise ValueError(
            f"{what}: got shape {vector.shape}, expected a dict by task or an array of shape ({num_tasks},) "
            "in sorted order of the task names"
        )
    return vector


def checked_names(losses: Any) -> tuple[str, ...]:
    """The sorted names of a dict of scalar losses, or a ValueError that says what is wrong with it."""
    if not isinstance(losses, Mapping) or not len(losses):
        what = "an empty dict" if isinstance(losses, Mapping) else f"a {type(losses).__name__}"
        raise ValueError(
            f"losses_fn returned {what}, expected a dict of scalar losses, one a task, e.g. "
            '{"left": loss_left, "right": loss_right}'
        )
    for name, loss in losses.items():
        if not isinstance(name, str):
            raise ValueError(f"task names must be strings, got {name!r}")
        if jnp.shape(loss) != () or not jnp.issubdtype(jnp.result_type(loss), jnp.floating):
            raise ValueError(
                f"the loss of task {name!r} has shape {tuple(jnp.shape(loss))} and dtype {jnp.result_type(loss)}, "
                "expected a floating point scalar: reduce it, e.g. with jnp.mean"
            )
    return tuple(sorted(losses))


def check_floating(params: PyTree) -> None:
    """Raises ValueError when a parameter is no floating point array."""
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise ValueError(
                f"parameter {jax.tree_util.keystr(path)} has dtype {jnp.result_type(leaf)}, expected floating point: "
                "keep counters and other integers out of params"
            )


def leaf_dependence(jaxpr: Any) -> list[tuple[int, ...]]:
    """For each input of the jaxpr of a linear map, the indices of the outputs that depend on it.

    Read off linearized losses: they hold no side effects (a jax.debug.print of a head's output is no dependence), and
    nothing behind stop_gradient.
    """
    outputs = range(len(jaxpr.outvars))
    used = [partial_eval.dce_jaxpr(jaxpr, [j == k for j in outputs])[1] for k in outputs]
    return [tuple(k for k in outputs if used[k][i]) for i in range(len(jaxpr.invars))]


def warn_unused(params: PyTree, leaf_tasks: Sequence[tuple[int, ...]]) -> None:
    """Warns of parameters that no loss depends on."""
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    unused = [jax.tree_util.keystr(path) for path, tasks in zip(paths, leaf_tasks, strict=True) if not tasks]
    if unused:
        warnings.warn(
            f"no loss depends on the parameter{'s' if len(unused) > 1 else ''} {', '.join(unused)}: "
            "the gradient there is zero",
            stacklevel=3,
        )


def shared_mask(shared: Mask, params: PyTree, leaf_tasks: Sequence[tuple[int, ...]], num_tasks: int) -> PyTree:
    """Which leaves are shared: as told, or those that two or more losses (with one task: any) depend on."""
    if shared is None:
        flags = [len(tasks) >= min(2, num_tasks) for tasks in leaf_tasks]
        return jax.tree.unflatten(jax.tree.structure(params), flags)
    return mask("shared", shared, params)


def subset_mask(subset: Mask, params: PyTree, shared: PyTree) -> PyTree:
    """Which shared leaves enter the Gramian.

    Raises:
      ValueError: if none does.
    """
    chosen = jax.tree.map(lambda keep, is_shared: keep and is_shared, mask("subset", subset, params), shared)
    if not any(jax.tree.leaves(chosen)):
        paths = jax.tree_util.tree_flatten_with_path(shared)[0]
        names = [jax.tree_util.keystr(path) for path, is_shared in paths if is_shared]
        raise ValueError(f"subset chooses no shared parameter; the shared ones are {', '.join(names)}")
    return chosen


def mask(name: str, value: Mask, params: PyTree) -> PyTree:
    """A predicate on the key path, or a pytree of bools like params, as a pytree of bools.

    Raises:
      ValueError: if the structure is another.
    """
    if callable(value):
        return jax.tree_util.tree_map_with_path(lambda path, _: bool(value(path)), params)
    treedef = jax.tree.structure(params)
    if jax.tree.structure(value) != treedef:
        raise ValueError(
            f"{name} has the structure {jax.tree.structure(value)}, expected a predicate on the key path or a pytree "
            f"of bools like params, {treedef}"
        )
    return jax.tree.map(bool, value)
