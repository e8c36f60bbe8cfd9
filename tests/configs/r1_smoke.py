"""`configs/r1.py:tiny` at a size that runs in minutes: for tests and `tools/kill_test.py`. It learns nothing.

A model of random words gives no right answers and nothing readable, so the filters let everything through, nothing is
rewritten, and the pairs of the helpfulness model are written by hand.
"""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

TESTS = Path(__file__).resolve().parents[1]
PAIRS = TESTS / "configs" / "smoke_pairs.jsonl"
SMOKE = runpy.run_path(str(TESTS / "configs" / "r1_zero_smoke.py"))
TINY = runpy.run_path(str(TESTS.parent / "configs" / "r1.py"))
# Every kind of stage, and every hand-over between two of them.
STEPS = (
    *("pretrain", "zero", "cold_start", "dev1", "rejection", "dev3", "preferences", "helpful_model", "safety_model"),
    *("r1", "evaluate_r1"),
)
LETS_ALL_THROUGH = {
    "wrong": False,
    "ungraded": False,
    "truncated": False,
    "format": False,
    "mixed_language": None,
    "wrong_language": None,
    "repetition": None,
    "code_block": False,
}


def get_config(arg: str = "") -> ConfigDict:
    """The steps of `STEPS`; the argument `long` makes those that train last longer, for kills to fall into."""
    if arg not in ("", "long"):
        raise ValueError(f"tests/configs/r1_smoke.py:{arg}: unknown argument; allowed: long")
    config = TINY["get_config"]("tiny").to_dict()
    by_name = {step["name"]: step for step in config["steps"]}
    config["steps"] = [
        {**by_name[name], "config": SMOKE["merge"](by_name[name]["config"], changes(by_name[name]["stage"], name, arg))}
        for name in STEPS
    ]
    config["report"] = {"stages": [{"label": "R1", "step": "evaluate_r1"}]}
    return ConfigDict(config)


def changes(stage: str, name: str, arg: str) -> dict[str, Any]:
    """What is smaller than in `:tiny`."""
    asked = {"decoding": SMOKE["DECODING"]}
    known = SMOKE["stage_changes"](arg == "long")
    if stage in ("pretrain", "rl"):
        changed = known[stage]
        if stage == "pretrain":
            # Its size as in `:tiny`, so that the world's requests fit a prompt.
            changed = changed | {"tokenizer": {"sentences": 2000}}
        if stage == "rl":
            changed = changed | {"evaluation": {"every": 0}, "grpo": {}}
        if name == "r1":
            parts = _parts(8, 8, 4)
            changed = changed | {"late": {"from_rollout": 1, "source": {"parts": parts}}}
        return changed
    if stage == "evaluate":
        return asked | {"samples": 2, "source": {"parts": _parts(4, 4, 2)}, "contamination": ()}
    if stage == "curate":
        small = asked | {"source": {"size": 12}, "samples": 2, "per_prompt": 1, "filters": LETS_ALL_THROUGH}
        small |= {"rewrite": None, "decontaminate": {"sources": ()}}
        general = {"general": ({"kind": "world", "size": 4},), "init": {"path": "../dev1"}}
        return small | (general if name == "rejection" else {})
    if stage == "sft":
        return {"rows": 2, "too_long": "drop", "checkpoint_every": 2, "log_every": 1, "optimizer": {"warmup_steps": 1}}
    if stage == "preferences":
        return (
            asked
            | {"samples": 2, "min_gap": 0.0, "max_ratio": 16.0, "source": {"parts": _parts(0, 24, 16)}}
            | {"rule": {"noise": 4.0, "flip": 0.4}}
        )
    small = {"batch": 4, "epochs": 1, "micro_rows": 4, "score_batch": 4, "held_out": 0.4, "checkpoint_every": 2}
    return small | ({"data": (str(PAIRS),)} if name == "helpful_model" else {})


def _parts(reasoning: int, helpful: int, harmless: int) -> list[dict[str, Any]]:
    """A mixture of few questions; without reasoning where there are to be none."""
    world = [
        {"kind": "world", "split": "rl", "size": size, "params": {"domains": {domain: 1.0}}}
        for domain, size in (("helpful", helpful), ("harmless", harmless))
    ]
    tasks = [{"kind": "tasks", "split": "rl", "size": reasoning, "domain": "reasoning"}] if reasoning else []
    return [*tasks, *world]
