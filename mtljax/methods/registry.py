"""What is known of every method, and how one is built by its name."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import optax

from mtljax.errors import check_options, unknown
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
from mtljax.methods.rlw import rlw
from mtljax.methods.scalarization import scalarization
from mtljax.methods.sdmgrad import sdmgrad
from mtljax.methods.si import si
from mtljax.methods.slaw import slaw
from mtljax.methods.stch import stch
from mtljax.methods.upgrad import upgrad
from mtljax.methods.uw import uw
from mtljax.methods.uw_o import uw_o

PROPERTIES = {
    "non-conflicting": "⟨g_k, d⟩ ≥ 0 for every task k",
    "non-conflicting if independent": "the same, where the gradients are linearly independent",
    "row span": "d is a combination of the task gradients",
    "permutable": "the order of the tasks does not matter",
    "rotatable": "A(JQ) = A(J) Q for orthogonal Q: only inner products of gradients count",
    "homogeneous": "A(sJ) = s A(J) for s > 0",
    "linear": "A(diag(c) J) is linear in c > 0",
    "scale-free": "multiplying losses by constants leaves the direction of d as it is",
    "sum": "d is a multiple of the sum of the gradients where no two of them conflict",
}
_COMMON = ("row span", "permutable", "rotatable", "homogeneous")
_NEVER_CONFLICTS = ("non-conflicting", "non-conflicting if independent")


@dataclass(frozen=True)
class Method:
    """What the registry knows of a method.

    Attributes:
      build: the constructor.
      needs: what it reads: "nothing", "losses", "gramian" or "jacobian".
      paper: arXiv id.
      properties: those of `PROPERTIES` that hold, with default hyperparameters; the others have counterexamples.
      plain_jacobian: whether it accepts an explicit Jacobian in place of `TaskGradients`.
      losses_after: whether it wants the extra argument `losses_after`, the losses of the batch before at the current
        parameters, for one more forward pass.
      batches: independent batches its estimate is unbiased with; `update` then takes a tuple of gradients.
    """

    build: Callable[..., optax.GradientTransformationExtraArgs]
    needs: Literal["nothing", "losses", "gramian", "jacobian"]
    paper: str
    properties: tuple[str, ...] = _COMMON
    plain_jacobian: bool = True
    losses_after: bool = False
    batches: int = 1

    @property
    def family(self) -> str:
        """What kind of rule it is, by what it reads: loss weighting, Gramian weighting or Jacobian."""
        return {"gramian": "Gramian weighting", "jacobian": "Jacobian"}.get(self.needs, "loss weighting")

    @property
    def backward_passes(self) -> str:
        """Backward passes of one update."""
        passes = "K" if self.needs in ("gramian", "jacobian") else "1"
        if not self.plain_jacobian:
            passes = f"2{passes}"  # here and at perturbed parameters
        if self.batches > 1:
            passes += f", on each 1/{self.batches} of the batch"
        return passes + (" and 1 forward" if self.losses_after else "")


_REGISTRY = {
    "adatask": Method(adatask, needs="jacobian", paper="2211.15055", properties=("permutable",)),
    "aligned_mtl": Method(aligned_mtl, needs="gramian", paper="2305.19000"),
    "bmtl": Method(bmtl, needs="losses", paper="2002.04792", properties=(*_COMMON, "linear")),
    "cagrad": Method(cagrad, needs="gramian", paper="2110.14048"),
    "conflict_free": Method(
        conflict_free,
        needs="gramian",
        paper="2408.11104",
        properties=(*_COMMON, "non-conflicting if independent", "linear", "scale-free"),
    ),
    "db_mtl": Method(
        db_mtl,
        needs="jacobian",
        paper="2308.12029",
        properties=("permutable", "rotatable", "homogeneous", "scale-free"),
    ),
    "dualproj": Method(
        dualproj,
        needs="gramian",
        paper="2406.16232",
        properties=(*_COMMON, *_NEVER_CONFLICTS, "sum"),
    ),
    "dwa": Method(dwa, needs="losses", paper="1803.10704", properties=(*_COMMON, "linear")),
    "emtl": Method(emtl, needs="gramian", paper="2306.09373"),
    "ew": Method(ew, needs="nothing", paper="2201.04122", properties=(*_COMMON, "linear", "sum")),
    "excess_mtl": Method(
        excess_mtl, needs="jacobian", paper="2402.02009", properties=("row span", "permutable", "homogeneous", "linear")
    ),
    "fairgrad": Method(
        fairgrad,
        needs="gramian",
        paper="2402.15638",
        properties=("row span", "permutable", "rotatable", *_NEVER_CONFLICTS, "scale-free"),
    ),
    "famo": Method(
        famo, needs="losses", paper="2306.03792", properties=(*_COMMON, "linear", "scale-free"), losses_after=True
    ),
    "fs_mtl": Method(
        fs_mtl, needs="jacobian", paper="2211.13723", properties=("permutable", "homogeneous"), plain_jacobian=False
    ),
    "gls": Method(gls, needs="losses", paper="1904.08492", properties=(*_COMMON, "linear", "scale-free")),
    "graddrop": Method(graddrop, needs="jacobian", paper="2010.06808", properties=("permutable", "homogeneous")),
    "gradnorm": Method(gradnorm, needs="gramian", paper="1711.02257"),
    "gradvac": Method(
        gradvac, needs="gramian", paper="2010.05874", properties=("row span", "rotatable", "homogeneous", "linear")
    ),
    "imtl": Method(
        imtl,
        needs="gramian",
        paper="IMTL, ICLR 2021",
        properties=(*_COMMON, "non-conflicting if independent", "scale-free"),
    ),
    "imtl_g": Method(
        imtl_g,
        needs="gramian",
        paper="IMTL, ICLR 2021",
        properties=(*_COMMON, "non-conflicting if independent", "scale-free"),
    ),
    "imtl_l": Method(imtl_l, needs="losses", paper="IMTL, ICLR 2021", properties=(*_COMMON, "linear")),
    "mgda": Method(
        mgda,
        needs="gramian",
        paper="1810.04650",
        properties=(*_COMMON, *_NEVER_CONFLICTS),
    ),
    "moco": Method(moco, needs="jacobian", paper="2210.12624", properties=("permutable", "rotatable")),
    "modo": Method(
        modo, needs="gramian", paper="2305.20057", properties=("row span", "permutable", "rotatable"), batches=3
    ),
    "mtl_io": Method(
        mtl_io, needs="jacobian", paper="2311.04698", properties=("permutable", "rotatable", "homogeneous", "linear")
    ),
    "nash_mtl": Method(
        nash_mtl,
        needs="gramian",
        paper="2202.01017",
        properties=("row span", "permutable", "rotatable", *_NEVER_CONFLICTS, "scale-free"),
    ),
    "pcgrad": Method(
        pcgrad,
        needs="gramian",
        paper="2001.06782",
        properties=("row span", "rotatable", "homogeneous", "linear", "sum"),
    ),
    "rlw": Method(
        rlw, needs="nothing", paper="2111.10603", properties=("row span", "rotatable", "homogeneous", "linear")
    ),
    "scalarization": Method(scalarization, needs="nothing", paper="2209.11379", properties=(*_COMMON, "linear", "sum")),
    "sdmgrad": Method(sdmgrad, needs="gramian", paper="2305.18409", batches=3),
    "si": Method(si, needs="losses", paper="2202.01017", properties=(*_COMMON, "linear", "scale-free")),
    "slaw": Method(slaw, needs="losses", paper="2109.08218", properties=(*_COMMON, "linear")),
    "stch": Method(stch, needs="losses", paper="2402.19078", properties=(*_COMMON, "linear", "scale-free")),
    "upgrad": Method(
        upgrad,
        needs="gramian",
        paper="2406.16232",
        properties=(*_COMMON, *_NEVER_CONFLICTS, "linear", "sum"),
    ),
    "uw": Method(uw, needs="losses", paper="1705.07115", properties=(*_COMMON, "linear")),
    "uw_o": Method(uw_o, needs="losses", paper="2311.04698", properties=(*_COMMON, "linear", "scale-free")),
}


def names(*, plain_jacobian: bool = False) -> tuple[str, ...]:
    """The names of the methods, sorted.

    Args:
      plain_jacobian: only those that accept an explicit Jacobian in place of `TaskGradients`.
    """
    return tuple(name for name, method in sorted(_REGISTRY.items()) if method.plain_jacobian or not plain_jacobian)


def describe(name: str) -> Method:
    """What the registry knows of a method; raises ValueError naming the nearest one when there is none."""
    if name not in _REGISTRY:
        raise unknown("method", name, _REGISTRY)
    return _REGISTRY[name]


def create(name: str, num_tasks: int | None = None, **hyperparameters: Any) -> optax.GradientTransformationExtraArgs:
    """Builds a method by name.

    Whatever it is, optax wrappers of one gradient (`masked`, `MultiSteps`, `apply_if_finite`, clipping) go around what
    follows it in the chain; around or before it they cannot work, use `per_task` there.

    >>> import mtljax as mtl
    >>> tx = mtl.methods.create("cagrad", num_tasks=2, c=0.5)

    Args:
      name: one of `names()`.
      num_tasks: K.
      **hyperparameters: the method's own, by name.

    Returns:
      The transformation.

    Raises:
      ValueError: on an unknown method or hyperparameter, naming the nearest valid one, and on invalid values.
    """
    method = describe(name)
    check_options(f"method {name}", hyperparameters, method.build, exclude=("num_tasks",))
    return method.build(num_tasks=num_tasks, **hyperparameters)
