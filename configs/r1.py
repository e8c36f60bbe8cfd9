"""DeepSeek-R1: the whole recipe, from a base model to distilled students (R1v2 sections 2 to 4).

    python -m r1jax.train --config=configs/r1.py:tiny --workdir=runs/r1

``:tiny``       a laptop's CPU core, 50 to 55 minutes: a base from nothing, R1-Zero, cold start, reasoning RL,
                rejection sampling, second fine-tuning from the base, reward models, RL for all scenarios, two distilled
                students and one trained by RL instead, an evaluation after each, one report.
(no argument)   the paper's pipeline on DeepSeek-V3-Base, 671B parameters; `--check` validates it and
                `python -m tools.hyperparameters --config=configs/r1.py` prints which numbers the papers give.

`,seed=N` behind the argument is another seed; `--config.only=dev2` runs one stage alone, whose inputs are there.
"""

from __future__ import annotations

import runpy
from pathlib import Path

from ml_collections import ConfigDict

from r1jax.provenance import plain

FILES = {"": "r1_paper.py", "tiny": "r1_tiny.py"}


def get_config(arg: str = "") -> ConfigDict:
    """The pipeline that `arg` names: nothing or `tiny`, with `,seed=N` behind it for another seed than 0."""
    name, _, seed = arg.partition(",seed=")
    if name not in FILES or not (seed or "0").isdecimal():
        raise ValueError(
            f"configs/r1.py:{arg}: unknown argument; allowed: tiny or nothing, and ',seed=N' behind it with "
            "N = 0, 1, 2, ..."
        )
    return ConfigDict(plain(_pipeline(name, int(seed or 0))), convert_dict=True)


def published(arg: str = "") -> dict:
    """The paper's pipeline, its values with the sections that give them (`tools.hyperparameters`)."""
    if arg:
        raise ValueError(f"configs/r1.py:{arg}: only the paper's own pipeline, without an argument, has sources")
    return _pipeline("", 0)


def _pipeline(name: str, seed: int) -> dict:
    return runpy.run_path(str(Path(__file__).parent / "parts" / FILES[name]))["pipeline"](seed)
