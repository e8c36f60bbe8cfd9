"""Experts spread over devices give what one device gives: output, gradients, any load, any number of rounds."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from r1jax.model import expert_parallel
from r1jax.model.config import MoEConfig
from r1jax.model.expert_parallel import Dispatch, buffer_rows, dense_rounds, plan_slices, ragged_rounds, sharded_experts
from r1jax.sharding import MeshConfig, make_mesh
from r1jax.types import Array

E, D, F, A = 8, 16, 8, 2
ROWS, LENGTH = 8, 6
jit_slices = jax.jit(plan_slices, static_argnums=(2, 3))


def gathered_ragged_all_to_all(
    operand: Array,
    output: Array,
    input_offsets: Array,
    send_sizes: Array,
    output_offsets: Array,
    recv_sizes: Array,
    *,
    axis_name: str,
) -> Array:
    """What JAX documents of `ragged_all_to_all`, for the CPU, which lacks it: gathers all rows and chooses."""
    devices, me = jax.lax.axis_size(axis_name), jax.lax.axis_index(axis_name)
    slices = input_offsets.shape[0] // devices
    sender = jnp.arange(slices * devices) // slices
    number = me * slices + jnp.arange(slices * devices) % slices  # of the sender's slices
    operands, begin, target = (jax.lax.all_gather(a, axis_name) for a in (operand, input_offsets, output_offsets))
    begin, target = begin[sender, number], target[sender, number]
    row = jnp.arange(output.shape[0])
    arrives = (row[:, None] >= target) & (row[:, None] < target + recv_sizes)
    slice_of = jnp.argmax(arrives, axis=1)
    values = operands[sender[slice_of], begin[slice_of] + row - target[slice_of]]
    return jnp.where(arrives.any(1).reshape(-1, *(1,) * (output.ndim - 1)), values, output)


@pytest.fixture(autouse=True)
def small_buffers_and_a_ragged_exchange_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expert_parallel, "SMALLEST_BUFFER", 1)
    if jax.default_backend() == "cpu":
        monkeypatch.setattr(jax.lax, "ragged_all_to_all", gathered_ragged_all_to_all)


def mesh_of(**sizes: int) -> Mesh:
    return make_mesh(MeshConfig(**{"data": 1, **sizes}), jax.devices()[: int(np.prod(list(sizes.values())))])


@functools.cache
def inputs(rows: int, length: int) -> tuple[Array, Array, tuple[Array, ...]]:
    rng = np.random.default_rng(0)
    weights = tuple(jnp.asarray(0.2 * rng.normal(size=s), jnp.float32) for s in ((E, D, F), (E, D, F), (E, F, D)))
    x = jnp.asarray(rng.normal(size=(rows, length, D)), jnp.float32)
    return x, jnp.asarray(rng.random((rows, length, A)), jnp.float32), weights


def every_expert(x: Array, experts: Array, gates: Array, weights: tuple[Array, ...]) -> Array:
    """Independent of all index arithmetic: each token through all experts, weighted."""
    gate, up, down = weights
    hidden = jax.nn.silu(jnp.einsum("btd,edf->btef", x, gate)) * jnp.einsum("btd,edf->btef", x, up)
    share = jnp.sum(gates[..., None] * (experts[..., None] == jnp.arange(E)), axis=-2)
    return jnp.einsum("btef,efd,bte->btd", hidden, down, share)


@functools.cache
def gradients_and_output(sizes: tuple[tuple[str, int], ...] | None, exchange: str) -> Any:
    """(x, gates, weights, experts) -> gradients of a function of the output, output; no sizes: `every_expert`."""

    def loss(x: Array, gates: Array, weights: Any, experts: Array) -> tuple[Array, Array]:
        if sizes is None:
            y = every_expert(x, experts, gates, weights)
        else:
            cfg = MoEConfig(E, A, F, tile_size=4, exchange=exchange, buffer_factor=1.25)
            y = sharded_experts(x, experts, gates, weights, cfg, mesh_of(**dict(sizes)))
        return jnp.sum(jnp.sin(y)), y

    return jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))


def assert_equal_to_one_device(sizes: dict[str, int], exchange: str, experts: np.ndarray) -> None:
    x, gates, weights = inputs(*experts.shape[:2])
    ours = gradients_and_output(tuple(sizes.items()), exchange)(x, gates, weights, jnp.asarray(experts))
    theirs = gradients_and_output(None, "")(x, gates, weights, jnp.asarray(experts))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), ours, theirs)


def loads() -> dict[str, np.ndarray]:
    """Assignments [ROWS, LENGTH, A] by what they ask of the devices."""
    shape = (ROWS, LENGTH, A)
    rng = np.random.default_rng(1)
    balanced = (np.arange(np.prod(shape)) % E).reshape(shape)
    device = rng.permuted(np.broadcast_to([0, 1], shape), axis=-1)
    empty = np.where(balanced % 2, balanced, (balanced + 3) % E)
    padded = np.where(rng.random((ROWS, LENGTH, 1)) < 0.4, -1, balanced)
    return {
        "balanced": balanced,
        "one expert takes all": np.broadcast_to([5, -1], shape),
        "one device takes all": device,
        "empty experts": empty,
        "padding": padded,
        "nothing at all": np.full(shape, -1),
        "random": np.stack([rng.permutation(E)[:A] for _ in range(ROWS * LENGTH)]).reshape(shape),
    }


SLOW = [pytest.mark.slow]  # python -m pytest -m slow tests/test_expert_parallel.py: a minute


@pytest.mark.parametrize(
    ("sizes", "exchange"),
    [
        ({"expert": 4, "sequence": 2}, "ragged"),
        ({"fsdp": 2, "expert": 2, "tensor": 2}, "dense"),
        pytest.param({"expert": 8}, "ragged", marks=SLOW),
        pytest.param({"expert": 8}, "dense", marks=SLOW),
        pytest.param({"expert": 4, "sequence": 2}, "dense", marks=SLOW),
        pytest.param({"fsdp": 2, "expert": 2, "tensor": 2}, "ragged", marks=SLOW),
        pytest.param({"slice": 2, "expert": 2, "sequence": 2}, "ragged", marks=SLOW),
        pytest.param({"slice": 2, "expert": 2, "sequence": 2}, "dense", marks=SLOW),
        pytest.param({"expert": 2}, "ragged", marks=SLOW),
        pytest.param({"expert": 2}, "dense", marks=SLOW),
        pytest.param({"expert": 4}, "ragged", marks=SLOW),
        pytest.param({"expert": 4}, "dense", marks=SLOW),
    ],
    ids=str,
)
def test_output_and_gradients_are_those_of_one_device_at_any_load(sizes: dict[str, int], exchange: str) -> None:
    for experts in loads().values():
        assert_equal_to_one_device(sizes, exchange, experts.astype(np.int32))


@pytest.mark.parametrize(("exchange", "tokens"), [("ragged", 3), pytest.param("dense", 1, marks=SLOW)])
def test_fewer_tokens_than_devices(exchange: str, tokens: int) -> None:
    """A decoding step: rows and length divide into nothing."""
    experts = np.array([[[7, 0]], [[0, 1]], [[3, -1]]], np.int32)[:tokens]
    assert_equal_to_one_device({"expert": 4, "sequence": 2}, exchange, experts)


@pytest.mark.slow
def test_without_an_expert_axis_nothing_travels() -> None:
    assert_equal_to_one_device({"fsdp": 2, "sequence": 2}, "auto", loads()["random"].astype(np.int32))


def test_slices_of_a_hand_worked_case() -> None:
    """Two devices with two experts each, tiles of 2, buffers of 4 rows.

    Device 0 receives expert 0: 1 row of sender 0, 2 of sender 1, one empty; expert 1: 3 of sender 0, one empty, which
    is the second round. Device 1 receives expert 3 only: 2 rows of sender 1.
    """
    counts = jnp.array([[1, 3, 0, 0], [2, 0, 0, 2]])
    assert ragged_rounds(counts, 4, 2) == 2
    slices, bounds = jit_slices(counts, jnp.int32(0), 4, 2)
    np.testing.assert_array_equal(slices.size, [[1, 0, 0, 0], [2, 0, 0, 2]])
    np.testing.assert_array_equal(slices.origin, [[0, 0, 0, 0], [0, 0, 0, 2]])
    np.testing.assert_array_equal(slices.target, [[0, 0, 0, 0], [1, 0, 0, 0]])
    np.testing.assert_array_equal(bounds, [[0, 4, 0, 0], [4, 4, 0, 2]])
    slices, bounds = jit_slices(counts, jnp.int32(1), 4, 2)
    np.testing.assert_array_equal(slices.size, [[0, 3, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(slices.origin[0, 1], 1)
    np.testing.assert_array_equal(bounds, [[0, 0, 0, 0], [0, 4, 0, 0]])


@pytest.mark.parametrize(("devices", "local", "tile", "rows"), [(2, 3, 4, 8), (4, 2, 1, 5), (8, 1, 2, 64)])
def test_every_assignment_has_one_slot_of_one_round(devices: int, local: int, tile: int, rows: int) -> None:
    """Against an enumeration of the receivers' layouts: by expert, then sender, whole tiles per expert."""
    rng = np.random.default_rng(2)
    counts = rng.integers(0, 9, (devices, devices * local)) * (rng.random((devices, devices * local)) < 0.6)
    expected = {}
    for device in range(devices):
        slot = 0
        for expert in range(device * local, (device + 1) * local):
            slot = -(-slot // tile) * tile
            for sender in range(devices):
                for row in range(counts[sender, expert]):
                    origin = counts[sender, :expert].sum() + row
                    expected[sender, int(origin)] = (device, *divmod(slot, rows))
                    slot += 1
    found = {}
    for index in range(int(ragged_rounds(jnp.asarray(counts), rows, tile))):
        slices, bounds = jax.tree.map(np.asarray, jit_slices(jnp.asarray(counts), jnp.int32(index), rows, tile))
        for sender, expert in zip(*np.nonzero(slices.size), strict=True):
            first, end = bounds[:, expert]
            assert first <= slices.target[sender, expert]
            assert slices.target[sender, expert] + slices.size[sender, expert] <= end
            for row in range(slices.size[sender, expert]):
                place = int(slices.origin[sender, expert]) + row
                assert (sender, place) not in found
                found[sender, place] = (expert // local, index, slices.target[sender, expert] + row)
    assert found == expected


def test_rounds_follow_the_fullest_device_or_pair() -> None:
    how = Dispatch("expert", factor=1.5)
    rows = buffer_rows(64, 4, how)
    assert rows == 96
    assert buffer_rows(64, 4, Dispatch("expert", factor=9.0)) == 256  # never more than there is
    balanced, one_device = jnp.full((4, 8), 8), jnp.zeros((4, 8), int).at[:, :2].set(32)
    neighbours = jnp.kron(jnp.eye(4, dtype=int), jnp.full((1, 2), 32))  # each sends all to one other: balanced, paired
    assert [int(ragged_rounds(c, rows, 1)) for c in (balanced, one_device, neighbours)] == [1, 3, 1]
    assert [int(dense_rounds(c, rows // 4)) for c in (balanced, one_device, neighbours)] == [1, 3, 3]
    assert int(ragged_rounds(jnp.zeros((4, 8), int), rows, 1)) == 0


def test_a_small_buffer_holds_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoding step never needs a second round."""
    monkeypatch.setattr(expert_parallel, "SMALLEST_BUFFER", 256)
    assert buffer_rows(8, 32, Dispatch("expert", factor=1.0)) == 256


def lowered(platform: str, exchange: str) -> str:
    def loss(x: Array, gates: Array, weights: Any, experts: Array) -> Array:
        cfg = MoEConfig(E, A, F, tile_size=4, exchange=exchange)
        return jnp.sum(sharded_experts(x, experts, gates, weights, cfg, mesh_of(expert=4, sequence=2)))

    x, gates, weights = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), inputs(ROWS, LENGTH))
    x, weights = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, jnp.bfloat16), (x, weights))
    experts = jax.ShapeDtypeStruct((ROWS, LENGTH, A), jnp.int32)
    grad = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))
    unstable = [jax.export.DisabledSafetyCheck.custom_call("ragged_all_to_all")]  # this program is not kept
    return jax.export.export(grad, platforms=[platform], disabled_checks=unstable)(
        x, gates, weights, experts
    ).mlir_module()


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_accelerators_exchange_ragged_rows_of_the_activations_type(
    platform: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    calls = [line for line in lowered(platform, "auto").splitlines() if "@ragged_all_to_all" in line]
    wide = [line for line in calls if f"x{D}xbf16" in line]
    assert len(wide) == 2 + 3  # there and back; and again, with the output's gradient, and back
    assert len(calls) - len(wide) == 1 + 2  # the gates there; and there and back


@pytest.mark.parametrize(("platform", "exchange"), [("cpu", "auto"), ("tpu", "dense")])
def test_elsewhere_and_on_request_equal_blocks_travel(platform: str, exchange: str) -> None:
    module = lowered(platform, exchange)
    assert "stablehlo.all_to_all" in module
    assert "ragged_all_to_all" not in module
