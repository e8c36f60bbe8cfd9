"""What a plan adds to the compiler's figures: kernels, buffers of experts, what training keeps, how long rows are."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import pytest

from r1jax.model.config import ModelConfig
from r1jax.model.presets import get_preset
from r1jax.plan import subject
from r1jax.plan.costs import Cost, traffic
from r1jax.plan.hlo import parse_program
from r1jax.plan.jaxprs import fsdp_collectives
from r1jax.plan.planner import filled_share, kernel_flops
from r1jax.plan.search import activation_collectives, divides
from r1jax.plan.steps import PlannedStep, filled_tokens, kept_bytes, sequences_in_row, update_rows
from r1jax.sharding import MESH_AXES, MeshConfig, make_mesh
from r1jax.stages.rl_config import RLConfig
from r1jax.stages.state import placed_abstract_params


def mesh_of_eight(**sizes: int) -> jax.sharding.Mesh:
    return make_mesh(MeshConfig(**({"data": 1} | sizes)), jax.devices()[:8])


def paper(**changes: Any) -> subject.Subject:
    chosen = subject.choose(subject.read_config("configs/r1_zero.py"), "", "", ())
    assert isinstance(chosen.config, RLConfig)
    return dataclasses.replace(chosen, config=dataclasses.replace(chosen.config, **changes))


# Attention kernels ----------------------------------------------------------------------------------------------------


def attention_step(trains: bool) -> PlannedStep:
    return PlannedStep("gradients", "", None, (), 0, 0.0, 1, attention_flops=800.0, trains=trains)


def v3(remat: str) -> ModelConfig:
    return dataclasses.replace(get_preset("deepseek_v3_671b"), remat=remat)


KERNEL = Cost(0.0, 0.0, ("splash_mha_fwd",), 0.0, ())


def test_the_attention_kernels_backward_pass_makes_seven_products() -> None:
    """V3: queries and keys of 192 channels, values of 128. Forward 320; backward 4 x 192 + 3 x 128 = 1,152."""
    whole = mesh_of_eight(fsdp=8)
    assert kernel_flops(KERNEL, attention_step(trains=False), v3("block"), whole) == 100.0
    assert kernel_flops(KERNEL, attention_step(trains=True), v3("none"), whole) == pytest.approx(100 * (1 + 3.6))
    assert kernel_flops(KERNEL, attention_step(trains=True), v3("block"), whole) == pytest.approx(100 * (2 + 3.6))


def test_what_spares_the_second_forward_pass_is_not_charged_with_it() -> None:
    whole = mesh_of_eight(fsdp=8)
    assert kernel_flops(KERNEL, attention_step(trains=True), v3("attention"), whole) == pytest.approx(100 * 4.6)


@pytest.mark.parametrize(("parts", "share"), [(1, 1.0), (2, 1.5), (4, 1.75)])
def test_the_last_part_of_a_split_row_sees_most(parts: int, share: float) -> None:
    """Of s equal parts the last sees s squares less half of one, the mean is s/2: (s - 1/2) / (s / 2)."""
    mesh = mesh_of_eight(sequence=parts, fsdp=8 // parts)
    assert kernel_flops(KERNEL, attention_step(trains=False), v3("none"), mesh) == pytest.approx(100 * share)


# Experts --------------------------------------------------------------------------------------------------------------


def test_an_experts_buffer_is_as_full_as_its_factor_says() -> None:
    """8 devices with 2,048 tokens of 8 experts: 16,384 rows, room for 1.5 times as many and each expert's last tile."""
    moe = get_preset("deepseek_v3_671b").moe
    assert moe is not None
    mesh = mesh_of_eight(expert=8)
    step = dataclasses.replace(attention_step(trains=True), assignments=8 * 2048 * 8.0)
    tile = 128  # a quarter of a mean expert's 512 rows
    slots = (1.5 * 16_384 + 32 * (tile - 1)) // tile * tile
    assert filled_share(step, moe, mesh) == pytest.approx(16_384 / slots)


def test_along_tensor_every_device_sends_all_tokens_to_their_experts() -> None:
    def sent(**sizes: int) -> float:
        found = activation_collectives(v3("block"), mesh_of_eight(**sizes), tokens=64.0, passes=3)
        return sum(one.total for one in found if one.kind == "all-to-all")

    assert sent(expert=4, tensor=2) == sent(expert=4, fsdp=2) > 0


# What is kept and gathered --------------------------------------------------------------------------------------------


def test_devices_of_the_sequence_axis_gather_parameters_and_sum_gradients_too() -> None:
    """They have tokens of their own, as those of fsdp have."""

    def moved(**sizes: int) -> float:
        mesh = mesh_of_eight(**sizes)
        params = placed_abstract_params(get_preset("smollm2_135m"), mesh)
        return sum(one.total for one in fsdp_collectives(params, mesh, trains=True, compute_bytes=2))

    assert moved(sequence=8) == pytest.approx(moved(fsdp=8))
    assert moved(fsdp=2, sequence=4) == pytest.approx(moved(fsdp=8))


def test_training_keeps_parameters_master_moments_sums_and_a_reference() -> None:
    """bfloat16 parameters and reference (2 + 2 bytes), moments (2 + 2), float32 master weights and sums (4 + 4)."""
    chosen = paper()
    mesh = mesh_of_eight(fsdp=8)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(placed_abstract_params(chosen.model, mesh)))
    kept = kept_bytes(chosen.config, chosen.model, mesh)
    assert kept * 8 == pytest.approx(16 * parameters, rel=1e-3)  # what is not split and the bias's moments: the rest
    hosted = dataclasses.replace(chosen.config, reference_memory="host")  # type: ignore[arg-type]
    assert kept_bytes(hosted, chosen.model, mesh) * 8 == pytest.approx(14 * parameters, rel=1e-3)


# Sizes ----------------------------------------------------------------------------------------------------------------


def test_a_schedule_is_planned_for_its_longest_response() -> None:
    config = paper().config
    assert isinstance(config, RLConfig)
    assert config.response_limit(0) == 32_768
    assert config.longest_response == 65_536
    assert (sequences_in_row(config), filled_tokens(config), update_rows(config)) == (1, 67_584, 512)


def test_rows_that_hold_several_responses_are_counted_as_full_as_they_are() -> None:
    """Of 256 places two prompts with responses of 28 + 96 take 248; a shared prompt has room for two: 28 + 2 x 96."""
    chosen = subject.choose(subject.read_config("configs/r1_zero.py:tiny"), "", "", ("row_length=256",))
    config = chosen.config
    assert isinstance(config, RLConfig)
    assert (sequences_in_row(config), filled_tokens(config)) == (2, 248)
    shared = dataclasses.replace(config, shared_prompts=True)
    assert (sequences_in_row(shared), filled_tokens(shared)) == (2, 220)


def test_the_papers_own_mesh_is_one_of_those_searched() -> None:
    """8,192 rows on 1,024 chips: eight rows a chip, and groups of 16 over two chips."""
    sizes = dict.fromkeys(MESH_AXES, 1) | {"fsdp": 2, "sequence": 2, "expert": 256}
    assert divides(paper(micro_rows=512), sizes)
    uneven = dataclasses.replace(paper().config, decoding=dataclasses.replace(paper().config.decoding, batch_size=8200))  # type: ignore[union-attr]
    assert not divides(dataclasses.replace(paper(), config=uneven), sizes)


def test_parameters_that_are_whole_are_not_gathered_and_their_gradients_are_summed() -> None:
    """Of P bytes data = 8 sends 2 x 7/8 P in an all-reduce, fsdp = 8 twice 7/8 P to gather and once to scatter."""
    model = get_preset("smollm2_135m")

    def found(**sizes: int) -> tuple[set[str], float]:
        mesh = mesh_of_eight(**sizes)
        all_of_them = fsdp_collectives(placed_abstract_params(model, mesh), mesh, trains=True, compute_bytes=2)
        return {one.kind for one in all_of_them}, sum(one.total for one in all_of_them)

    whole, split = found(data=8), found(fsdp=8)
    assert whole[0] == {"all-reduce"}
    assert split[0] == {"all-gather", "reduce-scatter", "all-reduce"}  # norms are whole
    parameters = sum(leaf.size for leaf in jax.tree.leaves(placed_abstract_params(model, mesh_of_eight(data=8))))
    assert whole[1] == pytest.approx(2 * 7 / 8 * 2 * parameters)
    assert split[1] == pytest.approx(3 * 7 / 8 * 2 * parameters, rel=1e-2)


# Fusions --------------------------------------------------------------------------------------------------------------


NESTED = """HloModule m

%inner (p0: bf16[4,8,16], p1: s32[]) -> bf16[8,16] {
  %p0 = bf16[4,8,16]{2,1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %layer = bf16[1,8,16]{2,1,0} dynamic-slice(%p0, %p1, %zero, %zero), dynamic_slice_sizes={1,8,16}
  ROOT %flat = bf16[8,16]{1,0} bitcast(%layer)
}

%outer (q0: bf16[4,8,16], q1: s32[], q2: bf16[16,2]) -> bf16[8,2] {
  %q0 = bf16[4,8,16]{2,1,0} parameter(0)
  %q1 = s32[] parameter(1)
  %q2 = bf16[16,2]{1,0} parameter(2)
  %weights = bf16[8,16]{1,0} fusion(%q0, %q1), kind=kLoop, calls=%inner
  ROOT %product = bf16[8,2]{1,0} dot(%weights, %q2), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

ENTRY %main (a: bf16[4,8,16], b: s32[], c: bf16[16,2]) -> bf16[8,2] {
  %a = bf16[4,8,16]{2,1,0} parameter(0)
  %b = s32[] parameter(1)
  %c = bf16[16,2]{1,0} parameter(2)
  ROOT %r = bf16[8,2]{1,0} fusion(%a, %b, %c), kind=kOutput, calls=%outer
}
"""


def test_a_fusion_within_a_fusion_reads_the_layer_that_it_takes() -> None:
    program = parse_program(NESTED)
    main = program.computations["main"]
    # One of four layers, the index (in both), the other factor and the result: not the whole stack.
    index = 2 * 4
    moved = traffic(program, main["r"], main)
    assert 2 * (8 * 16 + 16 * 2 + 8 * 2) <= moved <= 2 * (8 * 16 + 16 * 2 + 8 * 2) + index
