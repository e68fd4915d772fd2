"""DB-MTL: gradients of the log losses, averaged over time, all scaled to the length of the longest."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtljax.gradients import PyTree
from mtljax.gradients.gramian import trailing
from mtljax.methods._base import jacobian_method
from mtljax.methods._checks import Scalar, check_range
from mtljax.methods._jacobian import cast_like, per_row, replace_shared, wide, zeros_per_task
from mtljax.methods._signals import Signals
from mtljax.methods._state import state_dtype
from mtljax.methods.registry import register


class DBMTLMemory(NamedTuple):
    """What DB-MTL remembers.

    Attributes:
      buffer: the averaged gradients of the log losses, pytree like params with a leading task axis.
      start: (K,) part of each buffer that still is its zero start, Π_τ β_τ.
    """

    buffer: PyTree
    start: jax.Array


@register(needs="jacobian", paper="2308.12029", properties=("permutable", "rotatable", "homogeneous", "scale-free"))
def db_mtl(
    beta: Scalar = 0.9, sigma: Scalar = 0.0, *, num_tasks: int | None = None
) -> optax.GradientTransformationExtraArgs:
    """Dual balancing of losses and gradients (Lin et al., arXiv:2308.12029).

    The gradients of the log losses, g_k / L_k, are averaged, b_k ← β_t b_k + (1 - β_t) g_k / L_k with β_t = β / t^σ at
    t = 1, 2, …; each average is scaled to the length of the longest, and d is their sum:
    d = max_j ‖b_j‖ Σ_k b_k / ‖b_k‖, the lengths being those over the shared parameters. A task's own parameters get
    the current g_k / L_k. Cost: K backward passes, and K copies of the parameters in the state.

    The defaults are LibMTL's, by the paper's authors. Difference: there the averages start at zero, so that the first
    update is 1 - β too short; here each is divided by 1 - Π_τ β_τ, as in Adam. Nor is there the 1e-8 added to losses
    and lengths: the result scales with the gradients exactly, and dividing all losses and gradients of a task by one
    number changes nothing.

    A task whose loss is not positive has no log loss: it is left out of that update, its own parameters too, and its
    average waits; t counts the updates in which a task has a label. So is a task whose average is zero; if all are,
    d = 0. Gradients of log losses beyond the dtype's range (a gradient of 1e15 at a loss of 1e-30, say) are shortened
    to fit.

    >>> import jax.numpy as jnp, mtljax as mtl
    >>> tx = mtl.db_mtl(num_tasks=2)
    >>> jacobian, losses = jnp.array([[3.0, 0.0], [0.0, 8.0]]), jnp.array([0.5, 2.0])
    >>> gradient, state = tx.update(jacobian, tx.init(jnp.zeros(2)), losses=losses)
    >>> [round(float(x), 4) for x in gradient]
    [6.0, 6.0]
    >>> [round(float(w), 4) for w in state.weights]
    [1.0, 1.5]

    Args:
      beta: how much of the average is kept, in [0, 1); 0 for no averaging. May be a tracer.
      sigma: exponent of the decay of β, at least 0. May be a tracer.
      num_tasks: K.

    Returns:
      A transformation from K task gradients, with their losses, to one gradient. The weights in the state are those of
      the averaged gradients of the log losses.

    Raises:
      ValueError: if a value is out of its range, `num_tasks` is missing, or on update the losses are.

    References:
      Lin et al., `Dual-Balancing for Multi-Task Learning <https://arxiv.org/abs/2308.12029>`_, 2023
    """
    check_range("db_mtl", "[0, 1)", beta=beta)
    check_range("db_mtl", ">= 0", sigma=sigma)

    def init_memory(num_tasks: int, params: PyTree) -> DBMTLMemory:
        return DBMTLMemory(zeros_per_task(num_tasks, params), jnp.ones(num_tasks, state_dtype(params)))

    def rule(memory: DBMTLMemory, signals: Signals) -> Any:
        grads = signals.grads
        losses = signals.losses
        dtype = memory.start.dtype
        losses = losses.astype(dtype)
        rows = wide(grads)
        defined = losses > 0
        inverse = jnp.where(defined, _inverse(losses, rows), 0)
        kept = beta / (signals.seen + 1).astype(dtype) ** sigma
        kept = jnp.where(defined, kept, 1).astype(dtype)  # the average of a task without a log loss waits

        def average(b: jax.Array, g: jax.Array) -> jax.Array:
            return per_row(kept, b) * b + per_row(1 - kept, b) * (per_row(inverse, b) * g)

        buffer = jax.tree.map(average, memory.buffer, rows)
        start = kept * memory.start
        lengths = replace_shared(grads, buffer).scaled_gramian().norms.astype(dtype)
        live = defined & (lengths > 0)
        corrected = jnp.where(live, lengths / jnp.where(start < 1, 1 - start, 1), 0)
        longest = corrected.max()
        # Unit rows times one length: a ratio of lengths could overflow where the product does not.
        unit = jax.tree.map(lambda b: b / per_row(jnp.where(live, lengths, 1), b), buffer)
        combined = replace_shared(grads.map(lambda _: rows), unit).combine(
            jnp.where(live, longest, 0), scale_own=inverse
        )
        limit = jnp.finfo(dtype).max
        weights = jnp.where(live, jnp.minimum(longest / jnp.where(live, corrected, 1), limit), 0)
        return cast_like(combined, grads), weights, DBMTLMemory(buffer, start)

    return jacobian_method("db_mtl", rule, num_tasks=num_tasks, reads_losses=True, init_memory=init_memory)


def _inverse(losses: jax.Array, rows: PyTree) -> jax.Array:
    """1 / L_k, smaller where g_k / L_k, its length or the sum over the tasks would overflow."""
    leaves = [leaf for leaf in jax.tree.leaves(rows) if leaf.size]
    peak = jnp.stack([jnp.abs(leaf).max(axis=trailing(leaf)) for leaf in leaves]).max(axis=0)
    limit = jnp.finfo(losses.dtype).max
    room = limit / (2 * len(losses) * sum(leaf[0].size for leaf in leaves))
    largest = jnp.where(peak > 1, room / jnp.maximum(peak, 1), room)
    return jnp.minimum(1 / jnp.where(losses > 0, losses, 1), largest)
