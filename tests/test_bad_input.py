"""Bad input through the entry: what the user reads, and that it comes before any long work.

`python -m pytest -n 0 -s tests/test_bad_input.py` prints every message as the command line shows it. What is refused
because stages, model and machine do not fit is in test_late_refusals.py; what goes wrong in a run in test_bad_runs.py.
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from bad_pipelines import file_source, jsonl, pipeline, refused
from ml_collections import ConfigDict

from r1jax import train
from r1jax.data.errors import DataError
from r1jax.settings import ConfigError
from r1jax.stages import pretrain
from r1jax.workdir import WorkdirError

pytestmark = pytest.mark.usefixtures("one_device")

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
