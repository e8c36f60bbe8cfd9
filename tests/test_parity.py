"""Logits and chosen experts equal those of the transformers library (goldens: tools/make_goldens.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.model.cache import init_cache
from r1jax.model.config import (
    GQAConfig,
    Llama3RopeConfig,
    MLAConfig,
    ModelConfig,
    MoEConfig,
    RopeConfig,
    YarnConfig,
)
from r1jax.model.heads import logits_of, unembedding
from r1jax.model.outputs import Output
from r1jax.model.transformer import Transformer, init_params

GOLDENS = Path(__file__).parent / "goldens"
NAMES = sorted(path.stem for path in GOLDENS.glob("*.npz"))
TOLERANCE = 1e-5  # of the largest logit


def rope_config(fields: dict[str, Any], interleaved: bool) -> RopeConfig:
    rope = fields["rope_parameters"]
    scaling: YarnConfig | Llama3RopeConfig | None = None
    if rope["rope_type"] == "yarn":
        scaling = YarnConfig(
            factor=rope["factor"],
            original_max_positions=rope["original_max_position_embeddings"],
            beta_fast=rope["beta_fast"],
            beta_slow=rope["beta_slow"],
            mscale=rope.get("mscale"),
            mscale_all_dim=rope.get("mscale_all_dim"),
        )
    elif rope["rope_type"] == "llama3":
        scaling = Llama3RopeConfig(
            factor=rope["factor"],
            low_freq_factor=rope["low_freq_factor"],
            high_freq_factor=rope["high_freq_factor"],
            original_max_positions=rope["original_max_position_embeddings"],
        )
    return RopeConfig(theta=rope["rope_theta"], scaling=scaling, interleaved=interleaved)


def model_config(fields: dict[str, Any]) -> ModelConfig:
    deepseek = fields["model_type"].startswith("deepseek")
    attention: MLAConfig | GQAConfig
    moe = None
    if deepseek:
        attention = MLAConfig(
            num_heads=fields["num_attention_heads"],
            q_lora_rank=fields["q_lora_rank"],
            kv_lora_rank=fields["kv_lora_rank"],
            qk_nope_head_dim=fields["qk_nope_head_dim"],
            qk_rope_head_dim=fields["qk_rope_head_dim"],
            v_head_dim=fields["v_head_dim"],
        )
        v3 = fields["model_type"] == "deepseek_v3"
        moe = MoEConfig(
            num_experts=fields["n_routed_experts"],
            num_active=fields["num_experts_per_tok"],
            expert_dim=fields["moe_intermediate_size"],
            num_shared=fields["n_shared_experts"],
            scoring="sigmoid" if v3 else "softmax",
            num_groups=fields["n_group"],
            num_active_groups=fields["topk_group"],
            group_score="top2_sum" if v3 else "max",
            normalize_gates=v3 and fields["norm_topk_prob"],
            routed_scaling=fields["routed_scaling_factor"],
            selection_bias=v3,
        )
    else:
        attention = GQAConfig(
            num_heads=fields["num_attention_heads"],
            num_kv_heads=fields["num_key_value_heads"],
            head_dim=fields.get("head_dim", fields["hidden_size"] // fields["num_attention_heads"]),
            qkv_bias=fields["model_type"] == "qwen2",
            qk_norm=fields["model_type"] == "qwen3",
        )
    dense = fields.get("first_k_dense_replace", fields["num_hidden_layers"])
    return ModelConfig(
        vocab_size=fields["vocab_size"],
        width=fields["hidden_size"],
        num_dense_layers=dense,
        ffn_dim=fields["intermediate_size"],
        attention=attention,
        rope=rope_config(fields, interleaved=deepseek),
        num_moe_layers=fields["num_hidden_layers"] - dense,
        moe=moe,
        mtp_depth=fields.get("num_nextn_predict_layers", 0),
        norm_eps=fields["rms_norm_eps"],
        tied_embeddings=fields.get("tie_word_embeddings", False),
        max_positions=fields["max_position_embeddings"],
    )


RENAMED = {
    "input_layernorm.weight": "attn_norm/scale",
    "post_attention_layernorm.weight": "ffn_norm/scale",
    "self_attn.q_a_proj.weight": "attn/q_a/kernel",
    "self_attn.q_a_layernorm.weight": "attn/q_a_norm/scale",
    "self_attn.q_b_proj.weight": "attn/q_b/kernel",
    "self_attn.kv_a_proj_with_mqa.weight": "attn/kv_a/kernel",
    "self_attn.kv_a_layernorm.weight": "attn/kv_a_norm/scale",
    "self_attn.kv_b_proj.weight": "attn/kv_b/kernel",
    "self_attn.q_norm.weight": "attn/q_norm/scale",
    "self_attn.k_norm.weight": "attn/k_norm/scale",
    "mlp.gate.weight": "moe/router/kernel",
    "mlp.gate.e_score_correction_bias": "moe/router/bias",
    "enorm.weight": "embed_norm/scale",
    "hnorm.weight": "hidden_norm/scale",
    "eh_proj.weight": "proj/kernel",
    "shared_head.norm.weight": "norm/scale",
}
for projection in "qkvo":
    RENAMED[f"self_attn.{projection}_proj.weight"] = f"attn/{projection}/kernel"
    RENAMED[f"self_attn.{projection}_proj.bias"] = f"attn/{projection}/bias"
for projection in ("gate", "up", "down"):
    RENAMED[f"mlp.{projection}_proj.weight"] = f"mlp/{projection}/kernel"
    RENAMED[f"mlp.shared_experts.{projection}_proj.weight"] = f"moe/shared/{projection}/kernel"


def layer_arrays(name: str, value: np.ndarray) -> dict[str, np.ndarray]:
    """Our path and matrix ([in, out]) of one tensor of a layer; the fused experts are taken apart."""
    if name == "mlp.experts.gate_up_proj":
        gate, up = np.split(value.swapaxes(1, 2), 2, axis=2)
        return {"moe/experts/gate": gate, "moe/experts/up": up}
    if name == "mlp.experts.down_proj":
        return {"moe/experts/down": value.swapaxes(1, 2)}
    return {RENAMED[name]: value.T}


def convert(weights: dict[str, np.ndarray], cfg: ModelConfig) -> Any:
    """The library's tensors in our tree; every leaf is filled and every tensor used."""
    flat: dict[str, Any] = {}
    per_layer: dict[str, dict[int, np.ndarray]] = {}
    top = {
        "model.embed_tokens.weight": ("embed/embedding", False),
        "model.norm.weight": ("final_norm/scale", False),
        "lm_head.weight": ("lm_head/kernel", True),
    }
    for name, value in weights.items():
        if name in top:
            path, transpose = top[name]
            flat[path] = value.T if transpose else value
            continue
        _, _, number, rest = name.split(".", 3)
        layer = int(number)
        for path, array in layer_arrays(rest, value).items():
            if layer >= cfg.num_layers:
                own = path.startswith(("embed_norm", "hidden_norm", "proj", "norm"))
                flat[f"mtp/{path}" if own else f"mtp/block/{path}"] = array
            else:
                stack = "dense_layers" if layer < cfg.num_dense_layers else "moe_layers"
                per_layer.setdefault(f"{stack}/{path}", {})[layer] = array
    for path, layers in per_layer.items():
        flat[path] = np.stack([layers[layer] for layer in sorted(layers)])

    def fill(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        key = "/".join(part.key for part in path)
        return jnp.asarray(flat.pop(key)).reshape(leaf.shape)

    shapes = jax.eval_shape(lambda: init_params(cfg, jax.random.key(0)))
    params = jax.tree_util.tree_map_with_path(fill, shapes)
    assert not flat
    return params


def load(name: str) -> tuple[ModelConfig, Any, dict[str, np.ndarray]]:
    with np.load(GOLDENS / f"{name}.npz") as file:
        golden = {key: file[key] for key in file.files}
    cfg = model_config(json.loads(str(golden["config"])))
    weights = {key.removeprefix("weights/"): value for key, value in golden.items() if key.startswith("weights/")}
    return cfg, convert(weights, cfg), golden


def forward(cfg: ModelConfig, params: Any, tokens: np.ndarray) -> Output:
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    return jax.jit(Transformer(cfg).apply)({"params": params}, tokens, positions)


def assert_close(name: str, got: jax.Array, want: np.ndarray) -> None:
    difference, largest = np.abs(np.asarray(got) - want).max(), np.abs(want).max()
    print(f"{name}: largest difference {difference:.2e} at logits up to {largest:.2f}")
    assert difference <= TOLERANCE * largest


def test_there_is_a_golden_for_every_family() -> None:
    assert {"deepseek_v3", "deepseek_v3_no_mscale", "deepseek_v2", "llama", "qwen2", "qwen3"} <= set(NAMES)
    assert any(load(name)[0].mtp_depth for name in NAMES)
    assert all((GOLDENS / f"{name}.npz").stat().st_size < 300_000 for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_logits_experts_and_mtp_equal_the_reference(name: str) -> None:
    cfg, params, golden = load(name)
    output = forward(cfg, params, golden["tokens"])
    assert_close(name, output.logits, golden["logits"])
    if cfg.num_moe_layers:
        experts = np.sort(np.asarray(output.aux.experts), axis=-1)
        np.testing.assert_array_equal(experts, golden["experts"][: cfg.num_moe_layers])
        assert len(np.unique(experts)) == cfg.moe.num_experts  # type: ignore[union-attr]
    if cfg.mtp_depth:
        logits = logits_of(output.aux.mtp_hidden[:, :-1], unembedding(params, cfg))
        assert_close(f"{name} MTP", logits, golden["mtp_logits"])
        chosen = golden["experts"][-1][:, :-1].reshape(-1)
        np.testing.assert_array_equal(output.aux.mtp_expert_load, np.bincount(chosen, minlength=cfg.moe.num_experts))


@pytest.mark.parametrize("name", NAMES)
def test_cached_decoding_equals_the_reference(name: str) -> None:
    cfg, params, golden = load(name)
    tokens, prompt = golden["tokens"], 9
    batch, length = tokens.shape
    cache = init_cache(cfg, jnp.full(batch, prompt), prompt, length)
    step = jax.jit(
        lambda tokens, positions, cache: Transformer(cfg).apply({"params": params}, tokens, positions, None, cache)
    )
    positions = jnp.broadcast_to(jnp.arange(length), tokens.shape)
    output = step(tokens[:, :prompt], positions[:, :prompt], cache)
    logits = [output.logits]
    for slot in range(prompt, length):
        output = step(tokens[:, slot : slot + 1], positions[:, slot : slot + 1], output.cache)
        logits.append(output.logits)
    assert_close(name, jnp.concatenate(logits, axis=1), golden["logits"])
