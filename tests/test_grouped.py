from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1jax.model import grouped_kernel
from r1jax.model.grouped import (
    choose_tile_size,
    collect,
    dispatch,
    dispatch_gates,
    grouped_product,
    num_tiles,
    plan_tiles,
)
from r1jax.model.grouped_kernel import grouped_weights, tile_fits
from r1jax.types import Array

D, F, E = 24, 40, 5
jit_plan = jax.jit(plan_tiles, static_argnums=(1, 2), static_argnames=("num_groups", "tile_size"))


def product_of_groups(x: Array, w: Array, groups: np.ndarray, tile_size: int) -> Array:
    """Row n of x [rows, D] times w[groups[n]], by what experts are computed with; a group that is not here gives 0."""
    tiles = plan_tiles(jnp.asarray(groups, jnp.int32)[:, None], w.shape[0], tile_size)
    return collect(grouped_product(dispatch(x, tiles), w, tiles), tiles)


def group_of_rows(sizes: list[int], rows: int) -> np.ndarray:
    """[rows]: the group of each row, those of a group together; rows past the sum of the sizes are of none (E)."""
    return np.concatenate([np.repeat(np.arange(E), sizes), np.full(rows - sum(sizes), E)])


def random_groups(rng: np.random.Generator, tokens: int, active: int) -> np.ndarray:
    return np.stack([rng.permutation(E)[:active] for _ in range(tokens)]).astype(np.int32)


def test_plan_of_a_hand_worked_case() -> None:
    tiles = jit_plan(jnp.array([[1], [0], [1], [7]]), num_groups=2, tile_size=2)
    np.testing.assert_array_equal(tiles.counts, [1, 2])
    np.testing.assert_array_equal(tiles.sizes, [2, 2])
    np.testing.assert_array_equal(tiles.slot, [[2], [0], [3], [6]])  # group 7 is not here: past the end
    np.testing.assert_array_equal(tiles.source, [1, 4, 0, 2, 4, 4])  # 4: nothing
    np.testing.assert_array_equal(tiles.tile_group[:2], [0, 1])


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.integers(1, 5))
def test_there_are_always_enough_tiles(counts: list[int], tile_size: int) -> None:
    needed = sum(-(-count // tile_size) for count in counts)
    assert needed <= num_tiles(sum(counts), len(counts), tile_size)


def test_the_tile_bound_is_reached() -> None:
    assert num_tiles(rows=4, num_groups=3, tile_size=4) == 3  # 2 + 1 + 1 rows need three tiles
    assert num_tiles(rows=2, num_groups=8, tile_size=4) == 2


def test_tile_size_follows_the_mean_group_within_bounds() -> None:
    assert choose_tile_size(rows=768, num_groups=8, smallest=32) == 32
    assert choose_tile_size(rows=8192, num_groups=8, smallest=32) == 128
    assert choose_tile_size(rows=2048, num_groups=8, smallest=32) == 64
    assert choose_tile_size(rows=8 * 8192, num_groups=128, smallest=32) == 128
    assert choose_tile_size(rows=10**6, num_groups=8, smallest=32) == 128
    assert choose_tile_size(rows=1, num_groups=8, smallest=1) == 1


@pytest.mark.parametrize("tile_size", [1, 4, 32])
def test_rows_go_to_their_slots_and_come_back(tile_size: int) -> None:
    rng = np.random.default_rng(0)
    groups = random_groups(rng, 30, 2)
    x = rng.normal(size=(30, D)).astype(np.float32)
    gates = rng.random((30, 2)).astype(np.float32)
    tiles = jit_plan(jnp.asarray(groups), E, tile_size)
    rows, slot_gates = np.asarray(dispatch(x, tiles)), np.asarray(dispatch_gates(gates, tiles))
    np.testing.assert_array_equal(rows[np.asarray(tiles.slot)], np.stack([x, x], axis=1))
    np.testing.assert_array_equal(slot_gates[np.asarray(tiles.slot)], gates)
    np.testing.assert_array_equal(np.asarray(tiles.tile_group)[np.asarray(tiles.slot) // tile_size], groups)
    assert np.count_nonzero(slot_gates) == 60  # the padding has none
    np.testing.assert_allclose(collect(rows * slot_gates[:, None], tiles), x * gates.sum(1, keepdims=True), rtol=1e-6)


def test_gradients_of_the_moves_are_their_transposes() -> None:
    rng = np.random.default_rng(1)
    tiles = jit_plan(jnp.asarray(np.where(rng.random((9, 2)) < 0.2, E, random_groups(rng, 9, 2))), E, 4)
    slots = tiles.source.shape[0]
    for function, shape in ((dispatch, (9, D)), (dispatch_gates, (9, 2)), (collect, (slots, D))):
        u = jnp.asarray(rng.normal(size=shape), jnp.float32)
        y, transpose = jax.vjp(lambda u, function=function: function(u, tiles), u)
        v = jnp.asarray(rng.normal(size=y.shape), jnp.float32)
        np.testing.assert_allclose(
            jnp.vdot(v, y), jnp.vdot(transpose(v)[0], u), rtol=1e-5
        )  # linear: <v, Au> = <A'v, u>


@pytest.mark.parametrize("sizes", [[3, 0, 9, 1, 7], [0, 0, 20, 0, 0], [2, 2, 2, 2, 2], [0, 0, 0, 0, 0]])
@pytest.mark.parametrize("tile_size", [1, 4, 32])
def test_products_of_groups_and_their_gradients_equal_a_loop(sizes: list[int], tile_size: int) -> None:
    rng = np.random.default_rng(2)
    x, w, v = rng.normal(size=(20, D)), rng.normal(size=(E, D, F)), rng.normal(size=(20, F))
    y, dx, dw = np.zeros((20, F)), np.zeros((20, D)), np.zeros((E, D, F))
    start = 0
    for group, size in enumerate(sizes):
        rows = slice(start, start + size)
        y[rows], dx[rows], dw[group] = x[rows] @ w[group], v[rows] @ w[group].T, x[rows].T @ v[rows]
        start += size

    @jax.jit
    def run(x: Array, w: Array, v: Array) -> tuple[Array, tuple[Array, Array]]:
        out, pullback = jax.vjp(lambda x, w: product_of_groups(x, w, group_of_rows(sizes, 20), tile_size), x, w)
        return out, pullback(v)

    out, gradients = run(*(jnp.asarray(array, jnp.float32) for array in (x, w, v)))
    for ours, theirs in ((out, y), (gradients[0], dx), (gradients[1], dw)):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("tokens", "tile_size"), [(7, 4), (96, 32), (300, 16), (300, 128)])
def test_a_rows_result_does_not_depend_on_the_other_rows(tokens: int, tile_size: int, dtype: str) -> None:
    """Bit for bit, wherever the row stands and whatever its neighbours are."""
    rng = np.random.default_rng(3)
    w = jnp.asarray(rng.normal(size=(E, D, F)), dtype)

    @jax.jit
    def products(x: Array, groups: Array) -> Array:
        tiles = jit_plan(groups, E, tile_size)
        return grouped_product(dispatch(x.astype(dtype), tiles), w, tiles)[tiles.slot]

    x, groups = rng.normal(size=(tokens, D)).astype(np.float32), random_groups(rng, tokens, 2)
    expected = np.asarray(products(x, groups))
    for _ in range(5):
        order = rng.permutation(tokens)
        np.testing.assert_array_equal(products(x[order], groups[order]), expected[order])
        keep = rng.random(tokens) < 0.5
        other_x = np.where(keep[:, None], x, 100 * rng.normal(size=x.shape)).astype(np.float32)
        other_groups = np.where(keep[:, None], groups, random_groups(rng, tokens, 2))
        np.testing.assert_array_equal(np.asarray(products(other_x, other_groups))[keep], expected[keep])


def squared(x: Array, w: Array) -> Array:
    return jnp.sum(product_of_groups(x, w, group_of_rows([3, 0, 9, 1, 7], 20), 32) ** 2)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_accelerators_get_the_ragged_product_forward_and_backward(platform: str) -> None:
    arguments = (jax.ShapeDtypeStruct((20, D), jnp.float32), jax.ShapeDtypeStruct((E, D, F), jnp.float32))
    lower = jax.jit(jax.value_and_grad(squared, argnums=(0, 1)))
    module = jax.export.export(lower, platforms=[platform])(*arguments).mlir_module()
    assert module.count("call @ragged_dot_general") + module.count("chlo.ragged_dot") >= 3, module
    assert "call @ragged_dot" not in jax.export.export(lower, platforms=["cpu"])(*arguments).mlir_module()


def test_the_ragged_product_equals_the_tiled_one() -> None:
    """The accelerators' implementations, run on the CPU."""
    from r1jax.model import grouped

    rng = np.random.default_rng(4)
    tiles = jit_plan(jnp.asarray(random_groups(rng, 40, 2)), E, 8)
    used = int(tiles.sizes.sum())
    x = dispatch(jnp.asarray(rng.normal(size=(40, D)), jnp.float32), tiles)
    dy = jnp.asarray(rng.normal(size=(x.shape[0], F)), jnp.float32).at[used:].set(0)
    w = jnp.asarray(rng.normal(size=(E, D, F)), jnp.float32)
    close = {"rtol": 1e-5, "atol": 1e-4}
    np.testing.assert_allclose(
        grouped._ragged_product(x, w, tiles)[:used], grouped._tiled_product(x, w, tiles)[:used], **close
    )
    np.testing.assert_allclose(
        grouped._ragged_product_transposed(dy, w, tiles), grouped._tiled_product_transposed(dy, w, tiles), **close
    )
    np.testing.assert_allclose(grouped._ragged_weights(x, dy, tiles), grouped._tiled_weights(x, dy, tiles), **close)


@pytest.mark.parametrize("sizes", [[8, 24, 0, 16], [0, 0, 0, 48], [48, 0, 0, 0], [0, 0, 0, 0], [8, 8, 8, 0]])
@pytest.mark.parametrize("blocks", [128, 1024])
def test_the_kernel_of_the_weights_gradient(sizes: list[int], blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grouped_kernel, "LARGEST_BLOCK", blocks)
    rng, tile_size, tiles = np.random.default_rng(0), 8, 6
    x, y = (rng.normal(size=(tiles * tile_size, width)).astype(np.float32) for width in (256, 40))
    x[sum(sizes) :] = np.inf  # rows past the last in use are anything
    ends = np.cumsum(sizes)
    group = np.minimum((np.arange(0, tiles * tile_size, tile_size)[:, None] >= ends).sum(1), len(sizes) - 1)
    got = grouped_weights(x, y, jnp.asarray(group, jnp.int32), jnp.asarray(sizes, jnp.int32), interpret=True)
    parts = zip(ends - sizes, ends, strict=True)
    np.testing.assert_allclose(got, [x[a:b].T @ y[a:b] for a, b in parts], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("rows", "dtype", "fits"), [(8, "float32", True), (8, "bfloat16", False), (4, "float32", False)]
)
def test_the_tpus_kernel_is_asked_for_whole_tiles_of_memory_only(rows: int, dtype: str, fits: bool) -> None:
    assert tile_fits(rows, jnp.dtype(dtype)) == fits
