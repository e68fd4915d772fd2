"""The losses of a large batch as a mean over microbatches, with the memory of one."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from mtljax.gradients.backend import platform
from mtljax.gradients.features import SplitLosses
from mtljax.gradients.inspection import contains_convolution
from mtljax.gradients.modules import is_nnx_module

PyTree: TypeAlias = Any


def accumulate(
    losses_fn: Callable[..., Any], count: int, *, argnums: int | tuple[int, ...] = -1, unroll: bool | None = None
) -> Callable[..., Any]:
    """Cuts the batch of a losses function into microbatches and averages over them.

    Gradients of the result, in every mode and for every method, are those of the whole batch where each loss is a mean
    over examples, or a pair (sum, count), which is exact however labels are spread. A mean over a task's labels alone
    is not: every microbatch then counts alike, however few labels it has. Activations live for one microbatch at a
    time: they are computed again in the backward pass, which costs one more forward pass (where backward passes are
    written out, as in mode "loop", one a task). A microbatch takes every `count`-th example, so that each is spread
    over the devices as the batch is. Batch statistics are those of each microbatch, averaged.

    >>> import jax, jax.numpy as jnp, mtljax as mtl
    >>> losses_fn = lambda p, x: {"left": jnp.mean((x @ p) ** 2), "right": jnp.mean(jnp.abs(x @ p))}
    >>> x, p = jax.random.normal(jax.random.PRNGKey(0), (64, 3)), jnp.ones(3)
    >>> whole = mtl.task_gradients(losses_fn, p, x)[1].gramian()
    >>> parts = mtl.task_gradients(mtl.accumulate(losses_fn, 4), p, x)[1].gramian()
    >>> bool(jnp.allclose(whole, parts, rtol=1e-5))
    True

    Args:
      losses_fn: as for `task_gradients`; losses of `mtl.split` stay split.
      count: number of microbatches.
      argnums: which arguments hold a batch, counted after the parameters, 0 the first: the leading axes of all their
        leaves are cut. The default is the last one.
      unroll: whether the loop over microbatches is written out, so that the compiler may overlap them and need not save
        memory. None does so on a CPU where there are convolutions, which run 10 to 80 times slower inside a loop.

    Returns:
      A losses function of the same arguments. Floating point auxiliary outputs are averaged too, of others the last
      microbatch's is returned.

    Raises:
      ValueError: if `count` is no positive int; when called, if it does not divide a leading axis.
    """
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise ValueError(f"the number of microbatches must be a positive int, got {count!r}")
    if hasattr(losses_fn, "method"):
        raise ValueError(
            "accumulate takes losses_fn, not the gradient of it: "
            "mtl.value_and_grad(mtl.accumulate(losses_fn, count), method)"
        )
    argnums = (argnums,) if isinstance(argnums, int) else tuple(argnums)
    if count == 1:
        return losses_fn
    if isinstance(losses_fn, SplitLosses):
        encode, heads = losses_fn.encode, losses_fn.heads
        return SplitLosses(
            lambda params, *args, **kwargs: _each(partial(encode, **kwargs), count, unroll, params, args, argnums),
            lambda params, z, *args, **kwargs: _whole(
                _each(partial(heads, **kwargs), count, unroll, params, (z, *args), (0, *_after(argnums)), stacked=(0,))
            ),
        )
    return lambda params, *args, **kwargs: _whole(
        _each(partial(losses_fn, **kwargs), count, unroll, params, args, argnums)
    )


def _each(
    fn: Callable[..., PyTree],
    count: int,
    unroll: bool | None,
    params: PyTree,
    args: tuple[Any, ...],
    argnums: tuple[int, ...],
    stacked: tuple[int, ...] = (),
) -> PyTree:
    """The results for all microbatches, stacked; the arguments in `stacked` are so already."""
    if not args or not all(-len(args) <= position < len(args) for position in argnums):
        raise ValueError(
            f"accumulate cuts positional arguments, argnums={argnums} of {len(args)}: pass the batch by position, "
            "and name in argnums the arguments that hold one"
        )
    if is_nnx_module(params):
        raise ValueError(
            "accumulate repeats a function of parameters: batch statistics and dropout streams of an nnx.Module would "
            "be lost, so call nnx.split and make losses_fn a function of its state, or use optax.MultiSteps"
        )
    positions = [position % len(args) for position in argnums]
    parts = {i: args[i] if i in stacked else _cut(args[i], count) for i in positions}

    @jax.checkpoint
    def one(params: PyTree, part: dict[int, PyTree]) -> PyTree:
        return fn(params, *(part.get(i, arg) for i, arg in enumerate(args)))

    if unroll is None and platform() == "cpu":
        first = jax.tree.map(lambda leaf: leaf[0], parts)
        unroll = contains_convolution(jax.make_jaxpr(one)(params, first).jaxpr)
    return lax.scan(lambda carry, part: (carry, one(params, part)), None, parts, unroll=bool(unroll))[1]


def _after(argnums: tuple[int, ...]) -> tuple[int, ...]:
    """The same arguments behind one more."""
    return tuple(position if position < 0 else position + 1 for position in argnums)


def _cut(batch: PyTree, count: int) -> PyTree:
    def cut(leaf: Any) -> jax.Array:
        leaf = jnp.asarray(leaf)
        if not leaf.ndim or leaf.shape[0] % count:
            raise ValueError(
                f"cannot cut an array of shape {leaf.shape} into {count} microbatches: choose a number that divides "
                "the batch, and name in argnums the arguments that hold a batch alone, counted after the parameters"
            )
        # Every count-th example: where a batch is spread over devices, so is each of its parts.
        return jnp.swapaxes(leaf.reshape(leaf.shape[0] // count, count, *leaf.shape[1:]), 0, 1)

    return jax.tree.map(cut, batch)


def _whole(stacked: PyTree) -> PyTree:
    """Losses, or losses and aux, of the whole batch from those of its microbatches."""
    losses, *aux = stacked if isinstance(stacked, tuple) else (stacked,)
    if isinstance(losses, Mapping):
        losses = {
            task: tuple(jnp.sum(part, axis=0) for part in loss) if isinstance(loss, tuple) else _mean(loss)
            for task, loss in losses.items()
        }
    return (losses, *_mean(aux)) if aux else losses


def _mean(stacked: PyTree) -> PyTree:
    return jax.tree.map(
        lambda leaf: jnp.mean(leaf, axis=0) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf[-1], stacked
    )
