"""How well a network stands corrupted images once its heads have seen some, against single-task networks.

The protocol of App. A6 of arXiv:2311.04698, of any model: the backbone of a network trained on clean images is frozen,
its heads are fine-tuned on images with a random corruption and severity each, and the network is evaluated on clean
images and in all 15 corruptions at 5 severities. `robustness_deltas` compares two networks so measured.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mtljax.analysis.corruptions import SEVERITIES
from mtljax.analysis.corruptions.data import CorruptedData
from mtljax.data import Split, epoch_permutation, evaluation_batches
from mtljax.gradients import PyTree
from mtljax.tasks import Metric, Task, mean_loss, metric_sums, metric_values

Metrics = dict[str, dict[str, float]]
Apply = Callable[[PyTree, Any], Any]
_BATCH = 1000  # of evaluations


class Robustness(NamedTuple):
    """Metrics of a network by task, on test examples.

    Attributes:
      trained: on clean images, before its heads are fine-tuned.
      clean: on clean images, after.
      corrupted: by corruption, for each severity from 1 to 5, after.
    """

    trained: Metrics
    clean: Metrics
    corrupted: dict[str, list[Metrics]]


class Measured(NamedTuple):
    """The compiled functions of a measurement, to share between networks of one structure. See `measuring`.

    Attributes:
      encode: `(params, images) -> inputs of sums and step`.
      sums: `(params, inputs, targets, mask) -> sums of the metrics`.
      step: `(params, optimizer state, inputs, targets) -> (params, optimizer state)`.
      init: `params -> optimizer state`.
      tasks: the tasks by name.
    """

    encode: Apply
    sums: Callable[..., Any]
    step: Callable[..., Any]
    init: Callable[..., Any]
    tasks: Mapping[str, Task]


def robustness(
    apply: Apply,
    params: PyTree,
    tasks: Mapping[str, Task],
    data: CorruptedData,
    *,
    heads: Callable[[tuple[Any, ...]], bool] | None = None,
    encode: Apply | None = None,
    epochs: int = 5,
    learning_rate: float = 1e-3,
    batch_size: int = 128,
    seed: int = 0,
) -> Robustness:
    """Measures a network of your own, trained on clean images.

    Args:
      apply: `(params, images) -> {task: outputs}`, as at test time; it may return more than the tasks. Outputs are
        shaped as each task takes them: (B, classes), or (B, size) of a regression.
      params: its parameters; not changed.
      tasks: what is measured, and the loss of the heads.
      data: from `corrupted_data`.
      heads: a predicate on the key path of a leaf of `params`: whether it belongs to a head. By default whether the
        path begins with "heads", as in this package's models.
      encode: `(params, images) -> z`, the backbone alone, with which `apply` takes z in place of images. It makes no
        difference but in time: each image goes through the backbone once.
      epochs: passes of the fine-tuning over the training examples.
      learning_rate: of Adam.
      batch_size: of the fine-tuning.
      seed: of the order of the examples.

    Returns:
      The metrics.

    Raises:
      ValueError: if there is nothing to fine-tune or to freeze, or a number is out of its range.

    Example:
      >>> import jax, jax.numpy as jnp, mtljax as mtl
      >>> x = jax.random.uniform(jax.random.PRNGKey(0), (64, 8, 8, 1))
      >>> examples = mtl.data.Split(x, {"bright": x.mean((1, 2, 3)) > 0.5})
      >>> params = {"body": jnp.eye(64, 4), "heads": jnp.zeros((4, 2))}
      >>> apply = lambda params, x: {"bright": jnp.tanh(x.reshape(-1, 64) @ params["body"]) @ params["heads"]}
      >>> data = mtl.analysis.corrupted_data(examples, examples, corruptions=["contrast"])
      >>> found = mtl.analysis.robustness(apply, params, {"bright": mtl.tasks.classification(2)}, data, epochs=1)
      >>> {name: len(severities) for name, severities in found.corrupted.items()}
      {'contrast': 5}
    """
    if not isinstance(data, CorruptedData) or not isinstance(tasks, Mapping):
        raise ValueError("robustness takes tasks by name, and data made by corrupted_data(train, test)")
    some = jnp.asarray(data.test.inputs[:1])
    made = jax.eval_shape(apply, params, some if encode is None else jax.eval_shape(encode, params, some))
    for what, there in (("the outputs of apply", made), ("the training targets", data.train.targets)):
        if missing := sorted(set(tasks) - set(there)):
            raise ValueError(f"robustness: {what} lack the task {', '.join(missing)}; they have {', '.join(there)}")
    measured = measuring(apply, params, tasks, heads=heads, encode=encode, learning_rate=learning_rate)
    return measure(measured, params, data, epochs=epochs, batch_size=batch_size, seed=seed)


def robustness_deltas(
    network: Robustness, single: Mapping[str, Robustness], tasks: Mapping[str, Task], *, before_tuning: bool = False
) -> dict[str, np.ndarray]:
    """How much more a multi-task network loses to corruptions than single-task networks do.

    δ_t is the mean over corruptions c and severities s of (-1)^p (M_tcs / M_t - S_tcs / S_t), M the metric of the
    network and S that of the single-task network in corrupted over that in clean images, p = 1 where higher is better:
    below 0 the multi-task network is the more robust one.

    Args:
      network: the multi-task network.
      single: by task, a single-task network measured on the same data.
      tasks: the tasks to compare.
      before_tuning: whether M_t and S_t are those before the heads were fine-tuned; the paper does not say.

    Returns:
      By task (C, 5), what each corruption and severity adds, the mean over the task's metrics; δ_t is the mean.
      Corruptions come as in `network`. NaN where a metric is 0 in clean images.

    Raises:
      ValueError: if a task lacks its single-task network, or that was measured on other corruptions.
    """
    if missing := sorted(set(tasks) - set(single)):
        raise ValueError(f"robustness_deltas needs a single-task network for {', '.join(missing)} too")
    if any(set(single[name].corrupted) != set(network.corrupted) for name in tasks):
        raise ValueError(
            "robustness_deltas compares networks measured on the same corruptions: measure them on one data"
        )
    order = list(network.corrupted)

    def difference(task: str, metric: Metric) -> np.ndarray:
        multi, alone = (_ratios(each, task, metric, order, before_tuning) for each in (network, single[task]))
        return multi - alone

    return {
        name: np.mean([difference(name, metric) for metric in task.metrics], axis=0) for name, task in tasks.items()
    }


def _ratios(result: Robustness, task: str, metric: Metric, order: Sequence[str], before_tuning: bool) -> np.ndarray:
    """(C, 5): the metric in corrupted over that in clean images, signed so that down is better."""
    corrupted = np.array([[each[task][metric.name] for each in result.corrupted[name]] for name in order])
    clean = (result.trained if before_tuning else result.clean)[task][metric.name]
    ratios = corrupted / clean if clean else np.full(corrupted.shape, np.nan)
    return -ratios if metric.higher_is_better else ratios


def measuring(
    apply: Apply,
    params: PyTree,
    tasks: Mapping[str, Task],
    *,
    heads: Callable[[tuple[Any, ...]], bool] | None = None,
    encode: Apply | None = None,
    learning_rate: float = 1e-3,
) -> Measured:
    """The compiled functions of a measurement; arguments as of `robustness`, `params` only as an example."""
    heads = heads or (lambda path: bool(path) and getattr(path[0], "key", None) == "heads")
    leaves, treedef = jax.tree.flatten_with_path(params)
    moving = [bool(heads(path)) for path, _ in leaves]
    if all(moving) or not any(moving):
        what = "all" if all(moving) else "none"
        raise ValueError(f"{what} of the parameters belong to heads: say which do with heads=lambda path: ...")
    if not 0 < learning_rate < np.inf:
        raise ValueError(f"learning_rate must be positive and finite, got {learning_rate}")
    tx = optax.adam(learning_rate)

    def parts(params: PyTree) -> tuple[list[Any], list[Any]]:
        flat = treedef.flatten_up_to(params)
        return list(itertools.compress(flat, moving)), list(itertools.compress(flat, [not m for m in moving]))

    def whole(head: list[Any], backbone: list[Any]) -> PyTree:
        both = iter(head), iter(backbone)
        return treedef.unflatten([next(both[0 if m else 1]) for m in moving])

    @jax.jit
    def step(params: PyTree, state: PyTree, inputs: Any, targets: Any) -> tuple[PyTree, PyTree]:
        head, backbone = parts(params)

        def loss(head: list[Any]) -> jax.Array:
            outputs = apply(whole(head, backbone), inputs)
            return sum((mean_loss(task, outputs[name], targets[name]) for name, task in tasks.items()), jnp.zeros(()))

        updates, state = tx.update(jax.grad(loss)(head), state)
        return whole(optax.apply_updates(head, updates), backbone), state  # type: ignore[arg-type]

    @jax.jit
    def sums(params: PyTree, inputs: Any, targets: Any, mask: jax.Array) -> dict[str, Any]:
        outputs = apply(params, inputs)
        return {name: metric_sums(task, outputs[name], targets[name], mask) for name, task in tasks.items()}

    encoded = (lambda params, images: images) if encode is None else jax.jit(encode)
    return Measured(encoded, sums, step, lambda params: tx.init(parts(params)[0]), tasks)


def measure(
    measured: Measured, params: PyTree, data: CorruptedData, *, epochs: int = 5, batch_size: int = 128, seed: int = 0
) -> Robustness:
    """Measures a network; arguments as of `robustness`."""
    trained = _metrics(measured, params, data.test.inputs, data.test)
    params = fine_tuned(measured, params, data.train, epochs=epochs, batch_size=batch_size, seed=seed)
    corrupted = {
        name: [_metrics(measured, params, data.images(name, severity), data.test) for severity in SEVERITIES]
        for name in data.corruptions
    }
    return Robustness(trained, _metrics(measured, params, data.test.inputs, data.test), corrupted)


def fine_tuned(
    measured: Measured, params: PyTree, train: Split, *, epochs: int, batch_size: int, seed: int = 0
) -> PyTree:
    """The parameters with heads fine-tuned; those of the backbone are the same bits."""
    if epochs < 1 or batch_size < 1:
        raise ValueError(f"epochs and batch_size must be at least 1, got {epochs} and {batch_size}")
    count = train.num_examples
    size = min(batch_size, count)
    inputs = [measured.encode(params, train.inputs[part]) for part, _ in _batches(count)]
    inputs = jax.tree.map(lambda *parts: np.concatenate(jax.device_get(parts))[:count], *inputs)
    targets, state = {name: train.targets[name] for name in measured.tasks}, measured.init(params)
    for epoch in range(epochs):
        order = np.asarray(epoch_permutation(jax.random.PRNGKey(seed), epoch, count))
        for batch in range(count // size):
            chosen = order[batch * size : (batch + 1) * size]
            examples = jax.tree.map(lambda leaf, chosen=chosen: leaf[chosen], (inputs, targets))
            params, state = measured.step(params, state, *examples)
    return params


def _metrics(measured: Measured, params: PyTree, images: Any, test: Split) -> Metrics:
    totals: Any = None
    for part, mask in _batches(test.num_examples):
        targets = {name: test.targets[name][part] for name in measured.tasks}
        sums = measured.sums(params, measured.encode(params, images[part]), targets, mask)
        totals = sums if totals is None else jax.tree.map(jnp.add, totals, sums)
    totals = jax.device_get(totals)
    values = {name: metric_values(task, totals[name]) for name, task in measured.tasks.items()}
    return jax.tree.map(float, values)


def _batches(count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    return list(zip(*evaluation_batches(count, min(_BATCH, count)), strict=True))
