"""Bad input through the entry: what the user reads, that it comes before any long work, and that nothing is lost.

`python -m pytest -n 0 -s tests/test_bad_input.py` prints every message as the command line shows it.
"""

from __future__ import annotations

import dataclasses
import errno
import importlib.util
import json
import os
import pathlib
import signal
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from ml_collections import ConfigDict

from r1jax import checkpoint, train
from r1jax.checkpoint import CheckpointStore, DiskFullError
from r1jax.data.errors import DataError
from r1jax.metrics import NonFiniteError
from r1jax.rollout import load_graded
from r1jax.settings import ConfigError
from r1jax.sharding import make_mesh
from r1jax.stages import evaluate, pretrain, rl
from r1jax.workdir import WorkdirError

_spec = importlib.util.spec_from_file_location(
    "r1_zero_smoke", pathlib.Path(__file__).parent / "configs" / "r1_zero_smoke.py"
)
assert _spec is not None
assert _spec.loader is not None
smoke = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(smoke)


TRAINER = pretrain.Trainer
TRAINERS: dict[str, Any] = {}


def remembered_trainer(training: pretrain.Training, model: Any, mesh: Any) -> Any:
    """One compiled trainer for all tests: how many steps it will be asked for is nothing to it."""
    name = repr((dataclasses.replace(training, steps=1), model, mesh))
    if name not in TRAINERS:
        TRAINERS[name] = TRAINER(training, model, mesh)
    return TRAINERS[name]


@pytest.fixture(autouse=True)
def one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    for stage in (pretrain, rl, evaluate):
        monkeypatch.setattr(stage, "make_mesh", partial(make_mesh, devices=jax.devices()[:1]))
    monkeypatch.setattr(pretrain, "Trainer", remembered_trainer)


@pytest.fixture
def no_long_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails the test if a corpus is made or a model built."""

    def forbidden(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("long work began before the error was found")

    monkeypatch.setattr(pretrain, "write_corpus", forbidden)
    monkeypatch.setattr(pretrain, "Trainer", forbidden)
    monkeypatch.setattr(rl, "Loop", forbidden)
    monkeypatch.setattr(evaluate, "Completer", forbidden)


def pipeline(**changes: dict[str, Any]) -> ConfigDict:
    """The smoke pipeline with fields of stages changed, by the stage's name."""
    config: ConfigDict = smoke.get_config()
    config.steps = tuple(
        {**step, "config": smoke.merge(step["config"], changes.get(step["name"], {}))} for step in config.steps
    )
    return config


def refused(config: ConfigDict, workdir: pathlib.Path, kind: type[Exception]) -> str:
    """Runs and returns the message that the user reads, once the error is of the right kind."""
    with pytest.raises(kind) as caught:
        train.run(config, workdir)
    assert isinstance(caught.value, train.USER_ERRORS), "the user would see a traceback"
    message = train.describe(caught.value)
    print(f"\n    {message}")
    return message


def jsonl(path: pathlib.Path, *lines: str) -> dict[str, Any]:
    """A file with two good rows and then `lines`, as the source of a stage."""
    good = [json.dumps({"question": f"compute {n} + 1 ?", "answer": str(n + 1)}) for n in range(2)]
    path.write_text("\n".join([*good, *lines]) + "\n", encoding="utf-8")
    return file_source("jsonl", path)


def file_source(kind: str, path: pathlib.Path, **fields: Any) -> dict[str, Any]:
    return {"kind": kind, "path": str(path), "split": "", "size": 0, "seed": 0, **fields}


FIELDS: list[tuple[str, dict[str, Any], str]] = [
    (
        "misspelt field",
        {"r1_zero": {"rolouts": 3}},
        "steps[r1_zero].config.rolouts: unknown field of RLConfig. Did you mean 'rollouts'? Allowed: ",
    ),
    (
        "misspelt nested field",
        {"pretrain": {"optimizer": {"learning_rat": 1e-3}}},
        "steps[pretrain].config.optimizer.learning_rat: unknown field of OptimizerConfig. "
        "Did you mean 'learning_rate'?",
    ),
    (
        "ill-typed field",
        {"pretrain": {"steps": "many"}},
        "steps[pretrain].config.steps: expected int, got 'many' (str)",
    ),
    (
        "bool for a number",
        {"r1_zero": {"group_size": True}},
        "steps[r1_zero].config.group_size: expected int, got True (bool)",
    ),
    (
        "misspelt GRPO field",
        {"r1_zero": {"grpo": {"clip_hihg": 0.2}}},
        "steps[r1_zero].config: grpo.clip_hihg: unknown field of GRPOConfig. Did you mean 'clip_high'?",
    ),
    (
        "ill-typed GRPO field",
        {"r1_zero": {"grpo": {"clip_high": "0.2"}}},
        "steps[r1_zero].config: grpo.clip_high: expected float, got '0.2' (str)",
    ),
    (
        "unknown preset",
        {"r1_zero": {"preset": "gpro"}},
        "steps[r1_zero].config: preset: 'gpro' is not one of ['dapo', ",
    ),
    ("unknown model preset", {"pretrain": {"model": {"preset": "tiny_moe"}}}, "tiny_moe"),
    (
        "misspelt model field",
        {"pretrain": {"model": {"overrides": {"widht": 32}}}},
        "steps[pretrain].config.model: widht: unknown field of ModelConfig. Did you mean 'width'?",
    ),
    (
        "unknown kind of source",
        {"r1_zero": {"source": {"kind": "json"}}},
        "steps[r1_zero].config.source: kind: 'json' is not one of tasks, programs, ",
    ),
    (
        "minibatches that do not divide",
        {"r1_zero": {"minibatches": 3}},
        "steps[r1_zero].config: minibatches: 3 does not divide prompts x group_size = 16",
    ),
    (
        "rows too short for prompt and response",
        {"r1_zero": {"row_length": 30}},
        "steps[r1_zero].config: row_length: 30 is too short for prompt.width + decoding.max_new_tokens - 1 = ",
    ),
    ("one answer a question", {"r1_zero": {"group_size": 1}}, "steps[r1_zero].config: group_size: 1; at least 2"),
    ("no mini-batch", {"r1_zero": {"minibatches": 0}}, "steps[r1_zero].config: minibatches: 0; at least 1"),
    ("no step", {"pretrain": {"steps": 0}}, "steps[pretrain].config: steps: 0; at least 1"),
    (
        "negative temperature",
        {"evaluate_zero": {"decoding": {"temperature": -1.0}}},
        "steps[evaluate_zero].config.decoding: temperature: -1.0; 0 (greedy) or more",
    ),
    (
        "too much of the probability",
        {"evaluate_zero": {"decoding": {"top_p": 95.0}}},
        "steps[evaluate_zero].config.decoding: top_p: 95.0; more than 0 and at most 1",
    ),
]


@pytest.mark.parametrize(("name", "changes", "message"), FIELDS, ids=[name for name, _, _ in FIELDS])
def test_a_bad_field_is_named_before_anything_starts(
    name: str, changes: dict[str, Any], message: str, tmp_path: pathlib.Path, no_long_work: None
) -> None:
    shown = refused(pipeline(**changes), tmp_path / "run", ConfigError)
    assert message in shown
    assert not (tmp_path / "run").exists(), "the mended config would find a work directory made by another one"


def test_an_unknown_stage_is_named(tmp_path: pathlib.Path) -> None:
    config = ConfigDict({"stage": "pretain"})
    shown = refused(config, tmp_path / "run", ConfigError)
    assert f"stage: 'pretain' is not one of {sorted(train.STAGES)}" in shown
    assert {"pipeline", "pretrain", "rl", "sft"} < set(train.STAGES)


def test_an_unknown_task_is_named_with_close_ones(tmp_path: pathlib.Path, no_long_work: None) -> None:
    pytest.importorskip("reasoning_gym")
    source = {"kind": "reasoning_gym", "task": "chain_sums", "size": 4}
    shown = refused(pipeline(r1_zero={"source": source}), tmp_path / "run", ConfigError)
    assert "steps[r1_zero].config: source: unknown reasoning-gym task 'chain_sums'; close ones: chain_sum" in shown


def test_an_unknown_parameter_of_the_tasks_is_named(tmp_path: pathlib.Path, no_long_work: None) -> None:
    shown = refused(pipeline(r1_zero={"source": {"params": {"operand": 3}}}), tmp_path / "run", ConfigError)
    assert "steps[r1_zero].config.source: params: ['operand'] are not among [" in shown


ROWS: list[tuple[str, str, str]] = [
    ("empty row", "", "line 3: empty row"),
    ("malformed row", '{"question": "a"', "line 3: not JSON (Expecting ',' delimiter at column 17)"),
    ("not an object", "[1, 2]", "line 3: a row must be an object with named columns, this is list"),
    (
        "missing column",
        '{"question": "a", "answr": "1"}',
        "line 3: no column 'answer'; the row has 'question', 'answr'",
    ),
    ("empty column", '{"question": " ", "answer": "1"}', "line 3: column 'question' is empty"),
    (
        "column of another type",
        '{"question": "a", "answer": [1]}',
        "line 3: column 'answer' holds list, expected text or",
    ),
]


@pytest.mark.parametrize(("name", "line", "message"), ROWS, ids=[name for name, _, _ in ROWS])
def test_a_bad_row_is_named_by_file_and_line(
    name: str, line: str, message: str, tmp_path: pathlib.Path, no_long_work: None
) -> None:
    path = tmp_path / "questions.jsonl"
    config = pipeline(r1_zero={"source": jsonl(path, line), "prompts": 2})
    shown = refused(config, tmp_path / "run", DataError)
    assert f"DataError: steps[r1_zero].config: source: {path}, {message}" in shown
    assert not (tmp_path / "run").exists()


def test_a_bad_row_of_the_last_evaluation_is_found_before_the_first_stage(
    tmp_path: pathlib.Path, no_long_work: None
) -> None:
    config = pipeline(evaluate_zero={"source": jsonl(tmp_path / "test.jsonl", "{")})
    assert "steps[evaluate_zero].config: source: " in refused(config, tmp_path / "run", DataError)


def test_a_missing_column_of_a_parquet_file_is_named(tmp_path: pathlib.Path, no_long_work: None) -> None:
    path = tmp_path / "questions.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"problem": ["a"], "solution": ["b"]}), path)
    shown = refused(pipeline(r1_zero={"source": file_source("parquet", path)}), tmp_path / "run", DataError)
    assert f"{path}, row 1: no column 'answer'; the row has 'problem', 'solution'" in shown


def test_a_missing_file_is_named(tmp_path: pathlib.Path, no_long_work: None) -> None:
    source = file_source("jsonl", tmp_path / "nowhere.jsonl")
    shown = refused(pipeline(r1_zero={"source": source}), tmp_path / "run", DataError)
    assert f"source: {tmp_path}/nowhere.jsonl: No such file or directory" in shown


def test_a_policy_that_no_stage_makes_is_named(tmp_path: pathlib.Path, no_long_work: None) -> None:
    config = pipeline(r1_zero={"init": {"kind": "stage", "path": "../pretrian"}})
    shown = refused(config, tmp_path / "run", ConfigError)
    assert f"steps[r1_zero].config: init.path: {tmp_path}/run/pretrian holds no finished policy" in shown


def test_a_reward_model_is_no_policy(tmp_path: pathlib.Path, no_long_work: None) -> None:
    """Its folder has the files of a policy, so it would only fail when its parameters are read."""
    folder = tmp_path / "rm"
    (folder / "model").mkdir(parents=True)
    for name in ("model.json", "reward_model.json"):
        (folder / name).write_text("{}")
    config = pipeline(r1_zero={"init": {"kind": "stage", "path": str(folder)}})
    shown = refused(config, tmp_path / "run", ConfigError)
    assert f"steps[r1_zero].config: init.path: {folder} holds a reward model, which is no policy" in shown


def test_a_released_folder_that_is_not_there_is_named(tmp_path: pathlib.Path, no_long_work: None) -> None:
    config = pipeline(r1_zero={"init": {"kind": "huggingface", "path": "deepseek-ai/DeepSeek-R1"}})
    shown = refused(config, tmp_path / "run", ConfigError)
    assert "init.path: there is no folder deepseek-ai/DeepSeek-R1 (" in shown
    assert "nothing is downloaded" in shown


def test_a_file_as_workdir_is_found_by_the_check(tmp_path: pathlib.Path, no_long_work: None) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(WorkdirError, match="is a file; --workdir needs a directory"):
        train.check(pipeline(), tmp_path / "run")


def test_a_response_beyond_the_context_is_refused_first(tmp_path: pathlib.Path, no_long_work: None) -> None:
    changes = {
        "pretrain": {"model": {"overrides": {"max_positions": 160}}},
        "evaluate_base": {"prompt": {"width": 150}},
    }
    shown = refused(pipeline(**changes), tmp_path / "run", ConfigError)
    assert (
        "steps[evaluate_base].config: prompt.width + decoding.max_new_tokens: 150 + 12 = 162 exceeds the model's "
        "context, "
        "max_positions = 160" in shown
    )


def test_rows_beyond_the_context_are_refused_first(tmp_path: pathlib.Path, no_long_work: None) -> None:
    shown = refused(pipeline(pretrain={"row_length": 1024}), tmp_path / "run", ConfigError)
    assert "steps[pretrain].config: row_length: 1024 exceeds the model's context, max_positions = 512" in shown


def test_a_batch_that_the_mesh_cannot_split_is_refused_first(
    tmp_path: pathlib.Path, no_long_work: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rl, "make_mesh", make_mesh)
    shown = refused(pipeline(r1_zero={"mesh": {"data": 4, "expert": 2}}), tmp_path / "run", ConfigError)
    sizes = "slice = 1 x data = 4 x fsdp = 1 x expert = 2"
    assert f"micro_rows: 4 does not divide into 8 equal parts (mesh: {sizes}); nearest that do: micro_rows = 8" in shown


def test_a_batch_that_does_not_hold_whole_groups_is_refused_first(tmp_path: pathlib.Path, no_long_work: None) -> None:
    shown = refused(pipeline(r1_zero={"group_size": 3, "minibatches": 1}), tmp_path / "run", ConfigError)
    assert "decoding.batch_size: 16 is not a multiple of group_size = 3; nearest: 15 or 18" in shown


def test_a_mesh_of_another_number_of_devices_is_refused_first(
    tmp_path: pathlib.Path, no_long_work: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rl, "make_mesh", make_mesh)
    shown = refused(pipeline(r1_zero={"mesh": {"data": 3}}), tmp_path / "run", ConfigError)
    sizes = "{'slice': 1, 'data': 3, 'fsdp': 1, 'sequence': 1, 'expert': 1, 'tensor': 1}"
    assert f"steps[r1_zero].config: mesh axes {sizes} do not multiply up" in shown


def test_a_prompt_that_is_too_long_is_named_once_the_tokenizer_is_there(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a pipeline the tokenizer is made by its first stage: the prompts are looked at before that one trains."""
    monkeypatch.setattr(pretrain, "Trainer", lambda *args: pytest.fail("training began"))
    long = json.dumps({"id": "the long one", "question": "compute " + "1 + " * 40 + "1 ?", "answer": "41"})
    source = jsonl(tmp_path / "questions.jsonl", long)
    shown = refused(pipeline(r1_zero={"source": source, "prompts": 2}), tmp_path / "run", DataError)
    assert "steps[r1_zero].config.source: the prompt of example 'questions:3' has " in shown
    assert "tokens, more than prompt.width = 28" in shown


# From here on a stage really runs: pretraining, on a model that is small even for these tests.


def one_stage(**changes: Any) -> ConfigDict:
    """Pretraining alone."""
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
