"""Loss, gradients, expert load, bias update and sampling logits of a mesh are those of one device."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta
from jax.sharding import Mesh

from r1jax.algorithms.cross_entropy import mtp_loss, next_token_loss
from r1jax.algorithms.router_bias import update_router_bias
from r1jax.model.cache import init_cache
from r1jax.model.config import GQAConfig, MLAConfig, ModelConfig, MoEConfig, RopeConfig
from r1jax.model.heads import unembedding
from r1jax.model.transformer import Transformer, abstract_params, init_params
from r1jax.sharding import MeshConfig, batch_sharding, make_mesh, param_shardings, shard_batch
from r1jax.types import Array, PackedBatch, Params

ROWS, LENGTH, VOCAB = 8, 12, 40

MOE = ModelConfig(
    vocab_size=VOCAB,
    width=32,
    num_dense_layers=0,
    ffn_dim=48,
    attention=MLAConfig(
        num_heads=2, q_lora_rank=24, kv_lora_rank=16, qk_nope_head_dim=12, qk_rope_head_dim=4, v_head_dim=16
    ),
    rope=RopeConfig(interleaved=True),
    num_moe_layers=2,
    moe=MoEConfig(num_experts=8, num_active=2, expert_dim=24, num_groups=4, num_active_groups=2, routed_scaling=2.5),
    mtp_depth=1,
)
DENSE = ModelConfig(
    vocab_size=VOCAB,
    width=32,
    num_dense_layers=2,
    ffn_dim=48,
    attention=GQAConfig(num_heads=4, num_kv_heads=1, head_dim=8, qkv_bias=True, qk_norm=True),
    rope=RopeConfig(),
    tied_embeddings=True,
    remat="block",
)


def packed_rows(seed: int = 0) -> PackedBatch:
    """Rows of two documents and some padding, of different lengths in every row."""
    rng = np.random.default_rng(seed)
    shape = (ROWS, LENGTH)
    tokens, ids = rng.integers(1, VOCAB, shape).astype(np.int32), np.zeros(shape, np.int32)
    positions, mask = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
    for row in range(ROWS):
        first, second = rng.integers(2, 6, 2)
        for number, (start, end) in enumerate([(0, first), (first, first + second)]):
            ids[row, start:end], positions[row, start:end] = number + 1, np.arange(end - start)
            mask[row, start : end - 1] = 1
    tokens = np.where(ids > 0, tokens, 0).astype(np.int32)
    targets = np.where(mask > 0, np.roll(tokens, -1, axis=1), 0).astype(np.int32)
    return PackedBatch(tokens, targets, ids, positions, mask)  # type: ignore[arg-type]


@functools.cache
def initial(cfg: ModelConfig) -> Params:
    """Random numbers for every parameter, the selection biases too."""
    rng = np.random.default_rng(1)

    def draw(path: Any, leaf: Any) -> np.ndarray:
        return (0.1 * rng.normal(size=leaf.shape) + (path[-1].key == "scale")).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, meta.unbox(abstract_params(cfg)))


def training_step(cfg: ModelConfig, mesh: Mesh | None, params: Params, batch: PackedBatch) -> dict[str, Any]:
    """Loss, gradients and what the router bias becomes, as a training stage computes them."""

    def loss(params: Params) -> tuple[Array, dict[str, Array]]:
        out = Transformer(cfg, mesh).apply({"params": params}, batch.tokens, batch.positions, batch.segment_ids)
        table = unembedding(params, cfg)
        total, _ = next_token_loss(out.hidden, table, batch)
        total = total / batch.loss_mask.sum() + 0.1 * out.aux.balance_loss
        if cfg.mtp_depth:
            total = total + 0.3 * mtp_loss(out.aux.mtp_hidden, table, batch)[0] / batch.loss_mask.sum()
        return total, {"load": out.aux.expert_load, "balance_loss": out.aux.balance_loss, "hidden": out.hidden}

    (value, aux), gradients = jax.value_and_grad(loss, has_aux=True)(params)
    results = {"loss": value, "gradients": gradients, **aux}
    if cfg.moe is not None:
        results["bias"] = update_router_bias(params["moe_layers"]["moe"]["router"]["bias"], aux["load"], 0.001)
    return results


def logits_when_sampling(cfg: ModelConfig, mesh: Mesh | None, params: Params, prompts: Array) -> Array:
    """Logits [2, B, V] of a prefill's last token and of the decode step after it."""
    model = Transformer(cfg, mesh)
    width = prompts.shape[1]
    lengths = jnp.arange(prompts.shape[0]) % width + 1
    cache = init_cache(cfg, lengths, width, width + 1)
    start = width - lengths[:, None]
    out = model.apply({"params": params}, prompts, jnp.maximum(jnp.arange(width) - start, 0), cache=cache)
    after = model.apply({"params": params}, prompts[:, :1], width - start, cache=out.cache)
    return jnp.stack([out.logits[:, -1], after.logits[:, -1]])


@functools.cache
def one_device_step(cfg: ModelConfig) -> tuple[Params, dict[str, Any]]:
    params = initial(cfg)
    return params, jax.jit(functools.partial(training_step, cfg, None))(params, packed_rows())


def relative_difference(ours: Any, theirs: Any) -> float:
    """Largest difference of a leaf over that leaf's largest entry, over all leaves."""

    def difference(a: Any, b: Any) -> float:
        return float(np.abs(np.asarray(a) - np.asarray(b)).max(initial=0) / max(np.abs(b).max(initial=0), 1e-9))

    return max(jax.tree.leaves(jax.tree.map(difference, ours, theirs)))


def on_mesh(cfg: ModelConfig, sizes: tuple[int, ...], params: Params) -> tuple[Mesh, Params, PackedBatch]:
    mesh = make_mesh(MeshConfig(**dict(zip(("data", "fsdp", "expert", "tensor"), sizes, strict=True))))
    placed = jax.device_put(params, param_shardings(mesh, abstract_params(cfg)))
    return mesh, placed, shard_batch(mesh, packed_rows())


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("moe", (2, 2, 2, 1)),
        ("moe", (2, 1, 2, 2)),
        ("dense", (2, 2, 1, 2)),
        pytest.param("moe", (8, 1, 1, 1), marks=pytest.mark.slow),
        pytest.param("moe", (1, 8, 1, 1), marks=pytest.mark.slow),
        pytest.param("moe", (1, 1, 8, 1), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_training_step_on_a_mesh_is_that_of_one_device(name: str, sizes: tuple[int, ...]) -> None:
    cfg = {"moe": MOE, "dense": DENSE}[name]
    params, expected = one_device_step(cfg)
    mesh, placed, batch = on_mesh(cfg, sizes, params)
    step = jax.jit(functools.partial(training_step, cfg, mesh))(placed, batch)
    differences = {key: relative_difference(step[key], expected[key]) for key in expected}
    print(f"\n{name} {sizes}: " + ", ".join(f"{key} {value:.1e}" for key, value in differences.items()))
    assert max(differences.values()) < 1e-5, differences
    assert step["hidden"].sharding.is_equivalent_to(batch_sharding(mesh, 3), 3)  # rows stay where they are
    if name == "moe":
        np.testing.assert_array_equal(step["load"], expected["load"])
        assert step["load"].sum() == 2 * 2 * np.count_nonzero(packed_rows().segment_ids)
        np.testing.assert_array_equal(step["bias"], expected["bias"])


@pytest.mark.parametrize(("name", "sizes"), [("moe", (2, 1, 2, 2)), ("dense", (2, 2, 1, 2))], ids=str)
def test_prefill_and_decoding_on_a_mesh_are_those_of_one_device(name: str, sizes: tuple[int, ...]) -> None:
    cfg = {"moe": MOE, "dense": DENSE}[name]
    params = initial(cfg)
    expected = jax.jit(functools.partial(logits_when_sampling, cfg, None))(params, packed_rows().tokens)
    mesh, placed, batch = on_mesh(cfg, sizes, params)
    logits = jax.jit(functools.partial(logits_when_sampling, cfg, mesh))(placed, batch.tokens)
    difference = relative_difference(logits, expected)
    print(f"\n{name} {sizes}: logits {difference:.1e}")
    assert difference < 1e-5


def test_parameters_are_made_in_their_places() -> None:
    """The same numbers as on one device, each device holding its part only."""
    cfg = dataclasses.replace(MOE, mtp_depth=0, num_moe_layers=1)
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, expert=2, tensor=2))
    placed = init_params(cfg, jax.random.key(0), mesh)
    assert relative_difference(placed, init_params(cfg, jax.random.key(0))) == 0
    gate = placed["moe_layers"]["moe"]["experts"]["gate"]
    assert gate.shape == (1, 8, 32, 24)
    assert gate.addressable_shards[0].data.shape == (1, 4, 16, 12)
