"""The multi-task methods, one file each, as optax transformations; `registry` builds them by name.

A method goes first in a chain: `optax.chain(mtl.cagrad(), optax.clip_by_global_norm(1.0), optax.adam(1e-3))`. Wrappers
such as `optax.masked`, `optax.MultiSteps` or `optax.apply_if_finite` work on one gradient, so they go around what
follows the method, never around or before it: there, `per_task` applies a transformation to each task's gradient.
`optax.inject_hyperparams` works around a method; name `num_tasks` and `update_every`, if set, in its `static_args`.

Every Gramian method takes `update_every=n`: it then solves every n updates and reuses the weights in between, where an
update costs one backward pass. `update(..., solve=True)` or `solve=False` picks the branch when tracing, so that a host
loop can compile both and choose; `solve=None` decides inside the program.

A task without a label in a batch has a loss of exactly 0 and a zero gradient. Every method skips it: the others get the
weights they would get without it, K counting them alone (in means, and in weights that sum to K), and its own part of
the memory waits, the number of updates it has seen included, until it has a label again. Where a method sees only the
losses, or only the gradients, a zero there is taken for a missing label. Adam's one count of steps on learned weights
goes on. Weights that sum to K over time (`gradnorm`, `excess_mtl`) or to 1 (`moco`, `modo`) keep the share of the
absent task aside. With `update_every`, weights found while a task was absent are used until the next solve.

This package imports `gradients` and `solvers`, and knows nothing of models, data or training.
"""

from mtljax.methods._state import MethodState, task_weights
from mtljax.methods.adatask import adatask
from mtljax.methods.aligned_mtl import aligned_mtl
from mtljax.methods.bmtl import bmtl
from mtljax.methods.cagrad import cagrad
from mtljax.methods.conflict_free import conflict_free
from mtljax.methods.db_mtl import db_mtl
from mtljax.methods.dualproj import dualproj
from mtljax.methods.dwa import dwa
from mtljax.methods.emtl import emtl
from mtljax.methods.ew import ew
from mtljax.methods.excess_mtl import excess_mtl
from mtljax.methods.fairgrad import fairgrad
from mtljax.methods.famo import famo
from mtljax.methods.fs_mtl import fs_mtl
from mtljax.methods.gls import gls
from mtljax.methods.graddrop import graddrop
from mtljax.methods.gradnorm import gradnorm
from mtljax.methods.gradvac import gradvac
from mtljax.methods.imtl import imtl
from mtljax.methods.imtl_g import imtl_g
from mtljax.methods.imtl_l import imtl_l
from mtljax.methods.mgda import mgda
from mtljax.methods.moco import moco
from mtljax.methods.modo import modo
from mtljax.methods.mtl_io import mtl_io
from mtljax.methods.nash_mtl import nash_mtl
from mtljax.methods.pcgrad import pcgrad
from mtljax.methods.per_task import per_task
from mtljax.methods.registry import PROPERTIES, Method, create, describe, names
from mtljax.methods.rlw import rlw
from mtljax.methods.scalarization import scalarization
from mtljax.methods.sdmgrad import sdmgrad
from mtljax.methods.si import si
from mtljax.methods.slaw import slaw
from mtljax.methods.stch import stch
from mtljax.methods.upgrad import upgrad
from mtljax.methods.uw import uw
from mtljax.methods.uw_o import uw_o

__all__ = [
    "PROPERTIES",
    "Method",
    "MethodState",
    "adatask",
    "aligned_mtl",
    "bmtl",
    "cagrad",
    "conflict_free",
    "create",
    "db_mtl",
    "describe",
    "dualproj",
    "dwa",
    "emtl",
    "ew",
    "excess_mtl",
    "fairgrad",
    "famo",
    "fs_mtl",
    "gls",
    "graddrop",
    "gradnorm",
    "gradvac",
    "imtl",
    "imtl_g",
    "imtl_l",
    "mgda",
    "moco",
    "modo",
    "mtl_io",
    "names",
    "nash_mtl",
    "pcgrad",
    "per_task",
    "rlw",
    "scalarization",
    "sdmgrad",
    "si",
    "slaw",
    "stch",
    "task_weights",
    "upgrad",
    "uw",
    "uw_o",
]
