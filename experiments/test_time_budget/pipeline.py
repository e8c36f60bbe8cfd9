"""Thinking budgets for the R1-Zero of `configs/r1.py:tiny`.

get_config("0") is the pipeline of seed 0; pretraining and RL are those of `configs/r1.py:tiny,seed=0`.
"""

from __future__ import annotations

import runpy
from pathlib import Path

from ml_collections import ConfigDict

from r1jax.provenance import plain

BUDGETS = (8, 12, 16, 20, 24, 32, 48)  # tokens; chains have about 30
# As many searches as sums, since those are the harder ones.
QUESTIONS = {
    "kind": "tasks",
    "split": "evaluation",
    "size": 240,
    "seed": 2,
    "domain": "reasoning",
    "params": {"tasks": (("chain_sum", 0.5), ("pair_search", 0.5))},
}
TINY = runpy.run_path(str(Path(__file__).parents[2] / "configs" / "parts" / "r1_tiny.py"))


def get_config(seed: str) -> ConfigDict:
    """The pipeline of a seed."""
    config = TINY["only_for"](TINY["pipeline"](int(seed)), "zero")
    evaluation = {
        **TINY["evaluate"]("zero", "answer"),
        "source": QUESTIONS,
        "samples": 16,
        "decoding": {**TINY["DECODING"], "temperature": 0.6, "top_p": 0.95},  # the paper's
        "thinking_budgets": BUDGETS,
    }
    config["steps"] += ({"name": "evaluate_budgets", "stage": "evaluate", "config": evaluation},)
    config["report"] = {"stages": ({"label": "Zero", "step": "evaluate_budgets"},)}
    return ConfigDict(plain(config), convert_dict=True)
