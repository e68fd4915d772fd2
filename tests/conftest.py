"""Eight CPU devices for the whole session."""

import os

# Before jax is imported. Tests that train pass devices=1 unless several devices are what they test.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
