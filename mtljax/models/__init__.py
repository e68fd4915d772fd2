"""Networks: linen encoders shared by the tasks, and the model that joins an encoder with one head a task.

Imports jax, flax.linen and the standard library; knows nothing of data or training. Parameters are plain dicts,
`{"shared": ..., "heads": {task: ...}}`.
"""

from collections.abc import Callable
from typing import Any

from flax import linen as nn

from mtljax.errors import check_options, unknown
from mtljax.models.lenet import LeNet
from mtljax.models.mlp import MLP
from mtljax.models.multi_task import MultiTaskModel
from mtljax.models.resnet import ResNet18

__all__ = ["MLP", "LeNet", "MultiTaskModel", "ResNet18", "encoder", "names"]

_ENCODERS: dict[str, Callable[..., nn.Module]] = {"lenet": LeNet, "mlp": MLP, "resnet18": ResNet18}


def names() -> tuple[str, ...]:
    """The names of the encoders, sorted."""
    return tuple(sorted(_ENCODERS))


def encoder(name: str, **options: Any) -> nn.Module:
    """Builds an encoder by name.

    Args:
      name: one of `names()`.
      **options: fields of the encoder's linen module.

    Returns:
      A module called as `module(inputs, train=...)` that returns the shared representation.

    Raises:
      ValueError: on an unknown name or option, naming the nearest valid one.
    """
    if name not in _ENCODERS:
        raise unknown("encoder", name, _ENCODERS)
    check_options(f"encoder {name}", options, _ENCODERS[name], exclude=("name", "parent"))
    return _ENCODERS[name](**options)
