"""One gradient per task, not yet combined: `task_gradients` and the lazy `TaskGradients` it returns.

The forward pass runs once, as a linearization of the losses. Everything else (the Jacobian, one backward pass of a
weighted sum) is a transposition of that linear map, made only when a method asks for it.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.interpreters import partial_eval

PyTree: TypeAlias = Any
Mode: TypeAlias = Literal["auto", "jacrev", "loop"]
Shared: TypeAlias = Callable[[tuple[Any, ...]], bool] | PyTree | None

MODES = ("auto", "jacrev", "loop")


class Gramian(NamedTuple):
    """The Gramian of the task gradients in unit-diagonal coordinates, where nothing under- or overflows.

    The Gramian itself is `diag(norms) @ cosines @ diag(norms)`.

    Attributes:
      cosines: (K, K), inner products of the normalised gradients; row, column and diagonal of a zero gradient are 0.
      norms: (K,), the Euclidean norms of the gradients.
    """

    cosines: jax.Array
    norms: jax.Array

    def dense(self) -> jax.Array:
        """The (K, K) matrix of inner products; entries beyond the dtype's range under- or overflow."""
        return self.norms[:, None] * self.cosines * self.norms[None, :]


class CrossGramian(NamedTuple):
    """Inner products of the task gradients on two batches, `diag(left) @ cosines @ diag(right)`.

    Attributes:
      cosines: (K, K), of normalised gradients, first batch by second; 0 where either is zero.
      left: (K,), norms on the first batch.
      right: (K,), norms on the second.
    """

    cosines: jax.Array
    left: jax.Array
    right: jax.Array


class TaskGradients:
    """The gradients of K task losses with respect to one tree of parameters, evaluated on demand.

    Tasks are ordered by sorted name: row k of the Jacobian belongs to `tasks[k]`. An instance is made by
    `task_gradients` or `TaskGradients.from_jacobian`, lives inside one trace, and is consumed by a method's `update`.
    Nothing is cached: `materialize` returns a copy that holds its Jacobian, for callers that use it more than once.

    Attributes:
      tasks: K task names in sorted order, or None when the gradients came as an unnamed Jacobian.
      num_tasks: K.
      losses: (K,) losses in that order, or None when unknown.
      shared: pytree of bools like params; only shared leaves enter Gramians.
    """

    def __init__(
        self,
        *,
        tasks: tuple[str, ...] | None,
        losses: jax.Array | None,
        shared: PyTree,
        leaf_tasks: Sequence[tuple[int, ...]],
        num_tasks: int,
        jacobian: PyTree | None = None,
        pullbacks: "_Pullbacks | None" = None,
    ) -> None:
        self.tasks = tasks
        self.num_tasks = num_tasks
        self.losses = losses
        self.shared = shared
        self._leaf_tasks = tuple(leaf_tasks)
        self._jacobian = jacobian
        self._pullbacks = pullbacks

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
            leaf_tasks=[every] * len(leaves),
            num_tasks=num_tasks,
            jacobian=jax.tree.map(jnp.asarray, jacobian),
        )

    def jacobian(self) -> PyTree:
        """The gradients of all tasks: pytree like params, each leaf (K, *shape). Costs K backward passes."""
        if self._jacobian is not None:
            return self._jacobian
        assert self._pullbacks is not None
        return self._pullbacks.jacobian()

    def materialize(self) -> "TaskGradients":
        """A copy that holds its Jacobian, so that several uses cost K backward passes together."""
        if self._jacobian is not None:
            return self
        return self._with_jacobian(self.jacobian(), self.losses)

    def gramian(self) -> jax.Array:
        """Inner products of the gradients over the shared parameters.

        Returns:
          (K, K), float32, or float64 for float64 gradients. Entries outside the dtype's range under- or overflow;
          `scaled_gramian` has no such limit.
        """
        return self.scaled_gramian().dense()

    def scaled_gramian(self) -> Gramian:
        """The Gramian over the shared parameters as unit-diagonal matrix and norms: what the methods work with."""
        return scaled_gramian(self._shared_rows(), self.num_tasks)

    def combine(self, weights: jax.Array, *, scale_own: bool | jax.Array = False) -> PyTree:
        """The weighted sum of the task gradients.

        Without a held Jacobian this is one backward pass of the weighted sum (and, unless `scale_own`, one more through
        the heads alone).

        Args:
          weights: (K,) in the order of `tasks`.
          scale_own: whether a task's own parameters (its head) get their gradient times the task's weight, as in loss
            weighting, or unscaled, as in gradient methods; or (K,) weights of their own.

        Returns:
          A pytree like params, with the leaves' dtypes.
        """
        own_weights = jnp.ones_like(weights) if scale_own is False else weights if scale_own is True else scale_own
        if self._jacobian is None:
            assert self._pullbacks is not None
            weighted = self._pullbacks.weighted(weights)
            if own_weights is weights or all(jax.tree.leaves(self.shared)):
                return weighted
            own = self._pullbacks.weighted(own_weights)
            return jax.tree.map(lambda s, a, b: a if s else b, self.shared, weighted, own)
        leaves, treedef = jax.tree.flatten(self._jacobian)
        combined = []
        for leaf, is_shared, tasks in zip(leaves, jax.tree.leaves(self.shared), self._leaf_tasks, strict=True):
            index = jnp.asarray(tasks, dtype=jnp.int32)
            leaf_weights = weights if is_shared else own_weights
            if len(tasks) < self.num_tasks:
                # Rows of the other tasks are exactly zero here; leaving them out lets the compiler drop them.
                leaf, leaf_weights = jnp.stack([leaf[k] for k in tasks]) if tasks else leaf[:0], leaf_weights[index]
            combined.append(_weighted_rows(leaf_weights, leaf))
        return jax.tree.unflatten(treedef, combined)

    def map(self, fn: Callable[[PyTree], PyTree]) -> "TaskGradients":
        """Applies `fn` to the Jacobian pytree (leading task axis kept); the shared/own split stays as it is."""
        return self._with_jacobian(fn(self.jacobian()), self.losses)

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
        return self._with_jacobian(jacobian, losses)

    def losses_at(self, params: PyTree) -> dict[str, jax.Array]:
        """The losses at other parameters, on the same data: dict of scalars by task."""
        source = self._source("losses_at")
        return dict(zip(source.tasks, source.losses_at(params), strict=True))

    def with_losses(self, losses: jax.Array) -> "TaskGradients":
        """The same gradients with other (K,) losses beside them."""
        return self._with_jacobian(self._jacobian, losses)

    def _shared_rows(self) -> list[jax.Array]:
        """The Jacobian over the shared parameters, in pieces (K, n_i)."""
        return [
            leaf.reshape(self.num_tasks, -1).astype(_accumulation_dtype(leaf.dtype))
            for leaf, is_shared in zip(jax.tree.leaves(self.jacobian()), jax.tree.leaves(self.shared), strict=True)
            if is_shared and leaf.size
        ]

    def _source(self, caller: str) -> "_Pullbacks":
        if self._pullbacks is None:
            raise ValueError(
                f"TaskGradients.{caller} evaluates the losses again, which an explicit Jacobian cannot: "
                "pass the result of mtl.task_gradients(losses_fn, params, ...)"
            )
        return self._pullbacks

    def _with_jacobian(self, jacobian: PyTree | None, losses: jax.Array | None) -> "TaskGradients":
        return TaskGradients(
            tasks=self.tasks,
            losses=losses,
            shared=self.shared,
            leaf_tasks=self._leaf_tasks,
            num_tasks=self.num_tasks,
            jacobian=jacobian,
            pullbacks=self._pullbacks,
        )


class _Pullbacks(NamedTuple):
    """The linearized losses and the ways to transpose them."""

    losses_fn: Callable[[PyTree], tuple[jax.Array, ...]]  # params -> K losses, sorted by task
    linear: Callable[[PyTree], tuple[jax.Array, ...]]  # tangent of params -> K tangents of losses
    params: PyTree
    tasks: tuple[str, ...]
    dtypes: tuple[jnp.dtype, ...]
    mode: str
    axis_name: Any

    def jacobian(self) -> PyTree:
        if self.mode == "jacrev":
            # What jax.jacrev does after its forward pass: one pullback, mapped over the unit vectors. jacrev itself
            # would run the forward pass again, or differentiate the linear map, which custom_vjp forbids.
            pullback = jax.linear_transpose(lambda tangent: jnp.stack(self.linear(tangent)), self.params)
            basis = _varying(jnp.eye(len(self.tasks), dtype=jnp.result_type(*self.dtypes)), self.axis_name)
            jacobian = jax.vmap(lambda cotangent: pullback(cotangent)[0])(basis)
        else:
            # Transposing one output at a time leaves the other tasks' heads out of each backward pass.
            rows = [
                jax.linear_transpose(lambda tangent, k=k: self.linear(tangent)[k], self.params)(
                    _varying(jnp.ones((), dtype), self.axis_name)
                )[0]
                for k, dtype in enumerate(self.dtypes)
            ]
            jacobian = jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)
        return _mean(jacobian, self.axis_name)

    def weighted(self, weights: jax.Array) -> PyTree:
        cotangents = tuple(weights[k].astype(dtype) for k, dtype in enumerate(self.dtypes))
        cotangents = _varying(cotangents, self.axis_name)
        return _mean(jax.linear_transpose(self.linear, self.params)(cotangents)[0], self.axis_name)

    def losses_at(self, params: PyTree) -> tuple[jax.Array, ...]:
        return _mean(self.losses_fn(_varying(params, self.axis_name)), self.axis_name)

    def at(self, params_per_task: PyTree) -> tuple[PyTree, jax.Array]:
        params_per_task = _varying(params_per_task, self.axis_name)
        num_tasks = len(self.tasks)
        if self.mode == "jacrev":

            def selected(params: PyTree, one_hot: jax.Array) -> jax.Array:
                return jnp.vdot(one_hot, jnp.stack(self.losses_fn(params)))

            losses, jacobian = jax.vmap(jax.value_and_grad(selected))(params_per_task, jnp.eye(num_tasks))
        else:
            values, rows = [], []
            for k in range(num_tasks):
                params = jax.tree.map(lambda leaf, k=k: leaf[k], params_per_task)
                value, row = jax.value_and_grad(lambda p, k=k: self.losses_fn(p)[k])(params)
                values.append(value)
                rows.append(row)
            losses = jnp.stack(values)
            jacobian = jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)
        return _mean((jacobian, losses), self.axis_name)


def task_gradients(
    losses_fn: Callable[..., Any],
    params: PyTree,
    *args: Any,
    shared: Shared = None,
    mode: Mode = "auto",
    axis_name: Any = None,
    has_aux: bool = False,
) -> tuple[Any, TaskGradients]:
    """Evaluates the task losses once and prepares their gradients, one a task.

    >>> import jax.numpy as jnp, mtljax as mtl
    >>> losses_fn = lambda p, x: {"left": jnp.sum((p - x) ** 2), "right": jnp.sum((p + x) ** 2)}
    >>> losses, grads = mtl.task_gradients(losses_fn, jnp.array([1.0, 0.0]), jnp.array([3.0, 0.0]))
    >>> grads.gramian().tolist()
    [[16.0, -32.0], [-32.0, 64.0]]

    Args:
      losses_fn: `losses_fn(params, *args)` returns a dict of scalar losses, one a task, or with `has_aux` a pair
        `(losses, aux)`.
      params: pytree of floating point arrays.
      *args: passed on to `losses_fn`, not differentiated.
      shared: which parameters are shared: a predicate on the key path (as in `jax.tree_util.tree_map_with_path`), or a
        pytree of bools like params. None finds it from the computation: a leaf is shared when two or more losses depend
        on it, and always when there is one task.
      mode: "jacrev" (one vectorised backward pass, as in `jax.jacrev`), "loop" (K backward passes, one forward pass) or
        "auto": "loop" on CPU, where vectorised convolutions are slow, and "jacrev" elsewhere.
      axis_name: name of a pmap, shard_map or vmap axis: losses and gradients are averaged over it before anything
        nonlinear happens to them.
      has_aux: whether `losses_fn` returns `(losses, aux)`.

    Returns:
      `(losses, grads)`, or `((losses, aux), grads)` with `has_aux`: the dict of losses and the lazy gradients.

    Raises:
      ValueError: if `losses_fn` returns no dict, an empty one, or a loss that is no floating point scalar; if `mode`
        is unknown; if `shared` does not match params.
    """
    if mode not in MODES:
        raise ValueError(f"mode={mode!r} is unknown: use one of {', '.join(map(repr, MODES))}")
    if mode == "auto":
        mode = "loop" if jax.default_backend() == "cpu" else "jacrev"

    names: tuple[str, ...] = ()

    def flat_losses(p: PyTree) -> tuple[tuple[jax.Array, ...], Any]:
        nonlocal names
        result = losses_fn(p, *args)
        losses, aux = result if has_aux else (result, None)
        names = _checked_names(losses)
        return tuple(jnp.asarray(losses[name]) for name in names), aux

    _check_floating(params)
    params = _varying(params, axis_name)
    values, linear, aux = jax.linearize(flat_losses, params, has_aux=True)
    leaf_tasks = _leaf_tasks(linear, params)
    mask = _shared_mask(shared, params, leaf_tasks, len(names))
    pullbacks = _Pullbacks(
        losses_fn=lambda p: flat_losses(p)[0],
        linear=linear,
        params=params,
        tasks=names,
        dtypes=tuple(value.dtype for value in values),
        mode=mode,
        axis_name=axis_name,
    )
    values = _mean(values, axis_name)
    grads = TaskGradients(
        tasks=names,
        losses=jnp.stack(values),
        shared=mask,
        leaf_tasks=leaf_tasks,
        num_tasks=len(names),
        pullbacks=pullbacks,
    )
    losses = dict(zip(names, values, strict=True))
    return ((losses, aux) if has_aux else losses), grads


def scaled_gramian(rows: Sequence[jax.Array], num_tasks: int) -> Gramian:
    """The Gramian of gradients given in pieces.

    Each row is divided by its largest entry before the products, so rows of 1e-30 and of 1e15 are equally exact.

    Args:
      rows: arrays (K, n_i), together the K gradients; float32 or float64.
      num_tasks: K, needed when there is no piece.

    Returns:
      The Gramian in unit-diagonal coordinates, in the dtype of the pieces (float32 when there is none).
    """
    if not rows:
        return Gramian(jnp.zeros((num_tasks, num_tasks)), jnp.zeros(num_tasks))
    units, scale = _unit_peaks(rows)
    products = sum(jnp.matmul(unit, unit.T, precision=lax.Precision.HIGHEST) for unit in units)
    lengths = jnp.sqrt(jnp.diagonal(products))
    inverse = _inverse(lengths)
    cosines = inverse[:, None] * products * inverse[None, :]
    cosines = jnp.clip((cosines + cosines.T) / 2, -1, 1)
    identity = jnp.eye(num_tasks, dtype=bool)
    return Gramian(jnp.where(identity, (lengths > 0).astype(cosines.dtype), cosines), lengths * scale)


def cross_gramian(left: TaskGradients, right: TaskGradients) -> CrossGramian:
    """The inner products of the gradients of the same tasks on two batches, over the shared parameters.

    Args:
      left: gradients on the first batch.
      right: gradients on the second, of the same parameters.

    Returns:
      The products in unit-diagonal coordinates.
    """
    sides = [each.materialize()._shared_rows() for each in (left, right)]
    num_tasks = left.num_tasks
    if not sides[0]:
        return CrossGramian(jnp.zeros((num_tasks, num_tasks)), jnp.zeros(num_tasks), jnp.zeros(num_tasks))
    (a, a_scale), (b, b_scale) = map(_unit_peaks, sides)
    products = sum(jnp.matmul(x, y.T, precision=lax.Precision.HIGHEST) for x, y in zip(a, b, strict=True))
    a_length, b_length = (jnp.sqrt(sum(jnp.sum(x * x, axis=1) for x in units)) for units in (a, b))
    cosines = jnp.clip(_inverse(a_length)[:, None] * products * _inverse(b_length)[None, :], -1, 1)
    return CrossGramian(cosines, a_length * a_scale, b_length * b_scale)


def _unit_peaks(rows: Sequence[jax.Array]) -> tuple[list[jax.Array], jax.Array]:
    """Each row over all pieces divided by its largest entry, and those entries (1 for a zero row), (K,)."""
    peak = jnp.stack([jnp.max(jnp.abs(piece), axis=1) for piece in rows]).max(axis=0)
    scale = jnp.where(peak > 0, peak, 1)
    return [piece / scale[:, None] for piece in rows], scale


def _inverse(lengths: jax.Array) -> jax.Array:
    return jnp.where(lengths > 0, 1 / jnp.where(lengths > 0, lengths, 1), 0)


def loss_vector(
    losses: Mapping[str, Any] | jax.Array, tasks: tuple[str, ...] | None, num_tasks: int, what: str = "losses"
) -> jax.Array:
    """Task values as a (K,) array in sorted task order.

    Args:
      losses: dict of K scalars by task name, or a (K,) array already in that order.
      tasks: the sorted task names, None when unknown (a dict is then ordered by its own sorted names).
      num_tasks: K.
      what: what the values are, for the error.

    Returns:
      (K,) array.

    Raises:
      ValueError: if names or shape do not match.
    """
    if isinstance(losses, Mapping):
        names = tuple(sorted(losses))
        if (tasks is not None and names != tasks) or len(names) != num_tasks:
            expected = f"the tasks {list(tasks)}" if tasks is not None else f"{num_tasks} tasks"
            raise ValueError(f"{what}: got the keys {list(names)}, expected those of {expected}")
        return jnp.stack([jnp.asarray(losses[name]) for name in names])
    vector = jnp.asarray(losses)
    if vector.shape != (num_tasks,):
        raise ValueError(
            f"{what}: got shape {vector.shape}, expected a dict by task or an array of shape ({num_tasks},) "
            "in sorted order of the task names"
        )
    return vector


def _checked_names(losses: Any) -> tuple[str, ...]:
    if not isinstance(losses, Mapping) or not len(losses):
        what = "an empty dict" if isinstance(losses, Mapping) else f"a {type(losses).__name__}"
        raise ValueError(
            f"losses_fn returned {what}, expected a dict of scalar losses, one a task, e.g. "
            '{"left": loss_left, "right": loss_right}'
        )
    for name, loss in losses.items():
        if not isinstance(name, str):
            raise ValueError(f"task names must be strings, got {name!r}")
        if jnp.shape(loss) != () or not jnp.issubdtype(jnp.result_type(loss), jnp.floating):
            raise ValueError(
                f"the loss of task {name!r} has shape {tuple(jnp.shape(loss))} and dtype {jnp.result_type(loss)}, "
                "expected a floating point scalar: reduce it, e.g. with jnp.mean"
            )
    return tuple(sorted(losses))


def _check_floating(params: PyTree) -> None:
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise ValueError(
                f"parameter {jax.tree_util.keystr(path)} has dtype {jnp.result_type(leaf)}, expected floating point: "
                "keep counters and other integers out of params"
            )


def _leaf_tasks(linear: Callable[[PyTree], tuple[jax.Array, ...]], params: PyTree) -> list[tuple[int, ...]]:
    """For each leaf of params, the indices of the losses with a gradient there.

    Read off the linearized losses: they hold no side effects (a jax.debug.print of a head's output is no dependence),
    and nothing behind stop_gradient.
    """
    paths = jax.tree_util.tree_flatten_with_path(params)[0]
    jaxpr = jax.make_jaxpr(linear)(params).jaxpr
    num_tasks = len(jaxpr.outvars)
    used = [partial_eval.dce_jaxpr(jaxpr, [j == k for j in range(num_tasks)])[1] for k in range(num_tasks)]
    leaf_tasks = [tuple(k for k in range(num_tasks) if used[k][i]) for i in range(len(paths))]
    unused = [jax.tree_util.keystr(path) for (path, _), tasks in zip(paths, leaf_tasks, strict=True) if not tasks]
    if unused:
        warnings.warn(
            f"no loss depends on the parameter{'s' if len(unused) > 1 else ''} {', '.join(unused)}: "
            "the gradient there is zero",
            stacklevel=3,
        )
    return leaf_tasks


def _shared_mask(shared: Shared, params: PyTree, leaf_tasks: Sequence[tuple[int, ...]], num_tasks: int) -> PyTree:
    treedef = jax.tree.structure(params)
    if shared is None:
        return jax.tree.unflatten(treedef, [len(tasks) >= min(2, num_tasks) for tasks in leaf_tasks])
    if callable(shared):
        return jax.tree_util.tree_map_with_path(lambda path, _: bool(shared(path)), params)
    if jax.tree.structure(shared) != treedef:
        raise ValueError(
            f"shared has the structure {jax.tree.structure(shared)}, expected a predicate on the key path or a pytree "
            f"of bools like params, {treedef}"
        )
    return jax.tree.map(bool, shared)


def _accumulation_dtype(dtype: Any) -> Any:
    return jnp.promote_types(dtype, jnp.float32)


def _weighted_rows(weights: jax.Array, rows: jax.Array) -> jax.Array:
    """Σ_k weights[k] rows[k], accumulated in float32 at least, in the dtype of the rows."""
    dtype = _accumulation_dtype(rows.dtype)
    total = jnp.tensordot(weights.astype(dtype), rows.astype(dtype), axes=1, precision=lax.Precision.HIGHEST)
    return total.astype(rows.dtype)


def _mean(tree: PyTree, axis_name: Any) -> PyTree:
    return tree if axis_name is None else lax.pmean(tree, axis_name)


def _varying(params: PyTree, axis_name: Any) -> PyTree:
    """Marks params as differing over the axis, so that shard_map does not sum their cotangents by itself."""
    if axis_name is None:
        return params
    axes = axis_name if isinstance(axis_name, tuple) else (axis_name,)

    def cast(leaf: jax.Array, axis: Any) -> jax.Array:
        try:
            return lax.pcast(leaf, axis, to="varying")
        except ValueError:  # already varying, or the axis is vmap's: nothing to mark
            return leaf

    for axis in axes:
        params = jax.tree.map(lambda leaf, axis=axis: cast(leaf, axis), params)
    return params
