"""Expert parallelism without dropped tokens: assignments travel to the devices of their experts and back.

Inside `shard_map`, along one mesh axis of P devices that hold E / P experts each. A device sorts its assignments by
expert, all devices learn all counts, and from them every device knows where each row goes and comes from (V3 section
3.2 without its overlap). Two exchanges share those counts:

ragged  `jax.lax.ragged_all_to_all`, one slice per sender and expert, written where the grouped product wants it: rows
        arrive sorted by expert, each expert padded to whole tiles. For TPU and GPU; the CPU has no such collective.
dense   `jax.lax.all_to_all` of equal blocks, one per pair of devices, laid out by expert after arrival.

Memory is bounded whatever the load: a device receives at most its buffer's rows at a time, `factor` times the balanced
share, and all go in rounds until every assignment is served: one when the load is balanced, up to P / factor when one
device takes all. The ragged buffer fills with rows of any sender, so that its rounds depend on the load of the fullest
device; the dense one has a part for each sender, so that they depend on the fullest pair.

A token travels once for each of its experts. Sending it once per device instead saves the share of experts that have
a neighbour: of 8 experts chosen at random in 4 of 8 groups, about 34 % of the traffic on 16 devices, 19 % on 32 and
10 % on 64. It would cost a sum over each received row's 8 possible experts, where rows now arrive in their places.

Letters: N tokens of this device, A experts per token, D width, F expert width, E experts of all devices, P devices.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh, PartitionSpec

from r1jax.model.config import MoEConfig
from r1jax.model.grouped import (
    Layout,
    choose_tile_size,
    gated_experts,
    num_tiles,
    plan_tiles,
    routed_experts,
    sort_by_group,
    sum_of_rows,
)
from r1jax.sharding import BATCH_AXES, axes_of, batch_shards, logical_sharding
from r1jax.types import Array

EXPERT_AXES = (  # logical axes of the weights gate, up and down
    ("experts", "expert_embed", "expert_mlp"),
    ("experts", "expert_embed", "expert_mlp"),
    ("experts", "expert_mlp", "expert_embed"),
)
SMALLEST_BUFFER = 256  # rows; below it a second round costs more than the memory it saves
Weights = tuple[Array, Array, Array]


@dataclasses.dataclass(frozen=True)
class Dispatch:
    """How assignments travel."""

    axis: str  # the mesh axis that the experts are split over
    exchange: str = "auto"  # 'ragged', 'dense', or 'auto': ragged on TPU and GPU, dense elsewhere
    factor: float = 1.5  # rows of the receive buffer over the balanced share
    smallest_tile: int = 32


@struct.dataclass
class Assignments:
    """This device's assignments in the order of their experts, and everybody's counts."""

    order: Array  # [N A] int32, index into the flattened assignments; those that no expert takes come last
    place: Array  # [N, A] int32, where each assignment stands in that order
    device: Array  # [N A] int32, in that order: the device that holds the expert; P for no expert
    counts: Array  # [P, E] int32, assignments of each device to each expert


class Round(NamedTuple):
    """One filling of the receive buffer of S rows."""

    layout: Layout
    deliver: Callable[[Array], Array]  # sorted assignments' rows [N A, ...] -> [S, ...], zeros where none arrives
    give_back: Callable[[Array, Array], Array]  # [S, ...] and [N A, ...] -> the latter with this round's rows written


def buffer_rows(assignments: int, devices: int, how: Dispatch) -> int:
    """Rows that a device takes at a time when each of `devices` devices has `assignments`; never more than all."""
    return min(devices * assignments, max(math.ceil(how.factor * assignments), SMALLEST_BUFFER))


class Buffer(NamedTuple):
    """Sizes of a device's receive buffer."""

    rows: int  # that it takes at a time
    tile_size: int
    slots: int  # rows of the array: every expert's filled up to whole tiles


def buffer_of(assignments: int, devices: int, local_experts: int, how: Dispatch) -> Buffer:
    """The buffer of a device with `local_experts` experts when each of `devices` devices has `assignments` rows."""
    tile_size = choose_tile_size(assignments, local_experts, how.smallest_tile)
    rows = buffer_rows(assignments, devices, how) if devices > 1 else assignments
    return Buffer(rows, tile_size, num_tiles(rows, local_experts, tile_size) * tile_size)


def sort_assignments(experts: Array, num_experts: int, axis: str) -> Assignments:
    """experts [N, A] int32; one outside 0..num_experts-1 goes nowhere. Gathers the counts along `axis`."""
    flat = experts.reshape(-1)
    order, place, counts = sort_by_group(flat, num_experts)
    local = num_experts // jax.lax.axis_size(axis)
    device = jnp.where((flat >= 0) & (flat < num_experts), flat, num_experts)[order] // local
    return Assignments(order, place.reshape(experts.shape), device, jax.lax.all_gather(counts, axis))


def _before(counts: Array, axis: int) -> Array:
    """Sums of what stands before each entry along an axis."""
    return jnp.cumsum(counts, axis) - counts


@struct.dataclass
class Slices:
    """The rows of one round by sender and expert, all [P, E] int32."""

    size: Array
    origin: Array  # first row in the sender's sorted assignments
    target: Array  # first row in the receiver's buffer


def plan_slices(counts: Array, index: Array, rows: int, tile_size: int) -> tuple[Slices, Array]:
    """Round `index` of buffers of `rows` rows, and where each expert's rows start and end in them.

    A device's rows stand by expert, then by sender, each expert padded to whole tiles; round i is the rows from
    i * rows on. counts: [P, E]. Returns the slices and [2, E]: first row and end of each expert, within 0..rows.
    """
    devices, experts = counts.shape
    padded = (counts.sum(0) + tile_size - 1) // tile_size * tile_size
    starts = _before(padded.reshape(devices, -1), 1).reshape(experts) - index * rows
    first = starts + _before(counts, 0)
    begin, end = jnp.clip(first, 0, rows), jnp.clip(first + counts, 0, rows)
    some = end > begin
    origin = jnp.where(some, _before(counts, 1) + begin - first, 0)
    bounds = jnp.clip(jnp.stack([starts, starts + padded]), 0, rows)
    return Slices(end - begin, origin, jnp.where(some, begin, 0)), bounds


def ragged_rounds(counts: Array, rows: int, tile_size: int) -> Array:
    """Rounds until the fullest device is served."""
    tiles = (counts.sum(0) + tile_size - 1) // tile_size
    return -(-tiles.reshape(counts.shape[0], -1).sum(1).max() * tile_size // rows)


def _ragged_round(plan: Assignments, index: Array, rows: int, tile_size: int, axis: str) -> Round:
    devices, experts = plan.counts.shape
    local, me = experts // devices, jax.lax.axis_index(axis)
    slices, bounds = plan_slices(plan.counts, index, rows, tile_size)

    def sent(array: Array) -> Array:  # by receiving device and its expert
        return array[me]

    def received(array: Array) -> Array:  # by sending device and expert of this one
        return jax.lax.dynamic_slice_in_dim(array, me * local, local, 1).reshape(-1)

    def deliver(values: Array) -> Array:
        buffer = jnp.zeros_like(values, shape=(rows, *values.shape[1:]))
        offsets = sent(slices.origin), sent(slices.size), sent(slices.target), received(slices.size)
        return jax.lax.ragged_all_to_all(values, buffer, *offsets, axis_name=axis)

    def give_back(buffer: Array, values: Array) -> Array:
        offsets = received(slices.target), received(slices.size), received(slices.origin), sent(slices.size)
        return jax.lax.ragged_all_to_all(buffer, values, *offsets, axis_name=axis)

    starts, ends = received(bounds).reshape(2, local)
    group = jnp.sum(jnp.arange(0, rows, tile_size)[:, None] >= ends, axis=-1, dtype=jnp.int32)
    return Round(Layout(tile_group=jnp.minimum(group, local - 1), sizes=ends - starts), deliver, give_back)


def dense_rounds(counts: Array, block: int) -> Array:
    """Rounds until the fullest pair of devices is served."""
    pairs = counts.reshape(counts.shape[0], counts.shape[0], -1).sum(-1)
    return -(-pairs.max() // block)


def _dense_round(plan: Assignments, index: Array, block: int, tile_size: int, axis: str) -> Round:
    devices, experts = plan.counts.shape
    local, me = experts // devices, jax.lax.axis_index(axis)
    mine = plan.counts[me].reshape(devices, local)
    first, low = _before(mine.reshape(-1), 0)[::local], index * block
    number = low + jnp.arange(block)  # of each row of a block among those of its pair of devices
    origin = jnp.where(number < mine.sum(1, keepdims=True), first[:, None] + number, plan.order.size)
    ends = jnp.cumsum(jax.lax.dynamic_slice_in_dim(plan.counts, me * local, local, 1), 1)  # [P, local]
    group = jnp.sum(number[:, None] >= ends[:, None], axis=-1, dtype=jnp.int32)  # [P, block]; `local` past the last
    tiles = plan_tiles(group.reshape(-1, 1), local, tile_size)
    take = functools.partial(jnp.take, axis=0, mode="fill", fill_value=0)

    def exchange(blocks: Array) -> Array:
        return jax.lax.all_to_all(blocks, axis, 0, 0)

    def deliver(values: Array) -> Array:
        arrived = exchange(take(values, origin))
        return take(arrived.reshape(devices * block, *values.shape[1:]), tiles.source)

    def give_back(buffer: Array, values: Array) -> Array:
        returned = exchange(take(buffer, tiles.slot.reshape(devices, block)))
        number = jnp.arange(plan.order.size) - take(first, plan.device) - low
        now = (plan.device < devices) & (number >= 0) & (number < block)
        rows = take(returned.reshape(devices * block, *values.shape[1:]), plan.device * block + number)
        return jnp.where(now.reshape(-1, *(1,) * (values.ndim - 1)), rows, values)

    return Round(tiles, deliver, give_back)


def _in_rounds(
    how: Dispatch, plan: Assignments, body: Callable[[Round, Any, Any], Any], initial: Any, operands: Any
) -> Any:
    """`body(round, carry, operands)` for every round, with the exchange of this platform."""
    devices, experts = plan.counts.shape
    rows, tile_size, slots = buffer_of(plan.order.size, devices, experts // devices, how)
    block = -(-rows // devices)

    def ragged(plan: Assignments, carry: Any, operands: Any) -> Any:
        def step(index: Array, carry: Any) -> Any:
            return body(_ragged_round(plan, index, slots, tile_size, how.axis), carry, operands)

        return _repeat(ragged_rounds(plan.counts, slots, tile_size), step, carry)

    def dense(plan: Assignments, carry: Any, operands: Any) -> Any:
        def step(index: Array, carry: Any) -> Any:
            return body(_dense_round(plan, index, block, tile_size, how.axis), carry, operands)

        return _repeat(dense_rounds(plan.counts, block), step, carry)

    if how.exchange == "auto":
        return jax.lax.platform_dependent(plan, initial, operands, tpu=ragged, cuda=ragged, rocm=ragged, default=dense)
    return {"ragged": ragged, "dense": dense}[how.exchange](plan, initial, operands)


def _repeat(times: Array, step: Callable[[Array, Any], Any], carry: Any) -> Any:
    return jax.lax.while_loop(
        lambda state: state[0] < times, lambda state: (state[0] + 1, step(*state)), (jnp.int32(0), carry)
    )[1]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def dispatched_experts(how: Dispatch, x: Array, experts: Array, gates: Array, weights: Weights) -> Array:
    """Sum over each token's experts of gate times SwiGLU expert, nothing dropped, wherever the experts live.

    Called inside `shard_map` with arrays that vary over all its axes. x: [N, D]. experts, gates: [N, A]; an expert
    outside 0..E-1 contributes nothing. weights of this device's E / P experts: gate and up [E / P, D, F], down
    [E / P, F, D]. Returns [N, D]. Rows travel in the type of x. The backward pass sends the inputs again and computes
    the inner units again instead of keeping a round's rows.
    """
    plan = sort_assignments(experts, weights[0].shape[0] * jax.lax.axis_size(how.axis), how.axis)
    rows, row_gates = _sorted(plan, x, gates)

    def body(turn: Round, out: Array, operands: Any) -> Array:
        rows, row_gates, weights = operands
        y = gated_experts(turn.deliver(rows), turn.deliver(row_gates), weights, turn.layout)
        return turn.give_back(y, out)

    return sum_of_rows(_in_rounds(how, plan, body, jnp.zeros_like(rows), (rows, row_gates, weights)), plan.place)


def _sorted(plan: Assignments, x: Array, gates: Array) -> tuple[Array, Array]:
    return x[plan.order // gates.shape[1]], gates.reshape(-1)[plan.order]


def _forward(
    how: Dispatch, x: Array, experts: Array, gates: Array, weights: Weights
) -> tuple[Array, tuple[Array, Array, Array, Weights]]:
    return dispatched_experts(how, x, experts, gates, weights), (x, experts, gates, weights)


def _backward(
    how: Dispatch, residuals: tuple[Array, Array, Array, Weights], dy: Array
) -> tuple[Array, None, Array, Weights]:
    x, experts, gates, weights = residuals
    plan = sort_assignments(experts, weights[0].shape[0] * jax.lax.axis_size(how.axis), how.axis)
    rows, row_gates = _sorted(plan, x, gates)

    def body(turn: Round, carry: Any, operands: Any) -> Any:
        rows, row_gates, row_dy, weights = operands
        out_rows, out_gates, out_weights = carry
        products = functools.partial(gated_experts, layout=turn.layout)
        pullback = jax.vjp(products, turn.deliver(rows), turn.deliver(row_gates), weights)[1]
        d_rows, d_gates, d_weights = pullback(turn.deliver(row_dy))
        out_weights = jax.tree.map(jnp.add, out_weights, d_weights)
        return turn.give_back(d_rows, out_rows), turn.give_back(d_gates, out_gates), out_weights

    initial = jax.tree.map(jnp.zeros_like, (rows, row_gates, weights))
    operands = (rows, row_gates, dy[plan.order // gates.shape[1]], weights)
    d_rows, d_gates, d_weights = _in_rounds(how, plan, body, initial, operands)
    return sum_of_rows(d_rows, plan.place), None, d_gates[plan.place], d_weights


dispatched_experts.defvjp(_forward, _backward)


def _everywhere(array: Array, spec: PartitionSpec, mesh: Mesh) -> Array:
    """Marks what devices share as varying between them, so that its gradient is summed over them."""
    split = {axis for axes in spec if axes is not None for axis in ((axes,) if isinstance(axes, str) else axes)}
    return jax.lax.pcast(array, tuple(axis for axis in mesh.axis_names if axis not in split), to="varying")


def _expert_shard(
    x: Array, experts: Array, gates: Array, *weights: Array, spec: PartitionSpec, how: Dispatch, mesh: Mesh
) -> Array:
    """One device's tokens, split by `spec`, through everybody's experts: x [..., D], pairs [..., A] -> [..., D]."""
    embed = "expert_embed"
    gate, up, down = (
        _everywhere(jax.lax.all_gather(weight, axes_of(embed), axis=axes.index(embed), tiled=True), weight_spec, mesh)
        for weight, axes, weight_spec in zip(weights, EXPERT_AXES, _weight_specs(mesh), strict=True)
    )
    tokens, chosen, token_gates = (
        _everywhere(array, spec, mesh).reshape(-1, array.shape[-1]) for array in (x, experts, gates)
    )
    if mesh.shape[how.axis] == 1:
        tile_size = choose_tile_size(experts.size, gate.shape[0], how.smallest_tile)
        y = routed_experts(tokens, chosen, token_gates, (gate, up, down), tile_size)
    else:
        y = dispatched_experts(how, tokens, chosen, token_gates, (gate, up, down))
    return jax.lax.psum(y, "tensor").reshape(x.shape)


def _weight_specs(mesh: Mesh) -> tuple[PartitionSpec, ...]:
    return tuple(logical_sharding(mesh, axes).spec for axes in EXPERT_AXES)


def sharded_experts(x: Array, experts: Array, gates: Array, weights: Weights, cfg: MoEConfig, mesh: Mesh) -> Array:
    """`routed_experts` on a mesh: tokens split over the batch axes and the sequence, experts over the expert axis.

    x: [B, T, D]; experts, gates: [B, T, A]. Expert weights are gathered over the axes of `expert_embed` inside; their
    inner width may be split over tensor. Where B or T does not divide (a decoding step), all B x T tokens are split
    over all these axes, filled with tokens that no expert takes. Raises ValueError if the mesh does not divide the
    weights.
    """
    for weight, axes in zip(weights, EXPERT_AXES, strict=True):
        logical_sharding(mesh, axes, weight.shape)
    how = Dispatch("expert", cfg.exchange, cfg.buffer_factor, cfg.tile_size)
    batch, length, width = x.shape
    shards, parts = batch_shards(mesh), mesh.shape["sequence"]

    def run(spec: PartitionSpec, *tokens: Array) -> Array:
        shard = functools.partial(_expert_shard, spec=spec, how=how, mesh=mesh)
        in_specs = (spec, spec, spec, *_weight_specs(mesh))
        return jax.shard_map(shard, mesh=mesh, in_specs=in_specs, out_specs=spec)(*tokens, *weights)

    if batch % shards == 0 and length % parts == 0:
        return run(PartitionSpec(BATCH_AXES, "sequence", None), x, experts, gates)
    count = batch * length
    fill = ((0, -count % (shards * parts)), (0, 0))
    filled = (
        jnp.pad(x.reshape(count, width), fill),
        jnp.pad(experts.reshape(count, -1), fill, constant_values=-1),
        jnp.pad(gates.reshape(count, -1), fill),
    )
    return run(PartitionSpec((*BATCH_AXES, "sequence"), None), *filled)[:count].reshape(x.shape)
