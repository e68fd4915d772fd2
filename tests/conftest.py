"""Eight CPU devices for the whole session, and where the real data lies."""

import os
from pathlib import Path

# Before jax is imported. Tests that train pass devices=1 unless several devices are what they test.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

_DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "tfds"
if _DATA.is_dir():
    os.environ.setdefault("MTLJAX_DATA", str(_DATA))
