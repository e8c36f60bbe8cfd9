"""What grading costs in an RL run: CPU-seconds of a rollout's grading beside the seconds of its step.

    python -m tools.grading_cost runs/smollm2/rl

Grades the rollouts that the stage's folder still holds once more, with the graders of its config.json, and counts the
CPU time of this process and of all that the graders started (worker processes and sandboxes). Grades that differ from
the stored ones are counted: a grader whose verdict does not repeat is not to be trusted (parts that measure time or ask
a model may differ, and so may answers that took too long).
"""

from __future__ import annotations

import argparse
import os
import pathlib
import time

import numpy as np

from r1jax.evaluation.records import read_json
from r1jax.metrics import read_rows
from r1jax.rollout import GradedRollout, grade, load_graded
from r1jax.settings import from_config
from r1jax.sharding import make_mesh
from r1jax.stages.graders import stage_grading
from r1jax.stages.policy import PolicySource, load_policy
from r1jax.stages.rl_config import RLConfig
from tools.command_line import run_tool

SECTIONS = ("rollout", "rewards", "pack", "logprobs", "update")


def cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    now = os.times()
    return now.user + now.system + now.children_user + now.children_system


def stored_rollouts(folder: pathlib.Path) -> list[GradedRollout]:
    """The graded rollouts in the folder of an RL stage. ValueError if there is none."""
    paths = sorted(path for path in (folder / "rollouts").glob("*.npz") if path.stem.isdecimal())
    if not paths:
        raise ValueError(f"{folder} holds no graded rollouts: it must be the folder of an RL stage")
    return [load_graded(path)[0] for path in paths]


def main() -> None:
    """Prints the cost of one run's grading."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=pathlib.Path, help="folder of an RL stage")
    folder = parser.parse_args().run
    config = from_config(RLConfig, {k: v for k, v in read_json(folder / "config.json").items() if k != "stage"})
    rollouts = stored_rollouts(folder)
    steps = [
        sum(row["time"].get(name, 0.0) for name in SECTIONS)
        for row in read_rows(folder / "metrics.jsonl")
        if "update" in row.get("time", {})
    ]
    mesh = make_mesh(config.mesh)
    policy = load_policy(PolicySource("stage", str(folder)), folder, mesh)
    before, began = cpu_seconds(), time.monotonic()
    with stage_grading(config.rewards, folder, mesh, policy, config.decoding) as grading:
        again = [grade(r.rollout, r.texts, r.examples, grading) for r in rollouts]
    cpu, wall = cpu_seconds() - before, time.monotonic() - began
    answers = sum(len(r.texts) for r in rollouts)
    differing = sum(
        old.total != new.total
        for r, s in zip(rollouts, again, strict=True)
        for old, new in zip(r.scores, s.scores, strict=True)
    )
    print(f"{len(rollouts)} rollouts, {answers} answers: {cpu:.2f} CPU-seconds, {answers / wall:.0f} answers a second")
    print(f"grades that differ from the stored ones: {differing}")
    step = float(np.median(steps))
    print(
        f"grading {cpu / len(rollouts):.3f} CPU-seconds a rollout; a step takes {step:.2f} s (median of {len(steps)})"
    )
    print(f"share: {100 * cpu / len(rollouts) / step:.2f} %")


if __name__ == "__main__":
    run_tool(main)
