"""Products of rows with their group's matrix, for mixtures of experts: nothing is dropped, no capacity is set.

Rows are laid out by group, each group padded to whole tiles (`plan_tiles`), so that one static shape holds any
assignment. On that layout the product has one implementation per platform: on the CPU a batched product of tiles with
their group's matrix, elsewhere `jax.lax.ragged_dot`, and for the weights' gradient on TPU a kernel. All gradients are
written as gathers and such products, since the transposed forms (scatter-adds) are slow on every platform.

Letters: N tokens, A assignments per token, S slots (rows of the padded layout), D and F the matrix axes, E groups.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import struct

from r1jax.model.grouped_kernel import grouped_weights, tile_fits
from r1jax.types import Array


@struct.dataclass
class Layout:
    """Which group each slot belongs to. S = number of tiles x tile size."""

    tile_group: Array  # [tiles] int32, the group every row of a tile belongs to
    sizes: Array  # [E] int32, slots of each group, a multiple of the tile size


@struct.dataclass
class Tiles(Layout):
    """Where each assignment lies in the padded layout."""

    slot: Array  # [N, A] int32, the slot of each assignment; S for one whose group is not here
    source: Array  # [S] int32, index into the flattened assignments; N * A for padding
    counts: Array  # [E] int32, assignments of each group


def num_tiles(rows: int, num_groups: int, tile_size: int) -> int:
    """The most tiles that `rows` rows can need, however they fall into groups."""
    return min(rows, (rows + num_groups * (tile_size - 1)) // tile_size)


def choose_tile_size(rows: int, num_groups: int, smallest: int) -> int:
    """Tile size for `rows` rows in `num_groups` groups: the power of two near a quarter of a mean group, within bounds.

    Larger tiles make faster products and less traffic of weights (every tile reads its group's matrix), smaller ones
    less padding.
    """
    quarter = max(rows // (4 * num_groups), 1)
    return max(smallest, min(1 << (quarter - 1).bit_length(), 128))


def sort_by_group(groups: Array, num_groups: int) -> tuple[Array, Array, Array]:
    """Stable order of groups [rows] int32, those outside 0..num_groups-1 last.

    Returns order [rows], the row at each place; place [rows], its inverse; and counts [num_groups], all int32. Sorting
    costs the same for any number of groups; counting by comparing each row with each group would not.
    """
    key = jnp.where((groups >= 0) & (groups < num_groups), groups, num_groups)
    order = jnp.argsort(key, stable=True).astype(jnp.int32)
    row = jnp.arange(groups.size, dtype=jnp.int32)
    place = jnp.zeros_like(row).at[order].set(row, unique_indices=True)
    bounds = jnp.searchsorted(key[order], jnp.arange(num_groups + 1), method="scan_unrolled").astype(jnp.int32)
    return order, place, jnp.diff(bounds)


def plan_tiles(groups: Array, num_groups: int, tile_size: int) -> Tiles:
    """Lays assignments out by group, in order within a group, each group padded to whole tiles.

    groups: [N, A] int32 in 0..num_groups-1; any other value means that the group is not here (another shard has it).
    """
    rows = groups.size
    tiles = num_tiles(rows, num_groups, tile_size)
    order, place, counts = sort_by_group(groups.reshape(rows), num_groups)
    tile_counts = (counts + tile_size - 1) // tile_size
    ends = jnp.cumsum(tile_counts)
    tile_group = jnp.sum(jnp.arange(tiles)[:, None] >= ends, axis=-1, dtype=jnp.int32)
    tile_group = jnp.minimum(tile_group, num_groups - 1)
    starts = (ends - tile_counts) * tile_size
    before = jnp.cumsum(counts) - counts
    # Slot by slot, which row of its group it is, and so which of the sorted assignments.
    slot_group = jnp.repeat(tile_group, tile_size)
    rank = jnp.arange(tiles * tile_size) - starts[slot_group]
    source = jnp.where(rank < counts[slot_group], _take(order, before[slot_group] + rank), rows)
    flat = groups.reshape(rows)
    here = (flat >= 0) & (flat < num_groups)
    slot = jnp.where(here, (starts - before)[jnp.where(here, flat, 0)] + place, tiles * tile_size)
    return Tiles(
        slot=slot.reshape(groups.shape),
        source=source,
        tile_group=tile_group,
        sizes=tile_counts * tile_size,
        counts=counts,
    )


def _take(x: Array, index: Array) -> Array:
    """Rows of x; an index past the end gives zeros."""
    return jnp.take(x, index, axis=0, mode="fill", fill_value=0)


def sum_of_rows(y: Array, index: Array) -> Array:
    """y [S, D], index [N, A] -> [N, D]: the rows of y that each row of `index` names, added in order in float32.

    One column at a time: [N, A, D] would be the largest array of a layer. An index past the end adds nothing.
    """
    columns = (_take(y, index[:, column]).astype(jnp.float32) for column in range(index.shape[1]))
    return functools.reduce(jnp.add, columns).astype(y.dtype)


@jax.custom_vjp
def dispatch(x: Array, tiles: Tiles) -> Array:
    """x [N, D] -> [S, D]: each token's row at the slots of its assignments, zeros at the padding."""
    return _take(x, tiles.source // tiles.slot.shape[1])


@jax.custom_vjp
def dispatch_gates(gates: Array, tiles: Tiles) -> Array:
    """gates [N, A] -> [S]: each assignment's gate at its slot, zeros at the padding."""
    return _take(gates.reshape(-1), tiles.source)


@jax.custom_vjp
def collect(y: Array, tiles: Tiles) -> Array:
    """y [S, D] -> [N, D]: the sum, in order, of the rows of each token's assignments."""
    return sum_of_rows(y, tiles.slot)


# Slots and assignments are one to one, so that the gradient of each gather is another gather.
dispatch.defvjp(
    lambda x, tiles: (dispatch(x, tiles), tiles),
    lambda tiles, dy: (sum_of_rows(dy, tiles.slot), None),
)
dispatch_gates.defvjp(
    lambda gates, tiles: (dispatch_gates(gates, tiles), tiles),
    lambda tiles, dy: (_take(dy, tiles.slot), None),
)
collect.defvjp(
    lambda y, tiles: (collect(y, tiles), tiles),
    lambda tiles, dout: (_take(dout, tiles.source // tiles.slot.shape[1]), None),
)


def _tiled_product(x: Array, w: Array, layout: Layout) -> Array:
    count = layout.tile_group.shape[0]
    y = jax.lax.dot_general(x.reshape(count, -1, x.shape[1]), w[layout.tile_group], (((2,), (1,)), ((0,), (0,))))
    return y.reshape(x.shape[0], w.shape[2])


def _tiled_product_transposed(y: Array, w: Array, layout: Layout) -> Array:
    count = layout.tile_group.shape[0]
    x = jax.lax.dot_general(y.reshape(count, -1, y.shape[1]), w[layout.tile_group], (((2,), (2,)), ((0,), (0,))))
    return x.reshape(y.shape[0], w.shape[1])


def _tiled_weights(x: Array, y: Array, layout: Layout) -> Array:
    count = layout.tile_group.shape[0]
    per_tile = jax.lax.dot_general(
        x.reshape(count, -1, x.shape[1]),
        y.reshape(count, -1, y.shape[1]),
        (((1,), (1,)), ((0,), (0,))),
        preferred_element_type=jnp.float32,
    )
    return jax.ops.segment_sum(per_tile, layout.tile_group, layout.sizes.shape[0], indices_are_sorted=True)


def _ragged_product(x: Array, w: Array, layout: Layout) -> Array:
    return jax.lax.ragged_dot(x, w, layout.sizes)


def _ragged_product_transposed(y: Array, w: Array, layout: Layout) -> Array:
    return jax.lax.ragged_dot(y, w.swapaxes(1, 2), layout.sizes)


def _ragged_weights(x: Array, y: Array, layout: Layout) -> Array:
    rows_contract = jax.lax.RaggedDotDimensionNumbers(
        dot_dimension_numbers=(((0,), (0,)), ((), ())), lhs_ragged_dimensions=[0], rhs_group_dimensions=[]
    )
    return jax.lax.ragged_dot_general(x, y, layout.sizes, rows_contract, preferred_element_type=jnp.float32)


def _kernel_weights(x: Array, y: Array, layout: Layout) -> Array:
    if not tile_fits(x.shape[0] // layout.tile_group.shape[0], x.dtype):
        return _ragged_weights(x, y, layout)
    return grouped_weights(x, y, layout.tile_group, layout.sizes)


@jax.custom_vjp
def grouped_product(x: Array, w: Array, layout: Layout) -> Array:
    """x [S, D] laid out by `plan_tiles`, w [E, D, F] -> [S, F]: each row times its group's matrix.

    A row's result does not depend on the other rows. Rows past the last tile in use come out undefined.
    """
    return jax.lax.platform_dependent(x, w, layout, cpu=_tiled_product, default=_ragged_product)


def _grouped_product_fwd(x: Array, w: Array, layout: Layout) -> tuple[Array, tuple[Array, Array, Layout]]:
    return grouped_product(x, w, layout), (x, w, layout)


def _grouped_product_bwd(residuals: tuple[Array, Array, Layout], dy: Array) -> tuple[Array, Array, None]:
    x, w, layout = residuals
    dx = jax.lax.platform_dependent(dy, w, layout, cpu=_tiled_product_transposed, default=_ragged_product_transposed)
    dw = jax.lax.platform_dependent(x, dy, layout, cpu=_tiled_weights, tpu=_kernel_weights, default=_ragged_weights)
    return dx.astype(x.dtype), dw.astype(w.dtype), None


grouped_product.defvjp(_grouped_product_fwd, _grouped_product_bwd)


def gated_experts(rows: Array, gates: Array, weights: tuple[Array, Array, Array], layout: Layout) -> Array:
    """Gate times SwiGLU expert of every slot: rows [S, D], gates [S] -> [S, D].

    weights: gate and up [E, D, F], down [E, F, D]. The gate is applied to the inner units, which are fewer than the
    outer ones.
    """
    gate, up, down = weights
    hidden = jax.nn.silu(grouped_product(rows, gate, layout)) * grouped_product(rows, up, layout)
    return grouped_product(hidden * gates[:, None].astype(hidden.dtype), down, layout)


def routed_experts(
    x: Array, experts: Array, gates: Array, weights: tuple[Array, Array, Array], tile_size: int
) -> Array:
    """Sum over each token's experts of gate times SwiGLU expert, nothing dropped.

    x: [N, D]. experts, gates: [N, A]; an expert outside 0..E-1 contributes nothing. weights: gate and up [E, D, F],
    down [E, F, D]. Returns [N, D].
    """
    tiles = plan_tiles(experts, weights[0].shape[0], tile_size)
    return collect(gated_experts(dispatch(x, tiles), dispatch_gates(gates, tiles), weights, tiles), tiles)
