"""Gradients of several tasks, evaluated on demand."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from mtljax.gradients.arguments import loss_vector
from mtljax.gradients.choice import Choice, sentence
from mtljax.gradients.gramian import CrossGramian, Gramian, cross_gramian, gramian_apart, scaled_gramian
from mtljax.gradients.linearized import (
    Linearized,
    combined_rows,
    differences,
    gramian_pieces,
    gramian_rows,
    own_rows,
    weighted_rows,
)
from mtljax.gradients.prepared import Prepared

PyTree: TypeAlias = Any


@dataclasses.dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class TaskGradients:
    """The gradients of K task losses with respect to one tree of parameters, evaluated on demand.

    Tasks are ordered by sorted name: row k of the Jacobian belongs to `tasks[k]`. An instance is made by
    `task_gradients` or `TaskGradients.from_jacobian`, lives inside one trace, and is consumed by a method's `update`.
    Nothing is cached: `materialize` returns a copy that holds its gradients, for callers that use them more than once.

    Attributes:
      tasks: K task names in sorted order, or None when the gradients came as an unnamed Jacobian.
      num_tasks: K.
      losses: (K,) losses in that order, or None when unknown.
      shared: pytree of bools like params; only shared leaves enter Gramians.
      choice: the mode and why it was chosen, None for an explicit Jacobian.
      changed: whether `map` or `with_jacobian` has put something else in place of the gradients of the losses.
    """

    tasks: tuple[str, ...] | None
    losses: jax.Array | None
    shared: PyTree
    num_tasks: int
    _leaf_tasks: tuple[tuple[int, ...], ...]  # for each leaf of params, the tasks with a gradient there
    _subset: PyTree  # the shared leaves that enter Gramians
    choice: Choice | None = None
    changed: bool = False
    _jacobian: PyTree | None = None
    _apart: tuple[PyTree, ...] | None = None  # the K gradients in place of a Jacobian, where few are held
    _few: bool = False  # whether to hold them so: few enough that products of pairs cost less than a copy
    _linearized: Linearized | None = None
    _prepare: Callable[[], Prepared] | None = None
    _prepared: Prepared | None = None
    _again: Callable[[PyTree], "TaskGradients"] | None = None

    def _no_arithmetic(self, *_: Any) -> Any:
        raise TypeError(
            "these are the gradients of several tasks, not one gradient: put a method, such as mtl.ew(), before the "
            "other transformations in optax.chain"
        )

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __pow__ = __neg__ = _no_arithmetic

    @classmethod
    def from_jacobian(
        cls,
        jacobian: PyTree,
        losses: Mapping[str, jax.Array] | jax.Array | None = None,
        shared: PyTree | None = None,
    ) -> "TaskGradients":
        """Wraps an explicit Jacobian.

        Args:
          jacobian: pytree like params, each leaf with a leading task axis, (K, *shape), as `jax.jacrev` gives it for a
            function that returns the (K,) vector of losses. Tasks in sorted order of their names.
          losses: dict of K scalars or (K,) array in sorted order of the names; None when unknown.
          shared: pytree of bools like params; None means that every leaf is shared.

        Returns:
          Gradients that hold this Jacobian.

        Raises:
          ValueError: if the leaves disagree on the number of tasks, or the losses disagree with the leaves.
        """
        leaves = jax.tree.leaves(jacobian)
        sizes = {leaf.shape[0] if leaf.ndim else 0 for leaf in map(jnp.asarray, leaves)}
        if len(sizes) != 1 or 0 in sizes:
            shapes = [tuple(jnp.shape(leaf)) for leaf in leaves]
            raise ValueError(
                f"a Jacobian needs the same leading task axis (K, *shape) on every leaf, got leaves of shapes {shapes}"
            )
        num_tasks = sizes.pop()
        names = tuple(sorted(losses)) if isinstance(losses, Mapping) else None
        vector = None if losses is None else loss_vector(losses, names, num_tasks)
        if shared is None:
            shared = jax.tree.map(lambda _: True, jacobian)
        every = tuple(range(num_tasks))
        return cls(
            tasks=names,
            losses=vector,
            shared=shared,
            num_tasks=num_tasks,
            _leaf_tasks=(every,) * len(leaves),
            _subset=shared,
            _jacobian=jax.tree.map(jnp.asarray, jacobian),
        )

    def jacobian(self) -> PyTree:
        """The gradients of all tasks: pytree like params, each leaf (K, *shape). Costs K backward passes."""
        if self._jacobian is not None:
            return self._jacobian
        if self._apart is not None:
            return jax.tree.map(lambda *rows: jnp.stack(rows), *self._apart)
        assert self._linearized is not None
        return self._linearized.jacobian()

    def materialize(self, *, whole: bool = False) -> "TaskGradients":
        """A copy that holds its gradients, so that several uses cost K backward passes together.

        Args:
          whole: whether in one Jacobian, for callers that read it more than once; else a few may lie apart.
        """
        if self._jacobian is not None or (self._apart is not None and not whole):
            return self
        if self._few and not whole:
            assert self._linearized is not None
            return dataclasses.replace(self, _apart=self._linearized.rows(), _prepared=None)
        return dataclasses.replace(self, _jacobian=self.jacobian(), _apart=None, _prepared=None)

    def with_gramian(self) -> "TaskGradients":
        """A copy whose Gramian and combination share their passes: what a Gramian method works with.

        Modes "two_pass" and "features", a subset and scattered gradients then never hold the Jacobian.
        """
        if self._prepared is not None:
            return self
        if self._prepare is None or self._jacobian is not None or self._apart is not None:
            return self.materialize()
        return dataclasses.replace(self, _prepared=self._prepare())

    def gramian(self) -> jax.Array:
        """Inner products of the gradients over the shared parameters.

        Returns:
          (K, K), float32, or float64 for float64 gradients. Entries outside the dtype's range under- or overflow;
          `scaled_gramian` has no such limit.
        """
        return self.scaled_gramian().dense()

    def scaled_gramian(self) -> Gramian:
        """The Gramian over the shared parameters as unit-diagonal matrix and norms: what the methods work with."""
        grads = self.with_gramian()
        if grads._prepared is not None:
            return grads._prepared.gramian
        if grads._apart is not None:
            return gramian_apart([gramian_pieces(row, self._subset) for row in grads._apart])
        return scaled_gramian(grads._rows(), self.num_tasks)

    def cross_gramian(self, other: "TaskGradients") -> CrossGramian:
        """Inner products over the shared parameters with the gradients of the same tasks on another batch."""
        return cross_gramian(self._rows(), other._rows(), self.num_tasks)

    def combine(self, weights: jax.Array, *, scale_own: bool | jax.Array = False) -> PyTree:
        """The weighted sum of the task gradients.

        Without held gradients this is one backward pass of the weighted sum (and, unless `scale_own`, one more through
        the heads alone).

        Args:
          weights: (K,) in the order of `tasks`.
          scale_own: whether a task's own parameters (its head) get their gradient times the task's weight, as in loss
            weighting, or unscaled, as in gradient methods; or (K,) weights of their own.

        Returns:
          A pytree like params, with the leaves' dtypes.
        """
        own_weights = jnp.ones_like(weights) if scale_own is False else weights if scale_own is True else scale_own
        if self._prepared is not None:
            return self._prepared.combine(weights, own_weights)
        if self._apart is not None:
            return combined_rows(self._apart, self.shared, self._leaf_tasks, weights, own_weights)
        if self._jacobian is None:
            assert self._linearized is not None
            return self._linearized.combined(self.shared, weights, own_weights)
        leaves, treedef = jax.tree.flatten(self._jacobian)
        combined = []
        for leaf, is_shared, tasks in zip(leaves, jax.tree.leaves(self.shared), self._leaf_tasks, strict=True):
            leaf_weights = weights if is_shared else own_weights
            if len(tasks) < self.num_tasks:
                combined.append(own_rows(leaf_weights, leaf, tasks))
            else:
                combined.append(weighted_rows(leaf_weights, leaf))
        return jax.tree.unflatten(treedef, combined)

    def map(self, fn: Callable[[PyTree], PyTree]) -> "TaskGradients":
        """Applies `fn` to the Jacobian pytree (leading task axis kept); the shared/own split stays as it is."""
        return self.with_jacobian(fn(self.jacobian()))

    def with_jacobian(self, jacobian: PyTree) -> "TaskGradients":
        """Other rows in place of these: pytree like params, each leaf (K, *shape); losses and shared/own split stay."""
        return dataclasses.replace(self, _jacobian=jacobian, _apart=None, _prepared=None, changed=True)

    def at(self, params_per_task: PyTree) -> "TaskGradients":
        """The gradients with task k evaluated at its own parameters, as sharpness-aware methods need.

        Args:
          params_per_task: pytree like params with a leading task axis on every leaf, (K, *shape).

        Returns:
          Gradients holding row k = d loss_k / d params at `params_per_task[k]`, with the losses found there. Auxiliary
          outputs of the losses function are discarded.

        Raises:
          ValueError: if the gradients were made from an explicit Jacobian: then there is nothing to evaluate.
        """
        jacobian, losses = self._source("at").at(params_per_task)
        return dataclasses.replace(self, _jacobian=jacobian, _apart=None, losses=losses, _prepared=None)

    def changes(self, move: Callable[[PyTree], tuple[PyTree, jax.Array]]) -> "TaskGradients":
        """How the gradients change when each task moves by its own; where none are held, one task at a time.

        Args:
          move: `gradients -> (params, moved)`, all with a leading axis: gradients of some tasks to their parameters,
            and the mask of those that are others.

        Returns:
          The differences in place of these gradients, 0 where nothing moved; losses and shared/own split stay.

        Raises:
          ValueError: if the gradients were made from an explicit Jacobian.
        """
        source = self._source("changes")
        if self._apart is not None:
            return self.with_jacobian(source.changes_of(self._apart, move))
        if self._jacobian is None:
            return self.with_jacobian(source.changes(move))
        points, moved = move(self._jacobian)
        return self.with_jacobian(differences(source.at(points)[0], self._jacobian, moved))

    def moved_to(self, params: PyTree) -> "TaskGradients":
        """The gradients of the same losses on the same data at other parameters, as lazy as these.

        Raises:
          ValueError: if the gradients were made from an explicit Jacobian.
        """
        self._source("moved_to")
        assert self._again is not None
        return self._again(params)

    def losses_at(self, params: PyTree) -> dict[str, jax.Array]:
        """The losses at other parameters, on the same data: dict of scalars by task."""
        source = self._source("losses_at")
        return dict(zip(source.tasks, source.losses_at(params), strict=True))

    def explanation(self) -> str:
        """The mode of these gradients and why it was chosen, in one line."""
        if self.choice is None:
            return f"an explicit Jacobian of {self.num_tasks} tasks"
        return sentence(self.choice, self.num_tasks)

    def with_losses(self, losses: jax.Array) -> "TaskGradients":
        """The same gradients with other (K,) losses beside them."""
        return dataclasses.replace(self, losses=losses)

    @property
    def params(self) -> PyTree:
        """The parameters the gradients were taken at.

        Raises:
          ValueError: if the gradients were made from an explicit Jacobian.
        """
        return self._source("params").params

    def _rows(self) -> list[jax.Array]:
        """The Jacobian over the parameters that enter Gramians, in pieces (K, n_i)."""
        return gramian_rows(self.jacobian(), self._subset, self.num_tasks)

    def _source(self, caller: str) -> Linearized:
        if self._linearized is None:
            raise ValueError(
                f"TaskGradients.{caller} evaluates the losses again, which an explicit Jacobian cannot: "
                "pass the result of mtl.task_gradients(losses_fn, params, ...)"
            )
        return self._linearized
