"""Every step of every stage lowers for TPUs and for GPUs: nothing in it is for the CPU alone."""

from __future__ import annotations

import dataclasses

import jax
import pytest
from jax.sharding import Mesh

from r1jax.model.config import ModelConfig
from r1jax.model.presets import PRESETS
from r1jax.plan import subject
from r1jax.plan.steps import PlannedStep, planned_steps
from r1jax.sharding import MeshConfig, make_mesh
from r1jax.stages.reward_model import RewardModelConfig
from r1jax.stages.sft_config import SFTConfig, SFTData

MESH = MeshConfig(data=1, fsdp=2, expert=2, tensor=2)
MOE = dataclasses.replace(PRESETS["tiny_mla_moe"], num_moe_layers=1, dtype="bfloat16", remat="block")
DENSE = dataclasses.replace(PRESETS["tiny_dense"], num_dense_layers=1, dtype="bfloat16")
SMALL = ("prompt.width=8", "row_length=16", "micro_rows=8", "prompts=8", "group_size=8", "minibatches=2",
         "decoding.max_new_tokens=8", "decoding.chunk=8", "decoding.batch_size=64")  # fmt: skip


def lowers(step: PlannedStep) -> None:
    """Raises what the lowering of the step for either platform raises."""
    # The exporter promises no later version of XLA a ragged all-to-all; nothing is kept here.
    checks = [jax.export.DisabledSafetyCheck.custom_call("ragged_all_to_all")]
    for platform in ("tpu", "cuda"):  # one by one: a kernel for one of them cannot be exported for both at once
        exported = jax.export.export(step.function, platforms=[platform], disabled_checks=checks)(*step.arguments)
        assert set(exported.platforms) == {platform}


def steps_of(config, model: ModelConfig, mesh: Mesh) -> dict[str, PlannedStep]:
    return {step.name: step for step in planned_steps(config, model, mesh)}


@pytest.fixture(scope="module")
def rl_steps() -> dict[str, PlannedStep]:
    config = subject.choose(subject.read_config("configs/r1_zero.py:tiny"), "", "", SMALL).config
    return steps_of(dataclasses.replace(config, mesh=MESH), MOE, make_mesh(MESH))


@pytest.mark.parametrize("name", ["prefill", "decode", "log-probs", "gradients", "update"])
def test_the_steps_of_rl_lower(rl_steps: dict[str, PlannedStep], name: str) -> None:
    lowers(rl_steps[name])


@pytest.mark.parametrize("kind", ["sft", "reward_model"])
def test_the_other_stages_lower(kind: str) -> None:
    data = (SFTData(path="samples.jsonl"),)
    configs = {
        "sft": SFTConfig(data=data, rows=16, micro_rows=8, row_length=16, mesh=MESH),
        "reward_model": RewardModelConfig(max_length=16, micro_rows=8, mesh=MESH),
    }
    lowers(steps_of(configs[kind], DENSE, make_mesh(MESH))["gradients"])
