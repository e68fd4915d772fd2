"""What callers pass, checked and brought into one form."""

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mtljax.gradients.choice import listed

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
        return (
            jnp.stack(evaluated(losses).losses)
            if what == "losses_after"
            else jnp.stack([jnp.asarray(losses[name]) for name in names])
        )
    vector = jnp.asarray(losses)
    if vector.shape != (num_tasks,):
        raise ValueError(
            f"{what}: got shape {vector.shape}, expected a dict by task or an array of shape ({num_tasks},) "
            "in sorted order of the task names"
        )
    return vector


class Values(NamedTuple):
    """The losses of a batch.

    Attributes:
      tasks: sorted names.
      losses: K scalars in that order.
      present: (K,) bools, whether a task has a label; None where no loss says so.
    """

    tasks: tuple[str, ...]
    losses: tuple[jax.Array, ...]
    present: jax.Array | None


def evaluated(losses: Any, axis_name: Any = None) -> Values:
    """The dict that a losses function returned, checked.

    Args:
      losses: dict of scalars, or of pairs (sum, count): such a loss is the sum over the count, both over all of the
        axis, and a task whose count is 0 is absent.
      axis_name: axis that the batch is spread over.

    Raises:
      ValueError: if it is no such dict.
    """
    if not isinstance(losses, Mapping) or not len(losses):
        what = "an empty dict" if isinstance(losses, Mapping) else f"a {type(losses).__name__}"
        what = f"an array of shape {losses.shape}" if isinstance(losses, jax.Array) else what
        raise ValueError(
            f"losses_fn returned {what}, expected a dict of scalar losses, one a task, e.g. "
            '{"left": loss_left, "right": loss_right}, or with has_aux=True a pair of such a dict and anything else'
        )
    values, counts = {}, {}
    for name, loss in losses.items():
        if not isinstance(name, str):
            raise ValueError(f"task names must be strings, got {name!r}")
        if isinstance(loss, tuple) and len(loss) == 2:
            total, count = (_scalar(name, part) for part in loss)
            count = lax.stop_gradient(count)
            counts[name] = count if axis_name is None else lax.pmean(count, axis_name)
            empty = counts[name] == 0  # a count that is NaN makes the loss NaN
            quotient = total / jnp.where(empty, 1, counts[name]).astype(total.dtype)
            loss = jnp.where(empty, jnp.zeros_like(quotient), quotient)
        values[name] = _scalar(name, loss)
        if not jnp.issubdtype(values[name].dtype, jnp.floating):
            raise ValueError(
                f"the loss of task {name!r} has dtype {values[name].dtype}, expected a floating point scalar"
            )
    tasks = tuple(sorted(values))
    present = None
    if counts:
        present = jnp.stack([counts[name] != 0 if name in counts else jnp.bool_(True) for name in tasks])
    return Values(tasks, tuple(values[name] for name in tasks), present)


def _scalar(name: str, value: Any) -> jax.Array:
    leaves = jax.tree_util.tree_flatten_with_path(value)[0]
    if len(leaves) != 1 or leaves[0][0]:
        path = f"[{name!r}]" + (jax.tree_util.keystr(leaves[0][0]) if leaves else "")
        raise ValueError(
            f"the loss of task {name!r} is a {type(value).__name__} of {len(leaves)} values, the first at {path}: "
            "each task has one scalar, or a pair (sum, count); flatten nested dicts, e.g. to 'scene/depth'"
        )
    if jnp.shape(value) != ():
        raise ValueError(
            f"the loss of task {name!r} has shape {tuple(jnp.shape(value))} and dtype {jnp.result_type(value)}, "
            "expected a floating point scalar: reduce it, e.g. with jnp.mean"
        )
    return jnp.asarray(value)


def differentiable(params: PyTree) -> PyTree:
    """The parameters that have a gradient: params with None in place of the fields of modules that are no arrays.

    A float in a dict, list or tuple becomes an array, as in `jax.grad`.

    Raises:
      ValueError: if an array is no floating point, or anything in a dict, list or tuple is neither array nor float.
    """
    fields = {path for path, _ in _fields(params)}

    def checked(path: tuple[Any, ...], leaf: Any) -> Any:
        if not hasattr(leaf, "dtype"):
            if path in fields:
                return None
            if isinstance(leaf, float):
                return jnp.asarray(leaf)
        kind = f"dtype {leaf.dtype}" if hasattr(leaf, "dtype") else f"type {type(leaf).__name__}"
        if not hasattr(leaf, "dtype") or not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(
                f"parameter {jax.tree_util.keystr(path) or 'params'} has {kind}, expected floating point arrays: keep "
                "counters and other constants out of params, as further arguments of losses_fn"
            )
        return leaf

    return jax.tree_util.tree_map_with_path(checked, params)


def _fields(node: Any, path: tuple[Any, ...] = (), inside: bool = False) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """The leaves of modules, such as equinox's: of any node that is no dict, list or tuple."""
    children = jax.tree_util.default_registry.flatten_one_level_with_keys(node)
    if children is None:
        if inside:
            yield path, node
        return
    inside = inside or not isinstance(node, (Mapping, list, tuple))
    for key, child in children[0]:
        yield from _fields(child, (*path, key), inside)


def merged(differentiated: PyTree, params: PyTree) -> PyTree:
    """The whole of params, with the values of those that have a gradient."""
    return jax.tree.map(
        lambda new, old: old if new is None else new, differentiated, params, is_leaf=lambda leaf: leaf is None
    )


def warn_unused(paths: Sequence[str], leaf_tasks: Sequence[tuple[int, ...]], trainable: PyTree) -> None:
    """Warns of trainable parameters that no loss depends on."""
    every = zip(paths, leaf_tasks, jax.tree.leaves(trainable), strict=True)
    unused = [path for path, tasks, trained in every if trained and not tasks]
    if unused:
        _warn(
            f"no loss depends on the parameter{'s' if len(unused) > 1 else ''} {listed(unused)}: "
            "the gradient there is zero (a task without labels must stay in the dict, with a pair (sum, 0))"
        )


def warn_common_terms(paths: Sequence[str]) -> None:
    """Warns of parameters that a term in every loss makes shared."""
    if paths:
        _warn(
            f"{listed(paths)} would belong to one task, but a term in every loss, such as an L2 penalty, makes "
            "them shared parameters: pass that term as regularizer= of mtl.value_and_grad, put "
            "optax.add_decayed_weights behind the method, or pass shared="
        )


def _warn(message: str) -> None:
    """Warns as if from the caller of mtljax, so that one place in a program warns once."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(("mtljax", "jax.", "jax_")):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)


def check_dependent(tasks: tuple[str, ...], leaf_tasks: Sequence[tuple[int, ...]]) -> None:
    """Refuses a loss without a parameter: what is shared would change with the batch.

    Raises:
      ValueError: if there is one, with several tasks.
    """
    constant = [task for k, task in enumerate(tasks) if not any(k in each for each in leaf_tasks)]
    if constant and len(tasks) > 1:
        raise ValueError(
            f"the loss of task {constant[0]!r} depends on no parameter, so what is shared cannot be found from this "
            "computation: mask labels and loss of a batch without labels by jnp.where (or return a pair (sum, count) "
            "with count 0) in place of a constant, or pass shared= (a predicate on the key path, or a pytree of bools)"
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


def trainable_mask(trainable: Mask, params: PyTree) -> PyTree:
    """Which leaves are trained; all for None.

    Raises:
      ValueError: if none is.
    """
    if trainable is None:
        return jax.tree.map(lambda _: True, params)
    chosen = mask("trainable", trainable, params)
    if not any(jax.tree.leaves(chosen)):
        paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
        raise ValueError(f"trainable chooses no parameter; there are {listed(paths, 20)}")
    return chosen


def mask(name: str, value: Mask, params: PyTree) -> PyTree:
    """A predicate on the key path, or a pytree of bools like params, as a pytree of bools.

    Raises:
      ValueError: if the structure is another.
    """
    try:
        return jax.tree.map(
            lambda leaf, flag: None if leaf is None else _flag(flag), params, value, is_leaf=lambda leaf: leaf is None
        )
    except (TypeError, ValueError):
        if callable(value):
            return jax.tree_util.tree_map_with_path(lambda path, _: bool(value(path)), params)
        raise ValueError(
            f"{name} has the structure {jax.tree.structure(value)}, expected a predicate on the key path or a pytree "
            f"of bools like params, {jax.tree.structure(params)}"
        ) from None


def _flag(value: Any) -> bool:
    if isinstance(value, (bool, np.bool_)) or (hasattr(value, "dtype") and value.dtype == bool and not value.shape):
        return bool(value)
    raise TypeError(f"expected true or false, got {value!r}")
