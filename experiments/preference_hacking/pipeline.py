"""RL for all scenarios as in `configs/r1.py:tiny`, and once more with preference rewards from the first rollout on.

get_config("0") is the pipeline of seed 0; up to the shorter RL its steps are those of `configs/r1.py:tiny,seed=0`.
"""

from __future__ import annotations

import runpy
from pathlib import Path

from ml_collections import ConfigDict

from r1jax.provenance import plain

ROLLOUTS = 150  # of the RL that goes on for too long
TINY = runpy.run_path(str(Path(__file__).parents[2] / "configs" / "parts" / "r1_tiny.py"))


def get_config(seed: str) -> ConfigDict:
    """The pipeline of a seed."""
    config = TINY["only_for"](TINY["pipeline"](int(seed)), "r1")
    config["steps"] += ({"name": "r1_long", "stage": "rl", "config": longer(TINY["all_scenarios"](int(seed)))},)
    rewards = TINY["all_scenarios"](int(seed))["rewards"]
    config["steps"] += tuple(judged(policy, rewards) for policy in ("dev3", "r1", "r1_long"))
    labels = {"Dev3": "dev3", "R1": "r1", "R1, long": "r1_long"}
    config["report"] = {
        "stages": tuple({"label": label, "step": f"judged_{policy}"} for label, policy in labels.items())
    }
    return ConfigDict(plain(config), convert_dict=True)


def longer(rl: dict) -> dict:
    """All questions and rewards of the late phase from the first of more rollouts on."""
    source = rl["late"]["source"]
    changed = {field: value for field, value in rl.items() if field != "late"}
    updates = ROLLOUTS * rl["minibatches"]
    return {
        **changed,
        "source": source,
        "rollouts": ROLLOUTS,
        "optimizer": {**rl["optimizer"], "total_steps": updates},
    }


def judged(policy: str, rewards: dict) -> dict:
    """An evaluation by rules and, of the same responses, by the reward models."""
    config = {**TINY["evaluate"](policy, "summary"), "rewards": rewards}
    return {"name": f"judged_{policy}", "stage": "evaluate", "config": config}
