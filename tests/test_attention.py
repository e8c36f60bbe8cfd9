"""Attention in blocks and by kernel against the plain form: values, gradients, memory, and queries that stay split."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from r1jax.model.attention import Chunks, chunked_attention, chunked_latent_attention
from r1jax.model.attention_choice import attention_form
from r1jax.model.attention_kernel import kernel_attention
from r1jax.model.config import GQAConfig, ModelConfig, RopeConfig
from r1jax.model.layers import causal_attention
from r1jax.sharding import BATCH_AXES, MeshConfig, make_mesh

B, T, HEADS, KV_HEADS, SCALE = 2, 24, 4, 2, 0.3
TOLERANCE = 1e-5


def segments(length: int = T) -> tuple[np.ndarray, np.ndarray]:
    """Three segments, padding, and in the first row a third segment that also sees the first one."""
    ids = np.ones((B, length), np.int32)
    ids[0, length // 4 :], ids[0, length // 2 :], ids[0, -3:] = 2, 3, 0
    ids[1, length // 2 :] = 2
    return ids, np.where(ids == 3, 1, 0).astype(np.int32)


def tensors(*shapes: tuple[int, ...], seed: int = 0) -> list[jax.Array]:
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def value_and_gradients(function: Callable[..., jax.Array], *args: jax.Array) -> Any:
    """Output, and gradients of a weighted sum of it (0 weights would hide an error)."""

    def weighted(*args: jax.Array) -> tuple[jax.Array, jax.Array]:
        out = function(*args)
        return jnp.sum(out * jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape)), out

    (_, out), gradients = jax.jit(jax.value_and_grad(weighted, range(len(args)), has_aux=True))(*args)
    return out, gradients


def assert_close(got: Any, want: Any) -> None:
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE * np.abs(b).max())


# Blocks that fit and that do not, one block of keys, queries in parts as on a mesh, with and without shared prompts.
@pytest.mark.parametrize(("query", "key", "shards", "shared"), [(5, 7, 1, True), (3, 24, 4, False)])
def test_blocks_equal_the_plain_form_forward_and_backward(query: int, key: int, shards: int, shared: bool) -> None:
    ids, parents = segments()
    parent_ids = parents if shared else None
    inputs = tensors((B, T, HEADS, 6), (B, T, KV_HEADS, 6), (B, T, KV_HEADS, 5))
    chunks = Chunks(query, key)
    want = value_and_gradients(lambda q, k, v: causal_attention(q, k, v, ids, parent_ids, SCALE), *inputs)
    got = value_and_gradients(
        lambda q, k, v: chunked_attention(q, k, v, ids, parent_ids, SCALE, chunks, shards), *inputs
    )
    assert_close(got, want)
    assert not np.any(np.asarray(got[0])[ids == 0])


def plain_latent(ids: np.ndarray, parents: np.ndarray, *inputs: jax.Array) -> jax.Array:
    """All keys and values at once, from q [B, T, N, 6 + 4], c_kv [B, T, 8], k_pe [B, T, 4], up [8, N, 6 + 5]."""
    q, c_kv, k_pe, up = inputs
    k_nope, v = jnp.split(jnp.einsum("btc,cnh->btnh", c_kv, up), [6], axis=-1)
    k_pe = jnp.broadcast_to(k_pe[:, :, None], (*k_nope.shape[:3], 4))
    return causal_attention(q, jnp.concatenate([k_nope, k_pe], axis=-1), v, ids, parents, SCALE)


LATENT_SHAPES = (B, T, HEADS, 10), (B, T, 8), (B, T, 4), (8, HEADS, 11)


def test_latent_blocks_equal_the_plain_form_on_a_mesh_and_gather_only_the_latent() -> None:
    ids, parents = segments()
    inputs = tensors(*LATENT_SHAPES)
    want = value_and_gradients(lambda *x: plain_latent(ids, parents, *x), *inputs)
    mesh = make_mesh(MeshConfig(data=1, sequence=2, tensor=2), jax.devices()[:4])
    specs = ("sequence", "tensor"), (), (), ("tensor",)
    placed = [
        jax.device_put(x, NamedSharding(mesh, PartitionSpec(None, *spec)))
        for x, spec in zip(inputs, specs, strict=True)
    ]

    def gradients(*x: jax.Array) -> Any:
        return value_and_gradients(
            lambda *x: chunked_latent_attention(*x, ids, parents, SCALE, Chunks(4, 6), shards=2), *x
        )

    compiled = jax.jit(gradients).lower(*placed).compile()
    assert_close(compiled(*placed), want)
    assert "all-gather" not in compiled.as_text()  # the latent was whole here already


def memory(function: Callable[..., jax.Array], *args: jax.Array) -> int:
    compiled = (
        jax.jit(jax.grad(lambda *x: jnp.sum(function(*x)), argnums=tuple(range(len(args))))).lower(*args).compile()
    )
    return compiled.memory_analysis().temp_size_in_bytes


def test_no_scores_of_a_whole_row_forward_or_backward() -> None:
    length = 1024
    ids = np.ones((1, length), np.int32)
    inputs = tensors(*((1, length, 1, 4),) * 3)
    plain = memory(lambda q, k, v: causal_attention(q, k, v, ids, None, SCALE), *inputs)
    chunked = memory(lambda q, k, v: chunked_attention(q, k, v, ids, None, SCALE, Chunks(64, 64)), *inputs)
    assert plain > 4 * length**2  # the float32 scores
    assert chunked < 4 * length**2 / 4


MODEL: dict[str, Any] = {
    "vocab_size": 8,
    "width": 8,
    "num_dense_layers": 1,
    "ffn_dim": 8,
    "attention": GQAConfig(4, 2, 8),
    "rope": RopeConfig(),
}


@pytest.mark.parametrize(
    ("impl", "length", "form"), [("auto", 64, "plain"), ("auto", 65, "chunked"), ("plain", 65, "plain")]
)
def test_auto_takes_the_plain_form_for_rows_within_one_chunk(impl: str, length: int, form: str) -> None:
    cfg = ModelConfig(**MODEL, attention_impl=impl, attention_query_chunk=64, attention_key_chunk=128)
    assert attention_form(cfg, (2, length, 4, 8), 8, False, None) == form


def test_a_kernel_where_there_is_none_is_refused() -> None:
    cfg = ModelConfig(**MODEL, attention_impl="kernel")
    with pytest.raises(ValueError, match="attention_impl is 'kernel', but there is none for the platform 'cpu'"):
        attention_form(cfg, (2, 8, 4, 8), 8, False, None)
    with pytest.raises(ValueError, match="attention_key_chunk is 0, expected at least 1 token"):
        ModelConfig(**MODEL, attention_key_chunk=0)


def fake_mesh(platform: str, **sizes: int) -> Any:
    """What `attention_form` reads of a mesh: the platform of its devices and the sizes of its axes."""
    device = type("Device", (), {"platform": platform})()
    devices = np.full((1,), device, object)
    return type(
        "FakeMesh", (), {"devices": devices, "shape": dict.fromkeys((*BATCH_AXES, "sequence", "tensor"), 1) | sizes}
    )()


@pytest.mark.parametrize(
    ("platform", "sizes", "v_dim", "shared", "refusal"),
    [
        ("tpu", {}, 4, False, None),
        ("tpu", {"sequence": 2, "data": 2, "tensor": 4}, 8, False, None),
        ("tpu", {}, 8, True, r"shared prompts \(parent_ids\)"),
        ("tpu", {"tensor": 8}, 8, False, "4 heads do not divide over 8 devices of the tensor axis"),
        ("tpu", {"data": 4}, 8, False, "2 rows do not divide over 4 devices of the batch axes"),
        ("gpu", {}, 8, False, None),
        ("gpu", {}, 4, False, "queries have 8 channels, values 4"),
        ("gpu", {"sequence": 2}, 8, False, "the sequence axis splits them over 2 devices"),
    ],
)
def test_what_a_kernel_cannot_do_is_refused_and_auto_goes_in_blocks(
    platform: str, sizes: dict[str, int], v_dim: int, shared: bool, refusal: str | None
) -> None:
    mesh, shape = fake_mesh(platform, **sizes), (2, 4096, 4, 8)
    auto, kernel = (ModelConfig(**MODEL, attention_impl=impl) for impl in ("auto", "kernel"))
    assert attention_form(auto, shape, v_dim, shared, mesh) == ("chunked" if refusal else "kernel")
    if refusal:
        with pytest.raises(ValueError, match=refusal):
            attention_form(kernel, shape, v_dim, shared, mesh)


@pytest.mark.slow  # 25 s; python -m pytest -m slow tests/test_attention.py
@pytest.mark.parametrize("sizes", [None, {"data": 1, "sequence": 2, "tensor": 2}, {"data": 1, "tensor": 4}])
def test_the_tpu_kernels_program_equals_the_plain_form(sizes: dict[str, int] | None) -> None:
    """Interpreted on the CPU: grouped heads, values of another size, 200 tokens that no block divides."""
    length = 200
    mesh: Mesh | None = None if sizes is None else make_mesh(MeshConfig(**sizes), jax.devices()[:4])
    ids, _ = segments(length)
    inputs = tensors((B, length, HEADS, 24), (B, length, KV_HEADS, 24), (B, length, KV_HEADS, 16))
    want = value_and_gradients(lambda q, k, v: causal_attention(q, k, v, ids, None, SCALE), *inputs)
    got = value_and_gradients(lambda q, k, v: kernel_attention(q, k, v, jnp.asarray(ids), SCALE, mesh, "tpu"), *inputs)
    assert_close(got, want)


@pytest.mark.slow  # 10 s; python -m pytest -m slow tests/test_attention.py
def test_the_gpu_kernels_program_equals_the_plain_form() -> None:
    """Interpreted on the CPU, at the head size that its Triton products have at least."""
    length = 130
    ids, _ = segments(length)
    inputs = tensors((B, length, HEADS, 16), (B, length, KV_HEADS, 16), (B, length, KV_HEADS, 16))
    want = value_and_gradients(lambda q, k, v: causal_attention(q, k, v, ids, None, SCALE), *inputs)
    got = value_and_gradients(lambda q, k, v: kernel_attention(q, k, v, jnp.asarray(ids), SCALE, None, "gpu"), *inputs)
    assert_close(got, want)
