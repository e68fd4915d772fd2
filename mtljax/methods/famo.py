"""FAMO: the worst relative improvement of a loss, raised without any task gradient."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtljax.gradients import PyTree
from mtljax.methods._base import weighting
from mtljax.methods._checks import Scalar, by_task, check_range
from mtljax.methods._losses import positive, waiting
from mtljax.methods._signals import Signals
from mtljax.methods._state import state_dtype
from mtljax.methods.registry import COMMON, register


class FamoMemory(NamedTuple):
    """What FAMO remembers.

    Attributes:
      logits: (K,) logits of the task shares z.
      opt_state: state of the optimizer that learns them.
      gaps: (K,) D, the losses of the last update over their minima; 0 where that was not positive.
    """

    logits: jax.Array
    opt_state: Any
    gaps: jax.Array


@register(needs="losses", paper="2306.03792", properties=(*COMMON, "linear", "scale-free"), losses_after=True)
def famo(
    decay: Scalar = 1e-3,
    learning_rate: Scalar = 0.025,
    min_losses: Scalar | Mapping[str, float] | Sequence[float] = 0.0,
    *,
    optimizer: optax.GradientTransformation | None = None,
    num_tasks: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Fast adaptive multitask optimization (Liu et al., arXiv:2306.03792).

    With D_k = L_k - min L_k and z = softmax(logits), w_k = (z_k / D_k) / Σ_j (z_j / D_j): the direction of
    ∇ Σ_k z_k log D_k, with weights that sum to 1. Once the parameters are updated, the logits descend along
    J_softmaxᵀ (log D - log D'), D' the values on the same batch after the update: the share z_k of a task that improved
    less than the others grows. Cost: one backward and one more forward pass.

    D' is known one update late: `update(..., losses_after=...)` takes the losses of the batch before at the current
    parameters. Where it is missing, `losses`, those of the current batch, stand in: exact when every batch is the same,
    and otherwise the noise between batches is taken for improvement.

    Adam learns the logits, with `decay` times the logits added to their gradient (L2, not decoupled). 1e-3 is what the
    paper has for NYUv2, CelebA and QM9, and LibMTL by default; Cityscapes has 1e-2 and the toy problem 0, and the two
    copies of the official code default to 1e-5 and 1e-2. Their `max_norm` = 1 is clipping and has its own place in the
    chain, `optax.chain(mtl.famo(num_tasks=2), optax.clip_by_global_norm(1.0), ...)`. They add 1e-8 to every D.

    A task without a label, or with a loss at or below its minimum, gets the weight 0; where D or D' of an update is
    such, the task's logit and what Adam keeps of it wait, but for Adam's count of steps, and the shares of the others
    sum to 1. With no task left, d = 0. With 1e-8 added, a task at its minimum would get nearly all the weight, and a
    task below it NaN.

    >>> import jax.numpy as jnp, mtljax as mtl
    >>> tx = mtl.famo(num_tasks=2)
    >>> state = tx.init(jnp.zeros(2))
    >>> _, state = tx.update(jnp.eye(2), state, losses=jnp.array([2.0, 2.0]))
    >>> after, losses = jnp.array([1.0, 1.9]), jnp.array([1.0, 1.0])
    >>> gradient, state = tx.update(jnp.eye(2), state, losses=losses, losses_after=after)
    >>> [round(float(x), 4) for x in gradient]
    [0.4875, 0.5125]

    Args:
      decay: weight of the L2 term on the logits, at least 0. May be a tracer.
      learning_rate: of the logits; 0.025 in paper and code. May be a tracer.
      min_losses: what no loss falls below, one number, a dict by task name, or (K,) values in sorted order of the
        task names; 0 in the code.
      optimizer: any optax transformation for the logits; `decay` and `learning_rate` are then not used.
      num_tasks: K, required: the logits are in the state.

    Returns:
      A transformation from K task gradients and their losses to one gradient; a task's own parameters are scaled by its
      weight too.

    Raises:
      ValueError: if `num_tasks` is missing, or a hyperparameter is out of range or of the wrong shape,
        or on update `min_losses` names other tasks.

    References:
      Liu et al., `FAMO: Fast Adaptive Multitask Optimization <https://arxiv.org/abs/2306.03792>`_, NeurIPS 2023
    """
    check_range("famo", ">= 0", decay=decay, learning_rate=learning_rate)
    minima, names = by_task(min_losses)
    check_range("famo", "any", min_losses=minima)
    learner = optimizer
    if learner is None:
        learner = optax.chain(optax.add_decayed_weights(decay), optax.scale_by_adam(), optax.scale(-learning_rate))

    def init_memory(num_tasks: int, params: PyTree) -> FamoMemory:
        shape = jnp.shape(jnp.asarray(minima))
        if shape not in ((), (num_tasks,)):
            raise ValueError(
                f"famo: min_losses must be a number, a dict by task name or ({num_tasks},) numbers, got shape {shape}"
            )
        zeros = jnp.zeros(num_tasks, state_dtype(params))
        return FamoMemory(logits=zeros, opt_state=learner.init(zeros), gaps=zeros)

    def gaps(losses: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The (K,) D, and the mask of those that are positive."""
        return positive(losses - jnp.asarray(minima, losses.dtype))

    def learn(memory: FamoMemory, after: jax.Array, counts: jax.Array) -> tuple[Any, Any]:
        """The logits and the optimizer after one step on the improvement of the last update."""
        old, were_live = positive(memory.gaps)
        new, are_live = gaps(after)
        are_live &= counts
        learns = were_live & are_live
        progress = jnp.where(learns, jnp.log(old) - jnp.log(new), 0)
        shares = jax.nn.softmax(memory.logits, where=learns)
        gradient = shares * (progress - jnp.sum(shares * progress))
        updates, opt_state = learner.update(gradient, memory.opt_state, memory.logits)
        learned = optax.apply_updates(memory.logits, updates), opt_state
        return waiting(learns, learned, (memory.logits, memory.opt_state))

    def weigh(memory: FamoMemory, signals: Signals) -> Any:
        losses = signals.losses.astype(memory.gaps.dtype)
        after = losses if signals.losses_after is None else signals.losses_after
        # The losses after are those of the batch before; tasks without a label there have left no gap.
        labelled = signals.present if signals.losses_after is None else jnp.ones_like(signals.present)
        learned = learn(memory, after.astype(memory.gaps.dtype), labelled)
        # At the first update there is no improvement to learn from.
        logits, opt_state = jax.tree.map(
            lambda new, old: jnp.where(signals.step > 0, new, old), learned, (memory.logits, memory.opt_state)
        )
        current, live = gaps(losses)
        live &= signals.present
        weights = jax.nn.softmax(logits - jnp.log(current), where=live)
        return jnp.where(live, weights, 0), FamoMemory(logits, opt_state, jnp.where(live, current, 0))

    return weighting(
        "famo",
        weigh,
        needs="losses",
        num_tasks=num_tasks,
        task_names=names,
        init_memory=init_memory,
        waits=False,
    )
