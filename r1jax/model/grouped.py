"""Products of rows with their group's matrix, for mixtures of experts: nothing is dropped, no capacity is set.

Rows are laid out by group, each group padded to whole tiles (`plan_tiles`), so that one static shape holds any
assignment. On that layout the product has one implementation per platform: on the CPU a batched product of tiles with
their group's matrix, elsewhere `jax.lax.ragged_dot`. All gradients are written as gathers and such products, since the
transposed forms (scatter-adds) are slow on every platform.

Letters: N tokens, A assignments per token, S slots (rows of the padded layout), D and F the matrix axes, E groups.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from r1jax.types import Array


@struct.dataclass
class Tiles:
    """Where each assignment lies in the padded layout. S = number of tiles x tile size."""

    slot: Array  # [N, A] int32, the slot of each assignment; S for one whose group is not here
    source: Array  # [S] int32, index into the flattened assignments; N * A for padding
    tile_group: Array  # [tiles] int32, the group every row of a tile belongs to
    sizes: Array  # [E] int32, slots of each group, a multiple of the tile size
    counts: Array  # [E] int32, assignments of each group


def num_tiles(rows: int, num_groups: int, tile_size: int) -> int:
    """The most tiles that `rows` rows can need, however they fall into groups."""
    return min(rows, (rows + num_groups * (tile_size - 1)) // tile_size)


def choose_tile_size(rows: int, num_groups: int, smallest: int) -> int:
    """Tile size for `rows` rows in `num_groups` groups: the power of two near an eighth of a mean group, within bounds.

    Larger tiles make faster products and less traffic of weights, smaller ones less padding.
    """
    eighth = max(rows // (8 * num_groups), 1)
    return max(smallest, min(1 << (eighth - 1).bit_length(), 128))


def plan_tiles(groups: Array, num_groups: int, tile_size: int) -> Tiles:
    """Lays assignments out by group, in order within a group, each group padded to whole tiles.

    groups: [N, A] int32 in 0..num_groups-1; any other value means that the group is not here (another shard has it).
    """
    rows = groups.size
    tiles = num_tiles(rows, num_groups, tile_size)
    flat = groups.reshape(rows)
    member = flat[:, None] == jnp.arange(num_groups)  # [N A, E]
    rank = jnp.cumsum(member, axis=0, dtype=jnp.int32)  # place in the group, from 1
    counts = rank[-1]
    tile_counts = (counts + tile_size - 1) // tile_size
    ends = jnp.cumsum(tile_counts)
    starts = (ends - tile_counts) * tile_size
    slot = jnp.where(member.any(-1), jnp.sum(jnp.where(member, starts + rank - 1, 0), -1), tiles * tile_size)
    source = jnp.full(tiles * tile_size, rows, jnp.int32)
    source = source.at[slot].set(jnp.arange(rows, dtype=jnp.int32), mode="drop", unique_indices=True)
    tile_group = jnp.sum(jnp.arange(tiles)[:, None] >= ends, axis=-1, dtype=jnp.int32)
    return Tiles(
        slot=slot.reshape(groups.shape),
        source=source,
        tile_group=jnp.minimum(tile_group, num_groups - 1),
        sizes=tile_counts * tile_size,
        counts=counts,
    )


def _take(x: Array, index: Array) -> Array:
    """Rows of x; an index past the end gives zeros."""
    return jnp.take(x, index, axis=0, mode="fill", fill_value=0)


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
    return _take(y, tiles.slot).sum(1)


# Slots and assignments are one to one, so that the gradient of each gather is another gather.
dispatch.defvjp(
    lambda x, tiles: (dispatch(x, tiles), tiles),
    lambda tiles, dy: (_take(dy, tiles.slot).sum(1), None),
)
dispatch_gates.defvjp(
    lambda gates, tiles: (dispatch_gates(gates, tiles), tiles),
    lambda tiles, dy: (_take(dy, tiles.slot), None),
)
collect.defvjp(
    lambda y, tiles: (collect(y, tiles), tiles),
    lambda tiles, dout: (_take(dout, tiles.source // tiles.slot.shape[1]), None),
)


def _tiled_product(x: Array, w: Array, tiles: Tiles) -> Array:
    count = tiles.tile_group.shape[0]
    y = jax.lax.dot_general(x.reshape(count, -1, x.shape[1]), w[tiles.tile_group], (((2,), (1,)), ((0,), (0,))))
    return y.reshape(x.shape[0], w.shape[2])


def _tiled_product_transposed(y: Array, w: Array, tiles: Tiles) -> Array:
    count = tiles.tile_group.shape[0]
    x = jax.lax.dot_general(y.reshape(count, -1, y.shape[1]), w[tiles.tile_group], (((2,), (2,)), ((0,), (0,))))
    return x.reshape(y.shape[0], w.shape[1])


def _tiled_weights(x: Array, y: Array, tiles: Tiles) -> Array:
    count = tiles.tile_group.shape[0]
    per_tile = jax.lax.dot_general(
        x.reshape(count, -1, x.shape[1]), y.reshape(count, -1, y.shape[1]), (((1,), (1,)), ((0,), (0,)))
    )
    return jax.ops.segment_sum(per_tile, tiles.tile_group, tiles.sizes.shape[0], indices_are_sorted=True)


def _ragged_product(x: Array, w: Array, tiles: Tiles) -> Array:
    return jax.lax.ragged_dot(x, w, tiles.sizes)


def _ragged_product_transposed(y: Array, w: Array, tiles: Tiles) -> Array:
    return jax.lax.ragged_dot(y, w.swapaxes(1, 2), tiles.sizes)


def _ragged_weights(x: Array, y: Array, tiles: Tiles) -> Array:
    rows_contract = jax.lax.RaggedDotDimensionNumbers(
        dot_dimension_numbers=(((0,), (0,)), ((), ())), lhs_ragged_dimensions=[0], rhs_group_dimensions=[]
    )
    return jax.lax.ragged_dot_general(x, y, tiles.sizes, rows_contract)


@jax.custom_vjp
def grouped_product(x: Array, w: Array, tiles: Tiles) -> Array:
    """x [S, D] laid out by `plan_tiles`, w [E, D, F] -> [S, F]: each row times its group's matrix.

    A row's result does not depend on the other rows. Rows past the last tile in use come out undefined.
    """
    return jax.lax.platform_dependent(x, w, tiles, cpu=_tiled_product, default=_ragged_product)


def _grouped_product_fwd(x: Array, w: Array, tiles: Tiles) -> tuple[Array, tuple[Array, Array, Tiles]]:
    return grouped_product(x, w, tiles), (x, w, tiles)


def _grouped_product_bwd(residuals: tuple[Array, Array, Tiles], dy: Array) -> tuple[Array, Array, None]:
    x, w, tiles = residuals
    dx = jax.lax.platform_dependent(dy, w, tiles, cpu=_tiled_product_transposed, default=_ragged_product_transposed)
    dw = jax.lax.platform_dependent(x, dy, tiles, cpu=_tiled_weights, default=_ragged_weights)
    return dx.astype(x.dtype), dw.astype(w.dtype), None


grouped_product.defvjp(_grouped_product_fwd, _grouped_product_bwd)


def grouped_matmul(x: Array, w: Array, group_sizes: Array, tile_size: int = 32) -> Array:
    """x [rows, D] sorted by group, w [E, D, F], group_sizes [E] int32 -> [rows, F], as `jax.lax.ragged_dot`.

    Rows past the sum of the group sizes come out 0.
    """
    group = jnp.sum(jnp.arange(x.shape[0])[:, None] >= jnp.cumsum(group_sizes), axis=-1, dtype=jnp.int32)
    tiles = plan_tiles(group[:, None], w.shape[0], tile_size)
    return collect(grouped_product(dispatch(x, tiles), w, tiles), tiles)
