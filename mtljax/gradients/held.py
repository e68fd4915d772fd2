"""Engines that hold K gradients: stacked in one Jacobian, or, where they are few, as K separate pytrees."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from mtljax.gradients.engine import Layout, PyTree, accumulation, chosen_pieces, differences, sum_over_tasks
from mtljax.gradients.gramian import Gramian, gramian_of_pairs, scaled_gramian

if TYPE_CHECKING:
    from mtljax.gradients.backward import Backward


@dataclasses.dataclass(frozen=True, eq=False)
class Stacked:
    """One Jacobian.

    Attributes:
      layout: which parameters enter what.
      jacobian: pytree like params, each leaf (K, *shape).
      source: the engine it came from; None for a Jacobian from elsewhere, which cannot be taken again.
    """

    layout: Layout
    jacobian: PyTree
    source: "Backward | None" = None

    def rows(self) -> PyTree:
        """The Jacobian."""
        return self.jacobian

    def gramian(self) -> Gramian:
        """From products of its pieces."""
        pieces = chosen_pieces(self.jacobian, self.layout.gramian, axis=1)
        return scaled_gramian(pieces, self.layout.num_tasks)

    def combine(self, weights: jax.Array, own_weights: jax.Array) -> PyTree:
        """From its rows."""
        leaves, treedef = jax.tree.flatten(self.jacobian)
        shared = jax.tree.leaves(self.layout.shared)
        return jax.tree.unflatten(
            treedef,
            [
                sum_over_tasks(weights if is_shared else own_weights, leaf, tasks)
                for leaf, is_shared, tasks in zip(leaves, shared, self.layout.tasks, strict=True)
            ],
        )

    def at(self, params_per_task: PyTree) -> tuple[PyTree, jax.Array]:
        """From where the Jacobian came."""
        return source_of(self).at(params_per_task)

    def changes(self, move: Callable[[PyTree], tuple[PyTree, jax.Array]]) -> PyTree:
        """See `TaskGradients.changes`."""
        points, moved = move(self.jacobian)
        return differences(self.at(points)[0], self.jacobian, moved)

    def held(self) -> "Stacked":
        """Itself."""
        return self


@dataclasses.dataclass(frozen=True, eq=False)
class Separate:
    """K gradients as K pytrees: for a few tasks, products of pairs cost less than a copy into one Jacobian.

    Attributes:
      layout: which parameters enter what.
      gradients: K pytrees like params.
      source: the engine they came from.
    """

    layout: Layout
    gradients: tuple[PyTree, ...]
    source: "Backward"

    def rows(self) -> PyTree:
        """Stacked."""
        return jax.tree.map(lambda *rows: jnp.stack(rows), *self.gradients)

    def gramian(self) -> Gramian:
        """From products of pairs."""
        chosen = self.layout.gramian
        return gramian_of_pairs([chosen_pieces(gradient, chosen, axis=0) for gradient in self.gradients])

    def combine(self, weights: jax.Array, own_weights: jax.Array) -> PyTree:
        """In one pass over the gradients."""
        combined = []
        every = zip(*map(jax.tree.leaves, self.gradients), strict=True)
        shared = jax.tree.leaves(self.layout.shared)
        for leaves, is_shared, tasks in zip(every, shared, self.layout.tasks, strict=True):
            dtype = accumulation(leaves[0].dtype)
            factors = (weights if is_shared else own_weights).astype(dtype)
            terms = [factors[k] * leaves[k].astype(dtype) for k in tasks]
            combined.append(sum(terms, jnp.zeros(leaves[0].shape, dtype)).astype(leaves[0].dtype))
        return jax.tree.unflatten(jax.tree.structure(self.layout.shared), combined)

    def at(self, params_per_task: PyTree) -> tuple[PyTree, jax.Array]:
        """From where the gradients came."""
        return self.source.at(params_per_task)

    def changes(self, move: Callable[[PyTree], tuple[PyTree, jax.Array]]) -> PyTree:
        """See `TaskGradients.changes`."""
        changes = [
            self.source.change(gradient, move, lambda losses, k=k: losses[k])
            for k, gradient in enumerate(self.gradients)
        ]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *changes)

    def held(self) -> "Separate":
        """Itself."""
        return self


def source_of(engine: Any) -> "Backward":
    """The engine that can evaluate the losses again; a ValueError where there is none."""
    source = getattr(engine, "source", engine)
    if source is None:
        raise ValueError(
            "an explicit Jacobian cannot be evaluated at other parameters: pass the result of "
            "mtl.task_gradients(losses_fn, params, ...)"
        )
    return source
