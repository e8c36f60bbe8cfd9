"""Loss, gradients, expert load, bias update and sampling logits of a mesh are those of one device."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from r1jax.algorithms.cross_entropy import mtp_loss, next_token_loss
from r1jax.algorithms.router_bias import update_router_bias
from r1jax.model.cache import init_cache
from r1jax.model.config import GQAConfig, ModelConfig, RopeConfig
from r1jax.model.heads import unembedding
from r1jax.model.transformer import Transformer, abstract_params, init_params
from r1jax.sharding import MeshConfig, decoding_mesh, logical_sharding, make_mesh, param_shardings, shard_batch
from r1jax.types import Array, PackedBatch, Params
from tools.mesh_equality import SHAPES, SMALL, num_devices, parse_shape, random_params, random_rows, relative_difference

ROWS, LENGTH = 8, 12

MOE = SMALL
DENSE = ModelConfig(
    vocab_size=SMALL.vocab_size,
    width=32,
    num_dense_layers=2,
    ffn_dim=48,
    attention=GQAConfig(num_heads=4, num_kv_heads=1, head_dim=8, qkv_bias=True, qk_norm=True),
    rope=RopeConfig(),
    tied_embeddings=True,
    remat="block",
)


@functools.cache
def packed_rows() -> PackedBatch:
    return random_rows(SMALL.vocab_size, ROWS, LENGTH, 0)


@functools.cache
def initial(cfg: ModelConfig) -> Params:
    return random_params(cfg, 1)


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


def on_mesh(cfg: ModelConfig, shape: str, params: Params) -> tuple[Mesh, Params]:
    config = parse_shape(shape)
    mesh = make_mesh(config, jax.devices()[: num_devices(config)])
    return mesh, jax.device_put(params, param_shardings(mesh, abstract_params(cfg)))


QUICK = [("moe", "fsdp=2,sequence=2,expert=2"), ("dense", "data=2,sequence=2,tensor=2")]
MORE = [("moe", shape) for shape in SHAPES if ("moe", shape) not in QUICK and shape != "data=1"]


def cases(quick: list[tuple[str, str]], slow: list[tuple[str, str]]) -> pytest.MarkDecorator:
    """All of the slow ones: python -m pytest -m slow tests/test_mesh_equality.py"""
    return pytest.mark.parametrize(
        ("name", "shape"), [*quick, *(pytest.param(*case, marks=pytest.mark.slow) for case in slow)], ids=str
    )


@cases(QUICK, MORE)
def test_a_training_step_on_a_mesh_is_that_of_one_device(name: str, shape: str) -> None:
    cfg = {"moe": MOE, "dense": DENSE}[name]
    params, expected = one_device_step(cfg)
    mesh, placed = on_mesh(cfg, shape, params)
    step = jax.jit(functools.partial(training_step, cfg, mesh))(placed, shard_batch(mesh, packed_rows()))
    differences = {key: relative_difference(step[key], expected[key]) for key in expected}
    print(f"\n{name} {shape}: " + ", ".join(f"{key} {value:.1e}" for key, value in differences.items()))
    assert max(differences.values()) < 1e-5, differences
    stays = logical_sharding(mesh, ("batch", "length", "act_embed"))  # rows and tokens stay where they are
    assert step["hidden"].sharding.is_equivalent_to(stays, 3)
    if name == "moe":
        np.testing.assert_array_equal(step["load"], expected["load"])
        assert step["load"].sum() == 2 * 2 * np.count_nonzero(packed_rows().segment_ids)
        np.testing.assert_array_equal(step["bias"], expected["bias"])


@cases(QUICK[:1], QUICK[1:])
def test_prefill_and_decoding_on_a_mesh_are_those_of_one_device(name: str, shape: str) -> None:
    """Parameters lie as for training; rows are split over the sequence axis too."""
    cfg = {"moe": MOE, "dense": DENSE}[name]
    params = initial(cfg)
    expected = jax.jit(functools.partial(logits_when_sampling, cfg, None))(params, packed_rows().tokens)
    mesh, placed = on_mesh(cfg, shape, params)
    decoding = decoding_mesh(mesh)
    tokens = shard_batch(decoding, packed_rows().tokens)
    logits = jax.jit(functools.partial(logits_when_sampling, cfg, decoding))(placed, tokens)
    assert {shard.data.shape[0] for shard in tokens.addressable_shards} == {ROWS // 8 * mesh.shape["tensor"]}
    difference = relative_difference(logits, expected)
    print(f"\n{name} {shape}: logits {difference:.1e}")
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
