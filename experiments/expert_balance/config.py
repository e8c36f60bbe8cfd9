"""Pretraining of the tiny base with four ways of balancing its experts: `bias` (V3), `none`, `sequence`, `both`.

python -m r1jax.train --config=experiments/expert_balance/config.py:bias --workdir=runs/expert_balance/bias
"""

from __future__ import annotations

import runpy
from pathlib import Path

from ml_collections import ConfigDict

STEPS = 300
BALANCE = {
    "bias": {"router_bias_rate": 0.001, "sequence_loss": 0.0},
    "none": {"router_bias_rate": 0.0, "sequence_loss": 0.0},
    "sequence": {"router_bias_rate": 0.0, "sequence_loss": 1e-2},
    "both": {"router_bias_rate": 0.001, "sequence_loss": 1e-4},
}


def get_config(arg: str = "bias") -> ConfigDict:
    """The pretraining stage of `configs/r1_zero.py:tiny`, shortened, with the balancing that `arg` names."""
    if arg not in BALANCE:
        raise ValueError(f"config.py:{arg}: unknown argument; allowed: {', '.join(BALANCE)}")
    tiny = runpy.run_path(str(Path(__file__).parents[2] / "configs" / "r1_zero.py"))["tiny"]
    config = tiny(0)["steps"][0]["config"]
    config |= {"steps": STEPS, "balance": BALANCE[arg]}
    config["optimizer"] |= {"total_steps": STEPS, "warmup_steps": 15}
    return ConfigDict({"stage": "pretrain", **config})
