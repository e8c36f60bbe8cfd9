"""Eight fake CPU devices for every test, set before JAX starts its backend."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import jax
import pytest
from hypothesis import settings

os.environ.setdefault("MPLBACKEND", "Agg")  # no window, whatever the machine

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)

# The same examples on every run: a test that fails once fails again.
settings.register_profile("r1jax", derandomize=True, deadline=None, database=None)
settings.load_profile("r1jax")


@pytest.fixture
def one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages that the tests run make their mesh of one device."""
    from r1jax.sharding import make_mesh
    from r1jax.stages import evaluate, pretrain, rl

    for stage in (pretrain, rl, evaluate):
        monkeypatch.setattr(stage, "make_mesh", partial(make_mesh, devices=jax.devices()[:1]))


@pytest.fixture
def no_long_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails the test if a corpus is made or a model built."""
    from r1jax.stages import evaluate, pretrain, rl

    def forbidden(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("long work began before the error was found")

    monkeypatch.setattr(pretrain, "write_corpus", forbidden)
    monkeypatch.setattr(pretrain, "Trainer", forbidden)
    monkeypatch.setattr(rl, "Loop", forbidden)
    monkeypatch.setattr(evaluate, "Completer", forbidden)
