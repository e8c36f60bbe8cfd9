"""What a step reads of another one is held against what that one leaves, before the first step runs."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest

from r1jax.settings import ConfigError, from_config
from r1jax.stages import pipeline
from r1jax.stages.hand_overs import check_hand_overs

BASE = ("base", "pretrain", {})
INIT = {"kind": "stage", "path": "../base"}
KEPT = ("kept", "curate", {"init": INIT})
PREFERENCES = ("preferences", "preferences", {"init": INIT})
SAFETY = ("safety", "reward_model", {"init": INIT, "kind": "pointwise", "view": "safety"})
RIGHT: list[tuple[str, str, dict[str, Any]]] = [
    ("tuned", "sft", {"init": INIT, "data": ({"path": "../kept/samples_kept.jsonl"},)}),
    ("helpful", "reward_model", {"init": INIT, "data": ("../preferences/pairs.jsonl",)}),
    ("again", "curate", {"init": INIT, "general": ({"path": "../kept/samples_kept.jsonl"},)}),
    ("measured", "evaluate", {"init": INIT, "contamination": ("../kept/samples_kept.jsonl", "/elsewhere/a.jsonl")}),
    ("rl", "rl", {"init": INIT, "rewards": {"safety": 1.0, "reward_models": {"safety": "../safety"}}}),
    ("own", "sft", {"init": {"kind": "huggingface", "path": "safety"}, "data": ({"path": "../mine.jsonl"},)}),
]
WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("evaluate", {"init": {"kind": "stage", "path": "../safety"}}, "init.path: the step '../safety' leaves no policy"),
    ("rl", {"init": {"kind": "stage", "path": "../kept"}}, "init.path: the step '../kept' leaves no policy"),
    (
        "sft",
        {"init": INIT, "data": ({"path": "../kept/kept.jsonl"},)},
        "data[0].path: '../kept/kept.jsonl': the step 'kept' leaves samples_kept.jsonl for others",
    ),
    (
        "reward_model",
        {"init": INIT, "data": ("../preferences/pair.jsonl",)},
        "data[0]: '../preferences/pair.jsonl': the step 'preferences' leaves pairs.jsonl, labels.jsonl for others",
    ),
    (
        "evaluate",
        {"init": INIT, "contamination": ("../base/samples.jsonl",)},
        "contamination[0]: '../base/samples.jsonl': the step 'base' leaves no data for others",
    ),
    (
        "rl",
        {"init": INIT, "rewards": {"helpfulness": 1.0, "reward_models": {"helpfulness": "../safety"}}},
        "rewards.reward_models.helpfulness: the step 'safety' is no reward_model whose view is 'helpfulness'",
    ),
    (
        "rl",
        {"init": INIT, "rewards": {"safety": 1.0, "reward_models": {"safety": "../base"}}},
        "rewards.reward_models.safety: the step 'base' is no reward_model whose view is 'safety'",
    ),
]


def steps(folder: pathlib.Path, *told: tuple[str, str, dict[str, Any]]) -> list[tuple[str, Any, pathlib.Path]]:
    """The steps before, and `told` behind them."""
    return [  # "rl" with rows for its own defaults of prompts and responses
        (
            name,
            from_config(pipeline.SINGLE_STAGES[stage].config, fields | ({"row_length": 512} if stage == "rl" else {})),
            folder / name,
        )
        for name, stage, fields in (BASE, KEPT, PREFERENCES, SAFETY, *told)
    ]


def test_what_other_steps_leave_may_be_read_and_so_may_what_lies_elsewhere(tmp_path: pathlib.Path) -> None:
    check_hand_overs(steps(tmp_path, *RIGHT))


@pytest.mark.parametrize(("stage", "fields", "message"), WRONG)
def test_what_no_step_leaves_is_named(stage: str, fields: dict[str, Any], message: str, tmp_path: pathlib.Path) -> None:
    with pytest.raises(ConfigError) as caught:
        check_hand_overs(steps(tmp_path, ("last", stage, fields)))
    assert str(caught.value) == f"steps[last].config.{message}"
