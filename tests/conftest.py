"""Eight CPU devices for the whole session, and quick compilation."""

import os
from collections.abc import Iterator

import pytest

# Before jax is imported. Tests that train pass devices=1 unless several devices are what they test.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of the time goes into compiling, not running. JAX_DISABLE_MOST_OPTIMIZATIONS=0 tests what users run.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")


@pytest.fixture
def optimised() -> Iterator[None]:
    """For tests that read compiled programs: as users get them."""
    import jax

    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
