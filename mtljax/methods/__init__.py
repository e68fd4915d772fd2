"""The multi-task methods, one file each, as optax transformations; `registry` builds them by name.

A method goes first in a chain: `optax.chain(mtl.cagrad(), optax.clip_by_global_norm(1.0), optax.adam(1e-3))`. Wrappers
such as `optax.masked`, `optax.MultiSteps` or `optax.apply_if_finite` work on one gradient, so they go around what
follows the method, never around or before it: there, `per_task` applies a transformation to each task's gradient.
`optax.inject_hyperparams` works around a method; name `num_tasks` and `update_every`, if set, in its `static_args`.

Every Gramian method takes `update_every=n`: it then solves every n updates and reuses the weights in between, where an
update costs one backward pass. `update(..., solve=True)` or `solve=False` picks the branch when tracing, so that a host
loop can compile both and choose; `solve=None` decides inside the program.

A task without a label in a batch is skipped by every method: the others get the weights they would get without it, K
counting them alone (in means, and in weights that sum to K), and its own part of the memory waits, the number of
updates it has seen included, until it has a label again. Absence is told by a loss returned as a pair (sum, count) with
count 0, or by `update(..., present={"left": True, "right": False})`. A method that sees gradients also takes a zero
gradient with a loss of 0 for a missing label; one that sees losses alone takes a loss of 0 for a loss, which may have a
gradient. Adam's one count of steps on learned weights goes on. Weights that sum to K over time (`gradnorm`,
`excess_mtl`) or to 1 (`moco`, `modo`) keep the share of the absent task aside. With `update_every`, the weights of an
update in which a task was absent are used until the next solve.

A step with a NaN or an infinity in a loss or a gradient leaves the state as it was, key and step included, and returns
something that is not finite, so that what follows (`optax.apply_if_finite`) can skip it: a run goes on as if it had
never seen the batch. So does a step whose numbers leave the dtype's range in a method's averages.

A plain Jacobian, (K, *shape) on every leaf, may take the place of `TaskGradients` where `names(plain_jacobian=True)`
says so, and a method is then an aggregator for `optax.experimental.aggregating.process`. Every leaf counts as shared,
heads too, unless `update(..., shared=)` says which are, by a predicate on the key path or a pytree of bools.

This package imports `gradients` and `solvers`, and knows nothing of models, data or training.
"""

from mtljax.methods._base import jacobian_method as jacobian_method
from mtljax.methods._base import weighting as weighting
from mtljax.methods._signals import Signals as Signals
from mtljax.methods._state import MethodState as MethodState
from mtljax.methods._state import task_weights as task_weights
from mtljax.methods.index import *  # noqa: F403
from mtljax.methods.per_task import per_task as per_task
from mtljax.methods.registry import PROPERTIES as PROPERTIES
from mtljax.methods.registry import Method as Method
from mtljax.methods.registry import base_of as base_of
from mtljax.methods.registry import create as create
from mtljax.methods.registry import describe as describe
from mtljax.methods.registry import names as names
from mtljax.methods.registry import register as register
