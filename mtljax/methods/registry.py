"""What is known of every method, told beside its rule, and how one is built by its name."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, ParamSpec

import optax

from mtljax.errors import check_options, unknown
from mtljax.methods._checks import typed

Arguments = ParamSpec("Arguments")

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
COMMON = ("row span", "permutable", "rotatable", "homogeneous")
DEFAULT_BASE = "cagrad"  # of methods around another
NEVER_CONFLICTS = ("non-conflicting", "non-conflicting if independent")


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
      idle: of a method around another: whether these hyperparameters make it that other method.
      pairs: of a method around another: whether with these it also aggregates pairs, by a base built for two tasks.
    """

    build: Callable[..., optax.GradientTransformationExtraArgs]
    needs: Literal["nothing", "losses", "gramian", "jacobian"]
    paper: str
    properties: tuple[str, ...] = COMMON
    plain_jacobian: bool = True
    losses_after: bool = False
    batches: int = 1
    idle: Callable[[Mapping[str, Any]], bool] = lambda _: False
    pairs: Callable[[Mapping[str, Any]], bool] = lambda _: False

    @property
    def around(self) -> bool:
        """Whether it goes around another method, its `base`."""
        return "base" in inspect.signature(self.build).parameters

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


_REGISTRY: dict[str, Method] = {}


def register(
    *, needs: Literal["nothing", "losses", "gramian", "jacobian"], paper: str, **known: Any
) -> Callable[
    [Callable[Arguments, optax.GradientTransformationExtraArgs]],
    Callable[Arguments, optax.GradientTransformationExtraArgs],
]:
    """Decorates the constructor of a method: its name enters the registry, and its arguments are checked by type.

    Args:
      needs: what its rule reads.
      paper: arXiv id.
      **known: the other attributes of `Method`.

    Returns:
      The decorator.
    """

    def decorate(
        build: Callable[Arguments, optax.GradientTransformationExtraArgs],
    ) -> Callable[Arguments, optax.GradientTransformationExtraArgs]:
        checked = typed(build)
        _REGISTRY[build.__name__] = Method(checked, needs=needs, paper=paper, **known)
        return checked

    return decorate


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
    >>> tx = mtl.methods.create("fs_mtl", num_tasks=2, base="cagrad", base_options={"c": 0.5}, rho=0.1)

    Args:
      name: one of `names()`.
      num_tasks: K.
      **hyperparameters: the method's own, by name. A method that goes around another, as `fs_mtl`, takes that by name
        too, as `base`, and its hyperparameters as the dict `base_options`.

    Returns:
      The transformation.

    Raises:
      ValueError: on an unknown method or hyperparameter, naming the nearest valid one, and on invalid values.
    """
    method = describe(name)
    if method.around:
        base, options = base_of(name, hyperparameters)
        hyperparameters.pop("base_options", None)
        if isinstance(base, str):
            hyperparameters["base"] = create(base, num_tasks, **options)
            if method.pairs(hyperparameters):
                hyperparameters["pair_base"] = create(base, 2, **options)
    check_options(f"method {name}", hyperparameters, method.build, exclude=("num_tasks",))
    return method.build(num_tasks=num_tasks, **hyperparameters)


def base_of(name: str, hyperparameters: Mapping[str, Any]) -> tuple[Any, Mapping[str, Any]]:
    """The method that `name` with these hyperparameters goes around, and the hyperparameters of that.

    Args:
      name: a method; one that goes around no other is its own base.
      hyperparameters: its hyperparameters, `base` and `base_options` among them.

    Raises:
      ValueError: if the base is the method itself, or its hyperparameters are no dict or go with no name.
    """
    if not describe(name).around:
        return name, hyperparameters
    base, options = hyperparameters.get("base", DEFAULT_BASE), hyperparameters.get("base_options")
    if base == name:
        raise ValueError(f"{name}: the base must be another method, such as '{DEFAULT_BASE}'")
    if options is not None and not isinstance(base, str):
        raise ValueError(f"{name}: base_options go with a base given by name; set them where the base is built")
    if not isinstance(options, (Mapping, type(None))):
        raise ValueError(f"{name}: base_options must be a dict of the base's hyperparameters, got {options!r}")
    return base, options or {}
