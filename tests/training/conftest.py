"""A run small enough to train in a second."""

import dataclasses

import pytest

from mtljax.training import DataConfig, MethodConfig, ModelConfig, OptimizerConfig, TrainConfig

TINY = TrainConfig(
    name="tiny",
    data=DataConfig("digits", {"num_train": 512, "num_validation": 200, "num_test": 200}),
    model=ModelConfig("mlp", {"features": (32,)}),
    method=MethodConfig("pcgrad"),
    optimizer=OptimizerConfig("adam", learning_rate=3e-3),
    batch_size=64,
    epochs=3,
    log_every=3,
    tensorboard=False,
    devices=1,
)


@pytest.fixture
def tiny():
    """`tiny(epochs=1, ...)` is the run with some fields replaced."""
    return lambda **changes: dataclasses.replace(TINY, **changes)
