"""A base and R1-Zero on it, as small as they can be: for `tools/chaos.py` and tests with several processes."""

from __future__ import annotations

from ml_collections import ConfigDict

MODEL = {
    "width": 16,
    "num_dense_layers": 1,
    "num_moe_layers": 1,
    "ffn_dim": 24,
    "mtp_depth": 0,
    "attention": {
        "num_heads": 2,
        "q_lora_rank": 8,
        "kv_lora_rank": 8,
        "qk_nope_head_dim": 4,
        "qk_rope_head_dim": 4,
        "v_head_dim": 8,
    },
    "moe": {"num_experts": 4, "num_active": 2, "expert_dim": 8, "tile_size": 8},
}


def get_config(arg: str = "") -> ConfigDict:
    """The pipeline; the argument `dense` leaves the experts out, which compiles sooner."""
    if arg not in ("", "dense"):
        raise ValueError(f"tests/configs/processes_smoke.py:{arg}: unknown argument; allowed: dense")
    model = {"preset": "tiny_mla_moe", "overrides": {**MODEL, **({"num_moe_layers": 0} if arg else {})}}
    pretrain = {
        "steps": 2,
        "rows": 4,
        "row_length": 256,
        "model": model,
        "corpus": {"documents": 300},
        "tokenizer": {"vocab_size": 400, "sentences": 300},
        "optimizer": {"warmup_steps": 1, "total_steps": 2},
        "mtp_weight": 0.0,
        "checkpoint_every": 2,
        "tensorboard": False,
    }
    rl = {
        "rollouts": 4,
        "init": {"kind": "stage", "path": "../pretrain"},
        "source": {"split": "rl", "size": 32},
        "prompt": {"template": "short", "width": 40},
        # A block is one group, so that its rows are on all processes.
        "decoding": {"max_new_tokens": 8, "chunk": 7, "batch_size": 4, "stop_strings": ("e", "a", "1")},
        "prompts": 4,
        "group_size": 4,
        "minibatches": 2,
        "row_length": 48,
        "micro_rows": 4,
        "grpo": {"overlong_cache": 4},  # nothing it writes is right: the length is what it learns
        "optimizer": {"learning_rate": 1e-3, "warmup_steps": 1},
        "reference_every": 3,
        "evaluation": {"every": 0},
        "log_samples": 4,
        "checkpoint_every": 2,
        "tensorboard": False,
    }
    steps = (
        {"name": "pretrain", "stage": "pretrain", "config": pretrain},
        {"name": "rl", "stage": "rl", "config": rl},
    )
    return ConfigDict({"stage": "pipeline", "title": "several processes", "steps": steps})
