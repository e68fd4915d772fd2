"""Gradients of several tasks, evaluated on demand."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import jax
import jax.numpy as jnp

from mtljax.gradients.arguments import Mask, loss_vector, mask
from mtljax.gradients.backward import Backward
from mtljax.gradients.choice import Choice, sentence
from mtljax.gradients.engine import Engine, Layout, PyTree, chosen_pieces
from mtljax.gradients.gramian import CrossGramian, Gramian, cross_gramian
from mtljax.gradients.held import Separate, Stacked, source_of


@dataclasses.dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class TaskGradients:
    """The gradients of K task losses with respect to one tree of parameters, evaluated on demand.

    Tasks are ordered by sorted name: row k of the Jacobian belongs to `tasks[k]`. An instance is made by
    `task_gradients` or `TaskGradients.from_jacobian`, lives inside one trace, and is consumed by a method's `update`.
    Nothing is cached: `materialize` returns a copy that holds its gradients, for callers that use them more than once.
    It is no gradient: optax, flax and `jax.jit` are told so in one sentence when they get it in place of one.

    Attributes:
      engine: how the gradients are made.
      tasks: K task names in sorted order, or None when the gradients came as an unnamed Jacobian.
      losses: (K,) losses in that order, or None when unknown.
      present: (K,) bools, whether a task has a label in this batch; None when nobody says, and a method that sees
        gradients takes a loss of 0 with a zero gradient for a missing label.
      choice: the mode and why it was chosen, None for an explicit Jacobian.
      changed: whether `map` or `with_jacobian` has put something else in place of the gradients of the losses.
      elsewhere: params to the gradients of the same losses there, None for an explicit Jacobian.
    """

    engine: Engine
    tasks: tuple[str, ...] | None
    losses: jax.Array | None
    present: jax.Array | None = None
    choice: Choice | None = None
    changed: bool = False
    elsewhere: Callable[[PyTree], "TaskGradients"] | None = None

    @classmethod
    def from_jacobian(
        cls,
        jacobian: PyTree,
        losses: Mapping[str, jax.Array] | jax.Array | None = None,
        shared: Mask = None,
    ) -> "TaskGradients":
        """Wraps an explicit Jacobian.

        `jax.jacrev` knows nothing of heads: pass `shared=`, or a task's own parameters enter the Gramian and are
        weighed like shared ones.

        >>> import jax.numpy as jnp, mtljax as mtl
        >>> jacobian = {"body": jnp.array([[3.0], [4.0]]), "head": jnp.array([[1.0], [0.0]])}
        >>> grads = mtl.TaskGradients.from_jacobian(jacobian, shared={"body": True, "head": False})
        >>> grads.gramian().tolist()
        [[9.0, 12.0], [12.0, 16.0]]

        Args:
          jacobian: pytree like params, each leaf with a leading task axis, (K, *shape), as `jax.jacrev` gives it for a
            function that returns the (K,) vector of losses. Tasks in sorted order of their names.
          losses: dict of K scalars or (K,) array in sorted order of the names; None when unknown.
          shared: a predicate on the key path, or a pytree of bools like params; None means that every leaf is shared.

        Returns:
          Gradients that hold this Jacobian.

        Raises:
          ValueError: if a leaf is no floating point array, the leaves disagree on the number of tasks, or the losses
            disagree with the leaves.
        """
        paths_and_leaves = jax.tree_util.tree_flatten_with_path(jacobian)[0]
        for path, leaf in paths_and_leaves:
            if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
                raise ValueError(
                    f"the Jacobian at {jax.tree_util.keystr(path) or 'its only leaf'} has dtype "
                    f"{jnp.result_type(leaf)}, expected floating point"
                )
        jacobian = jax.tree.map(jnp.asarray, jacobian)
        leaves = jax.tree.leaves(jacobian)
        sizes = {leaf.shape[0] if leaf.ndim else 0 for leaf in leaves}
        if len(sizes) != 1 or 0 in sizes:
            raise ValueError(
                "a Jacobian needs the same leading task axis (K, *shape) on every leaf, got leaves of shapes "
                f"{[leaf.shape for leaf in leaves]}: is this the gradient of one loss? Pass jax.jacrev of the (K,) "
                "losses, or the result of mtl.task_gradients(losses_fn, params, ...)"
            )
        num_tasks = sizes.pop()
        names = tuple(sorted(losses)) if isinstance(losses, Mapping) else None
        chosen = jax.tree.map(lambda _: True, jacobian) if shared is None else mask("shared", shared, jacobian)
        layout = Layout(chosen, chosen, (tuple(range(num_tasks)),) * len(leaves), num_tasks)
        vector = None if losses is None else loss_vector(losses, names, num_tasks)
        return cls(engine=Stacked(layout, jacobian), tasks=names, losses=vector)

    @property
    def num_tasks(self) -> int:
        """K."""
        return self.engine.layout.num_tasks

    @property
    def shared(self) -> PyTree:
        """Pytree of bools like params: which are shared. Only those enter Gramians."""
        return self.engine.layout.shared

    def jacobian(self) -> PyTree:
        """The gradients of all tasks: pytree like params, each leaf (K, *shape). Costs K backward passes."""
        return self.engine.rows()

    def gramian(self) -> jax.Array:
        """Inner products of the gradients over the shared parameters.

        Returns:
          (K, K), float32, or float64 for float64 gradients. Entries outside the dtype's range under- or overflow;
          `scaled_gramian` has no such limit.
        """
        return self.engine.gramian().dense()

    def scaled_gramian(self) -> Gramian:
        """The Gramian over the shared parameters as unit-diagonal matrix and norms: what the methods work with."""
        return self.engine.gramian()

    def cross_gramian(self, other: "TaskGradients") -> CrossGramian:
        """Inner products over the shared parameters with the gradients of the same tasks on another batch."""
        left, right = (chosen_pieces(g.jacobian(), g.engine.layout.gramian, axis=1) for g in (self, other))
        return cross_gramian(left, right, self.num_tasks)

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
        return self.engine.combine(weights, own_weights)

    def materialize(self, *, whole: bool = False) -> "TaskGradients":
        """A copy that holds its gradients, so that several uses cost K backward passes together.

        Args:
          whole: whether in one Jacobian, for callers that read it more than once; else a few are held separately.
        """
        engine = self.engine
        if isinstance(engine, Stacked) or (isinstance(engine, Separate) and not whole):
            return self
        if type(engine) is Backward and not whole:
            return self._by(engine.held())
        return self._by(Stacked(engine.layout, engine.rows(), source_of(engine)))

    def with_gramian(self) -> "TaskGradients":
        """A copy whose Gramian and combination share their passes: what a Gramian method works with.

        Modes "two_pass" and "features", a subset and scattered gradients then never hold the Jacobian.
        """
        return self._by(self.engine.held())

    def _by(self, engine: Engine) -> "TaskGradients":
        return dataclasses.replace(self, engine=engine)

    def map(self, fn: Callable[[PyTree], PyTree]) -> "TaskGradients":
        """Applies `fn` to the Jacobian pytree (leading task axis kept); the shared/own split stays as it is."""
        return self.with_jacobian(fn(self.jacobian()))

    def with_jacobian(self, jacobian: PyTree) -> "TaskGradients":
        """Other rows in place of these: pytree like params, each leaf (K, *shape); losses and shared/own split stay."""
        return dataclasses.replace(self, engine=self._stacked(jacobian), changed=True)

    def _stacked(self, jacobian: PyTree) -> Stacked:
        source: Any = getattr(self.engine, "source", self.engine)
        return Stacked(self.engine.layout, jacobian, source)

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
        jacobian, losses = self.engine.at(params_per_task)
        return dataclasses.replace(self, engine=self._stacked(jacobian), losses=losses)

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
        source_of(self.engine)
        return self.with_jacobian(self.engine.changes(move))

    def moved_to(self, params: PyTree) -> "TaskGradients":
        """The gradients of the same losses on the same data at other parameters, as lazy as these.

        Raises:
          ValueError: if the gradients were made from an explicit Jacobian.
        """
        source_of(self.engine)
        assert self.elsewhere is not None
        return self.elsewhere(params)

    def losses_at(self, params: PyTree) -> dict[str, jax.Array]:
        """The losses at other parameters, on the same data: dict of scalars by task."""
        losses = source_of(self.engine).losses_at(params)
        assert self.tasks is not None
        return dict(zip(self.tasks, losses, strict=True))

    def with_losses(self, losses: jax.Array) -> "TaskGradients":
        """The same gradients with other (K,) losses beside them."""
        return dataclasses.replace(self, losses=losses)

    @property
    def params(self) -> PyTree:
        """The parameters the gradients were taken at.

        Raises:
          ValueError: if the gradients were made from an explicit Jacobian.
        """
        return source_of(self.engine).params

    def explanation(self) -> str:
        """The mode of these gradients and why it was chosen, in one line."""
        if self.choice is None:
            return f"an explicit Jacobian of {self.num_tasks} tasks"
        return sentence(self.choice, self.num_tasks)

    def __repr__(self) -> str:
        names = "" if self.tasks is None else f" of {', '.join(self.tasks)}"
        return f"<TaskGradients{names}: {self.explanation()}>"

    def _refuse(self, *_: Any) -> NoReturn:
        names = "" if self.tasks is None else f" ({', '.join(self.tasks)})"
        raise TypeError(
            f"these are the gradients of {self.num_tasks} tasks{names}, not one gradient: put a method, such as "
            "mtl.ew(), before the other transformations in optax.chain and no wrapper around it, or take the plain "
            "gradient of mtl.value_and_grad(losses_fn, method); out of jit, return grads.jacobian()"
        )

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __pow__ = __neg__ = _refuse
    __iter__ = __contains__ = __getitem__ = __jax_array__ = __array__ = _refuse


# A node of pytrees that explains itself wherever someone maps over what should be one gradient.
jax.tree_util.register_pytree_node(TaskGradients, TaskGradients._refuse, TaskGradients._refuse)
