"""MoDo: MGDA's weights by one projected gradient step an update, from two independent batches."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from mtljax.gradients import PyTree
from mtljax.methods._base import weighting
from mtljax.methods._checks import Scalar, check_range
from mtljax.methods._signals import Signals
from mtljax.methods._simplex import face, project_simplex
from mtljax.methods._state import state_dtype
from mtljax.methods.registry import register
from mtljax.solvers import normalised


class Simplex(NamedTuple):
    """What MoDo remembers.

    Attributes:
      weights: (K,), nonnegative with sum 1; λ.
    """

    weights: jax.Array


@register(needs="gramian", paper="2305.20057", properties=("row span", "permutable", "rotatable"), batches=3)
def modo(
    *, gamma: Scalar = 1e-3, rho: Scalar = 0.1, num_tasks: int | None = None, update_every: int | None = None
) -> optax.GradientTransformationExtraArgs:
    """Multi-objective gradient with double sampling (Chen et al., arXiv:2305.20057).

    λ ← Π(λ - γ (G_1 G_2ᵀ λ + ρ λ)) and d = G_3ᵀ λ, where the rows of G_1, G_2, G_3 are the task gradients on three
    independent batches, Π projects on the simplex and λ starts at 1/K. The step follows an unbiased estimate of the
    slope of MGDA's problem; one batch in both places would add the gradients' variance to it. Cost: 3K backward passes.

    Pass `update` a tuple of three gradients. With two, the second is combined; with one it is used in all three
    places: K backward passes, and a biased estimate. γ = 1e-3 and ρ = 0.1 are LibMTL's; the official code has γ = 0.1,
    draws two batches and combines the sum of both. γ has the unit of an inverse squared gradient, so the scale of the
    losses matters. LibMTL averages the gradients of the heads over the batches; here they come from the last.

    A task with a zero gradient on the first or second batch, without a label there, say, is left out: its λ waits, and
    those of the others count as shares of what they sum to. With no task left, d = 0. Where the products leave the
    dtype's range, the step is as long as it can be and λ ends in a corner or a face of the simplex.

    >>> import jax.numpy as jnp, mtljax as mtl
    >>> jacobian = jnp.array([[2.0, 0.0], [0.0, 1.0]])
    >>> tx = mtl.modo(gamma=0.1, rho=0.0, num_tasks=2)
    >>> gradient, _ = tx.update((jacobian, jacobian, jacobian), tx.init(jnp.zeros(2)))
    >>> [round(float(x), 4) for x in gradient]
    [0.85, 0.575]

    Args:
      gamma: step size of λ, at least 0. May be a tracer.
      rho: strength of the pull towards equal weights, at least 0. May be a tracer.
      num_tasks: K; required, for λ.
      update_every: step λ every n updates and reuse it in between; None steps at every update.

    Returns:
      A transformation from K task gradients, or a tuple of up to three on independent batches, to one gradient; a
      task's own parameters get their own gradient on the last batch unscaled.

    Raises:
      ValueError: if gamma or rho is negative, `num_tasks` is missing, or `update` gets more than three gradients.

    References:
      Chen et al., `Three-Way Trade-Off in Multi-Objective Learning: Optimization, Generalization and Conflict-Avoidance
      <https://arxiv.org/abs/2305.20057>`_, NeurIPS 2023
    """
    check_range("modo", ">= 0", gamma=gamma, rho=rho)

    def weigh(memory: Simplex, signals: Signals) -> Any:
        live = (signals.cross.left > 0) & (signals.cross.right > 0)
        old, mass = face(memory.weights.astype(signals.cross.cosines.dtype), live)
        left, left_size = normalised(jnp.where(live, signals.cross.left, 0))
        right, right_size = normalised(jnp.where(live, signals.cross.right, 0))
        slope = left * jnp.matmul(signals.cross.cosines, right * old, precision=lax.Precision.HIGHEST)
        # γ ‖g‖² may overflow; from a quarter of the range on, a longer step changes nothing.
        limit = jnp.finfo(old.dtype).max / 4
        step = jnp.minimum(gamma * left_size * right_size, limit / len(old))
        new = project_simplex(old - step * slope - jnp.minimum(gamma * rho, limit) * old, live)
        return new, Simplex(jnp.where(live, mass * new, memory.weights))

    def init_memory(num_tasks: int, params: PyTree) -> Simplex:
        return Simplex(jnp.full(num_tasks, 1 / num_tasks, state_dtype(params)))

    return weighting(
        "modo",
        weigh,
        needs="gramian",
        num_tasks=num_tasks,
        update_every=update_every,
        init_memory=init_memory,
        batches=True,
    )
