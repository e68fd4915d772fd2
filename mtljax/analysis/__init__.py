"""What training did to the losses, beyond the metrics: pure functions of losses and parameters, or of predictions.

`sharpness` (how far a task's loss can rise nearby), `conflicts` (how alike gradients are, between tasks and between
examples; `similarity` has the measures, `samples` the gradients of single examples; `conflict_probe` watches the tasks
in any optax loop, `epoch_probe` tasks and examples in `mtljax train`), `scale_invariance` (what constant factors on the
losses change), `calibration` (how far probabilities can be trusted) and `landscape` (losses along random directions,
and their picture). They take the `losses_fn` and `params` of `mtl.task_gradients` and know nothing of configs or runs.
`corruptions` makes noisy, blurred and weathered images, `robustness` measures how well a network stands them. `toy` and
`scale_experiment` are two small experiments with these, on a function and a network of their own. All of this imports
gradients, methods, tasks and data.

Of finished runs and studies, and so importing training and ablation: `robustness_runs` and `robustness_verdict`,
`conflict_runs` and the probe it reads, `epoch_probe`; `optimizers`, which compares two optimizers in a study; and
`claims`, which holds what papers say against numbers over seeds.

Diagnose a model of your own, here with a batch of pairs `(x, targets)`:

>>> import jax, jax.numpy as jnp, mtljax as mtl, optax
>>> def losses_fn(params, batch):
...     z, (x, targets) = jnp.tanh(batch[0] @ params["body"]), batch
...     return {task: jnp.mean((z @ params[task] - targets[task]) ** 2) for task in ("left", "right")}
>>> x = jax.random.normal(jax.random.PRNGKey(0), (64, 5))
>>> batch = (x, {"left": x[:, 0], "right": -30 * x[:, 0]})
>>> params = {"body": x[:5, :4], "left": jnp.ones(4), "right": jnp.ones(4)}
>>> found = mtl.analysis.sample_conflicts(losses_fn, params, batch, samples=64)
>>> tasks, samples = (mtl.analysis.spread(kind.whole)["magnitude"].mean for kind in found)
>>> print(f"lengths are alike: {tasks:.2f} between tasks, {samples:.2f} between samples")
lengths are alike: 0.18 between tasks, 0.63 between samples
>>> tx = optax.chain(mtl.ew(), optax.adam(1e-3))
>>> mtl.analysis.scale_invariance(losses_fn, params, [batch], tx, {"left": 10, "right": 0.1}, steps=1).verdicts()
{'backbone': 'not', 'head left': 'invariant', 'head right': 'invariant'}
"""

from mtljax.analysis.calibration import brier_score, expected_calibration_error
from mtljax.analysis.conflict_probe import ConflictState, conflict_means, conflict_probe
from mtljax.analysis.conflicts import SampleConflicts, conflict_share, cosines, sample_conflicts
from mtljax.analysis.corruptions import corrupt
from mtljax.analysis.corruptions.data import CorruptedData, corrupted_data
from mtljax.analysis.epoch_probe import sample_probe
from mtljax.analysis.landscape import Surface, plot_surface, random_direction, surface
from mtljax.analysis.robustness import Robustness, robustness, robustness_deltas
from mtljax.analysis.samples import sample_gradients
from mtljax.analysis.scale_invariance import ScaleInvariance, plot_scale_invariance, scale_invariance
from mtljax.analysis.sharpness import gradient_norms, worst_case_rise
from mtljax.analysis.similarity import Similarities, Similarity, Spread, similarities, spread

__all__ = [
    "ConflictState",
    "CorruptedData",
    "Robustness",
    "SampleConflicts",
    "ScaleInvariance",
    "Similarities",
    "Similarity",
    "Spread",
    "Surface",
    "brier_score",
    "conflict_means",
    "conflict_probe",
    "conflict_share",
    "corrupt",
    "corrupted_data",
    "cosines",
    "expected_calibration_error",
    "gradient_norms",
    "plot_scale_invariance",
    "plot_surface",
    "random_direction",
    "robustness",
    "robustness_deltas",
    "sample_conflicts",
    "sample_gradients",
    "sample_probe",
    "scale_invariance",
    "similarities",
    "spread",
    "surface",
    "worst_case_rise",
]
