"""Control of R1-Zero: the same run with the rewards shuffled within each group.

python -m r1jax.train --config=experiments/shuffled_rewards/config.py --workdir=runs/shuffled_rewards
"""

from __future__ import annotations

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config(arg: str = "0") -> ConfigDict:
    """`configs/r1_zero.py:tiny` of seed `arg`, with `shuffle_rewards` in its RL stage."""
    tiny = runpy.run_path(str(Path(__file__).parents[2] / "configs" / "r1_zero.py"))["tiny"]
    config = tiny(int(arg))
    config["title"] = "Control: shuffled rewards"
    rl = next(step["config"] for step in config["steps"] if step["stage"] == "rl")
    rl["shuffle_rewards"] = True
    return ConfigDict(config)
