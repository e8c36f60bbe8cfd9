"""RL on programs: R1-Zero's recipe where the accuracy reward runs code (DeepSeek-R1 section 2.2.2) in the sandbox.

    python -m r1jax.train --config=configs/code_rl.py --workdir=runs/code_rl

A laptop's CPU, minutes: pretrains a base of 1.6M parameters on documents about one-line Python functions, most of them
careless; evaluates it; rewards programs that pass all hidden tests of a problem; evaluates again on held-out problems.
`--config=configs/code_rl.py:seed=1` is another seed. Needs bubblewrap's isolation (Linux); elsewhere set `server`
below to the address of a grade server (`python -m tools.grade_server`).
"""

from __future__ import annotations

from ml_collections import ConfigDict

PROMPT = {"template": "short", "width": 40}
ROLLOUTS = 40


def get_config(arg: str = "") -> ConfigDict:
    """The pipeline pretrain, evaluate, rl, evaluate; `arg` is "seed=N" or nothing."""
    name, _, seed = arg.partition("=")
    if arg and (name != "seed" or not seed.isdecimal()):
        raise ValueError(f"configs/code_rl.py:{arg}: unknown argument; allowed: seed=N with N = 0, 1, ... or nothing")
    return ConfigDict(pipeline(int(seed or 0)), convert_dict=True)


def pipeline(seed: int) -> dict:
    """All four stages."""
    decoding = {"max_new_tokens": 72, "temperature": 1.0, "chunk": 24, "batch_size": 128}
    rewards = {"accuracy": 1.0, "format": 0.5, "comparison": "code", "code": {"server": ""}}
    pretrain = {
        "seed": seed,
        "steps": 600,
        "rows": 16,
        "row_length": 160,
        "model": {"preset": "tiny_mla_moe"},
        "corpus": {"documents": 25_000, "programs": 1.0, "seed": seed},
        "optimizer": {
            "learning_rate": 3e-3,
            "schedule": "cosine",
            "warmup_steps": 40,
            "total_steps": 600,
            "final_fraction": 0.05,
            "b2": 0.98,
            "weight_decay": 0.01,
        },
    }
    rl = {
        "seed": seed,
        "rollouts": ROLLOUTS,
        "init": {"kind": "stage", "path": "../pretrain"},
        "source": {"kind": "programs", "split": "rl", "size": 522, "seed": seed},
        "prompt": PROMPT,
        "decoding": decoding,
        "prompts": 16,
        "group_size": 16,
        "minibatches": 2,
        "row_length": 128,
        "micro_rows": 16,
        "preset": "r1_zero",
        "grpo": {"aggregation": "token_mean"},
        "rewards": rewards,
        "optimizer": {
            "learning_rate": 4e-4,
            "schedule": "cosine",
            "warmup_steps": 5,
            "total_steps": 2 * ROLLOUTS,
            "weight_decay": 0.0,
        },
        "evaluation": {"source": {"kind": "programs", "split": "validation", "size": 16}, "every": 10},
    }
    evaluate = {
        "source": {"kind": "programs", "split": "evaluation", "size": 97},
        "samples": 8,
        "prompt": PROMPT,
        "decoding": decoding,
        "rewards": rewards,
    }
    return {
        "stage": "pipeline",
        "title": "RL on programs, tiny",
        "steps": (
            {"name": "pretrain", "stage": "pretrain", "config": pretrain},
            {"name": "evaluate_base", "stage": "evaluate", "config": {**evaluate, "init": _from("pretrain")}},
            {"name": "rl", "stage": "rl", "config": rl},
            {"name": "evaluate_rl", "stage": "evaluate", "config": {**evaluate, "init": _from("rl")}},
        ),
    }


def _from(stage: str) -> dict:
    return {"kind": "stage", "path": f"../{stage}"}
