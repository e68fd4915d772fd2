"""Where sharpness-aware methods evaluate gradients: a step of a given length uphill, one for each task."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtljax.gradients import PyTree, TaskGradients
from mtljax.gradients.gramian import column, trailing
from mtljax.methods._checks import Scalar
from mtljax.methods._state import state_dtype


class Radius(NamedTuple):
    """How far, and in which norm.

    Attributes:
      rho: ρ of the shared parameters, and of all of them where the norm is joint.
      rho_heads: ρ of a task's own parameters, None for the same.
      adaptive: whether lengths are relative to each parameter's size (ASAM).
      joint: whether one norm runs over shared and own parameters, or each has its own.
    """

    rho: Scalar
    rho_heads: Scalar | None = None
    adaptive: bool = False
    joint: bool = False


def uphill(params: PyTree, rows: PyTree, shared: PyTree, radius: Radius) -> tuple[PyTree, jax.Array]:
    """The parameters after one step uphill along each row.

    Args:
      params: pytree.
      rows: N gradients, pytree like params with a leading axis.
      shared: pytree of bools like params.
      radius: the length of the steps.

    Returns:
      `(params + ε, moved)`: pytree with leaves (N, *shape) in the dtypes of params, where ε = ρ g / ‖g‖, or adaptive
      ε = ρ w² ⊙ g / ‖|w| ⊙ g‖; and the (N,) mask of the rows with a step. Zero gradients make none.
    """
    leaves, treedef = jax.tree.flatten(params)
    dtype = state_dtype(params)
    gradients = [leaf.astype(dtype) for leaf in jax.tree.leaves(rows)]
    flags = [radius.joint or flag for flag in jax.tree.leaves(shared)]
    points: list[Any] = [jnp.broadcast_to(leaf, (len(gradients[0]), *leaf.shape)) for leaf in leaves]
    moved = jnp.zeros(len(gradients[0]), bool)
    for flag, rho in ((True, radius.rho), (False, radius.rho if radius.rho_heads is None else radius.rho_heads)):
        chosen = [i for i, each in enumerate(flags) if each is flag and leaves[i].size]
        if not chosen:
            continue
        sizes = [jnp.abs(leaves[i]).astype(dtype) if radius.adaptive else 1 for i in chosen]
        steps, nonzero = _unit([gradients[i] for i in chosen], sizes)
        rho = jnp.asarray(rho, dtype)
        moved |= nonzero & (rho > 0)
        for i, size, step in zip(chosen, sizes, steps, strict=True):
            points[i] = (leaves[i].astype(dtype) + rho * size * step).astype(leaves[i].dtype)
    return jax.tree.unflatten(treedef, points), moved


def _unit(pieces: list[jax.Array], sizes: list[Any]) -> tuple[list[jax.Array], jax.Array]:
    """The rows over all pieces (N, *shape) times the sizes, divided by their length, and which have one.

    They are divided by their largest entry first, so that no square leaves the dtype's range. Subnormals are zeros.
    """
    peak = jnp.stack([jnp.max(jnp.abs(piece), axis=trailing(piece), initial=0) for piece in pieces]).max(axis=0)
    scale = jnp.where(peak >= jnp.finfo(peak.dtype).tiny, peak, jnp.inf)
    pieces = [size * (piece / column(scale, piece)) for piece, size in zip(pieces, sizes, strict=True)]
    length = jnp.sqrt(sum(jnp.sum(piece * piece, axis=trailing(piece)) for piece in pieces))
    nonzero = length > 0
    return [piece / column(jnp.where(nonzero, length, 1), piece) for piece in pieces], nonzero


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
