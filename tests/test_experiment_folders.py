"""The folders of experiments/ on `configs/r1.py:tiny`: what their runs share with it, and what they look at."""

from __future__ import annotations

import pathlib
import runpy
import subprocess
from typing import Any

import pytest

from r1jax import train
from r1jax.data.sources import make_source
from r1jax.evaluation.experiments import Experiment, load_experiment
from r1jax.settings import to_plain
from r1jax.stages import pipeline
from r1jax.stages.step_keys import step_keys
from tools import experiment_runs, sweep

ROOT = pathlib.Path(__file__).parents[1]
# Experiment -> the steps that the whole pipeline does not have.
OWN = {
    "distill_vs_rl": {"rl_qwen_long", "evaluate_rl_qwen_long"},
    "test_time_budget": {"evaluate_budgets"},
    "preference_hacking": {"r1_long", "judged_dev3", "judged_r1", "judged_r1_long"},
}


def loaded(name: str) -> Experiment:
    return load_experiment(ROOT / "experiments" / name)


def steps_of(config: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """Name -> typed configuration, and name -> key, of a pipeline's steps."""
    _, typed = train.read_config(config)
    configs = dict(zip([step.name for step in typed.steps], pipeline.stage_configs(typed), strict=True))
    told = [(step.name, step.stage, to_plain(configs[step.name])) for step in typed.steps]
    return configs, {name: key.digest for name, key in step_keys(told, pathlib.Path("runs/r1")).items()}


@pytest.fixture(scope="module")
def whole() -> dict[str, str]:
    """Step -> key of the whole pipeline."""
    return steps_of(runpy.run_path(str(ROOT / "configs" / "r1.py"))["get_config"]("tiny,seed=2"))[1]


@pytest.mark.parametrize("name", OWN)
def test_what_the_pipeline_has_done_serves_the_experiment(name: str, whole: dict[str, str]) -> None:
    found = loaded(name)
    assert found.seeds == (0, 1, 2)
    (arm,) = found.own_runs
    keys = steps_of(found.get_config(f"{arm},seed=2"))[1]
    assert keys.keys() - whole.keys() == OWN[name]
    assert {step: key for step, key in keys.items() if step in whole} == {
        step: key for step, key in whole.items() if step in keys
    }
    assert all(steps_of(found.get_config(f"{arm},seed=1"))[1][step] != key for step, key in keys.items())


@pytest.mark.parametrize("name", ["language_consistency", "distill_vs_rl"])
def test_the_command_of_a_sweep_is_understood(name: str, tmp_path: pathlib.Path) -> None:
    experiment, shared = loaded(name), [str(tmp_path / "other"), str(tmp_path / "another")]
    run = experiment_runs.all_runs(ROOT / "experiments" / name, experiment, tmp_path)[-1]
    command = [*sweep.command(experiment, run, shared), "--check"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert found.returncode != 0
    assert f"reuse: there is no folder {shared[0]}" in found.stdout + found.stderr
    for path in shared:
        pathlib.Path(path).mkdir()
    assert subprocess.run(command, cwd=ROOT, capture_output=True, timeout=300, check=False).returncode == 0


@pytest.mark.parametrize("name", OWN)
def test_what_is_looked_at_are_steps_of_the_run(name: str) -> None:
    found = loaded(name)
    steps = steps_of(found.get_config(found.own_runs[0]))[0]
    looked_at = [metric.path for metric in found.metrics] + [curve.step for curve in found.curves]
    named = {path.format(arm=arm).split("/")[0] for path in looked_at for arm in found.arms}
    assert named <= steps.keys()


def test_a_part_of_the_pipeline_has_what_its_steps_read_and_no_more() -> None:
    tiny = runpy.run_path(str(ROOT / "configs" / "parts" / "r1_tiny.py"))
    kept = tiny["only_for"](tiny["pipeline"](0), "evaluate_dev1", "evaluate_distill_llama")
    assert [step["name"] for step in kept["steps"]] == [
        *("pretrain", "zero", "cold_start", "dev1", "evaluate_dev1", "dev2", "rejection"),
        *("student_llama", "distill_llama", "evaluate_distill_llama"),
    ]


def test_the_longer_rl_of_the_student_differs_in_its_length_alone() -> None:
    steps = steps_of(loaded("distill_vs_rl").get_config("distill_qwen"))[0]
    short, longer = to_plain(steps["rl_qwen"]), to_plain(steps["rl_qwen_long"])
    assert longer.pop("rollouts") == 5 * short.pop("rollouts")
    assert longer["optimizer"].pop("total_steps") == 5 * short["optimizer"].pop("total_steps")
    assert longer == short


def test_the_rl_that_goes_on_asks_from_its_first_rollout_what_the_other_asks_late() -> None:
    steps = steps_of(loaded("preference_hacking").get_config("r1"))[0]
    short, longer = steps["r1"], steps["r1_long"]
    assert (longer.late, longer.rollouts) == (None, 150)
    assert longer.source == short.late.source
    assert longer.rewards == short.rewards == steps["judged_r1"].rewards
    assert longer.optimizer.total_steps == 150 * longer.minibatches


def test_every_difficulty_that_is_looked_at_is_asked() -> None:
    found = loaded("test_time_budget")
    evaluation = steps_of(found.get_config("8"))[0]["evaluate_budgets"]
    assert list(found.arms) == [*map(str, evaluation.thinking_budgets), "none"]
    asked = {f"{e.task}, {e.metadata['steps']} steps" for e in make_source(evaluation.source)}
    looked_at = {metric.path.split("/")[4] for metric in found.metrics if "/by_group/" in metric.path}
    assert len(looked_at) == 6
    assert looked_at <= asked
