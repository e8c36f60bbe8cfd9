"""Eight fake CPU devices for every test, set before JAX starts its backend."""

from __future__ import annotations

import os

import jax
from hypothesis import settings

os.environ.setdefault("MPLBACKEND", "Agg")  # no window, whatever the machine

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)

# The same examples on every run: a test that fails once fails again.
settings.register_profile("r1jax", derandomize=True, deadline=None, database=None)
settings.load_profile("r1jax")
