"""`task_gradients`: the losses once, and their gradients as they are asked for.

The forward pass runs once, as a linearization of the losses. Everything else (the Jacobian, one backward pass of a
weighted sum) is a transposition of that linear map, made only when a method asks for it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp

from mtljax.gradients.arguments import (
    Mask,
    check_floating,
    checked_names,
    leaf_dependence,
    shared_mask,
    subset_mask,
    warn_unused,
)
from mtljax.gradients.choice import MODES, Mode, choose, contains_convolution
from mtljax.gradients.container import TaskGradients
from mtljax.gradients.features import Halves, SplitLosses, linearize_halves, prepare_features
from mtljax.gradients.linearized import Linearized, mean, varying
from mtljax.gradients.prepared import Prepared, prepare_scattered, prepare_subset, prepare_two_pass

PyTree: TypeAlias = Any
Reduce: TypeAlias = Literal["mean", "scatter"]

# Up to which gradients lie apart: faster for 2 tasks, no slower for 3, 4 not measured; the products grow with K * K.
FEW_TASKS = 4


def task_gradients(
    losses_fn: Callable[..., Any],
    params: PyTree,
    *args: Any,
    shared: Mask = None,
    subset: Mask = None,
    mode: Mode = "auto",
    axis_name: Any = None,
    reduce: Reduce = "mean",
    has_aux: bool = False,
) -> tuple[Any, TaskGradients]:
    """Evaluates the task losses once and prepares their gradients, one a task.

    >>> import jax.numpy as jnp, mtljax as mtl
    >>> losses_fn = lambda p, x: {"left": jnp.sum((p - x) ** 2), "right": jnp.sum((p + x) ** 2)}
    >>> losses, grads = mtl.task_gradients(losses_fn, jnp.array([1.0, 0.0]), jnp.array([3.0, 0.0]))
    >>> grads.gramian().tolist()
    [[16.0, -32.0], [-32.0, 64.0]]

    Args:
      losses_fn: `losses_fn(params, *args)` returns a dict of scalar losses, one a task, or with `has_aux` a pair
        `(losses, aux)`.
      params: pytree of floating point arrays.
      *args: passed on to `losses_fn`, not differentiated.
      shared: which parameters are shared: a predicate on the key path (as in `jax.tree_util.tree_map_with_path`), or a
        pytree of bools like params. None finds it from the computation: a leaf is shared when two or more losses depend
        on it, and always when there is one task.
      subset: which of the shared parameters enter the Gramian, told as for `shared`: with the last layers alone, K
        short backward passes and one whole one. An approximation, as in GradNorm: the weights are those of other
        gradients. None means all.
      mode: how K gradients are computed; `mtl.explain` tells what "auto" chooses and why.
        "jacrev": one vectorised backward pass, as in `jax.jacrev`.
        "loop": K backward passes after one forward pass.
        "two_pass": the Gramian from one gradient at a time, then one backward pass of the weighted sum: the memory of
        one gradient in place of K, for K more forward-mode passes. Its products have the network's own precision: with
        bfloat16 or TF32 three digits of a cosine, where the other modes take them in float32 at least.
        "features": the Gramian of the gradients at the shared representation, then one backward pass of the encoder:
        the cost of the summed loss, and other weights than those of the parameters' gradients, so never chosen by
        "auto". `losses_fn` must come from `mtl.split`.
        Methods that read the whole Jacobian, or inner products across batches, get it exact in every mode.
      axis_name: name of a pmap, shard_map or vmap axis: losses and gradients are averaged over it before anything
        nonlinear happens to them.
      reduce: how a Gramian method's Jacobian is averaged over the axis. "mean" moves 2KP floats a device; "scatter"
        moves (K+1)P: each device keeps a part of every gradient, the parts' Gramians are added, one gradient is
        gathered.
      has_aux: whether `losses_fn` returns `(losses, aux)`.

    Returns:
      `(losses, grads)`, or `((losses, aux), grads)` with `has_aux`: the dict of losses and the lazy gradients.

    Raises:
      ValueError: if `losses_fn` returns no dict, an empty one, or a loss that is no floating point scalar; if `mode`
        is unknown or does not go with the losses or `reduce`; if `shared` or `subset` does not match params.
    """
    _check_mode(losses_fn, mode, subset, axis_name, reduce)
    check_floating(params)
    params = varying(params, axis_name)
    names: tuple[str, ...] = ()

    def flat(result: Any) -> tuple[tuple[jax.Array, ...], Any]:
        nonlocal names
        losses, aux = result if has_aux else (result, None)
        names = checked_names(losses)
        return tuple(jnp.asarray(losses[name]) for name in names), aux

    if mode == "features" and isinstance(losses_fn, SplitLosses):
        values, halves, aux = linearize_halves(losses_fn, params, args, flat)
        linear = halves.composed
    else:
        values, linear, aux = jax.linearize(lambda p: flat(losses_fn(p, *args)), params, has_aux=True)
        halves = None
    jaxpr = jax.make_jaxpr(linear)(params).jaxpr
    leaf_tasks = leaf_dependence(jaxpr)
    warn_unused(params, leaf_tasks)
    mask = shared_mask(shared, params, leaf_tasks, len(names))
    chosen = mask if subset is None else subset_mask(subset, params, mask)
    choice = choose(
        mode,
        num_tasks=len(names),
        shared_bytes=sum(leaf.nbytes for leaf, keep in zip(*map(jax.tree.leaves, (params, mask)), strict=True) if keep),
        convolutions=contains_convolution(jaxpr),
        scatter=reduce == "scatter",
    )
    linearized = Linearized(
        losses_fn=lambda p: flat(losses_fn(p, *args))[0],
        linear=linear,
        params=params,
        tasks=names,
        dtypes=tuple(value.dtype for value in values),
        passes=choice.passes,
        axis_name=axis_name,
    )
    values = mean(values, axis_name)

    def again(params: PyTree) -> TaskGradients:
        some = None if subset is None else chosen
        options: Any = {"shared": mask, "subset": some, "mode": mode, "axis_name": axis_name, "reduce": reduce}
        return task_gradients(losses_fn, params, *args, has_aux=has_aux, **options)[1]

    grads = TaskGradients(
        tasks=names,
        losses=jnp.stack(values),
        shared=mask,
        num_tasks=len(names),
        choice=choice,
        _leaf_tasks=tuple(leaf_tasks),
        _subset=chosen,
        _few=choice.mode == "loop" and len(names) <= FEW_TASKS and axis_name is None,
        _linearized=linearized,
        _prepare=_preparation(linearized, halves, mask, chosen, leaf_tasks, choice.mode, subset is not None, reduce),
        _again=again,
    )
    losses = dict(zip(names, values, strict=True))
    return ((losses, aux) if has_aux else losses), grads


def explain(losses_fn: Callable[..., Any], params: PyTree, *args: Any, **options: Any) -> str:
    """Says which mode `task_gradients` chooses for these losses, and why.

    >>> import jax.numpy as jnp, mtljax as mtl
    >>> losses_fn = lambda p: {"left": jnp.sum(p**2), "right": jnp.sum((p - 1) ** 2)}
    >>> mtl.explain(losses_fn, jnp.ones(3), mode="jacrev")
    'mode jacrev: asked for; 2 tasks, a Jacobian of 24 B'

    Args:
      losses_fn: as in `task_gradients`; it is traced, not run.
      params: the parameters, or their shapes.
      *args: further arguments of `losses_fn`, or their shapes.
      **options: keyword arguments of `task_gradients`.

    Returns:
      One line.
    """
    lines = []

    def traced(params: PyTree, args: tuple[Any, ...]) -> None:
        grads = task_gradients(losses_fn, params, *args, **options)[1]
        lines.append(grads.explanation())

    jax.eval_shape(traced, params, args)
    return lines[0]


def _check_mode(losses_fn: Callable[..., Any], mode: str, subset: Mask, axis_name: Any, reduce: str) -> None:
    if mode not in MODES:
        raise ValueError(f"mode={mode!r} is unknown: use one of {', '.join(map(repr, MODES))}")
    if mode == "features" and not isinstance(losses_fn, SplitLosses):
        raise ValueError(
            'mode="features" needs losses that are split at the representation: pass mtl.split(encode, heads), with '
            "encode(params, *args) -> z and heads(params, z, *args) -> {task: loss}, or use another mode"
        )
    if mode == "features" and subset is not None:
        raise ValueError('subset chooses among parameters, but mode="features" takes the Gramian at the representation')
    if reduce not in ("mean", "scatter"):
        raise ValueError(f"reduce={reduce!r} is unknown: use 'mean' or 'scatter'")
    if reduce == "scatter" and axis_name is None:
        raise ValueError('reduce="scatter" spreads the Jacobian over devices: pass axis_name, or use reduce="mean"')
    if reduce == "scatter" and (mode in ("two_pass", "features") or subset is not None):
        what = "a subset" if subset is not None else f'mode="{mode}"'
        raise ValueError(f'reduce="scatter" spreads a Jacobian that {what} never holds: use reduce="mean"')


def _preparation(
    linearized: Linearized,
    halves: Halves | None,
    shared: PyTree,
    chosen: PyTree,
    leaf_tasks: list[tuple[int, ...]],
    mode: str,
    has_subset: bool,
    reduce: str,
) -> Callable[[], Prepared] | None:
    """How a Gramian method gets its Gramian without holding the Jacobian; None when it shall hold them."""
    if halves is not None:
        return partial(prepare_features, linearized, halves, shared)
    if mode == "two_pass":
        return partial(prepare_two_pass, linearized, shared, chosen)
    if has_subset:
        return partial(prepare_subset, linearized, shared, chosen)
    if reduce == "scatter":
        return partial(prepare_scattered, linearized, shared, leaf_tasks)
    return None
