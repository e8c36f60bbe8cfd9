"""`configs/r1_zero.py:tiny` at a size that runs in seconds: for tests and `tools/kill_test.py`. It learns nothing."""

from __future__ import annotations

import importlib.util
import pathlib
from typing import Any

from ml_collections import ConfigDict

TINY = pathlib.Path(__file__).parents[2] / "configs" / "r1_zero.py"
MODEL = {
    "width": 32,
    "num_dense_layers": 1,
    "num_moe_layers": 1,
    "ffn_dim": 48,
    "attention": {
        "num_heads": 2,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 12,
        "qk_rope_head_dim": 4,
        "v_head_dim": 16,
    },
    "moe": {"num_experts": 4, "num_active": 2, "expert_dim": 16, "tile_size": 8},
}
DECODING = {"max_new_tokens": 12, "temperature": 1.0, "chunk": 6, "batch_size": 16}


def get_config(arg: str = "") -> ConfigDict:
    """The pipeline of `:tiny`; the argument `long` makes RL and pretraining last longer, for kills to fall into."""
    if arg not in ("", "long"):
        raise ValueError(f"tests/configs/r1_zero_smoke.py:{arg}: unknown argument; allowed: long")
    spec = importlib.util.spec_from_file_location("r1_zero", TINY)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config("tiny")
    changes = stage_changes(arg == "long")
    config.steps = tuple({**step, "config": merge(step["config"], changes[step["stage"]])} for step in config.steps)
    return config


def stage_changes(long: bool) -> dict[str, dict[str, Any]]:
    """What is smaller than in `:tiny`, by kind of stage."""
    steps = 60 if long else 10
    return {
        "pretrain": {
            "steps": steps,
            "rows": 8,
            "model": {"preset": "tiny_mla_moe", "overrides": MODEL},
            "corpus": {"documents": 2000},
            "tokenizer": {"vocab_size": 512, "sentences": 2000},
            "optimizer": {"warmup_steps": 2, "total_steps": steps},
            "log_every": 5 if long else 2,
            "checkpoint_every": 10 if long else 4,
        },
        "rl": {
            "rollouts": 10 if long else 3,
            "source": {"size": 64},
            "decoding": DECODING,
            "prompts": 4,
            "group_size": 4,
            "minibatches": 2,
            "inner_epochs": 2,
            "row_length": 64,
            "micro_rows": 4,
            # Nothing it writes is right: in a long run the length makes the difference, so that there is something
            # to learn.
            "grpo": {"overlong_cache": 8 if long else 0},
            "optimizer": {"warmup_steps": 1},
            "reference_every": 3,
            "evaluation": {"source": {"size": 6}, "every": 4 if long else 2},
            "log_samples": 4,
            "checkpoint_every": 3 if long else 2,
        },
        "evaluate": {"source": {"size": 12 if long else 8}, "samples": 4, "decoding": DECODING},
    }


def merge(base: Any, changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with nested fields replaced."""
    merged = dict(base)
    for name, value in changes.items():
        nested = isinstance(value, dict) and name in merged
        merged[name] = merge(merged[name], value) if nested else value
    return merged
