"""The optax chain of a run: method, clipping, optimizer, schedule.

Numeric hyperparameters are injected into the state, so that runs which differ only in them share one compiled step.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import optax

from mtljax import methods
from mtljax.errors import check_options, unknown
from mtljax.training.config import MethodConfig, OptimizerConfig


def signsgd(learning_rate: optax.ScalarOrSchedule, momentum: float = 0.9) -> optax.GradientTransformation:
    """Steps of one length in every coordinate: the sign of the momentum (Bernstein et al., arXiv:1802.04434, Signum).

    >>> import jax.numpy as jnp
    >>> tx = signsgd(0.5)
    >>> tx.update(jnp.array([3.0, -0.01]), tx.init(jnp.zeros(2)))[0].tolist()
    [-0.5, 0.5]

    Args:
      learning_rate: the length of a step in a coordinate.
      momentum: μ of the trace t ← g + μ t whose sign is taken, in [0, 1); 0 is signSGD.

    Returns:
      An optax transformation.
    """
    return optax.chain(optax.trace(momentum), optax.scale_by_sign(), optax.scale_by_learning_rate(learning_rate))


_OPTIMIZERS = {
    "adam": optax.adam,
    "adamw": optax.adamw,
    "lion": optax.lion,
    "rmsprop": optax.rmsprop,
    "sgd": optax.sgd,
    "signsgd": signsgd,
}
# What shapes the state or the program stays a constant.
_STATIC = ("num_tasks", "update_every", "perturb_every")


def names() -> tuple[str, ...]:
    """The names of the optimizers, sorted."""
    return tuple(sorted(_OPTIMIZERS))


def describe(name: str) -> Callable[..., optax.GradientTransformation]:
    """The optax function of an optimizer; raises ValueError naming the nearest one when there is none."""
    if name not in _OPTIMIZERS:
        raise unknown("optimizer", name, _OPTIMIZERS)
    return _OPTIMIZERS[name]


def transformation(
    method: MethodConfig, optimizer: OptimizerConfig, *, num_tasks: int, steps_per_epoch: int, epochs: int, seed: int
) -> optax.GradientTransformationExtraArgs:
    """Task gradients in, parameter updates out.

    Args:
      method: the multi-task method.
      optimizer: the optimizer and what surrounds it.
      num_tasks: K.
      steps_per_epoch: updates an epoch: the `window` of methods that average losses, unless the options set it.
      epochs: with it, the length of the schedule.
      seed: seed of the method's PRNG key.

    Returns:
      `chain(method, [clip], optimizer, schedule)` with every numeric hyperparameter in its state.

    Raises:
      ValueError: on unknown names, naming the nearest valid one, or invalid values.
    """
    stages: list[optax.GradientTransformation] = [_injected_method(method, num_tasks, seed, steps_per_epoch)]
    if optimizer.clip_norm is not None:
        stages.append(optax.inject_hyperparams(optax.clip_by_global_norm)(max_norm=float(optimizer.clip_norm)))
    stages.append(_injected_optimizer(optimizer))
    factor = _schedule(optimizer, steps_per_epoch * epochs)
    if factor is not None:
        stages.append(optax.scale_by_schedule(factor))
    return optax.chain(*stages)


def resolved(method: MethodConfig) -> MethodConfig:
    """The method that runs: one around another may be idle, as `fs_mtl` with rho 0."""
    return base_of(method) if methods.describe(method.name).idle(method.options) else method


def base_of(method: MethodConfig) -> MethodConfig:
    """The method that aggregates: that inside of one around it, any other itself."""
    name, options = methods.base_of(method.name, method.options)
    if not isinstance(name, str):
        raise ValueError(f"option base of method {method.name} must be the name of another method, got {name!r}")
    return MethodConfig(name, dict(options))


def injects_base(method: MethodConfig) -> bool:
    """Whether the numbers in `base_options` are in the state too; where pairs are aggregated they are constants."""
    known = methods.describe(method.name)
    return known.around and not known.pairs(method.options)


def solve_every(method: MethodConfig) -> int:
    """Steps between those in which the method does all its work; in between it reuses weights or perturbations."""
    method = resolved(method)
    inner = base_of(method).options.get("update_every")
    return method.options.get("update_every") or method.options.get("perturb_every") or inner or 1


def _injected_method(
    config: MethodConfig, num_tasks: int, seed: int, steps_per_epoch: int
) -> optax.GradientTransformationExtraArgs:
    config = resolved(config)
    build = methods.describe(config.name).build
    given_twice = {name: value for name, value in config.options.items() if name == "num_tasks"}
    check_options(f"method {config.name}", given_twice, build, exclude=("num_tasks",))
    methods.create(config.name, num_tasks, **config.options)  # checks names and values
    parameters = inspect.signature(build).parameters
    own = {name: value for name, value in (("seed", seed), ("window", steps_per_epoch)) if name in parameters}
    static = tuple(name for name in _STATIC if name in parameters)
    given = {
        name: _traced(value, parameters[name].default) for name, value in config.options.items() if name in parameters
    }
    if methods.describe(config.name).around:
        base = base_of(config)
        if injects_base(config):
            given["base"] = _injected_method(base, num_tasks, seed, steps_per_epoch)
        else:
            given["base"] = methods.create(base.name, num_tasks, **base.options)
            given["pair_base"] = methods.create(base.name, 2, **base.options)
    return optax.inject_hyperparams(build, static_args=static)(num_tasks=num_tasks, **{**own, **given})


def by_task(options: Mapping[str, Any], tasks: Iterable[str], what: str) -> dict[str, Any]:
    """The options with dicts by task name turned into values in sorted order of the names.

    Raises:
      ValueError: if a dict names other tasks.
    """
    names = sorted(tasks)
    values = dict(options)
    for key, value in options.items():
        if key == "base_options" and isinstance(value, Mapping):
            values[key] = by_task(value, names, "the base method")
        elif isinstance(value, Mapping):
            if sorted(value) != names:
                raise ValueError(f"option {key} of {what} is for {sorted(value)}, but the tasks are {names}")
            values[key] = [value[name] for name in names]
    return values


def numbers(value: Any) -> int | None:
    """How many numbers a hyperparameter is that may be traced: 0 for one alone, None for what shapes the program."""
    if isinstance(value, Mapping):
        return numbers(list(value.values()))
    if isinstance(value, (list, tuple)):
        return len(value) if value and all(numbers(item) == 0 for item in value) else None
    return 0 if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _traced(value: Any, default: Any) -> Any:
    """A hyperparameter in the type it always has in the state, so that 1 and 0.5 share a program."""
    if isinstance(value, (list, tuple)) and numbers(value):
        return np.asarray(value, np.float32)
    return float(value) if isinstance(default, float) and isinstance(value, int) else value


def _injected_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    build = describe(config.name)
    parameters, options = inspect.signature(build).parameters, config.options
    check_options(f"optimizer {config.name}", options, build, exclude=("learning_rate",))
    for key, value in options.items():
        if not isinstance(value, (int, float, type(None))):
            raise ValueError(f"option {key} of optimizer {config.name} must be a number, true or false, got {value!r}")
    static = tuple(name for name, p in parameters.items() if p.default is None and name not in options)
    given = {key: value if isinstance(value, (bool, type(None))) else float(value) for key, value in options.items()}
    return optax.inject_hyperparams(build, static_args=static)(learning_rate=float(config.learning_rate), **given)


def _schedule(config: OptimizerConfig, total_steps: int) -> optax.Schedule | None:
    """The factor on the learning rate, 1 at its peak; updates are linear in the learning rate."""
    warmup = config.warmup_steps
    if config.schedule == "constant" and not warmup:
        return None
    steps = max(total_steps - warmup, 1)
    after: Any = {
        "constant": lambda: optax.constant_schedule(1.0),
        "cosine": lambda: optax.cosine_decay_schedule(1.0, steps),
        "step": lambda: optax.piecewise_constant_schedule(1.0, {steps * k // 4: 0.5 for k in (1, 2, 3)}),
    }[config.schedule]()
    return optax.join_schedules([optax.linear_schedule(0.0, 1.0, warmup), after], [warmup]) if warmup else after
