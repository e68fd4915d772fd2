"""The optax chain of a run: method, clipping, optimizer, schedule.

Numeric hyperparameters are injected into the state, so that runs which differ only in them share one compiled step.
"""

import inspect
from typing import Any

import optax

from mtljax import methods
from mtljax.errors import check_options, unknown
from mtljax.training.config import MethodConfig, OptimizerConfig

_OPTIMIZERS = {
    "adam": optax.adam,
    "adamw": optax.adamw,
    "lion": optax.lion,
    "rmsprop": optax.rmsprop,
    "sgd": optax.sgd,
}
# What shapes the state or the program stays a constant.
_STATIC = ("num_tasks", "update_every")


def names() -> tuple[str, ...]:
    """The names of the optimizers, sorted."""
    return tuple(sorted(_OPTIMIZERS))


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
        stages.append(optax.inject_hyperparams(optax.clip_by_global_norm)(max_norm=optimizer.clip_norm))
    stages.append(_injected_optimizer(optimizer))
    factor = _schedule(optimizer, steps_per_epoch * epochs)
    if factor is not None:
        stages.append(optax.scale_by_schedule(factor))
    return optax.chain(*stages)


def _injected_method(
    config: MethodConfig, num_tasks: int, seed: int, steps_per_epoch: int
) -> optax.GradientTransformationExtraArgs:
    build = methods.describe(config.name).build
    check_options(f"method {config.name}", config.options, build, exclude=("num_tasks",))
    methods.create(config.name, num_tasks, **config.options)  # checks values
    parameters = inspect.signature(build).parameters
    own = {name: value for name, value in (("seed", seed), ("window", steps_per_epoch)) if name in parameters}
    static = tuple(name for name in _STATIC if name in parameters)
    return optax.inject_hyperparams(build, static_args=static)(num_tasks=num_tasks, **{**own, **config.options})


def _injected_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    if config.name not in _OPTIMIZERS:
        raise unknown("optimizer", config.name, _OPTIMIZERS)
    build = _OPTIMIZERS[config.name]
    parameters = inspect.signature(build).parameters
    check_options(f"optimizer {config.name}", config.options, build, exclude=("learning_rate",))
    for key, value in config.options.items():
        if not isinstance(value, (int, float, type(None))):
            raise ValueError(f"option {key} of optimizer {config.name} must be a number, true or false, got {value!r}")
    static = tuple(name for name, p in parameters.items() if p.default is None and name not in config.options)
    return optax.inject_hyperparams(build, static_args=static)(learning_rate=config.learning_rate, **config.options)


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
