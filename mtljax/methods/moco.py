"""MoCo: one step a update towards the min-norm weights, on gradients averaged over time."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from mtljax.gradients import Gramian, PyTree
from mtljax.methods._base import jacobian_method
from mtljax.methods._checks import Scalar, check_range
from mtljax.methods._jacobian import cast_like, per_row, replace_shared, wide, zeros_per_task
from mtljax.methods._signals import Signals
from mtljax.methods._simplex import face, project_simplex
from mtljax.methods._state import state_dtype
from mtljax.methods.registry import register
from mtljax.solvers import normalised


class MoCoMemory(NamedTuple):
    """What MoCo remembers.

    Attributes:
      tracked: the averaged gradients y, pytree like params with a leading task axis.
      weights: (K,) λ, on the simplex.
    """

    tracked: PyTree
    weights: jax.Array


@register(needs="jacobian", paper="2210.12624", properties=("permutable", "rotatable"))
def moco(
    beta: Scalar = 0.5,
    beta_decay: Scalar = 0.5,
    gamma: Scalar = 0.1,
    gamma_decay: Scalar = 0.5,
    rho: Scalar = 0.0,
    *,
    num_tasks: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Multi-objective gradient correction (Fernando et al., arXiv:2210.12624).

    With stochastic gradients the min-norm direction of MGDA is biased; here it is found over time, at steps t = 1, 2, …
    y_k ← y_k - β_t (y_k - g_k), λ ← Π(λ - γ_t (Y Yᵀ + ρ I) λ), d = Yᵀ λ, with β_t = β / t^σ_β, γ_t = γ / t^σ_γ and Π
    the Euclidean projection on the simplex. Cost: K backward passes, a K x K product, and K copies of the parameters
    in the state.

    λ starts at 1/K and y at 0, as in the authors' code, so the first updates are short (β_1 times the mean gradient if
    γ = 0). The default rates are LibMTL's. LibMTL puts a softmax in place of the projection, which keeps λ from ever
    reaching a vertex, and first rescales each gradient to the length of its loss; neither is in the paper. The paper's
    projection of y on a ball of known radius, which its proof uses, is left out. The step of λ grows with the square of
    the gradients, so unlike MGDA this depends on their scale: γ is to be tuned with it.

    A task without a label in the batch is left out: its average and its λ wait, and the λ of the others count as shares
    of what they sum to (a zero gradient would otherwise draw all weight and stop the others). In β_t, t counts the
    updates in which the task has a label. With no task left, d = 0. Steps of λ beyond the range of the dtype are cut
    off there.

    >>> import jax.numpy as jnp, mtljax as mtl
    >>> jacobian = jnp.array([[2.0, 0.0], [0.0, 1.0]])
    >>> tx = mtl.moco(num_tasks=2)
    >>> gradient, state = tx.update(jacobian, tx.init(jnp.zeros(2)))
    >>> [round(float(x), 4) for x in state.weights]
    [0.4812, 0.5188]
    >>> [round(float(x), 4) for x in gradient]
    [0.4812, 0.2594]

    Args:
      beta: rate of the averages at the first step, in [0, 1]. This and all that follow may be tracers.
      beta_decay: exponent of its decay, at least 0.
      gamma: rate of λ at the first step, at least 0; in units of one over squared gradients.
      gamma_decay: exponent of its decay, at least 0.
      rho: regularisation of λ towards uniform, at least 0.
      num_tasks: K.

    Returns:
      A transformation from K task gradients to one gradient; a task's own parameters get their own current gradient.

    Raises:
      ValueError: if a value is out of its range or `num_tasks` is missing.

    References:
      Fernando et al., `Mitigating Gradient Bias in Multi-objective Learning: A Provably Convergent Approach
      <https://arxiv.org/abs/2210.12624>`_, ICLR 2023
    """
    check_range("moco", "[0, 1]", beta=beta)
    check_range("moco", ">= 0", beta_decay=beta_decay, gamma=gamma, gamma_decay=gamma_decay, rho=rho)

    def init_memory(num_tasks: int, params: PyTree) -> MoCoMemory:
        uniform = jnp.full(num_tasks, 1 / num_tasks, state_dtype(params))
        return MoCoMemory(zeros_per_task(num_tasks, params), uniform)

    def rule(memory: MoCoMemory, signals: Signals) -> Any:
        grads = signals.grads
        time = (signals.step + 1).astype(memory.weights.dtype)
        rate = (beta / (signals.seen + 1).astype(time.dtype) ** beta_decay).astype(time.dtype)
        tracked = jax.tree.map(
            lambda y, g: per_row(1 - rate, y) * y + per_row(rate, y) * g, memory.tracked, wide(grads)
        )
        averaged = replace_shared(grads, tracked)
        gramian = averaged.scaled_gramian()
        live = signals.present & (gramian.norms > 0)
        weights, mass = face(memory.weights, live)
        weights = _stepped(weights, live, gramian, gamma / time**gamma_decay, rho)
        kept = jnp.where(live, mass * weights, memory.weights)
        return cast_like(averaged.combine(weights), grads), weights, MoCoMemory(tracked, kept)

    return jacobian_method("moco", rule, num_tasks=num_tasks, init_memory=init_memory)


def _stepped(weights: jax.Array, live: jax.Array, gramian: Gramian, rate: Scalar, rho: Scalar) -> jax.Array:
    """Π(λ - γ (Y Yᵀ + ρ I) λ) over the live tasks, on whose simplex λ lies; 0 for the others."""
    relative, longest = normalised(jnp.where(live, gramian.norms, 0))
    pull = relative * jnp.matmul(gramian.cosines, relative * weights, precision=lax.Precision.HIGHEST)
    # Nothing overflows: the entries of `pull` are at most 1 in size.
    size = jnp.minimum(rate * longest * longest, jnp.finfo(weights.dtype).max / 4)
    moved = (1 - rate * rho) * weights - size * pull
    return jnp.where(live, project_simplex(moved, live), 0)
