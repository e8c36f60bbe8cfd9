"""Where the time of an RL run went, and how much of what the machine can multiply it used.

    python tools/step_breakdown.py runs/r1_zero/r1_zero

Reads model.json and metrics.jsonl of a finished or running RL stage; medians over rollouts that compiled nothing. A
token costs 2 operations per weight it is multiplied with (an update three times that); attention between tokens is not
counted. The share is of the rate of a large matrix product that the run measured when it started.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
from typing import Any

import numpy as np
import rich.console
import rich.table

from r1jax.model.config import ModelConfig
from r1jax.model.flops import token_weights
from r1jax.settings import from_config

# Section -> the count of tokens it works on, and forward passes (one with its backward pass counts as 3).
SECTIONS = {"rollout": ("sampled_tokens", 1), "logprobs": ("packed_tokens", 2), "update": ("packed_tokens", 3)}


def main() -> int:
    """Prints the table of one run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=pathlib.Path, help="folder of an RL stage")
    folder = parser.parse_args().run
    console = rich.console.Console(soft_wrap=True)
    if not (folder / "model.json").exists() or not (folder / "rollouts").exists():
        stages = sorted(path.parent.name for path in folder.glob("*/rollouts") if (path.parent / "model.json").exists())
        hint = f"; of its stages, these are: {', '.join(stages)}" if stages else ""
        console.print(f"{folder} is not the folder of an RL stage{hint}")
        return 2
    model = from_config(ModelConfig, json.loads((folder / "model.json").read_text(encoding="utf-8")), "model")
    rows = warm_rollouts(folder / "metrics.jsonl")
    if not rows:
        console.print(f"{folder} has no rollout yet during which nothing was compiled")
        return 2
    print_breakdown(model, rows, console)
    return 0


def warm_rollouts(path: pathlib.Path) -> list[dict[str, Any]]:
    """The rows that end a rollout during which nothing was compiled."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rollouts = [row for row in rows if "rollout" in row["time"]]
    if rollouts and "matrix_product_rate" not in rollouts[0]["time"]:
        raise SystemExit(f"{path} was written before runs measured their matrix product rate")
    return [row for row in rollouts if row["time"]["compilations"] == 0]


def print_breakdown(model: ModelConfig, rows: list[dict[str, Any]], console: rich.console.Console) -> None:
    """One line per section of a rollout's step, and the whole step."""
    operations, rate = 2.0 * sum(token_weights(model).values()), median(rows, "matrix_product_rate")
    title = f"{len(rows)} rollouts; {operations / 2e6:.2f}M weights a token; matrix product {rate / 1e9:.0f} GFLOP/s"
    table = rich.table.Table("section", "seconds", "share", "tokens", "tokens/s", "of matrix product", title=title)
    step = median(rows, "step")
    for name, (tokens_of, passes) in SECTIONS.items():
        seconds = median(rows, name)
        tokens = float(np.median([row[tokens_of] for row in rows]))
        used = operations * passes * tokens / seconds / rate
        table.add_row(
            name, f"{seconds:.2f}", f"{seconds / step:.0%}", f"{tokens:,.0f}", f"{tokens / seconds:,.0f}", f"{used:.1%}"
        )
    rest = step - sum(median(rows, name) for name in SECTIONS)
    table.add_row("everything else", f"{rest:.2f}", f"{rest / step:.0%}", "", "", "")
    table.add_row("step", f"{step:.2f}", "100%", "", "", "")
    console.print(table)
    filled = np.mean([row["packed_tokens"] / row["packed_slots"] for row in rows])
    console.print(f"packed rows are {filled:.0%} full; log-probs are of the policy and of the reference")


def median(rows: list[dict[str, Any]], name: str) -> float:
    """Of a field of the rows' "time"."""
    return float(np.median([row["time"].get(name, 0.0) for row in rows]))


if __name__ == "__main__":
    sys.exit(main())
