"""The door to loops of one's own: losses of several tasks in, one plain gradient out."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mtljax.gradients import arguments
from mtljax.gradients.call_checks import check_call, warn_of_optimizer
from mtljax.gradients.choice import Mode
from mtljax.gradients.container import TaskGradients
from mtljax.gradients.engine import PyTree
from mtljax.gradients.evaluate import Reduce, task_gradients
from mtljax.gradients.features import SplitLosses
from mtljax.gradients.modules import functional, is_nnx_module, move


@jax.tree_util.register_pytree_node_class
class IndependentBatches:
    """Several batches in the place of one argument of a losses function, for methods that want independent gradients.

    >>> import jax.numpy as jnp, mtljax as mtl
    >>> batches = mtl.IndependentBatches(jnp.zeros(2), jnp.ones(2))
    >>> len(batches.batches)
    2

    Attributes:
      batches: the batches, alike in structure.
    """

    def __init__(self, *batches: PyTree):
        if not batches:
            raise ValueError("IndependentBatches needs at least one batch")
        self.batches = batches

    def tree_flatten(self) -> tuple[tuple[PyTree, ...], None]:
        """Its batches are its children."""
        return self.batches, None

    @classmethod
    def tree_unflatten(cls, _: None, batches: tuple[PyTree, ...]) -> "IndependentBatches":
        """From its batches."""
        return cls(*batches)


@dataclasses.dataclass(frozen=True, eq=False)
class GradientFunction:
    """What `value_and_grad` returns: call it for losses and a gradient, `init` for the state of the method."""

    losses_fn: Callable[..., Any]
    method: optax.GradientTransformation
    regularizer: Callable[[PyTree], jax.Array] | None
    has_aux: bool
    wrt: Any
    options: Mapping[str, Any]

    def init(self, params: PyTree) -> Any:
        """The state of the method for these parameters (or this `nnx.Module`)."""
        if is_nnx_module(params):
            params = functional(self.losses_fn, params, self.wrt).params
        state = self.method.init(arguments.differentiable(params))
        warn_of_optimizer(state)
        return state

    def __call__(
        self,
        params: PyTree,
        method_state: Any,
        *args: Any,
        method_args: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> tuple[tuple[Any, PyTree], Any]:
        """The losses of a batch, one gradient, and the state of the method after it; see `value_and_grad`."""
        check_call(self.losses_fn, method_state, method_args or {}, kwargs)
        batches = _batches(args, kwargs)
        if is_nnx_module(params):
            if self.options["mode"] == "features":
                raise ValueError('mode="features" splits functions of parameters, not an nnx.Module: use another mode')
            module, plain = params, functional(self.losses_fn, params, self.wrt, self.has_aux)
            losses, every, gradient, method_state = self._evaluated(
                plain.losses_fn, plain.params, method_state, batches, method_args, plain.rebuild
            )
            gradient = jax.tree.unflatten(plain.treedef, jax.tree.leaves(gradient))
            every_aux, every_state = zip(*every, strict=True)
            move(module, every_state[-1])  # once a step
        else:
            losses_fn = self.losses_fn if self.has_aux else _with_aux(self.losses_fn)
            losses, every_aux, gradient, method_state = self._evaluated(
                losses_fn, params, method_state, batches, method_args
            )
        if not self.has_aux:
            return (losses, gradient), method_state
        return ((losses, tuple(every_aux) if len(batches) > 1 else every_aux[0]), gradient), method_state

    def _evaluated(
        self,
        losses_fn: Callable[..., Any],
        params: PyTree,
        method_state: Any,
        batches: list[tuple[tuple[Any, ...], dict[str, Any]]],
        method_args: Mapping[str, Any] | None,
        rebuild: Callable[[PyTree], Any] = lambda params: params,
    ) -> tuple[dict[str, jax.Array], Sequence[Any], PyTree, Any]:
        """Losses, aux of each batch, the gradient and the state of the method, by losses that return aux."""
        every_aux, gradients = [], []
        for args, kwargs in batches:
            (_, aux), grads = task_gradients(_bound(losses_fn, kwargs), params, *args, has_aux=True, **self.options)
            every_aux.append(aux)
            gradients.append(grads)
        losses = _mean_losses(gradients)
        trained = arguments.differentiable(params)
        update: Any = self.method.update
        updates = tuple(gradients) if len(gradients) > 1 else gradients[0]
        gradient, method_state = update(updates, method_state, trained, losses=losses, **(method_args or {}))
        if isinstance(gradient, TaskGradients):
            raise ValueError(
                "value_and_grad: the method returned the gradients of several tasks: put one that combines them, such "
                "as mtl.ew(), behind it in optax.chain"
            )
        if self.regularizer is not None:
            regularizer = self.regularizer
            term = jax.grad(lambda p: regularizer(rebuild(arguments.merged(p, params))))(trained)
            mask = arguments.trainable_mask(self.options["trainable"], trained)
            gradient = jax.tree.map(lambda g, t, train: g + t if train else g, gradient, term, mask)
        return losses, every_aux, gradient, method_state


def value_and_grad(
    losses_fn: Callable[..., Any],
    method: optax.GradientTransformation,
    *,
    shared: arguments.Mask = None,
    subset: arguments.Mask = None,
    trainable: arguments.Mask = None,
    mode: Mode = "auto",
    axis_name: Any = None,
    reduce: Reduce = "mean",
    has_aux: bool = False,
    regularizer: Callable[[PyTree], jax.Array] | None = None,
    wrt: Any = None,
) -> GradientFunction:
    """A function of the losses of several tasks and one gradient, in the form of `jax.value_and_grad`.

    >>> import jax.numpy as jnp, optax, mtljax as mtl
    >>> losses_fn = lambda p, x: {"left": jnp.sum((p - x) ** 2), "right": jnp.sum((p + x) ** 2)}
    >>> gradient_fn = mtl.value_and_grad(losses_fn, mtl.mgda())
    >>> params = jnp.array([1.0, 2.0])
    >>> method_state = gradient_fn.init(params)
    >>> (losses, grads), method_state = gradient_fn(params, method_state, jnp.array([3.0, 0.0]))
    >>> grads.tolist()
    [0.0, 4.0]

    The gradient is a plain pytree with the shapes and dtypes of params: what follows (an optax optimizer, flax's
    TrainState, `nnx.Optimizer`, `optax.MultiSteps`, clipping, `apply_if_finite`) sees nothing of the tasks.

    What some methods want besides goes through the same call:

    - `update_every=n`: `gradient_fn(..., method_args={"solve": True})` or False lets a host loop choose the branch when
      it traces; without it the state decides.
    - `famo` learns from the losses of the batch before at the current parameters. Evaluate them once the parameters
      have moved, `after = losses_fn(params, batch)`, and hand them to the next call as
      `method_args={"losses_after": after}`. Without them the losses of the next batch stand in. After a batch that was
      skipped, hand over those of the batch before it, or NaN, from which nothing is learned.
    - `modo` and `sdmgrad` want up to three independent batches: `gradient_fn(params, method_state,
      mtl.IndependentBatches(first, second, third))`. Losses are their means, aux is a tuple with one of each.
    - `fs_mtl` evaluates the losses again at perturbed parameters: nothing to do. Auxiliary outputs and the state of a
      module are those of the unperturbed pass.
    - Tasks without a label: return a pair (sum, count), or say so by `method_args={"present": {"left": True, ...}}`.

    Args:
      losses_fn: as in `task_gradients`: `losses_fn(params, *args, **kwargs)` returns a dict of losses, one a task, or
        with `has_aux` a pair `(losses, aux)`.
      method: a method, or an `optax.chain` that starts with one, or with `per_task` and one. The optimizer goes behind
        the gradient, not into this chain: what comes out would be an update already.
      shared: which parameters are shared, as in `task_gradients`.
      subset: which of them enter the Gramian, as there.
      trainable: which parameters are trained, as there: the gradient of the others is 0, and they enter no Gramian.
        An optimizer with weight decay moves them all the same: mask it too.
      mode: how K gradients are computed, as there.
      axis_name: name of a pmap, shard_map or vmap axis to average over, as there.
      reduce: the kind of average, as there.
      has_aux: whether `losses_fn` returns `(losses, aux)`.
      regularizer: a function of params (or of the module) to a scalar, whose gradient is added behind the method: the
        place for an L2 penalty and other terms that belong to no task. Inside the losses, it would make every parameter
        shared.
      wrt: for an `nnx.Module` in the place of params, which of its variables have a gradient, as in
        `nnx.value_and_grad`; None for `nnx.Param`.

    Returns:
      A function with `.init(params)`, the state of the method, and
      `f(params, method_state, *args, method_args=None, **kwargs)`, which returns `(losses, grads), method_state`, or
      `((losses, aux), grads), method_state` with `has_aux`. For an `nnx.Module` the gradient is an `nnx.State`, as
      that of `nnx.grad`, and batch statistics and dropout streams of the module are updated once. For a module of
      arrays and other fields, as equinox's, the gradient has None in place of the other fields.

    Raises:
      ValueError: when called, as `task_gradients`; on an integer or complex parameter, naming its path.
    """
    if not (callable(getattr(method, "init", None)) and callable(getattr(method, "update", None))):
        raise ValueError(
            f"value_and_grad: method must be an optax transformation such as mtl.cagrad(), got {method!r}: "
            "mtl.methods.create(name) builds one by its name"
        )
    if regularizer is not None and not callable(regularizer):
        raise ValueError(f"value_and_grad: regularizer must be a function of params to a scalar, got {regularizer!r}")
    options = {
        "shared": shared,
        "subset": subset,
        "trainable": trainable,
        "mode": mode,
        "axis_name": axis_name,
        "reduce": reduce,
    }
    return GradientFunction(losses_fn, optax.with_extra_args_support(method), regularizer, has_aux, wrt, options)


def _batches(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """The arguments of each independent batch; those that are no batches are the same for all."""
    counts = {len(arg.batches) for arg in (*args, *kwargs.values()) if isinstance(arg, IndependentBatches)}
    if len(counts) > 1:
        raise ValueError(f"IndependentBatches of different lengths in one call: {sorted(counts)}")

    def one(arg: Any, i: int) -> Any:
        return arg.batches[i] if isinstance(arg, IndependentBatches) else arg

    return [
        (tuple(one(arg, i) for arg in args), {name: one(arg, i) for name, arg in kwargs.items()})
        for i in range(counts.pop() if counts else 1)
    ]


def _mean_losses(gradients: Sequence[TaskGradients]) -> dict[str, jax.Array]:
    """The losses by task, of several batches the mean over those in which the task has a label."""
    losses = jnp.stack([jnp.asarray(grads.losses) for grads in gradients])
    present = jnp.stack([jnp.ones(len(losses[0]), bool) if g.present is None else g.present for g in gradients])
    means = jnp.sum(losses * present, axis=0) / jnp.maximum(jnp.sum(present, axis=0), 1).astype(losses.dtype)
    return dict(zip(gradients[0].tasks or (), means if len(gradients) > 1 else losses[0], strict=True))


def _with_aux(losses_fn: Callable[..., Any]) -> Callable[..., Any]:
    """The same losses with None beside them; split ones stay split."""
    if isinstance(losses_fn, SplitLosses):
        heads = losses_fn.heads
        return SplitLosses(losses_fn.encode, lambda *args, **kwargs: (heads(*args, **kwargs), None))
    return lambda *args, **kwargs: (losses_fn(*args, **kwargs), None)


def _bound(losses_fn: Callable[..., Any], kwargs: Mapping[str, Any]) -> Callable[..., Any]:
    """The losses with keyword arguments bound, whatever their names; split ones stay split."""
    if not kwargs:
        return losses_fn
    if isinstance(losses_fn, SplitLosses):
        return SplitLosses(partial(losses_fn.encode, **kwargs), partial(losses_fn.heads, **kwargs))
    return partial(losses_fn, **kwargs)
