"""What does not fit the model, the mesh or the machine is refused before the first stage, not when its turn comes."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
from bad_pipelines import pipeline, refused

from r1jax import train
from r1jax.model.presets import get_preset
from r1jax.settings import ConfigError
from r1jax.sharding import make_mesh
from r1jax.stages import rl
from r1jax.stages.checks import known_policy
from r1jax.stages.policy import PolicySource

pytestmark = pytest.mark.usefixtures("one_device", "no_long_work")


def test_a_response_beyond_the_context_is_refused_first(tmp_path: pathlib.Path) -> None:
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


def test_rows_beyond_the_context_are_refused_first(tmp_path: pathlib.Path) -> None:
    shown = refused(pipeline(pretrain={"row_length": 1024}), tmp_path / "run", ConfigError)
    assert "steps[pretrain].config: row_length: 1024 exceeds the model's context, max_positions = 512" in shown


def test_a_batch_that_the_mesh_cannot_split_is_refused_first(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rl, "make_mesh", make_mesh)
    shown = refused(pipeline(r1_zero={"mesh": {"data": 4, "expert": 2}}), tmp_path / "run", ConfigError)
    sizes = "slice = 1 x data = 4 x fsdp = 1 x expert = 2"
    assert f"micro_rows: 4 does not divide into 8 equal parts (mesh: {sizes}); nearest that do: micro_rows = 8" in shown


def test_a_batch_that_does_not_hold_whole_groups_is_refused_first(tmp_path: pathlib.Path) -> None:
    shown = refused(pipeline(r1_zero={"group_size": 3, "minibatches": 1}), tmp_path / "run", ConfigError)
    assert "decoding.batch_size: 16 is not a multiple of group_size = 3; nearest: 15 or 18" in shown


def test_a_mesh_of_another_number_of_devices_is_refused_first(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rl, "make_mesh", make_mesh)
    shown = refused(pipeline(r1_zero={"mesh": {"data": 3}}), tmp_path / "run", ConfigError)
    sizes = "{'slice': 1, 'data': 3, 'fsdp': 1, 'sequence': 1, 'expert': 1, 'tensor': 1}"
    assert f"steps[r1_zero].config: mesh axes {sizes} do not multiply up" in shown


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"attention_impl": "bogus"}, "init.overrides: attention_impl is 'bogus', expected one of ('auto', 'plain', "),
        ({"attention_key_chunk": "many"}, "init.overrides.attention_key_chunk: expected int, got 'many' (str)"),
        ({"param_dtype": "bfloat16"}, "model.param_dtype: 'bfloat16'; training needs 'float32'"),
    ],
)
def test_overrides_of_a_policy_yet_to_be_made_are_looked_at(
    overrides: dict[str, Any], message: str, tmp_path: pathlib.Path
) -> None:
    shown = refused(pipeline(r1_zero={"init": {"overrides": overrides}}), tmp_path / "run", ConfigError)
    assert f"steps[r1_zero].config: {message}" in shown


def test_overrides_that_training_allows_are_handed_on_to_the_next_stage(tmp_path: pathlib.Path) -> None:
    """What RL leaves is in the type that it was trained in, so that the stage behind it starts from that type."""
    reduced = {"init": {"overrides": {"param_dtype": "bfloat16"}}, "optimizer": {"master_weights": True}}
    train.check(pipeline(r1_zero=reduced), tmp_path / "run")
    made = {(tmp_path / "run/pretrain").resolve(): get_preset("tiny_mla_moe")}
    source = PolicySource(path="../pretrain", overrides={"param_dtype": "bfloat16", "remat": "block"})
    model, tokenizer = known_policy(source, tmp_path / "run/r1_zero", made)
    assert (model.param_dtype, model.remat, tokenizer) == ("bfloat16", "block", None)


def test_a_policy_yet_to_be_made_is_of_the_preset_that_is_asked_for(tmp_path: pathlib.Path) -> None:
    shown = refused(pipeline(r1_zero={"init": {"preset": "tiny_dense"}}), tmp_path / "run", ConfigError)
    assert "steps[r1_zero].config: init.preset: the policy is no tiny_dense: " in shown


@pytest.mark.parametrize(("field", "value"), [("exchange", "x"), ("buffer_factor", -1.0), ("num_active", 9)])
def test_experts_that_cannot_be_computed_are_refused_when_the_config_is_read(field: str, value: Any) -> None:
    changes = {"model": {"overrides": {"moe": {field: value}}}}
    with pytest.raises(ConfigError, match=rf"steps\[pretrain\]\.config\.model: moe: {field}\b.*{value}"):
        train.check(pipeline(pretrain=changes), None)


@pytest.mark.parametrize("stage", ["pretrain", "r1_zero", "evaluate_zero"])
def test_a_kernel_that_is_not_there_is_refused_first(stage: str, tmp_path: pathlib.Path) -> None:
    kernel = {"overrides": {"attention_impl": "kernel"}}
    changes = {stage: {"model": kernel} if stage == "pretrain" else {"init": kernel}}
    shown = refused(pipeline(**changes), tmp_path / "run", ConfigError)
    assert f"steps[{stage}].config: attention_impl is 'kernel', but there is none for the platform 'cpu'" in shown
