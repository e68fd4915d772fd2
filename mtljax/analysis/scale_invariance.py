"""What multiplying the losses by constants does to training: is a method with an optimizer invariant to their scale?"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mtljax.gradients import Mask, Mode, PyTree, SplitLosses, TaskGradients, mask, split, task_gradients

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BACKBONE = "backbone"
_SMALLEST = 1e-17  # difference that is drawn


class ScaleInvariance(NamedTuple):
    """Two runs beside each other, one with the losses as they are, one with them scaled; N steps.

    The groups of parameters are "backbone" (the shared ones) and "head TASK" for a task's own.

    Attributes:
      differences: by group, (N,) ‖u - u'‖ / max(‖u‖, ‖u'‖) of the updates u and u', from 0 to 2.
      norms: by group, (2, N) ‖u‖ and ‖u'‖.
      losses: by task, (2, N), those of the second run without their factor.
      tolerance: the difference up to which updates count as equal.
    """

    differences: dict[str, np.ndarray]
    norms: dict[str, np.ndarray]
    losses: dict[str, np.ndarray]
    tolerance: float

    def agreed(self) -> dict[str, int]:
        """By group, the number of steps before the updates differ for the first time; N if they never do."""
        differs = {group: ~(each <= self.tolerance) for group, each in self.differences.items()}  # NaN is apart
        return {group: int(np.argmax(each)) if each.any() else len(each) for group, each in differs.items()}

    def verdicts(self) -> dict[str, str]:
        """By group: "invariant" (equal updates at all steps), "not" (not even at the first) or for how long.

        A run whose updates became NaN or infinite says so: "not, not finite from step 8 on".
        """

        def verdict(group: str, steps: int) -> str:
            not_finite = ~np.isfinite(self.differences[group])
            text = {0: "not", 1: "first step", len(not_finite): "invariant"}.get(steps, f"first {steps} steps")
            return f"{text}, not finite from step {int(np.argmax(not_finite)) + 1} on" if not_finite.any() else text

        return {group: verdict(group, steps) for group, steps in self.agreed().items()}


def scale_invariance(
    losses_fn: Callable[..., Any],
    params: PyTree,
    batches: Sequence[Any],
    tx: optax.GradientTransformation,
    scales: Mapping[str, float] | Sequence[float],
    *,
    shared: Mask = None,
    frozen: Mask = None,
    steps: int | None = None,
    same_path: bool = False,
    tolerance: float = 1e-3,
    mode: Mode = "auto",
) -> ScaleInvariance:
    """Trains twice from the same start on the same batches, the second time with scaled losses; compares the updates.

    As in Elich et al., arXiv:2311.04698, App. A2. Rounding, and constants such as Adam's ε, make a first difference,
    which training may enlarge, above all where gradients jump: take float64 parameters (`jax.enable_x64`) to tell
    it from a rule that is not invariant, or `same_path`.

    >>> import jax.numpy as jnp, mtljax as mtl, optax
    >>> losses_fn = lambda p, x: {t: jnp.mean((p["body"] * x * p[t] - 1) ** 2) for t in ("a", "b")}
    >>> params = {"body": jnp.array(0.5), "a": jnp.array(1.0), "b": jnp.array(-1.0)}
    >>> run = mtl.analysis.scale_invariance(
    ...     losses_fn, params, [jnp.ones(4)], optax.chain(mtl.ew(), optax.adam(0.1)), {"a": 10, "b": 0.1}, steps=5
    ... )
    >>> run.verdicts()
    {'backbone': 'not', 'head a': 'first step', 'head b': 'first step'}

    Args:
      losses_fn: `losses_fn(params, batch)` returns a dict of scalar losses.
      params: where to start.
      batches: of equal shapes; taken in order, over and over.
      tx: a method followed by any optax optimizer.
      scales: a factor for each loss, by task or in sorted order of the names.
      shared: as for `mtl.task_gradients`.
      frozen: parameters that stay as they are and are left out of the comparison: a predicate on the key path, or a
        pytree of bools like params; None means none.
      steps: N; None takes every batch once.
      same_path: take the second run's gradients at the first run's parameters. The difference is then of the update
        rule alone, not of where it has led before.
      tolerance: see `ScaleInvariance`.
      mode: as for `mtl.task_gradients`.

    Returns:
      The comparison; `.verdicts()` says it in words.

    Raises:
      ValueError: if there is no batch or no step, or the scales do not match the tasks or are not positive.
    """
    if not isinstance(batches, list | tuple) or isinstance(scales, int | float):
        raise ValueError("scale_invariance takes a list of batches, and a scale for each task")
    count = len(batches) if steps is None else steps
    if not batches or count < 1:
        raise ValueError(f"scale_invariance needs at least one batch and one step, got {len(batches)} and {steps}")
    grads = _traced(losses_fn, params, batches[0], shared=shared, mode=mode)
    factors = _factors(scales, grads.tasks or ())
    groups = _groups(grads)
    still = mask("frozen", (lambda _: False) if frozen is None else frozen, params)
    groups = [None if fixed else group for group, fixed in zip(groups, jax.tree.leaves(still), strict=True)]
    names = sorted({group for group in groups if group is not None}, key=lambda name: (name != BACKBONE, name))
    if not names:
        raise ValueError("scale_invariance: frozen leaves no parameter to compare")
    scaled = _scaled(losses_fn, factors)
    rule: Any = optax.with_extra_args_support(tx)  # optax's types know no TaskGradients

    def moved(losses_fn: Any, params: PyTree, at: PyTree, state: Any, batch: Any) -> Any:
        losses, grads = task_gradients(losses_fn, at, batch, shared=shared, mode=mode)
        updates, state = rule.update(grads, state, at, losses=losses)
        updates = jax.tree.map(lambda u, fixed: jnp.zeros_like(u) if fixed else u, updates, still)
        return optax.apply_updates(params, updates), state, updates, losses

    @jax.jit
    def step(pair: Any, batch: Any) -> Any:
        (left, left_state), (right, right_state) = pair
        at = left if same_path else right
        left, left_state, plain, plain_losses = moved(losses_fn, left, left, left_state, batch)
        right, right_state, other, other_losses = moved(scaled, right, at, right_state, batch)
        other_losses = {task: other_losses[task] / factors[task] for task in factors}
        compared = {name: _compared(plain, other, [group == name for group in groups]) for name in names}
        return ((left, left_state), (right, right_state)), compared, (plain_losses, other_losses)

    pair, records = ((params, tx.init(params)),) * 2, []
    for index in range(count):
        pair, *record = step(pair, batches[index % len(batches)])
        records.append(record)
    compared, losses = (jax.device_get([record[i] for record in records]) for i in (0, 1))
    return ScaleInvariance(
        differences={name: np.array([each[name][0] for each in compared]) for name in names},
        norms={name: np.transpose([each[name][1:] for each in compared]) for name in names},
        losses={task: np.array([[both[i][task] for both in losses] for i in (0, 1)]) for task in factors},
        tolerance=tolerance,
    )


def plot_scale_invariance(runs: Mapping[str, Mapping[str, ScaleInvariance]], title: str = "") -> "Figure":
    """Draws the relative differences of the updates over steps: a row for each setting, a column for each group.

    Args:
      runs: by setting, results of `scale_invariance` by the name of what was trained, each a line. A group that
        the runs of a setting lack, such as a frozen backbone, is called not trained.
      title: of the figure.

    Returns:
      A matplotlib figure. Updates that are equal to the last bit are drawn at the lower edge.

    Raises:
      ValueError: if `runs` is empty or has one level alone.

    >>> import numpy as np
    >>> run = ScaleInvariance({"backbone": np.full(5, 0.9)}, {}, {}, 1e-3)
    >>> [panel.get_title() for panel in plot_scale_invariance({"all trained": {"SGD": run, "Adam": run}}).axes]
    ['all trained: backbone']
    """
    from matplotlib.figure import Figure

    if not runs or not all(isinstance(row, Mapping) and row for row in runs.values()):
        raise ValueError("plot_scale_invariance takes results by setting and by name: {'all trained': {'Adam': run}}")
    results = [run for row in runs.values() for run in row.values()]
    groups = sorted(dict.fromkeys(group for run in results for group in run.differences), key=lambda g: g != BACKBONE)
    names = list(dict.fromkeys(name for row in runs.values() for name in row))
    figure = Figure(figsize=(3.4 * len(groups), 2.2 * len(runs) + 0.8), layout="constrained")
    panels = figure.subplots(len(runs), len(groups), squeeze=False, sharex=True, sharey=True)
    for row, (setting, by_name) in zip(panels, runs.items(), strict=True):
        for panel, group in zip(row, groups, strict=True):
            for index, name in enumerate(names):
                if name in by_name and group in by_name[name].differences:
                    each = np.maximum(by_name[name].differences[group], _SMALLEST)
                    panel.plot(np.arange(1, len(each) + 1), each, f"C{index}", label=name, linewidth=0.8)
            panel.axhline(max(run.tolerance for run in results), color="black", linestyle=":", linewidth=0.8)
            panel.set_title(f"{setting}: {group}" if setting else group, fontsize=9)
            panel.set(yscale="log", ylim=(_SMALLEST, 4))
            if len(panel.lines) == 1:
                panel.annotate("not trained", (0.5, 0.4), xycoords="axes fraction", ha="center", color="gray")
        row[0].set_ylabel("relative difference")
    for panel in panels[-1]:
        panel.set_xlabel("step")
    lines = {line.get_label(): line for panel in panels.flat for line in panel.get_legend_handles_labels()[0]}
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=3, fontsize=8)
    figure.suptitle(title)
    return figure


def _traced(losses_fn: Any, params: PyTree, *args: Any, **options: Any) -> TaskGradients:
    """Task gradients of which only the names and the split are known."""
    traced: list[TaskGradients] = []
    jax.eval_shape(lambda p, a: traced.append(task_gradients(losses_fn, p, *a, **options)[1]), params, args)
    return traced[0]


def _factors(scales: Mapping[str, float] | Sequence[float], tasks: tuple[str, ...]) -> dict[str, float]:
    named = scales if isinstance(scales, Mapping) else dict(zip(tasks, scales, strict=False))
    if len(scales) != len(tasks) or set(named) != set(tasks):
        raise ValueError(f"scale_invariance needs one scale for each of the tasks {', '.join(tasks)}, got {scales}")
    factors = {task: float(named[task]) for task in tasks}
    if not all(0 < factor < np.inf for factor in factors.values()):
        raise ValueError(f"scale_invariance: scales must be positive and finite, got {factors}")
    return factors


def _scaled(losses_fn: Any, factors: dict[str, float]) -> Any:
    def times(losses: dict[str, Any]) -> dict[str, Any]:
        return {task: factors[task] * jnp.asarray(loss) for task, loss in losses.items()}

    if isinstance(losses_fn, SplitLosses):
        heads = losses_fn.heads
        return split(losses_fn.encode, lambda params, z, *args: times(heads(params, z, *args)))
    return lambda params, *args: times(losses_fn(params, *args))


def _groups(grads: TaskGradients) -> list[str]:
    """The group of each leaf: the backbone, or the tasks it belongs to."""
    names = grads.tasks or ()
    return [
        BACKBONE if is_shared else f"head {'+'.join(names[k] for k in indices)}" if indices else "unused"
        for is_shared, indices in zip(jax.tree.leaves(grads.shared), grads.engine.layout.tasks, strict=True)
    ]


def _compared(left: PyTree, right: PyTree, keep: list[bool]) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Relative difference and norms of two updates over some leaves; entries are squared relative to the largest."""
    pairs = [
        pair for pair, kept in zip(zip(*map(jax.tree.leaves, (left, right)), strict=True), keep, strict=True) if kept
    ]
    peak = jnp.stack([jnp.max(jnp.abs(leaf), initial=0) for pair in pairs for leaf in pair]).max()
    unit = jnp.where(peak > 0, peak, 1)

    def norm(leaves: list[jax.Array]) -> jax.Array:
        return jnp.sqrt(sum(jnp.sum(jnp.square(leaf), dtype=unit.dtype) for leaf in leaves))

    pairs = [(a / unit, b / unit) for a, b in pairs]
    norms = [norm([pair[i] for pair in pairs]) for i in (0, 1)]
    longest = jnp.maximum(*norms)
    difference = norm([a - b for a, b in pairs]) / jnp.where(longest > 0, longest, 1)
    return difference, norms[0] * unit, norms[1] * unit
