"""`task_gradients`: the losses once, and their gradients as they are asked for.

The forward pass runs once, as a linearization of the losses. Everything else (the Jacobian, one backward pass of a
weighted sum) is a transposition of that linear map, made only when a method asks for it.
"""

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from mtljax.gradients import arguments
from mtljax.gradients.arguments import Mask
from mtljax.gradients.backward import Backward, Scattered, Subset, TwoPass
from mtljax.gradients.choice import MODES, Mode, choose
from mtljax.gradients.container import TaskGradients
from mtljax.gradients.engine import Layout, PyTree, mean, varying
from mtljax.gradients.features import Features, SplitLosses, linearize_split
from mtljax.gradients.inspection import (
    contains_convolution,
    contains_custom_vjp,
    leaf_dependence,
    leaves_of_common_terms,
    repeated_leaves,
    written_out,
)
from mtljax.gradients.modules import functional, is_nnx_module

Reduce: TypeAlias = Literal["mean", "scatter"]


def task_gradients(
    losses_fn: Callable[..., Any],
    params: PyTree,
    *args: Any,
    shared: Mask = None,
    subset: Mask = None,
    trainable: Mask = None,
    mode: Mode = "auto",
    axis_name: Any = None,
    reduce: Reduce = "mean",
    has_aux: bool = False,
    **kwargs: Any,
) -> tuple[Any, TaskGradients]:
    """Evaluates the task losses once and prepares their gradients, one a task.

    >>> import jax.numpy as jnp, mtljax as mtl
    >>> losses_fn = lambda p, x: {"left": jnp.sum((p - x) ** 2), "right": jnp.sum((p + x) ** 2)}
    >>> losses, grads = mtl.task_gradients(losses_fn, jnp.array([1.0, 0.0]), jnp.array([3.0, 0.0]))
    >>> grads.gramian().tolist()
    [[16.0, -32.0], [-32.0, 64.0]]

    Args:
      losses_fn: `losses_fn(params, *args, **kwargs)` returns a dict of losses, one a task, or with `has_aux` a pair
        `(losses, aux)`. A loss is a floating point scalar, or a pair (sum, count) that stands for sum / count: both
        are then summed over `axis_name` and the parts of `accumulate` before they are divided, where the mean of means
        would weigh each label by how few others are near it; and a task whose count is 0 is absent.
      params: pytree of floating point arrays. Fields of modules (as equinox's) that are no arrays are left alone.
      *args: passed on to `losses_fn`, not differentiated.
      shared: which parameters are shared: a predicate on the key path (as in `jax.tree_util.tree_map_with_path`), or a
        pytree of bools like params. None finds it from the computation: a leaf is shared when two or more losses depend
        on it, and always when there is one task.
      subset: which of the shared parameters enter the Gramian, told as for `shared`: with the last layers alone, K
        short backward passes and one whole one. An approximation, as in GradNorm: the weights are those of other
        gradients. None means all.
      trainable: which parameters are trained, told as for `shared`; None means all. The others are constants: their
        gradient is 0 and they enter no Gramian. Freezing behind the method instead would leave them in it.
      mode: how K gradients are computed; `mtl.explain` tells what "auto" chooses and why.
        "jacrev": the rows of one pullback, as in `jax.jacrev`: written out up to ten tasks and wherever that makes
        a short program, else under `vmap`; with convolutions, which vmap slows down, in `lax.map`, or on a CPU written
        out.
        "loop": K backward passes after one forward pass.
        "two_pass": the Gramian from one gradient at a time, then one backward pass of the weighted sum: the memory of
        one gradient in place of K, for K more forward-mode passes, which a `jax.custom_vjp` forbids. Its products have
        the network's own precision: with bfloat16 or TF32 three digits of a cosine, where the other modes take them in
        float32 at least.
        "features": the Gramian of the gradients at the shared representation, then one backward pass of the encoder:
        the cost of the summed loss, and other weights than those of the parameters' gradients, so never chosen by
        "auto". `losses_fn` must come from `mtl.split`, which says where it sees no conflict.
        Methods that read the whole Jacobian, or inner products across batches, get it exact in every mode.
      axis_name: name of a pmap, shard_map or vmap axis: losses and gradients are averaged over it before anything
        nonlinear happens to them.
      reduce: how a Gramian method's Jacobian is averaged over the axis. "mean" moves 2KP floats a device; "scatter"
        moves (K+1)P: each device keeps a part of every gradient, the parts' Gramians are added, one gradient is
        gathered.
      has_aux: whether `losses_fn` returns `(losses, aux)`.
      **kwargs: passed on to `losses_fn`, not differentiated.

    Returns:
      `(losses, grads)`, or `((losses, aux), grads)` with `has_aux`: the dict of losses and the lazy gradients.

    Raises:
      ValueError: if `losses_fn` returns no dict, an empty one, or a loss that is no floating point scalar; if a loss
        depends on no parameter where what is shared is to be found; if `mode` is unknown or does not go with the losses
        or `reduce`; if `shared`, `subset` or `trainable` does not match params.
    """
    _check_mode(losses_fn, mode, subset, axis_name, reduce)
    whole = params
    params = varying(arguments.differentiable(params), axis_name)
    trained = arguments.trainable_mask(trainable, params)
    tasks: tuple[str, ...] = ()

    def prepared(params: PyTree) -> PyTree:
        frozen = jax.tree.map(lambda leaf, train: leaf if train else lax.stop_gradient(leaf), params, trained)
        return arguments.merged(frozen, whole)

    def flat(result: Any) -> tuple[tuple[jax.Array, ...], Any]:
        nonlocal tasks
        if has_aux and not (isinstance(result, tuple) and len(result) == 2):
            raise ValueError(f"with has_aux=True losses_fn returns (losses, aux), got a {type(result).__name__}")
        losses, aux = result if has_aux else (result, None)
        tasks, values, present = arguments.evaluated(losses, axis_name)
        return values, (aux, present)

    halves: dict[str, Any] | None = None
    if mode == "features" and isinstance(losses_fn, SplitLosses):
        both = SplitLosses(
            lambda p, *a, **k: losses_fn.encode(prepared(p), *a, **k),
            lambda p, z, *a, **k: losses_fn.heads(prepared(p), z, *a, **k),
        )
        losses, linear, halves, (aux, present) = linearize_split(both, params, flat, *args, **kwargs)
    else:
        evaluate = lambda p: flat(losses_fn(prepared(p), *args, **kwargs))  # noqa: E731
        losses, linear, (aux, present) = jax.linearize(evaluate, params, has_aux=True)
    jaxpr = jax.make_jaxpr(linear)(params).jaxpr
    leaf_tasks = leaf_dependence(jaxpr)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    if shared is None:
        arguments.check_dependent(tasks, leaf_tasks)
        arguments.warn_common_terms([paths[i] for i in leaves_of_common_terms(jaxpr)])
    arguments.warn_unused(paths, leaf_tasks, trained)
    mask = arguments.shared_mask(shared, params, leaf_tasks, len(tasks))
    layout = Layout(
        mask, mask if subset is None else arguments.subset_mask(subset, params, mask), tuple(leaf_tasks), len(tasks)
    )
    choice = choose(
        mode,
        num_tasks=len(tasks),
        shared_bytes=sum(leaf.nbytes for leaf, keep in zip(*map(jax.tree.leaves, (params, mask)), strict=True) if keep),
        convolutions=contains_convolution(jaxpr),
        custom_vjp=contains_custom_vjp(jaxpr),
        scatter=reduce == "scatter",
        operations=written_out(jaxpr),
        repeated=tuple(paths[i] for i in repeated_leaves(jaxpr, leaf_tasks)) if len(tasks) > 1 else (),
    )
    attributes: dict[str, Any] = {
        "layout": layout,
        "losses_fn": lambda p: flat(losses_fn(prepared(p), *args, **kwargs))[0],
        "linear": linear,
        "params": params,
        "dtypes": tuple(loss.dtype for loss in losses),
        "passes": choice.passes,
        "axis_name": axis_name,
    }
    if halves is not None:
        engine: Backward = Features(names=tasks, **halves, **attributes)
    else:
        engine = _engine_of(choice.mode, subset is not None, reduce)(**attributes)
    losses = mean(losses, axis_name)

    options: dict[str, Any] = {
        "shared": mask,
        "subset": None if subset is None else layout.gramian,
        "trainable": trained,
        "mode": mode,
        "axis_name": axis_name,
        "reduce": reduce,
        "has_aux": has_aux,
    }

    def elsewhere(params: PyTree) -> TaskGradients:
        at = arguments.merged(params, whole)
        return task_gradients(losses_fn, at, *args, **options, **kwargs)[1]

    grads = TaskGradients(
        engine=engine, tasks=tasks, losses=jnp.stack(losses), present=present, choice=choice, elsewhere=elsewhere
    )
    by_task = dict(zip(tasks, losses, strict=True))
    return ((by_task, aux) if has_aux else by_task), grads


def explain(losses_fn: Callable[..., Any], params: PyTree, *args: Any, **options: Any) -> str:
    """Says which mode `task_gradients` chooses for these losses, and why.

    >>> import jax.numpy as jnp, mtljax as mtl
    >>> losses_fn = lambda p: {"left": jnp.sum(p**2), "right": jnp.sum((p - 1) ** 2)}
    >>> mtl.explain(losses_fn, jnp.ones(3), mode="jacrev")
    'mode jacrev: asked for; 2 tasks, a Jacobian of 24 B'

    It also says where a trunk is run anew for every task, `{task: loss(model(x), y[task]) for task in tasks}`.
    Compilers merge the copies of its forward pass, not those of its backward pass: even the summed loss then costs K of
    them. The cure is one `model(x)` before the dict.

    Args:
      losses_fn: as in `task_gradients`; it is traced, not run.
      params: the parameters, or their shapes, or an `nnx.Module`.
      *args: further arguments of `losses_fn`, or their shapes.
      **options: keyword arguments of `task_gradients`.

    Returns:
      One line.
    """
    lines = []
    if is_nnx_module(params):
        losses_fn, params, *_ = functional(losses_fn, params, has_aux=options.pop("has_aux", False))
        options["has_aux"] = True
    leaves, treedef = jax.tree.flatten((params, args))
    arrays = [leaf if hasattr(leaf, "dtype") else None for leaf in leaves]

    def traced(arrays: list[Any]) -> None:
        every = [leaf if array is None else array for array, leaf in zip(arrays, leaves, strict=True)]
        params, args = jax.tree.unflatten(treedef, every)
        lines.append(task_gradients(losses_fn, params, *args, **options)[1].explanation())

    jax.eval_shape(traced, arrays)
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


def _engine_of(mode: str, has_subset: bool, reduce: str) -> type[Backward]:
    if mode == "two_pass":
        return TwoPass
    if has_subset:
        return Subset
    return Scattered if reduce == "scatter" else Backward
