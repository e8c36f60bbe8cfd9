"""What goes wrong while a stage runs: it is said with its step, and what was saved is left alone.

`python -m pytest -n 0 -s tests/test_bad_runs.py` prints every message as the command line shows it.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import pathlib
import signal
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from bad_pipelines import refused, smoke
from ml_collections import ConfigDict

from r1jax import checkpoint, train
from r1jax.checkpoint import CheckpointStore, DiskFullError
from r1jax.metrics import NonFiniteError
from r1jax.rollout import load_graded
from r1jax.stages import pretrain
from r1jax.workdir import WorkdirError

pytestmark = pytest.mark.usefixtures("one_device")

TRAINER = pretrain.Trainer
TRAINERS: dict[str, Any] = {}


def remembered_trainer(training: pretrain.Training, model: Any, mesh: Any) -> Any:
    """One compiled trainer for all tests: how many steps it will be asked for is nothing to it."""
    name = repr((dataclasses.replace(training, steps=1), model, mesh))
    if name not in TRAINERS:
        TRAINERS[name] = TRAINER(training, model, mesh)
    return TRAINERS[name]


@pytest.fixture(autouse=True)
def compiled_once(one_device: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain, "Trainer", remembered_trainer)


def one_stage(**changes: Any) -> ConfigDict:
    """Pretraining alone, on a model that is small even for these tests."""
    step = smoke.get_config().steps[0]
    fields = smoke.merge(step["config"], {"tensorboard": False, "checkpoint_every": 2, "log_every": 100, **changes})
    fields["model"] = {"preset": "tiny_dense", "overrides": {"width": 16, "num_dense_layers": 1, "ffn_dim": 16}}
    return ConfigDict({"stage": "pretrain", **fields})


def test_a_workdir_of_another_config_is_refused_with_the_fields(tmp_path: pathlib.Path, no_long_work: None) -> None:
    """A single stage's; of a pipeline the steps that changed are repeated (test_pipeline.py)."""
    workdir = tmp_path / "run"
    _, made_by = train.read_config(one_stage())
    train.open_workdir(workdir, {"stage": "pretrain", **train.to_plain(made_by)})
    before = sorted(path.relative_to(workdir) for path in workdir.rglob("*"))
    rate = made_by.optimizer.learning_rate
    other = one_stage(rows=4, optimizer={"learning_rate": 1e-3})
    with pytest.raises(WorkdirError, match="was made by another config"):
        train.check(other, workdir)
    shown = refused(other, workdir, WorkdirError)
    assert f"{workdir} was made by another config. Choose another --workdir, or restore these fields:" in shown
    assert "\n  rows: 8 there, 4 now" in shown
    assert f"\n  optimizer.learning_rate: {rate} there, 0.001 now" in shown
    assert len(shown.splitlines()) == 3
    assert sorted(path.relative_to(workdir) for path in workdir.rglob("*")) == before


@pytest.fixture
def at_update(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int, Callable[..., Any]], None]]:
    """Puts a function in the way of the n-th update of the test: it gets the result and may change it."""
    original = TRAINER.update

    def install(number: int, change: Callable[..., Any]) -> None:
        calls: list[int] = []

        def update(self: Any, state: Any, batch: Any) -> Any:
            calls.append(1)
            state, metrics = original(self, state, batch)
            return change(state, metrics) if len(calls) == number else (state, metrics)

        monkeypatch.setattr(TRAINER, "update", update)

    yield install
    monkeypatch.setattr(TRAINER, "update", original)


def test_a_loss_that_is_not_finite_stops_the_run_at_its_step_with_the_data(
    tmp_path: pathlib.Path, at_update: Any
) -> None:
    """The loss is looked at in every step, not only where it is logged."""
    workdir = tmp_path / "run"
    at_update(3, lambda state, metrics: (state, metrics | {"loss": np.float32("nan")}))
    shown = refused(one_stage(steps=8), workdir, NonFiniteError)
    assert f"step 3: loss is nan. The step's data lies in {workdir}/nonfinite_step_3.npz" in shown
    assert "the last checkpoint is untouched" in shown
    assert CheckpointStore(workdir / "checkpoints").steps() == [2]
    with np.load(workdir / "nonfinite_step_3.npz") as data:
        assert data["tokens"].shape == (8, 160)
        assert set(data.files) >= {"tokens", "targets", "loss_mask", "positions", "segment_ids"}


def test_a_full_disk_leaves_the_checkpoints_and_the_same_command_goes_on(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workdir = tmp_path / "run"
    save = checkpoint.ocp.save

    def full(path: pathlib.Path, *args: Any) -> None:
        if "step_00000004" in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        save(path, *args)

    monkeypatch.setattr(checkpoint.ocp, "save", full)
    shown = refused(one_stage(steps=4), workdir, DiskFullError)
    assert "the disk is full (" in shown
    assert "step 4 could not be saved. The checkpoints of steps [2] are untouched. Make room" in shown
    monkeypatch.setattr(checkpoint.ocp, "save", save)
    train.run(one_stage(steps=4), workdir)
    assert json.loads((workdir / "summary.json").read_text())["steps"] == 4


def test_a_disk_that_is_full_for_metrics_is_said_too() -> None:
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/a/metrics.jsonl")
    shown = train.describe(error)
    print(f"\n    {shown}")
    assert isinstance(error, train.USER_ERRORS)
    assert shown.startswith("DiskFullError: the disk is full (runs/a/metrics.jsonl). The checkpoints already saved are")


def test_a_damaged_checkpoint_is_said_loudly_and_the_one_before_it_used(
    tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str], at_update: Any
) -> None:
    workdir = tmp_path / "run"
    at_update(6, lambda state, metrics: (signal.raise_signal(signal.SIGTERM), (state, metrics))[1])
    with pytest.raises(train.Interrupted, match="stopped by SIGTERM at step 6 of 8"):
        train.run(one_stage(steps=8), workdir)
    newest = workdir / "checkpoints" / "step_00000006"
    victim = max((file for file in (newest / "arrays").rglob("*") if file.is_file()), key=lambda f: f.stat().st_size)
    victim.write_bytes(victim.read_bytes()[:-1])
    capfd.readouterr()
    train.run(one_stage(steps=8), workdir)
    shown = capfd.readouterr().err
    print(shown)
    words = " ".join(shown.replace("│", " ").split())
    assert "damaged checkpoint" in words
    assert "step_00000006 is damaged and will not be used" in words
    assert json.loads((workdir / "summary.json").read_text())["steps"] == 8


def test_when_every_checkpoint_is_damaged_nothing_is_overwritten(tmp_path: pathlib.Path, at_update: Any) -> None:
    workdir = tmp_path / "run"
    at_update(3, lambda state, metrics: (signal.raise_signal(signal.SIGTERM), (state, metrics))[1])
    with pytest.raises(train.Interrupted):
        train.run(one_stage(steps=8), workdir)
    for manifest in (workdir / "checkpoints").glob("*/manifest.json"):
        manifest.write_text("{}")
    rows = (workdir / "config.json").read_text()
    shown = refused(one_stage(steps=8), workdir, checkpoint.CheckpointError)
    assert "every checkpoint is damaged (steps [2, 3]). Put an undamaged copy back, or remove the directory" in shown
    assert (workdir / "config.json").read_text() == rows


def test_a_damaged_stored_rollout_is_named(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "000003.npz"
    path.write_bytes(b"PK\x03\x04 half a file")
    with pytest.raises(WorkdirError, match=r"000003\.npz is damaged .*Remove it, and what it holds is made again"):
        load_graded(path)
