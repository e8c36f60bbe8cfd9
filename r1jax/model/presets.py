"""Named model configurations. `rope_theta` and `norm_eps` of a released checkpoint come from its own config file."""

from __future__ import annotations

import dataclasses
from typing import Any

from r1jax.model.config import (
    GQAConfig,
    Llama3RopeConfig,
    MLAConfig,
    ModelConfig,
    MoEConfig,
    RopeConfig,
    YarnConfig,
)


def _qwen2(width: int, layers: int, heads: int, kv_heads: int, ffn: int, vocab: int, theta: float) -> ModelConfig:
    return ModelConfig(
        vocab_size=vocab,
        width=width,
        num_dense_layers=layers,
        ffn_dim=ffn,
        attention=GQAConfig(num_heads=heads, num_kv_heads=kv_heads, head_dim=128, qkv_bias=True),
        rope=RopeConfig(theta=theta),
        max_positions=131072,
        init_std=0.02,
        dtype="bfloat16",
        remat="block",
    )


def _llama3(width: int, layers: int, heads: int, ffn: int) -> ModelConfig:
    return ModelConfig(
        vocab_size=128256,
        width=width,
        num_dense_layers=layers,
        ffn_dim=ffn,
        attention=GQAConfig(num_heads=heads, num_kv_heads=8, head_dim=128),
        rope=RopeConfig(theta=500000.0, scaling=Llama3RopeConfig()),
        norm_eps=1e-5,
        max_positions=131072,
        init_std=0.02,
        dtype="bfloat16",
        remat="block",
    )


def _tiny_student(qkv_bias: bool) -> ModelConfig:
    return ModelConfig(
        vocab_size=512,
        width=96,
        num_dense_layers=3,
        ffn_dim=256,
        attention=GQAConfig(num_heads=2, num_kv_heads=1, head_dim=48, qkv_bias=qkv_bias),
        rope=RopeConfig(theta=1000.0),
        max_positions=512,
        init_std=0.05,
    )


PRESETS: dict[str, ModelConfig] = {
    "tiny_mla_moe": ModelConfig(
        vocab_size=512,
        width=128,
        num_dense_layers=1,
        ffn_dim=352,
        attention=MLAConfig(
            num_heads=2,
            q_lora_rank=96,
            kv_lora_rank=64,
            qk_nope_head_dim=32,
            qk_rope_head_dim=32,
            v_head_dim=64,
        ),
        rope=RopeConfig(theta=1000.0, interleaved=True),
        num_moe_layers=2,
        moe=MoEConfig(num_experts=8, num_active=2, expert_dim=96, num_shared=1),
        mtp_depth=1,
        max_positions=512,
        init_std=0.05,
    ),
    "tiny_dense": ModelConfig(
        vocab_size=512,
        width=128,
        num_dense_layers=3,
        ffn_dim=352,
        attention=GQAConfig(num_heads=2, num_kv_heads=1, head_dim=64),
        rope=RopeConfig(theta=1000.0),
        max_positions=512,
        init_std=0.05,
    ),
    # Students for a laptop, smaller than their teacher: the shapes of Qwen2.5 (biases on q, k and v) and of Llama.
    "tiny_qwen": _tiny_student(qkv_bias=True),
    "tiny_llama": _tiny_student(qkv_bias=False),
    "smollm2_135m": ModelConfig(
        vocab_size=49152,
        width=576,
        num_dense_layers=30,
        ffn_dim=1536,
        attention=GQAConfig(num_heads=9, num_kv_heads=3, head_dim=64),
        rope=RopeConfig(theta=100000.0),
        norm_eps=1e-5,
        tied_embeddings=True,
        max_positions=8192,
        init_std=0.04,
        remat="block",
    ),
    "r1_distill_qwen_1_5b": _qwen2(1536, 28, 12, 2, 8960, 151936, 10000.0),
    "r1_distill_qwen_7b": _qwen2(3584, 28, 28, 4, 18944, 152064, 10000.0),
    "r1_distill_qwen_14b": _qwen2(5120, 48, 40, 8, 13824, 152064, 1000000.0),
    "r1_distill_qwen_32b": _qwen2(5120, 64, 40, 8, 27648, 152064, 1000000.0),
    "r1_distill_llama_8b": _llama3(4096, 32, 32, 14336),
    "r1_distill_llama_70b": _llama3(8192, 80, 64, 28672),
    "deepseek_v3_671b": ModelConfig(
        vocab_size=129280,
        width=7168,
        num_dense_layers=3,
        ffn_dim=18432,
        attention=MLAConfig(
            num_heads=128,
            q_lora_rank=1536,
            kv_lora_rank=512,
            qk_nope_head_dim=128,
            qk_rope_head_dim=64,
            v_head_dim=128,
        ),
        rope=RopeConfig(theta=10000.0, scaling=YarnConfig(), interleaved=True),
        num_moe_layers=58,
        moe=MoEConfig(
            num_experts=256,
            num_active=8,
            expert_dim=2048,
            num_shared=1,
            num_groups=8,
            num_active_groups=4,
            routed_scaling=2.5,
        ),
        mtp_depth=1,
        max_positions=163840,
        init_std=0.006,
        dtype="bfloat16",
        remat="block",
    ),
}


def get_preset(name: str, **overrides: Any) -> ModelConfig:
    """The preset `name` with some fields of `ModelConfig` replaced.

    Raises:
      ValueError: there is no such preset or field; the message lists the ones there are.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown model preset {name!r}; there are {sorted(PRESETS)}")
    fields = {field.name for field in dataclasses.fields(ModelConfig)}
    unknown = sorted(set(overrides) - fields)
    if unknown:
        raise ValueError(f"unknown ModelConfig field {', '.join(unknown)}; there are {sorted(fields)}")
    return dataclasses.replace(PRESETS[name], **overrides)
