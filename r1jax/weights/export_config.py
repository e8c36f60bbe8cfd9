"""ModelConfig -> config.json of the released family that computes the same function."""

from __future__ import annotations

from typing import Any

from r1jax.model.config import GQAConfig, Llama3RopeConfig, MLAConfig, ModelConfig, YarnConfig
from r1jax.weights.hf_config import ARCHITECTURES
from r1jax.weights.names import WeightsError


def family_of(cfg: ModelConfig) -> str:
    """The model_type whose class computes what `cfg` says.

    Raises:
      WeightsError: there is none, with the field that no family has.
    """
    att, moe = cfg.attention, cfg.moe
    if isinstance(att, GQAConfig):
        if cfg.num_moe_layers or cfg.mtp_depth:
            raise WeightsError("no released family has grouped-query attention with DeepSeek's experts or MTP module")
        if cfg.rope.interleaved:
            raise WeightsError("rope.interleaved is True, the dense families rotate halves")
        if att.qkv_bias and att.qk_norm:
            raise WeightsError("attention.qkv_bias and attention.qk_norm are both True, no released family has both")
        return "qwen3" if att.qk_norm else "qwen2" if att.qkv_bias else "llama"
    if moe is None or moe.scoring == "sigmoid":
        family, wanted = "deepseek_v3", {"group_score": "top2_sum", "selection_bias": True}
    else:
        family, wanted = "deepseek_v2", {"group_score": "max", "selection_bias": False, "normalize_gates": False}
        if cfg.mtp_depth:
            raise WeightsError(f"mtp_depth is {cfg.mtp_depth}, deepseek_v2 has no MTP module")
        if not cfg.rope.interleaved:
            raise WeightsError("rope.interleaved is False, deepseek_v2 rotates neighbors")
    if moe is not None and not moe.num_shared:
        raise WeightsError(f"moe.num_shared is 0, {family} always has a shared expert")
    for field, value in wanted.items() if moe is not None else ():
        if getattr(moe, field) != value and not (field == "group_score" and moe.num_groups == 1):  # type: ignore[union-attr]
            raise WeightsError(f"moe.{field} is {getattr(moe, field)!r}, {family} has {value!r}")
    return family


def config_fields(cfg: ModelConfig) -> dict[str, Any]:
    """config.json of a model of our own, in the older key style that every reader knows; no token ids, no dtype.

    Raises:
      WeightsError: no released family computes this model.
    """
    family, att = family_of(cfg), cfg.attention
    fields: dict[str, Any] = {
        "architectures": [ARCHITECTURES[family]],
        "model_type": family,
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.width,
        "intermediate_size": cfg.ffn_dim,
        "num_hidden_layers": cfg.num_layers,
        "num_attention_heads": att.num_heads,
        "hidden_act": "silu",
        "rms_norm_eps": cfg.norm_eps,
        "max_position_embeddings": cfg.max_positions,
        "initializer_range": cfg.init_std,
        "tie_word_embeddings": cfg.tied_embeddings,
        "rope_theta": cfg.rope.theta,
        "rope_scaling": _scaling_fields(cfg.rope.scaling),
        "attention_dropout": 0.0,
        "use_cache": True,
    }
    if family != "qwen2":
        fields["attention_bias"] = False
    if isinstance(att, GQAConfig):
        fields |= {"num_key_value_heads": att.num_kv_heads, "head_dim": att.head_dim}
        return fields | ({"mlp_bias": False} if family == "llama" else {"use_sliding_window": False})
    return fields | _deepseek_fields(cfg, att, family)


def _scaling_fields(scaling: YarnConfig | Llama3RopeConfig | None) -> dict[str, Any] | None:
    if scaling is None:
        return None
    if isinstance(scaling, Llama3RopeConfig):
        return {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_positions,
        }
    fields: dict[str, Any] = {
        "type": "yarn",
        "factor": scaling.factor,
        "original_max_position_embeddings": scaling.original_max_positions,
        "beta_fast": scaling.beta_fast,
        "beta_slow": scaling.beta_slow,
    }
    optional = {"mscale": scaling.mscale, "mscale_all_dim": scaling.mscale_all_dim}
    return fields | {key: value for key, value in optional.items() if value is not None}


def _deepseek_fields(cfg: ModelConfig, att: MLAConfig, family: str) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "num_key_value_heads": att.num_heads,
        "q_lora_rank": att.q_lora_rank,
        "kv_lora_rank": att.kv_lora_rank,
        "qk_nope_head_dim": att.qk_nope_head_dim,
        "qk_rope_head_dim": att.qk_rope_head_dim,
        "v_head_dim": att.v_head_dim,
        "first_k_dense_replace": cfg.num_dense_layers,
        "moe_layer_freq": 1,
    }
    if family == "deepseek_v3":
        fields |= {"num_nextn_predict_layers": cfg.mtp_depth, "rope_interleave": cfg.rope.interleaved}
    moe = cfg.moe
    if moe is None:
        return fields
    v3 = family == "deepseek_v3"
    return fields | {
        "n_routed_experts": moe.num_experts,
        "n_shared_experts": moe.num_shared or None,
        "num_experts_per_tok": moe.num_active,
        "moe_intermediate_size": moe.expert_dim,
        "n_group": moe.num_groups,
        "topk_group": moe.num_active_groups,
        "topk_method": "noaux_tc" if v3 else "greedy" if moe.num_groups == 1 else "group_limited_greedy",
        "scoring_func": moe.scoring,
        "norm_topk_prob": moe.normalize_gates,
        "routed_scaling_factor": moe.routed_scaling,
    }
