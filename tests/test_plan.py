"""The plan's counting against cases worked by hand, and against what the compiler says of programs for devices here."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from r1jax.model.config import GQAConfig, ModelConfig, RopeConfig
from r1jax.model.flops import forward_flops
from r1jax.model.presets import PRESETS
from r1jax.plan import jaxprs, limits, planner, report, search, subject
from r1jax.plan.chips import CHIPS, parse_topology
from r1jax.plan.collectives import axes_of, find_collectives, replica_groups, sent_bytes
from r1jax.plan.compile import PlanError, Value, compile_here, largest_buffers, read_assignment, tpu_compiler
from r1jax.plan.costs import instruction_flops, program_cost, traffic
from r1jax.plan.hlo import parse_program, parse_shapes, skipping_share
from r1jax.plan.steps import PlannedStep, planned_steps, tree_bytes
from r1jax.sharding import MeshConfig, make_mesh
from r1jax.stages.rl_config import RLConfig

MODEL = ModelConfig(
    vocab_size=64,
    width=32,
    num_dense_layers=3,
    ffn_dim=48,
    attention=GQAConfig(num_heads=4, num_kv_heads=2, head_dim=8),
    rope=RopeConfig(),
    max_positions=64,
)


def mesh_of_eight(**sizes: int) -> jax.sharding.Mesh:
    return make_mesh(MeshConfig(**{"data": 1, **sizes}))


# Loops and products ---------------------------------------------------------------------------------------------------


def test_products_in_loops_are_counted_as_often_as_they_are_run() -> None:
    def nested(x, weights):
        def inner(y, w):
            return y @ w, None

        def outer(y, _):
            return jax.lax.scan(inner, y, weights)[0], None

        return jax.lax.scan(outer, x, None, length=3)[0] @ weights[0]

    lowered = jax.jit(nested).lower(jnp.ones((8, 16)), jnp.ones((5, 16, 16)))
    compiled = compile_here(lowered)
    cost = program_cost(compiled.program, make_mesh(MeshConfig(data=1), jax.devices()[:1]))
    assert cost.flops == (3 * 5 + 1) * 2 * 8 * 16 * 16
    assert lowered.compile().cost_analysis()["flops"] < cost.flops  # XLA's own count has each body once


def test_a_loop_whose_end_depends_on_data_counts_once() -> None:
    def decode(x, limit):
        return jax.lax.while_loop(lambda s: s[0] < limit, lambda s: (s[0] + 1, s[1] @ s[1]), (0, x))

    program = compile_here(jax.jit(decode).lower(jnp.ones((8, 8)), 5)).program
    assert program_cost(program, mesh_of_eight(data=8)).flops == 2 * 8**3
    assert program_cost(program, mesh_of_eight(data=8), iterations=32).flops == 32 * 2 * 8**3


PEELED = """HloModule m

%body (p: (s32[], f32[8,8])) -> (s32[], f32[8,8]) {
  %p = (s32[], f32[8,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[8,8]{1,0} get-tuple-element(%p), index=1
  %y = f32[8,8]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %out = (s32[], f32[8,8]{1,0}) tuple(%i, %y)
}

%until (q: (s32[], f32[8,8])) -> pred[] {
  %q = (s32[], f32[8,8]{1,0}) parameter(0)
  %j = s32[] get-tuple-element(%q), index=0
  %n = s32[] constant(5)
  ROOT %less = pred[] compare(%j, %n), direction=LT
}

ENTRY %main (a: f32[8,8]) -> (s32[], f32[8,8]) {
  %a = f32[8,8]{1,0} parameter(0)
  %one = s32[] constant(1)
  %copy.11 = s32[] copy(%one)
  %first = f32[8,8]{1,0} dot(%a, %a), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %in = (s32[], f32[8,8]{1,0}) tuple(%copy.11, %first)
  ROOT %loop = (s32[], f32[8,8]{1,0}) while(%in), condition=%until, body=%body
}
"""


def test_a_loop_whose_first_round_is_run_before_it_counts_one_less() -> None:
    assert program_cost(parse_program(PEELED), mesh_of_eight(data=8)).flops == (1 + 4) * 2 * 8**3


def test_of_loops_within_one_another_only_the_outer_one_is_given_its_iterations() -> None:
    def decode(x, limit):
        def token(s):
            rounds = jax.lax.while_loop(lambda r: r[0] < limit, lambda r: (r[0] + 1, r[1] @ r[1]), (0, s[1]))
            return s[0] + 1, rounds[1]

        return jax.lax.while_loop(lambda s: s[0] < limit, token, (0, x))[1] @ x

    program = compile_here(jax.jit(decode).lower(jnp.ones((8, 8)), 5)).program
    assert program_cost(program, mesh_of_eight(data=8), iterations=32).flops == (32 + 1) * 2 * 8**3


BATCHED = """HloModule m

ENTRY %main (a: bf16[5,512,1], b: bf16[2,64,96]) -> bf16[2,512,64] {
  %a = bf16[96,512,1]{1,0,2} parameter(0)
  %b = bf16[2,64,96]{2,1,0} parameter(1)
  %c = bf16[2,512,64]{1,2,0:T(8,128)(2,1)} convolution(%a, %b), window={size=2 pad=1_1 rhs_reversal=1}, dim_labels=fb0_0oi->0fb
  %d = f32[2,512,64]{1,2,0} convolution(%e, %b), window={size=2 lhs_dilate=2}, dim_labels=0bf_0oi->0bf, operand_precision={highest,highest}
  %e = f32[2,512,96]{1,2,0} parameter(2)
  %k = bf16[4288,128]{1,0} custom-call(%a), custom_call_target="tpu_custom_call", backend_config={"custom_call_config":{"body":"AA(==","cost_estimate":{"flops":"52690944","transcendentals":"0"}}}
  %l = bf16[4288,128]{1,0} custom-call(%a), custom_call_target="tpu_custom_call", backend_config={"custom_call_config":{"body":"AA(==","cost_estimate":{"bytes_accessed":"8","flops":"52690945","transcendentals":"0"}}}
  %s = bf16[4288,128]{1,0} custom-call(%a), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{}"
}}, metadata={op_name="jit(f)/splash"}, backend_config={}
  ROOT %t = (bf16[2,512,64]{1,2,0}) tuple(%c)
}
"""  # noqa: E501


def test_a_tpus_way_to_write_batched_products_is_counted_by_what_meets_data() -> None:
    program = parse_program(BATCHED)
    main = program.computations["main"]
    # Two kernels of [96, 64] on one [512, 96]: of the 2 x 2 places of the window two lie in the padding.
    assert instruction_flops(main["c"], main) == 2 * 2 * 512 * 64 * 96
    # Two kernels, each on its own [512, 96]: holes between them keep them apart. Float32 in six passes of bfloat16.
    assert instruction_flops(main["d"], main) == 6 * 2 * 2 * 512 * 64 * 96
    assert instruction_flops(main["l"], main) == 52690945
    assert instruction_flops(main["k"], main) == 52_690_944  # a grouped product of [4288, 48] with [4, 48, 128]
    assert program_cost(program, mesh_of_eight(data=8)).unknown == ("jit(f)/splash",)


SLICED = """HloModule m

%fused (p0: f32[10,64,64], p1: s32[]) -> f32[64,64] {
  %p0 = f32[10,64,64]{2,1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %z = s32[] constant(0)
  %cut = f32[1,64,64]{2,1,0} dynamic-slice(%p0, %p1, %z, %z), dynamic_slice_sizes={1,64,64}
  ROOT %r = f32[64,64]{1,0} bitcast(%cut)
}

%written (q0: f32[10,64,64], q1: f32[64,64], q2: s32[]) -> f32[10,64,64] {
  %q0 = f32[10,64,64]{2,1,0} parameter(0)
  %q1 = f32[64,64]{1,0} parameter(1)
  %q2 = s32[] parameter(2)
  %b = f32[1,64,64]{2,1,0} bitcast(%q1)
  ROOT %u = f32[10,64,64]{2,1,0} dynamic-update-slice(%q0, %b, %q2, %q2, %q2)
}

ENTRY %main (w: f32[10,64,64], i: s32[]) -> f32[10,64,64] {
  %w = f32[10,64,64]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %layer = f32[64,64]{1,0:T(8,128)S(1)} fusion(%w, %i), kind=kLoop, calls=%fused
  ROOT %all = f32[10,64,64]{2,1,0} fusion(%w, %layer, %i), kind=kLoop, calls=%written
}
"""


def test_of_stacked_weights_only_the_layer_in_use_is_moved_and_on_chip_memory_is_free() -> None:
    program = parse_program(SLICED)
    main, layer = program.computations["main"], 64 * 64 * 4
    assert traffic(program, main["layer"], main) == layer + 4  # read one layer and its number; the result stays on chip
    assert traffic(program, main["all"], main) == layer + 4  # written in place; what is written comes from on chip


def test_a_conditional_that_skips_blocks_of_keys_runs_as_often_as_causal_rows_need() -> None:
    def attend(x, needed):
        def keys(_, wanted):
            def queries(_, want):
                return None, jax.lax.cond(want, lambda y: y @ y, lambda y: y, x)

            return None, jax.lax.scan(queries, None, wanted)[1]

        return jax.lax.scan(keys, None, needed)[1]

    program = compile_here(jax.jit(attend).lower(jnp.ones((8, 8)), jnp.ones((4, 4), bool))).program
    # Of 4 x 4 pairs of blocks 1 + 2 + 3 + 4 are needed.
    assert program_cost(program, mesh_of_eight(data=8)).flops == 10 * 2 * 8**3
    assert skipping_share((12, 4, 8)) == (1 + 2 + 3 + 4) * 2 / (4 * 8)  # two blocks of queries to one of keys
    assert skipping_share((1, 1)) == 1


def test_of_two_branches_that_both_work_the_larger_counts_in_full() -> None:
    def choose(x, which):
        return jax.lax.cond(which, lambda y: (y @ y) @ y, lambda y: y @ y, x)

    program = compile_here(jax.jit(choose).lower(jnp.ones((8, 8)), True)).program
    assert program_cost(program, mesh_of_eight(data=8)).flops == 2 * 2 * 8**3


def test_shapes_are_read_with_their_memory() -> None:
    one, two = parse_shapes("(f32[8,2]{1,0:T(8,128)S(1)}, /*index=1*/bf16[3]{0:T(128)(2,1)}, token[])")[:2]
    assert (one.sizes, one.bytes, one.on_chip) == ((8, 2), 64, True)
    assert (two.sizes, two.bytes, two.on_chip) == ((3,), 6, False)


# Collectives ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "groups"),
    [
        ("replica_groups={{0,2},{1,3}}, x", [[0, 2], [1, 3]]),
        ("replica_groups=[2,2]<=[4], x", [[0, 1], [2, 3]]),
        ("replica_groups=[4,2]<=[2,2,2]T(2,1,0), x", [[0, 4], [2, 6], [1, 5], [3, 7]]),
        ("replica_groups=mesh['a'=2,'b'=1,'c'=2] {'a'}, x", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=4,'c'=2] {'a':(2)2}, x", [[0, 2], [1, 3], [4, 6], [5, 7]]),
        ("channel_id=1, source_target_pairs={{0,0},{1,2},{2,1}}, x", [[0, 0], [1, 2], [2, 1]]),
    ],
)
def test_groups_of_devices_are_read_in_all_notations(written: str, groups: list[list[int]]) -> None:
    assert [sorted(group) for group in replica_groups(written)] == [sorted(group) for group in groups]


def test_collectives_in_a_loop_have_their_axes_bytes_and_calls() -> None:
    mesh = mesh_of_eight(fsdp=2, expert=2, tensor=2)

    def body(x, w):
        w = jax.lax.all_gather(w, "fsdp", axis=0, tiled=True)
        y = jax.lax.psum(x @ w, "tensor")
        return jax.lax.all_to_all(y, "expert", 0, 0, tiled=True), None

    def run(x, weights):
        return jax.lax.scan(body, x, weights)[0]

    specs = (PartitionSpec("expert", "tensor"), PartitionSpec(None, ("tensor", "fsdp"), None))
    shared = jax.jit(jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=PartitionSpec("expert"), check_vma=False))
    x, weights = (
        jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))
        for shape, spec in zip(((8, 32), (3, 32, 16)), specs, strict=True)
    )
    found = {one.kind: one for one in find_collectives(compile_here(shared.lower(x, weights)).program, mesh)}
    gathered = found["all-gather"]  # a shard [8, 16] of a layer's [16, 16] goes to one other device
    assert (gathered.axes, gathered.group, gathered.bytes, gathered.times) == (("fsdp",), 2, 8 * 16 * 4, 3)
    summed = found["all-reduce"]  # [4, 16] twice half
    assert (summed.axes, summed.group, summed.bytes, summed.times) == (("tensor",), 2, 4 * 16 * 4, 3)
    exchanged = found["all-to-all"]  # half of [4, 16]
    assert (exchanged.axes, exchanged.group, exchanged.bytes, exchanged.times) == (("expert",), 2, 4 * 16 * 4 / 2, 3)


def test_a_ring_sends_each_part_of_the_others_once() -> None:
    assert sent_bytes("all-gather", 10, 8) == 70
    assert sent_bytes("reduce-scatter", 80, 8) == 70
    assert sent_bytes("all-reduce", 80, 8) == 140
    assert sent_bytes("all-to-all", 80, 8) == 70
    assert sent_bytes("collective-permute", 80, 2) == 80


def test_a_group_lies_along_the_axes_in_which_its_places_differ() -> None:
    mesh = mesh_of_eight(fsdp=2, expert=2, tensor=2)
    assert axes_of([0, 4], mesh) == ("fsdp",)
    assert axes_of([1, 3, 5, 7], mesh) == ("fsdp", "expert")


# Memory ---------------------------------------------------------------------------------------------------------------

ASSIGNMENT = """BufferAssignment:
allocation 0: size 100, parameter 0, shape |f32[25]| at ShapeIndex {}:
 value: <29 param @0> (size=100,offset=0): f32[25]{0}
allocation 1: size 40, output shape is |f32[10]|, maybe-live-out:
 value: <44 fusion.1 @0> (size=40,offset=0): f32[10]{0}
allocation 2: size 64, color 1, preallocated-temp:
 value: <41 on-chip @1> (size=64,offset=0): f32[16]{0:S(1)}
allocation 3: size 500, preallocated-temp:
 value: <33 second{1} @0> (size=300,offset=200): f32[75]{0}
 value: <31 first @0> (size=200,offset=0): f32[50]{0}
"""


def test_the_compilers_assignment_is_read_in_the_programs_order() -> None:
    values, allocations = read_assignment(ASSIGNMENT)
    assert [(value.name, value.bytes, value.offset) for value in values] == [("first", 200, 0), ("second", 300, 200)]
    assert [size for size, _ in allocations] == [100, 40, 500]


def test_values_in_one_place_are_one_of_the_largest_buffers() -> None:
    values = [Value("zeros", 0, 300, 0, "f32[75]{0}"), Value("loop", 1, 300, 0, "f32[75]{0}"),
              Value("other", 2, 300, 300, "f32[75]{0}"), Value("small", 3, 8, 0, "f32[2]{0}")]  # fmt: skip
    found = largest_buffers(values, {"loop": "while", "other": "dot"})
    assert [(one.bytes, one.source) for one in found] == [(300, "while"), (300, "dot"), (8, "")]


def test_the_largest_size_that_fits_lies_on_the_line_through_two() -> None:
    limit = limits.Limit("gradients", "micro_rows", ((8, 30.0), (16, 50.0)), usable=95.0, multiple=8)
    assert limit.slope == 2.5
    assert limit.largest == 32  # 30 + 2.5 * 26 = 95, so 34, in eights
    assert dataclasses.replace(limit, usable=20.0).largest == 0
    assert dataclasses.replace(limit, points=((8, 30.0), (16, 30.0))).largest is None


@pytest.mark.parametrize(("version", "said"), [("0.0.42.1", "libtpu 0.0.42.1$"), ("0.0.420", "made for 0.0.42")])
def test_a_compiler_that_jax_is_not_made_for_is_told(version: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", {"libtpu": version, "jax": "0.10.2"}.__getitem__)
    named = ["numpy>=2.0", 'libtpu==0.0.42.*; extra == "tpu"']
    monkeypatch.setattr(importlib.metadata, "requires", {"jax": named}.__getitem__)
    assert re.search(said, tpu_compiler())


# The plan against programs compiled for the devices here --------------------------------------------------------------


def rl(mesh: MeshConfig, **fields: object) -> RLConfig:
    config = subject.choose(subject.read_config("configs/r1_zero.py:tiny"), "", "", CHANGES).config
    return dataclasses.replace(config, mesh=mesh, **fields)


CHANGES = ("prompt.width=8", "row_length=16", "micro_rows=16", "prompts=8", "group_size=8", "minibatches=2",
           "decoding.max_new_tokens=8", "decoding.chunk=8", "decoding.batch_size=64")  # fmt: skip


@pytest.fixture(scope="module")
def steps() -> dict[str, PlannedStep]:
    config = rl(MeshConfig(data=2, fsdp=2, tensor=2))
    return {step.name: step for step in planned_steps(config, MODEL, mesh_of_eight(data=2, fsdp=2, tensor=2))}


def test_planned_memory_and_operations_are_those_of_the_compiled_program(steps: dict[str, PlannedStep]) -> None:
    """Log-probs of a dense model on 2 x 2 x 2 devices: arguments to the byte, products exactly."""
    mesh = mesh_of_eight(data=2, fsdp=2, tensor=2)
    config = rl(MeshConfig(data=2, fsdp=2, tensor=2))
    step = steps["log-probs"]
    compiled = compile_here(step.lower())
    assert compiled.memory.arguments == tree_bytes(step.arguments) - tree_bytes(step.arguments[1].loss_mask)  # not used
    batch = config.micro_rows // 4
    per_device = compiled.memory.temporaries
    assert per_device > batch * config.row_length * MODEL.width * 4  # at least one activation
    traced = jaxprs.jaxpr_cost(step, mesh, "cpu")
    counted = program_cost(compiled.program, mesh)
    # The program computes hidden scores too: as if every token saw all of its row (test_flops).
    expected = forward_flops(MODEL, config.micro_rows * config.row_length, 2 * config.row_length - 1)
    assert traced.flops * 8 == expected
    assert counted.flops * 8 == pytest.approx(expected, rel=1e-6)


def test_state_and_reference_lie_beside_the_steps_that_do_not_take_them(steps: dict[str, PlannedStep]) -> None:
    params = tree_bytes(steps["log-probs"].arguments[0])
    moments = 2 * params
    assert tree_bytes(steps["gradients"].beside) == pytest.approx(moments + params, rel=0.02)  # moments and reference
    assert tree_bytes(steps["update"].beside) == params
    assert tree_bytes(steps["decode"].beside) == pytest.approx(moments + params, rel=0.02)
    # 64 sequences in 2 mini-batches, a row each: two micro-batches of 16 rows an update, twice.
    calls = {name: step.calls for name, step in steps.items()}
    assert calls == {"prefill": 1, "decode": 1, "log-probs": 8, "gradients": 2, "gradients (added)": 2, "update": 2}


def test_a_call_of_decode_is_as_many_tokens_as_its_chunk_has(steps: dict[str, PlannedStep]) -> None:
    """Of 8 tokens the prefill draws the first; the loop ends when all rows are done, so no program tells its rounds."""
    step, mesh = steps["decode"], mesh_of_eight(data=2, fsdp=2, tensor=2)
    assert (step.iterations, step.tokens) == (7, 64 * 7)
    once, program = dataclasses.replace(step, iterations=1), compile_here(step.lower()).program
    traced, counted = jaxprs.jaxpr_cost(step, mesh, "cpu"), program_cost(program, mesh, step.iterations)
    assert traced.flops == 7 * jaxprs.jaxpr_cost(once, mesh, "cpu").flops > 0
    assert counted.flops == pytest.approx(7 * program_cost(program, mesh).flops)
    assert traced.flops == pytest.approx(counted.flops)  # the model's own logits, which the loop does not ask for, too
    assert counted.bytes < 7 * program_cost(program, mesh).bytes  # what lies outside of the loop is moved once


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v5p", r"'v5p' is not of the form CHIP:AxB"),
        ("v9:2x2", r"chip 'v9'; known are v4, v5e, v5p"),
        ("v5p:8x8", r"v5p has 3 axes of a torus"),
        ("v6e:32x32", r"1024 chips; a slice of v6e"),
        ("h100:16x2", r"at most 8 GPUs of a host"),
    ],
)
def test_an_unknown_machine_is_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_topology(text)


def test_topologies_count_chips_and_devices() -> None:
    assert parse_topology("v5p:8x8x16").chips == 1024
    assert parse_topology("2*v5p:4x4x4").devices == 128
    assert parse_topology("tpu7x:2x2x1").devices == 8  # two of each chip
    assert parse_topology("h100:8x16").chips == 128
    assert math.isclose(CHIPS["tpu7x"].device.bf16, 2307e12 / 2)


def test_what_cannot_be_planned_is_refused_by_name() -> None:
    fields = subject.read_config("configs/r1_zero.py:tiny")
    with pytest.raises(PlanError, match=r"--step: 'sft' is not one of .*pretrain, r1_zero"):
        subject.choose(fields, "sft", "", ())
    with pytest.raises(PlanError, match=r"--set: 'micro_rows' is not of the form"):
        subject.choose(fields, "", "", ("micro_rows",))
    with pytest.raises(ValueError, match=r"mikro_rows"):
        subject.choose(fields, "", "", ("mikro_rows=3",))
    with pytest.raises(PlanError, match=r"--mesh: 'exprt=2'.*expert"):
        subject.mesh_config("exprt=2", MeshConfig())
    chosen = subject.choose(fields, "", "", ()).with_mesh(MeshConfig(data=3))
    with pytest.raises(PlanError, match=r"mesh: does not fit h100:4x2, 8 devices.*'data': 3"):
        planner.mesh_of(parse_topology("h100:4x2"), chosen)


def test_a_mesh_that_divides_nothing_is_not_tried() -> None:
    chosen = subject.Subject("rl", "rl", rl(MeshConfig()), MODEL)
    shapes = list(search.mesh_shapes(8))
    assert len({(s.data, s.fsdp, s.expert, s.sequence, s.tensor) for s in shapes}) == len(shapes) == 30
    sizes = {"slice": 1, "data": 1, "fsdp": 1, "expert": 1, "sequence": 1, "tensor": 8}
    assert not search.divides(chosen, sizes)  # four heads
    assert search.divides(chosen, {**sizes, "fsdp": 2, "tensor": 4})


def test_a_gpu_plan_says_what_it_cannot_know(steps: dict[str, PlannedStep]) -> None:
    topology = parse_topology("h100:8x1")
    mesh = mesh_of_eight(data=2, fsdp=2, tensor=2)
    config = rl(MeshConfig(data=2, fsdp=2, tensor=2))
    one = planner.plan_step(steps["gradients"], MODEL, mesh, topology)
    plan = planner.Plan(subject.Subject("rl", "rl", config, MODEL), topology, dict(mesh.shape), (one,), 0.0)
    assert one.peak is None
    assert plan.fits is None
    page = report.markdown(plan)
    assert "There is no compiler for GPUs here" in page
    assert "| gradients | 16 rows of 16 tokens |" in page
    gathered = [c for c in one.cost.collectives if c.kind == "all-gather"]
    assert gathered
    assert all("fsdp" in c.axes for c in gathered)


def test_v3_is_priced_as_published() -> None:
    """37.55B parameters active at 6 operations each are 225 GFLOP a token (V3: 180K GPU hours for 1T tokens)."""
    model = PRESETS["deepseek_v3_671b"]
    assert pytest.approx(3 * forward_flops(model, 1, 1), rel=2e-3) == 6 * 36.6e9
