"""One function samples and trains: caching, packing, padding, neighbours, remat and meshes do not change results."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.model.cache import cache_length, grow_cache, init_cache, take_rows
from r1jax.model.config import GQAConfig, MLAConfig, ModelConfig, MoEConfig, RopeConfig
from r1jax.model.heads import logits_of, unembedding
from r1jax.model.outputs import Output
from r1jax.model.transformer import Transformer, init_params
from r1jax.sharding import MeshConfig, make_mesh

MLA_MOE = ModelConfig(
    vocab_size=40,
    width=32,
    num_dense_layers=1,
    ffn_dim=48,
    attention=MLAConfig(
        num_heads=2, q_lora_rank=24, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=8
    ),
    rope=RopeConfig(theta=100.0, interleaved=True),
    num_moe_layers=2,
    moe=MoEConfig(num_experts=8, num_active=2, expert_dim=16, tile_size=4),
    mtp_depth=1,
    max_positions=64,
    init_std=0.2,
)
DENSE = ModelConfig(
    vocab_size=40,
    width=32,
    num_dense_layers=2,
    ffn_dim=48,
    attention=GQAConfig(num_heads=4, num_kv_heads=2, head_dim=8, qkv_bias=True, qk_norm=True),
    rope=RopeConfig(theta=100.0),
    tied_embeddings=True,
    max_positions=64,
    init_std=0.2,
)
MODELS = {"mla_moe": MLA_MOE, "dense": DENSE}
TOLERANCE = 2e-5


def make_params(cfg: ModelConfig) -> Any:
    """Random parameters, norms, biases and selection bias included."""
    params = init_params(cfg, jax.random.key(0))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return tree.unflatten([x + 0.1 * jax.random.normal(key, x.shape) for x, key in zip(leaves, keys, strict=True)])


PARAMS = {name: make_params(cfg) for name, cfg in MODELS.items()}


def apply(cfg: ModelConfig, params: Any, *args: Any) -> Output:
    return jax.jit(Transformer(cfg).apply)({"params": params}, *args)


def make_tokens(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 40, size=shape).astype(np.int32)


def difference(got: Any, want: Any) -> float:
    return float(np.abs(np.asarray(got) - np.asarray(want)).max())


@pytest.mark.parametrize("name", MODELS)
def test_prefill_and_decode_equal_the_full_forward_pass(name: str) -> None:
    cfg, params = MODELS[name], PARAMS[name]
    lengths, width, total = jnp.array([6, 2, 1, 4]), 6, 12
    tokens = make_tokens((4, total))
    start = width - lengths
    positions = jnp.maximum(jnp.arange(total) - start[:, None], 0)
    real = np.asarray(jnp.arange(total) >= start[:, None])
    full = apply(cfg, params, tokens, positions, real.astype(np.int32))
    step = jax.jit(lambda t, p, c: Transformer(cfg).apply({"params": params}, t, p, None, c))
    output = step(tokens[:, :width], positions[:, :width], init_cache(cfg, lengths, width, width + 2))
    assert output.aux.mtp_hidden is None
    logits, experts = [output.logits], [output.aux.experts]
    for slot in range(width, total):
        cache = output.cache
        if slot == width + 2:
            cache = grow_cache(cache, total)
        output = step(tokens[:, slot : slot + 1], positions[:, slot : slot + 1], cache)
        logits.append(output.logits)
        experts.append(output.aux.experts)
    assert int(output.cache.index) == cache_length(output.cache) == total
    largest = difference(np.concatenate(logits, 1)[real], np.asarray(full.logits)[real])
    print(f"{name}: prefill + decode against the full pass, largest difference {largest:.1e}")
    assert largest < TOLERANCE
    np.testing.assert_array_equal(np.concatenate(experts, 2)[:, real], np.asarray(full.aux.experts)[:, real])


@pytest.mark.parametrize("name", MODELS)
def test_a_row_depends_on_itself_alone_to_the_last_bit(name: str) -> None:
    cfg, params = MODELS[name], PARAMS[name]
    step = jax.jit(lambda t, p, c: Transformer(cfg).apply({"params": params}, t, p, None, c))
    results = []
    for seed, order in ((1, [0, 1, 2, 3, 4]), (2, [3, 1, 4, 0, 2])):  # other neighbours, another place
        tokens, lengths = make_tokens((5, 8), seed), np.array([5, 1, 4, 2, 3])
        tokens[0], place = make_tokens((8,), 9), order.index(0)
        tokens, lengths = tokens[order], lengths[order]
        positions = np.maximum(np.arange(8) - (5 - lengths)[:, None], 0)
        output = step(tokens[:, :5], positions[:, :5], init_cache(cfg, jnp.asarray(lengths), 5, 10))
        logits = [output.logits[place]]
        for slot in range(5, 8):
            output = step(tokens[:, slot : slot + 1], positions[:, slot : slot + 1], output.cache)
            logits.append(output.logits[place])
        results.append(np.concatenate(logits))
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("name", MODELS)
def test_packed_rows_equal_separate_ones_and_padding_has_no_effect(name: str) -> None:
    cfg, params = MODELS[name], PARAMS[name]
    documents = [make_tokens((n,), n) for n in (5, 7, 3)]
    apart = [apply(cfg, params, d[None], np.arange(len(d))[None]) for d in documents]
    outputs = []
    for filler in (0, 17):
        tokens = np.concatenate([*documents, np.full(5, filler, np.int32)])[None]
        ids = np.repeat([1, 2, 3, 0], [5, 7, 3, 5])[None]
        positions = np.concatenate([np.arange(n) for n in (5, 7, 3, 5)])[None]
        outputs.append(apply(cfg, params, tokens, positions, ids))
    assert np.isfinite(outputs[0].logits).all()
    np.testing.assert_array_equal(outputs[0].logits[0, :15], outputs[1].logits[0, :15])
    want = np.concatenate([output.logits[0] for output in apart])
    assert difference(outputs[0].logits[0, :15], want) < TOLERANCE
    np.testing.assert_array_equal(outputs[0].aux.expert_load, outputs[1].aux.expert_load)
    np.testing.assert_array_equal(outputs[0].aux.expert_load, sum(output.aux.expert_load for output in apart))
    mean = np.mean([output.aux.balance_loss for output in apart])
    assert float(outputs[0].aux.balance_loss) == pytest.approx(float(mean), rel=1e-5)
    if cfg.mtp_depth:
        ends = np.cumsum([5, 7, 3]) - 1
        got = np.delete(np.asarray(outputs[0].aux.mtp_hidden[0, :15]), ends, axis=0)
        want = np.concatenate([output.aux.mtp_hidden[0, :-1] for output in apart])
        assert difference(got, want) < TOLERANCE
        assert float(outputs[0].aux.mtp_expert_load.sum()) == (15 - 3) * cfg.moe.num_active  # type: ignore[union-attr]


def test_prefill_counts_only_real_tokens() -> None:
    tokens, lengths = make_tokens((3, 6)), jnp.array([6, 1, 3])
    positions = jnp.maximum(jnp.arange(6) - (6 - lengths)[:, None], 0)
    output = apply(MLA_MOE, PARAMS["mla_moe"], tokens, positions, None, init_cache(MLA_MOE, lengths, 6, 8))
    np.testing.assert_array_equal(output.aux.expert_load.sum(-1), [10 * 2, 10 * 2])


def test_mtp_state_sees_the_next_token_and_nothing_later() -> None:
    tokens = make_tokens((1, 8))
    other = tokens.copy()
    other[0, 5] = 39 - other[0, 5]
    states = [apply(MLA_MOE, PARAMS["mla_moe"], x, np.arange(8)[None]).aux.mtp_hidden[0] for x in (tokens, other)]
    changed = np.abs(np.asarray(states[0] - states[1])).max(-1) > 0
    np.testing.assert_array_equal(changed[:7], [False, False, False, False, True, True, True])


def loss(cfg: ModelConfig, params: Any, tokens: np.ndarray) -> jax.Array:
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    output = Transformer(cfg).apply({"params": params}, tokens, positions)
    value = -jnp.mean(jax.nn.log_softmax(output.logits)[:, :-1, 3]) + 0.01 * output.aux.balance_loss
    if output.aux.mtp_hidden is not None:
        value -= jnp.mean(jax.nn.log_softmax(logits_of(output.aux.mtp_hidden, unembedding(params, cfg)))[:, :-2, 5])
    return value


def relative_error(got: Any, want: Any) -> float:
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
    return max(difference(a, b) / (np.abs(np.asarray(b)).max() + 1e-6) for a, b in pairs)


@pytest.mark.parametrize("name", MODELS)
def test_remat_changes_no_gradient_and_every_parameter_but_the_selection_bias_has_one(name: str) -> None:
    cfg, params, tokens = MODELS[name], PARAMS[name], make_tokens((2, 9))
    plain = jax.jit(jax.grad(lambda p: loss(cfg, p, tokens)))(params)
    rematted = dataclasses.replace(cfg, remat="block")
    assert relative_error(jax.jit(jax.grad(lambda p: loss(rematted, p, tokens)))(params), plain) < TOLERANCE
    for path, gradient in jax.tree_util.tree_leaves_with_path(plain):
        is_bias = jax.tree_util.keystr(path).endswith("['router']['bias']")
        assert bool((gradient != 0).any()) != is_bias, jax.tree_util.keystr(path)


def test_parameters_are_the_same_on_every_mesh() -> None:
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, expert=2))
    params, sharded = (init_params(MLA_MOE, jax.random.key(7), m) for m in (None, mesh))
    assert relative_error(sharded, params) == 0
    kernel = sharded["moe_layers"]["moe"]["experts"]["gate"]
    assert kernel.addressable_shards[0].data.shape == (2, 4, 16, 16)  # experts over expert, width over fsdp


def test_rows_of_a_cache_can_be_dropped() -> None:
    cfg, params = DENSE, PARAMS["dense"]
    tokens, lengths = make_tokens((3, 5)), jnp.array([4, 2, 3])
    positions = jnp.maximum(jnp.arange(5) - (4 - lengths)[:, None], 0)
    cache = apply(cfg, params, tokens[:, :4], positions[:, :4], None, init_cache(cfg, lengths, 4, 6)).cache
    rows = jnp.array([2, 0])
    all_rows = apply(cfg, params, tokens[:, 4:], positions[:, 4:], None, cache)
    some = apply(cfg, params, tokens[rows, 4:], positions[rows, 4:], None, take_rows(cache, rows))
    assert difference(some.logits, all_rows.logits[rows]) < TOLERANCE


def test_bfloat16_activations_keep_float32_logits() -> None:
    cfg = dataclasses.replace(MLA_MOE, dtype="bfloat16")
    tokens = make_tokens((1, 6))
    got = apply(cfg, PARAMS["mla_moe"], tokens, np.arange(6)[None])
    want = apply(MLA_MOE, PARAMS["mla_moe"], tokens, np.arange(6)[None])
    assert got.logits.dtype == jnp.float32
    assert got.hidden.dtype == jnp.bfloat16
    assert np.corrcoef(np.ravel(got.logits), np.ravel(want.logits))[0, 1] > 0.95


def test_misuse_is_refused_with_the_numbers() -> None:
    with pytest.raises(ValueError, match="65 tokens a row, but max_positions is 64"):
        jax.eval_shape(Transformer(DENSE).init, jax.random.key(0), *[jnp.zeros((1, 65), jnp.int32)] * 2)
    with pytest.raises(ValueError, match=r"cache length 65 .* max_positions 64"):
        init_cache(DENSE, jnp.array([3]), 4, 65)
    with pytest.raises(ValueError, match="cannot grow to 5"):
        grow_cache(init_cache(DENSE, jnp.array([3]), 4, 6), 5)
    tokens = np.zeros((1, 2), np.int32)
    with pytest.raises(ValueError, match="segment_ids and a cache"):
        apply(DENSE, PARAMS["dense"], tokens, tokens, tokens, init_cache(DENSE, jnp.array([2]), 2, 4))
