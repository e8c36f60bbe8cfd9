"""What a plan takes the network to carry, and how fast: cases worked by hand, and programs as libtpu writes them."""

from __future__ import annotations

import dataclasses
import math
import types

import jax
import numpy as np
import pytest

from r1jax.plan.chips import CHIPS, parse_topology
from r1jax.plan.collectives import Collective, find_collectives, sent_bytes
from r1jax.plan.costs import bandwidth, step_time, traffic
from r1jax.plan.hlo import Program, parse_program
from r1jax.sharding import MeshConfig, make_mesh


def torus(topology: str, **sizes: int) -> types.SimpleNamespace:
    """A mesh of devices with coordinates, the first axis of the torus slowest."""
    shape, slices = parse_topology(topology).shape, parse_topology(topology).slices
    devices = [types.SimpleNamespace(coords=coords) for _ in range(slices) for coords in np.ndindex(*shape)]
    return types.SimpleNamespace(devices=np.array(devices, object), shape={"slice": slices, **sizes})


def rate(topology: str, kind: str, devices: tuple[int, ...]) -> float:
    """In links of the chip."""
    machine = parse_topology(topology)
    group = Collective(kind, ("fsdp",), len(devices), 1.0, 1, "", devices)
    return bandwidth(group, torus(topology), machine) / machine.chip.device.link


# What is sent ---------------------------------------------------------------------------------------------------------

# Of the gradient of a loop over layers, 2 slices of 4 chips: libtpu 0.0.42, shapes and attributes cut down.
TWO_SLICES = """HloModule m

%add (x: bf16[], y: bf16[]) -> bf16[] {
  %x = bf16[] parameter(0)
  %y = bf16[] parameter(1)
  ROOT %sum = bf16[] add(%x, %y)
}

%all-reduce-scatter.1 (input.1: bf16[64,64]) -> bf16[16,64] {
  %input.1 = bf16[64,64]{1,0:T(8,128)(2,1)} parameter(0)
  %all-reduce.12 = bf16[64,64]{1,0:T(8,128)(2,1)} all-reduce(%input.1), channel_id=5, replica_groups={{0,1,2,3}}, use_global_device_ids=true, to_apply=%add
  %partition-id.11 = u32[] partition-id()
  %constant.113 = u32[] constant(16)
  %multiply.9 = u32[]{:T(128)} multiply(%partition-id.11, %constant.113)
  %constant.114 = u32[] constant(0)
  ROOT %dynamic-slice.18 = bf16[16,64]{1,0:T(8,128)(2,1)} dynamic-slice(%all-reduce.12, %multiply.9, %constant.114), dynamic_slice_sizes={16,64}
}

%body (p: (s32[], bf16[64,64])) -> (s32[], bf16[64,64]) {
  %p = (s32[], bf16[64,64]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %g = bf16[64,64]{1,0:T(8,128)(2,1)} get-tuple-element(%p), index=1
  %fusion.1 = bf16[16,64]{1,0:T(8,128)(2,1)} fusion(%g), kind=kCustom, calls=%all-reduce-scatter.1, metadata={op_name="jit(g)/transpose/dot_general"}
  %bitcast.6 = bf16[1,16,64]{2,1,0} bitcast(%fusion.1)
  %after-all.2 = token[] after-all()
  %send.2 = (bf16[1,16,64]{2,1,0}, u32[], token[]) send(%bitcast.6, %after-all.2), channel_id=6, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_host_transfer_rendezvous="all-reduce.7_0",_xla_megascale_reduce_operation="SUM",_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %recv.2 = (bf16[1,16,64]{2,1,0}, u32[], token[]) recv(%after-all.2), channel_id=5, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_transfer_type="ALL_REDUCE"}
  %send-done.2 = token[] send-done(%send.2), channel_id=6, is_host_transfer=true
  %recv-done.2 = (bf16[1,16,64]{2,1,0}, token[]) recv-done(%recv.2), channel_id=5, is_host_transfer=true
  %send.3 = (bf16[64,64]{1,0}, u32[], token[]) send(%g, %after-all.2), channel_id=8, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="tf_rendezvous"}
  ROOT %out = (s32[], bf16[64,64]{1,0}) tuple(%i, %g)
}

%until (q: (s32[], bf16[64,64])) -> pred[] {
  %q = (s32[], bf16[64,64]{1,0}) parameter(0)
  %j = s32[] get-tuple-element(%q), index=0
  %n = s32[] constant(3)
  ROOT %less = pred[] compare(%j, %n), direction=LT
}

ENTRY %main (a: (s32[], bf16[64,64])) -> (s32[], bf16[64,64]) {
  %a = (s32[], bf16[64,64]{1,0}) parameter(0)
  ROOT %loop = (s32[], bf16[64,64]{1,0}) while(%a), condition=%until, body=%body
}
"""  # noqa: E501


@pytest.fixture
def two_slices() -> tuple[Program, jax.sharding.Mesh]:
    return parse_program(TWO_SLICES), make_mesh(MeshConfig(slice=2, data=1, fsdp=4))


def test_an_all_reduce_in_a_fusion_that_keeps_a_slice_is_a_reduce_scatter(two_slices) -> None:
    found = {one.axes: one for one in find_collectives(*two_slices)}
    scattered = found["fsdp",]
    assert (scattered.kind, scattered.group, scattered.times) == ("reduce-scatter", 4, 3)
    assert scattered.bytes == 64 * 64 * 2 * 3 / 4
    assert scattered.source == "transpose/dot_general"  # the fusion's, as the all-reduce in it has none


def test_what_is_sent_to_another_slice_is_traffic_along_the_axis_of_slices(two_slices) -> None:
    found = {one.axes: one for one in find_collectives(*two_slices)}
    assert set(found) == {("fsdp",), ("slice",)}  # what goes to the own host is none
    crossing = found["slice",]  # the sum's shard: half sent to be summed, half sent back summed
    assert (crossing.kind, crossing.group, crossing.bytes, crossing.times) == ("all-reduce", 2, 16 * 64 * 2, 3)
    assert crossing.devices == (0, 4)
    assert bandwidth(crossing, torus("2*v5p:2x2x1"), parse_topology("2*v5p:2x2x1")) == 6.25e9


def test_what_the_host_carries_is_read_from_memory_and_written_to_it(two_slices) -> None:
    program, _ = two_slices
    body = program.computations["body"]
    assert traffic(program, body["send.2"], body) == traffic(program, body["recv.2"], body) == 16 * 64 * 2
    assert traffic(program, body["send-done.2"], body) == traffic(program, body["recv-done.2"], body) == 0


def test_each_way_to_reach_the_other_slices_is_priced_by_what_it_does() -> None:
    mesh = make_mesh(MeshConfig(slice=4, data=1, fsdp=2))
    sent = {}
    for kind in ("ALL_GATHER", "ALL_REDUCE", "ALL_TO_ALL", "ONE_TO_ONE"):
        written = TWO_SLICES.replace("{{0,1,2,3}}", "{{0,1}}").replace('type="ALL_REDUCE"', f'type="{kind}"')
        found = find_collectives(parse_program(written), mesh)
        sent[kind] = next(one.bytes for one in found if one.axes == ("slice",)) / (16 * 64 * 2)
    assert sent == {"ALL_GATHER": 3, "ALL_REDUCE": 1.5, "ALL_TO_ALL": 0.75, "ONE_TO_ONE": 1}


# How fast -------------------------------------------------------------------------------------------------------------


def test_the_network_is_as_wide_as_the_rings_a_group_closes() -> None:
    v5p = "v5p:4x4x8"
    assert rate(v5p, "all-gather", tuple(range(8))) == 2  # the ring along the last axis, both ways
    assert rate(v5p, "all-gather", tuple(range(4))) == 1  # half of it is a line
    assert rate(v5p, "all-gather", tuple(range(32))) == 4  # two axes
    # A ring of 8: each link carries as much as one device gives, an eighth of which it keeps.
    assert rate(v5p, "all-to-all", tuple(range(8))) == 7 / 8
    assert rate(v5p, "all-to-all", tuple(range(32))) == 31 / 32  # the longest axis decides


def test_slices_of_whole_cubes_and_a_pods_whole_edge_are_rings() -> None:
    closed = {name: parse_topology(name).closed for name in ("v5p:4x4x8", "v5p:2x4x4", "v4:2x2x4", "v6e:8x16")}
    assert closed["v5p:4x4x8"] == (True, True, True)
    assert closed["v5p:2x4x4"] == closed["v4:2x2x4"] == (False, False, False)
    assert closed["v6e:8x16"] == (False, True)
    assert rate("v6e:8x16", "all-gather", tuple(range(16))) == 2
    assert rate("v6e:8x16", "all-gather", tuple(range(0, 128, 16))) == 1  # eight chips in a line
    assert rate("v5p:2x4x4", "all-gather", tuple(range(4))) == 1
    assert (
        rate("v6e:8x8", "all-to-all", tuple(range(8))) == 7 / 16
    )  # of 8 bytes given 7 are sent, 4 x 4 go through the middle


def test_groups_with_others_between_their_places_share_the_links() -> None:
    ring = "v5p:4x4x16"
    assert rate(ring, "all-gather", tuple(range(0, 16, 4))) == 0.5  # both ways round a ring, one of four groups on it
    assert rate(ring, "all-gather", tuple(range(0, 16, 2))) == 1
    assert rate(ring, "all-gather", (0, 2)) == 0.5  # with (1, 3) on the link from 1 to 2
    assert rate(ring, "all-gather", (0, 15)) == 1  # neighbours on the ring
    # Of 16 bytes that a device gives 4 stay, 8 go 4 places one way or the other and 4 go 8: over each of 32 links go
    # 16 x (8 x 4 + 4 x 8) / 32 = 32 bytes while a device sends 12.
    assert rate(ring, "all-to-all", tuple(range(0, 16, 4))) == 12 / 32
    line = "v5e:8x8"
    assert rate(line, "all-gather", (0, 2, 4, 6)) == 0.5
    assert (
        rate(line, "all-gather", (0, 4)) == 0.25
    )  # the link from 3 to 4 is on the way of (0, 4), (1, 5), (2, 6), (3, 7)
    assert rate(line, "all-gather", (0, 1, 4, 5)) == 0.5  # and (2, 3, 6, 7)
    # Two axes: four chips of every fourth and a whole ring.
    wide = tuple(16 * place + other for place in range(0, 16, 4) for other in range(16))
    assert rate("v5e:16x16", "all-gather", wide) == 2 + 0.5


def test_gpus_of_a_host_lead_what_crosses_out_together() -> None:
    """Two hosts of eight GPUs, 450 GB/s by the switch, an adapter of 50 GB/s for each GPU."""
    machine, mesh = parse_topology("h100:8x2"), types.SimpleNamespace(devices=np.zeros(16))

    def speed(kind: str, devices: tuple[int, ...]) -> float:
        return bandwidth(Collective(kind, ("fsdp",), len(devices), 1.0, 1, "", devices), mesh, machine) / 1e9

    assert speed("all-gather", tuple(range(8))) == 450
    # Eight GPUs, four in each host, gather 8 GB: each sends 7. Four rings with 2 GB each leave a host by four adapters,
    # so that each of these carries 7 / 4 GB: 35 ms.
    assert speed("all-gather", tuple(range(0, 16, 2))) == pytest.approx(7 / 35e-3)
    assert speed("reduce-scatter", tuple(range(16))) == 400
    assert speed("all-gather", (0, 8)) == 50
    # Of 8 GB that each gives out 7 go away, 3 within the host and 4 by the GPU's own adapter: 80 ms.
    assert speed("all-to-all", tuple(range(0, 16, 2))) == pytest.approx(7 / 80e-3)
    assert speed("collective-permute", (0, 8)) == 50


def test_a_sum_over_slices_and_chips_sends_only_the_chips_shares_between_slices() -> None:
    """2 slices of 8 v5p chips in a line: 16 GB each to scatter over 16 devices."""
    machine = parse_topology("2*v5p:1x1x8")
    group = Collective("reduce-scatter", ("slice", "fsdp"), 16, 15e9, 1, "", tuple(range(16)))
    assert group.bytes == sent_bytes("reduce-scatter", 16e9, 16)
    seconds = group.bytes / bandwidth(group, torus("2*v5p:1x1x8"), machine)
    within, across = 14e9 / 90e9, 1e9 / 6.25e9  # 7/8 of 16 GB go to the slice's chips, half of the 2 GB left across
    assert seconds == pytest.approx(within + across)
    exchange = dataclasses.replace(group, kind="all-to-all")  # 8 of the 15 GB cross; 4 x 4 pass a slice's middle
    assert exchange.bytes / bandwidth(exchange, torus("2*v5p:1x1x8"), machine) == pytest.approx(8 / 6.25 + 16 / 90)


def test_chips_have_the_network_that_the_documentation_gives_a_pod() -> None:
    assert CHIPS["v5e"].network == 6.4e12 / 8 / 256
    assert CHIPS["v6e"].network == 25.6e12 / 8 / 256
    assert CHIPS["v5p"].network == 50e9 / 8
    assert math.isclose(CHIPS["tpu7x"].device.network, 100e9 / 8 / 2)
    assert parse_topology("v4:2x2x1").devices == 4  # cores joined, as the cloud has them


def test_the_roofline_of_a_hand_worked_step() -> None:
    v5p, mesh = parse_topology("v5p:4x4x8"), torus("v5p:4x4x8")
    gather = Collective("all-gather", ("fsdp",), 8, 180e9, 2, "", tuple(range(8)))
    time = step_time(459e12 * 3, 2.765e12, (gather,), mesh, v5p)
    assert (time.compute, time.memory, time.network) == (3, 1, 2)
    assert (time.overlapped, time.predicted, time.bound) == (3, 5, "compute")
