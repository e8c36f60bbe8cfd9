"""The gradient of experts' weights as a Pallas kernel for TPU.

XLA has no such product there: it spreads every row over all groups first, E times the operations and the memory. On
the layout of `grouped.plan_tiles` a tile's rows all belong to one group and tiles stand by group, so that a block of
the result stays on the chip while its group's tiles pass by, and no row is masked. (megablox's `tgmm` does the same for
rows that are not padded, but does not say how its result varies over a mesh, which `shard_map` asks for.)
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from r1jax.types import Array

LANES = 128
LARGEST_BLOCK = 1024  # columns of x and of y whose products are on the chip at a time, in float32


def tile_fits(tile_size: int, dtype: Any) -> bool:
    """Whether tiles of so many rows are whole tiles of the chip's memory: 8 rows of 4 bytes, 16 of 2, 32 of 1."""
    return tile_size % (32 // jnp.dtype(dtype).itemsize) == 0


def grouped_weights(x: Array, y: Array, tile_group: Array, sizes: Array, interpret: bool = False) -> Array:
    """Sums of outer products by group: x [S, D], y [S, F] -> [E, D, F] float32, zeros for a group without rows.

    Args:
      x, y: rows in tiles of one group each, S = tiles x tile size, which has to fit the chip (`tile_fits`).
      tile_group: [tiles] int32, not falling; of the tiles past the last in use any group that is there.
      sizes: [E] int32, rows of each group, whole tiles. What lies past their sum may be anything, infinities too.
      interpret: run the kernel as XLA operations, wherever: slow, for tests.
    """
    tiles, groups = tile_group.shape[0], sizes.shape[0]
    tile_size, width, inner = x.shape[0] // tiles, x.shape[1], y.shape[1]
    rows, columns = _block(width), _block(inner)
    used = (jnp.sum(sizes) // tile_size).astype(jnp.int32)[None]

    def out_block(i: Any, j: Any, tile: Any, group: Any, used: Any) -> tuple[Any, ...]:
        return group[tile], i, j

    call = pl.pallas_call(
        _add_products,
        out_shape=jax.eval_shape(_result, x, y, tile_group, sizes),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(width // rows, inner // columns, tiles),  # tiles innermost: a block is finished before the next
            in_specs=[
                pl.BlockSpec((tile_size, rows), lambda i, j, tile, group, used: (tile, i)),
                pl.BlockSpec((tile_size, columns), lambda i, j, tile, group, used: (tile, j)),
            ],
            out_specs=pl.BlockSpec((1, rows, columns), out_block),
        ),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        cost_estimate=pl.CostEstimate(
            flops=2 * x.size * inner,
            bytes_accessed=x.nbytes * (inner // columns) + y.nbytes * (width // rows) + 4 * groups * width * inner,
            transcendentals=0,
        ),
        interpret=interpret,
        name="grouped_weights",
    )
    # Blocks of groups without a tile are never written.
    return jnp.where((sizes > 0)[:, None, None], call(tile_group, used, x, y), 0)


def _add_products(group: Any, used: Any, x: Any, y: Any, out: Any) -> None:
    tile = pl.program_id(2)
    first = (tile == 0) | (group[tile] != group[jnp.maximum(tile - 1, 0)])

    @pl.when(first)
    def _() -> None:
        out[...] = jnp.zeros_like(out)

    @pl.when(tile < used[0])
    def _() -> None:
        over_rows = (((0,), (0,)), ((), ()))
        out[0] += jax.lax.dot_general(x[...], y[...], over_rows, preferred_element_type=jnp.float32)


def _block(size: int) -> int:
    """The largest divisor of `size` in whole lanes up to LARGEST_BLOCK, or all of it where it has none."""
    largest = math.gcd(size, LARGEST_BLOCK)
    return largest if largest % LANES == 0 else size


def _result(x: Array, y: Array, tile_group: Array, sizes: Array) -> Array:
    """An array like the result: asked for its shape, it also says over which axes of a `shard_map` that varies."""
    return (x[0, :, None] * y[0] * (sizes + tile_group[0])[:, None, None]).astype(jnp.float32)
