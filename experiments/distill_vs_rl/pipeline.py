"""What of `configs/r1.py:tiny` leads to its distilled student and to the same student trained by RL; and longer RL.

get_config("0") is the pipeline of seed 0. But for the longer RL its steps are those of `configs/r1.py:tiny,seed=0`.
"""

from __future__ import annotations

import runpy
from pathlib import Path

from ml_collections import ConfigDict

from r1jax.provenance import plain

LONGER = 5  # times the rollouts of rl_qwen
TINY = runpy.run_path(str(Path(__file__).parents[2] / "configs" / "parts" / "r1_tiny.py"))


def get_config(seed: str) -> ConfigDict:
    """The pipeline of a seed."""
    policies = ("dev2", "student_qwen", "distill_qwen", "rl_qwen")
    config = TINY["only_for"](TINY["pipeline"](int(seed)), *(f"evaluate_{policy}" for policy in policies))
    name = "rl_qwen_long"
    longer = TINY["student_rl"](int(seed), LONGER * TINY["STUDENT_ROLLOUTS"])
    config["steps"] += (
        {"name": name, "stage": "rl", "config": longer},
        {"name": f"evaluate_{name}", "stage": "evaluate", "config": TINY["evaluate"](name, "answer")},
    )
    student = TINY["REPORT"]["students"][0]
    longer_student = {**student, "label": f"Qwen, RL x {LONGER}", "rl": f"evaluate_{name}", "rl_by": name}
    config["report"] = {
        "stages": ({"label": "Dev2", "step": "evaluate_dev2"},),
        "students": (student, longer_student),
    }
    return ConfigDict(plain(config), convert_dict=True)
