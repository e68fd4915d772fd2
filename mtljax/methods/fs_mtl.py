"""FS-MTL: any method on sharpness-aware gradients, their losses' and their flatness' part aggregated apart."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from mtljax.gradients import PyTree, TaskGradients, differences
from mtljax.methods._checks import Scalar, check_choice, check_num_tasks, check_range, static_int
from mtljax.methods._perturbation import Radius, check_evaluable, is_zero, uphill
from mtljax.methods._state import all_finite, only_if, task_weights
from mtljax.methods._updates import as_task_gradients
from mtljax.methods.cagrad import cagrad
from mtljax.methods.registry import register

AGGREGATES = ("decomposed", "direct", "second", "each")
NORMS = ("separate", "joint")


class FsMtlState(NamedTuple):
    """The state of FS-MTL.

    Attributes:
      step: int32 scalar, updates so far.
      loss: state of the base method on the gradients of the losses; with "direct" on the perturbed ones.
      flat: that of the base method on the flat parts, None where they are not aggregated by themselves.
      pair: that of the base method on pairs of a loss and a flat part, for "each" with a leading task axis, or None.
      rows: the flat parts of the last perturbed pass, (K, *shape), None when every update makes them.
    """

    step: jax.Array
    loss: Any
    flat: Any
    pair: Any
    rows: PyTree

    @property
    def weights(self) -> jax.Array | None:
        """(K,) weights of the base method on the gradients of the losses, None when it keeps none."""
        return task_weights(self.loss)


@register(
    needs="jacobian",
    paper="2211.13723",
    properties=("permutable", "homogeneous"),
    plain_jacobian=False,
    idle=lambda options: options.get("rho") == 0 and not options.get("rho_heads"),
    pairs=lambda options: options.get("aggregate") in ("second", "each"),
)
def fs_mtl(
    base: optax.GradientTransformation | None = None,
    rho: Scalar = 0.05,
    adaptive: bool = False,
    rho_heads: Scalar | None = None,
    norm: str = "separate",
    aggregate: str = "decomposed",
    *,
    pair_base: optax.GradientTransformation | None = None,
    perturb_every: int | None = None,
    shared_perturbation: bool = False,
    num_tasks: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Task-based flat regions: sharpness-aware gradients under any method (Phan et al., arXiv:2211.13723).

    Task k's gradient g_k is taken again on the same batch at θ + ε_k, a step of length ρ uphill on L_k:

        ε_k = ρ g_k / ‖g_k‖, or adaptive (ASAM) ε_k = ρ θ² ⊙ g_k / ‖|θ| ⊙ g_k‖
        g_k^flat = ∇L_k(θ + ε_k) - g_k
        d = A(g_1, ..., g_K) + A(g_1^flat, ..., g_K^flat)

    A is the base method, with a state of its own for each of the two. The shared parameters and the task's own are
    perturbed together; its own receive ∇L_k(θ + ε_k) where A leaves own parameters unscaled. Cost: 2K backward passes
    and K + 1 forward passes. `aggregate="direct"` is A(∇L_k(θ + ε_k)), so `fs_mtl(ew(), aggregate="direct")` is SAM for
    each task and summed, and with one task it is SAM itself, two gradients a step.

    The default ρ is that of SAM (arXiv:2010.01412); the paper's code has ρ = 2 with `adaptive` and `norm="joint"` on
    Multi-MNIST, and separate norms with ρ between 0.001 and 2 elsewhere. Where the code adds 1e-12 to a norm, nothing
    is added here, and it takes the mean for `ew` instead of the sum. Auxiliary outputs of the losses function, such as
    batch statistics, are those at θ: the perturbed pass leaves no trace. Dropout masks are the same in both.

    A task with a zero gradient has no ε_k and no flat part, a task without a label counts in neither aggregation, and
    if all gradients are zero, d = 0. The Python number `rho=0`, with `rho_heads` left out or 0, returns the base method
    itself. A traced ρ of 0, as from `optax.inject_hyperparams`, makes every flat part exactly zero, at the full cost.

    As ρ goes to 0 the flat parts go to 0, and A of them where A is homogeneous. Where it is not, the flat part of d
    does not vanish: that of `nash_mtl` has norm √K whatever ρ is, that of `fairgrad` grows like ρ^((1 - α) / (1 + α)).
    For small ρ it is the direction of rounding errors: keep ρ well above 1e-4 ‖θ‖ there (adaptive: 1e-4), or take
    "direct".

    >>> import jax.numpy as jnp, optax, mtljax as mtl
    >>> losses_fn = lambda p: {"left": 2 * p[0] ** 2, "right": 0.5 * p[1] ** 2}
    >>> params = jnp.array([1.0, 1.0])
    >>> losses, grads = mtl.task_gradients(losses_fn, params)
    >>> tx = mtl.fs_mtl(mtl.ew(), rho=0.5)
    >>> gradient, _ = tx.update(grads, tx.init(params), params, losses=losses)
    >>> gradient.tolist()
    [6.0, 1.5]

    Args:
      base: A: any transformation from task gradients to one gradient, as `mtl.nash_mtl()`; None for `mtl.cagrad()`.
        Names are for `mtl.methods.create("fs_mtl", base="cagrad", base_options={"c": 0.5})`.
      rho: ρ, at least 0, in units of the parameters; adaptive, of their relative change. May be a tracer.
      adaptive: whether each parameter counts relative to its own size.
      rho_heads: ρ of a task's own parameters, None for `rho`. May be a tracer.
      norm: "separate": one norm over the shared parameters and one over a task's own, as in the paper; "joint": one
        over both. With one task all parameters are shared, unless `task_gradients` is told otherwise.
      aggregate: "decomposed" as above; "direct" as above; "second" is A of the two results in place of their sum;
        "each" is A over the tasks of A(g_k, g_k^flat).
      pair_base: A of pairs, for "second" and "each" with a base that was built for K tasks; None for `base`.
      perturb_every: not the paper's: the perturbed pass every n updates, its flat parts kept (K copies of the
        parameters) and reused in between, where an update costs that of the base. `update(..., solve=True|False)` then
        says at trace time whether to perturb.
      shared_perturbation: not the paper's: one ε for all tasks, from the summed loss; with "direct" in every mode of
        `task_gradients`, for one forward and one backward pass more than the base.
      num_tasks: K; needed for `perturb_every` and "each".

    Returns:
      A transformation from `TaskGradients` of `task_gradients` to one gradient; it evaluates the losses again and so
      takes no explicit Jacobian, and what changes gradients (`per_task`) goes into the base, not before it.

    Raises:
      ValueError: on values out of range, or options that do not go together; on update, on gradients that cannot be
        evaluated elsewhere, or in mode "features" without `shared_perturbation`.

    References:
      Phan et al., `Beyond Losses Reweighting: Empowering Multi-Task Learning via the Generalization Perspective
      <https://arxiv.org/abs/2211.13723>`_, ICCV 2025 (versions 1 to 4 on arXiv: "Improving Multi-task Learning via
      Seeking Task-based Flat Regions")

      Foret et al., `Sharpness-Aware Minimization for Efficiently Improving Generalization
      <https://arxiv.org/abs/2010.01412>`_, ICLR 2021

      Kwon et al., `ASAM: Adaptive Sharpness-Aware Minimization for Scale-Invariant Learning of Deep Neural Networks
      <https://arxiv.org/abs/2102.11600>`_, ICML 2021
    """
    check_range("fs_mtl", ">= 0", rho=rho)
    if rho_heads is not None:
        check_range("fs_mtl", ">= 0", rho_heads=rho_heads)
        if norm == "joint":
            raise ValueError('fs_mtl: norm="joint" takes one length of the whole step: leave out rho_heads')
    check_choice("fs_mtl", "norm", norm, NORMS)
    check_choice("fs_mtl", "aggregate", aggregate, AGGREGATES)
    check_num_tasks("fs_mtl", num_tasks)
    wrong = isinstance(perturb_every, bool) or not isinstance(perturb_every, int) or perturb_every < 1
    if perturb_every is not None and wrong:
        raise ValueError(
            f"fs_mtl: perturb_every must be a positive Python int, got {perturb_every!r} "
            '(inside optax.inject_hyperparams, pass static_args=("perturb_every", "num_tasks"))'
        )
    if num_tasks is None and (aggregate == "each" or perturb_every is not None):
        what = 'aggregate="each"' if aggregate == "each" else "perturb_every"
        raise ValueError(f"fs_mtl: {what} remembers something of every task; pass num_tasks=K")
    whole = optax.with_extra_args_support(cagrad(num_tasks=num_tasks) if base is None else base)
    pair: Any = None
    if aggregate in ("second", "each"):
        pair = optax.with_extra_args_support(pair_base or (cagrad() if base is None else base))
    if is_zero(rho) and (rho_heads is None or is_zero(rho_heads)):
        return whole
    radius = Radius(rho, rho_heads, adaptive, norm == "joint")

    def init_fn(params: PyTree) -> Any:
        flat = whole.init(params) if aggregate in ("decomposed", "second") else None
        paired = rows = None
        if pair is not None:
            paired = pair.init(params)
            weights = task_weights(paired)
            if weights is not None and len(weights) != 2:
                raise ValueError(
                    f"fs_mtl: aggregate={aggregate!r} also aggregates pairs, but the base was built with num_tasks="
                    f"{len(weights)}: leave num_tasks out of it, or pass pair_base"
                )
            if aggregate == "each":
                assert num_tasks is not None
                count = static_int(num_tasks, "fs_mtl", "num_tasks")
                paired = jax.vmap(lambda _: pair.init(params))(jnp.arange(count))
        if perturb_every is not None:
            assert num_tasks is not None
            count = static_int(num_tasks, "fs_mtl", "num_tasks")
            rows = jax.tree.map(lambda leaf: jnp.zeros((count, *leaf.shape), leaf.dtype), params)
        return FsMtlState(jnp.zeros((), jnp.int32), whole.init(params), flat, paired, rows)

    def perturbed(grads: TaskGradients) -> tuple[TaskGradients, jax.Array]:
        """The gradients at the perturbed parameters, with the losses at θ beside them, and the tasks that moved."""
        if shared_perturbation:
            total = jax.tree.map(lambda leaf: leaf[None], grads.combine(jnp.ones(grads.num_tasks), scale_own=True))
            points, moved = uphill(grads.params, total, grads.shared, radius)
            there = grads.moved_to(jax.tree.map(lambda leaf: leaf[0], points))
        else:
            points, moved = uphill(grads.params, grads.jacobian(), grads.shared, radius)
            there = grads.at(points)
        return (there if grads.losses is None else there.with_losses(grads.losses)), moved

    def flat_parts(grads: TaskGradients) -> TaskGradients:
        """The changes of the gradients, in their place."""
        if not shared_perturbation:
            return grads.changes(lambda rows: uphill(grads.params, rows, grads.shared, radius))
        there, moved = perturbed(grads)
        return grads.with_jacobian(differences(there.jacobian(), grads.jacobian(), moved))

    def aggregated(
        every: list[TaskGradients], flats: list[TaskGradients], state: FsMtlState, params: PyTree, extra: dict[str, Any]
    ) -> tuple[PyTree, FsMtlState]:
        """The gradient from those of the losses and the flat parts."""
        if aggregate == "direct":
            both = [g.with_jacobian(_add(g.jacobian(), f.jacobian())) for g, f in zip(every, flats, strict=True)]
            gradient, loss = whole.update(_one(both), state.loss, params, **extra)
            return gradient, state._replace(loss=loss)
        if aggregate == "each":
            (grads,), (flat,) = every, flats
            pairs = jax.tree.map(lambda a, b: jnp.stack([a, b], axis=1), grads.jacobian(), flat.jacobian())

            def aggregate_pair(rows: PyTree, one: Any) -> Any:
                return pair.update(TaskGradients.from_jacobian(rows, shared=grads.shared), one, params)

            rows, paired = jax.vmap(aggregate_pair)(pairs, state.pair)
            gradient, loss = whole.update(_one([grads.with_jacobian(rows)]), state.loss, params, **extra)
            return gradient, state._replace(loss=loss, pair=paired)
        loss_part, loss = whole.update(_one(every), state.loss, params, **extra)
        flat_part, flat = whole.update(_one(flats), state.flat, params, **extra)
        state = state._replace(loss=loss, flat=flat)
        if pair is None:
            return _add(loss_part, flat_part), state
        both = jax.tree.map(lambda a, b: jnp.stack([a, b]), loss_part, flat_part)
        both = TaskGradients.from_jacobian(both, shared=every[0].shared)
        gradient, paired = pair.update(both, state.pair, params)
        return gradient, state._replace(pair=paired)

    def updated(
        every: list[TaskGradients], state: FsMtlState, params: PyTree, solve: bool | None, extra: dict[str, Any]
    ) -> tuple[PyTree, FsMtlState]:
        """The gradient and the state after it, good or not."""
        if perturb_every is None:
            extra["solve"] = solve
            if aggregate == "direct":
                gradient, loss = whole.update(_one([perturbed(g)[0] for g in every]), state.loss, params, **extra)
                return gradient, state._replace(loss=loss)
            every = [g if _streams(g) and not shared_perturbation else g.materialize() for g in every]
            return aggregated(every, [flat_parts(g) for g in every], state, params, extra)
        grads = every[0].materialize()
        if solve is None:
            due = (state.step - 1) % perturb_every == 0
            rows = lax.cond(due, lambda _: flat_parts(grads).jacobian(), lambda kept: kept, state.rows)
        else:
            rows = flat_parts(grads).jacobian() if solve else state.rows
        return aggregated([grads], [grads.with_jacobian(rows)], state._replace(rows=rows), params, extra)

    def update_fn(
        updates: Any,
        state: Any,
        params: PyTree | None = None,
        *,
        losses: Any = None,
        present: Any = None,
        solve: bool | None = None,
        **extra: Any,
    ) -> tuple[PyTree, Any]:
        several = isinstance(updates, tuple) and all(isinstance(each, TaskGradients) for each in updates)
        every = [
            as_task_gradients("fs_mtl", each, params, losses, present) for each in (updates if several else (updates,))
        ]
        for each in every:
            check_evaluable(
                each, num_tasks, any_mode=shared_perturbation and aggregate == "direct" and perturb_every is None
            )
        if len(every) > 1 and (perturb_every is not None or aggregate in ("second", "each")):
            raise ValueError(
                'fs_mtl: several independent batches go with aggregate="decomposed" or "direct" and no perturb_every'
            )
        params = every[0].params if params is None else params
        gradient, after = updated(every, state._replace(step=state.step + 1), params, solve, extra)
        return gradient, only_if(all_finite(gradient), after, state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _streams(grads: TaskGradients) -> bool:
    """Whether the mode is the one that holds no Jacobian."""
    return grads.choice is not None and grads.choice.mode == "two_pass"


def _one(every: list[TaskGradients]) -> Any:
    """What a base takes: the gradients, or a tuple of those of several batches."""
    return tuple(every) if len(every) > 1 else every[0]


def _add(left: PyTree, right: PyTree) -> PyTree:
    return jax.tree.map(jnp.add, left, right)
