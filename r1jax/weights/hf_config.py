"""config.json of a Hugging Face folder <-> ModelConfig, for deepseek_v3, deepseek_v2, qwen2, qwen3 and llama.

Everything that the file says is either used, or known to make no difference to the model, or refused with its name and
value: a model is never run as something that it is not. Keys are read in both styles: `rope_theta` and `rope_scaling`
(before transformers 5), or `rope_parameters`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
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
from r1jax.model.moe import moe_config
from r1jax.model.rope import rope_amplitude
from r1jax.weights.names import WeightsError

ARCHITECTURES = {
    "deepseek_v3": "DeepseekV3ForCausalLM",
    "deepseek_v2": "DeepseekV2ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "llama": "LlamaForCausalLM",
}

# What a config may say without changing the network's function: training, loss, serving, origin.
HARMLESS = frozenset(
    [
        "architectures",
        "auto_map",
        "aux_loss_alpha",
        "bos_token_id",
        "chunk_size_feed_forward",
        "decoder_start_token_id",
        "dtype",
        "eos_token_id",
        "ep_size",
        "finetuning_task",
        "id2label",
        "initializer_range",
        "is_llama_config",
        "label2id",
        "model_type",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "pad_token_id",
        "prefix",
        "pretraining_tp",
        "problem_type",
        "quantization_config",
        "return_dict",
        "return_dict_in_generate",
        "router_aux_loss_coef",
        "seq_aux",
        "task_specific_params",
        "tokenizer_class",
        "torch_dtype",
        "torchscript",
        "transformers.js_config",
        "transformers_version",
        "unsloth_fixed",
        "unsloth_version",
        "use_bfloat16",
        "use_cache",
        "_attn_implementation",
        "_attn_implementation_autoset",
        "_name_or_path",
    ]
)
# What a config may say only with one of these values.
ONLY: dict[str, tuple[Any, ...]] = {
    "add_cross_attention": (False,),
    "attention_dropout": (0, None),
    "cross_attention_hidden_size": (None,),
    "hidden_act": ("silu",),
    "is_decoder": (False,),
    "is_encoder_decoder": (False,),
    "mlp_bias": (False, None),
    "moe_layer_freq": (1,),
    "partial_rotary_factor": (1, None),
    "pruned_heads": ({}, None),
    "rope_interleaved": (False,),
    "use_mrope": (False, None),
}
MAY_BE_ZERO = ("first_k_dense_replace",)


class _Fields:
    """The keys of a config, and which of them were looked at."""

    def __init__(self, fields: Mapping[str, Any], where: str) -> None:
        self.fields, self.where = fields, where
        self.seen: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.seen.add(key)
        return self.fields.get(key, default)

    def require(self, key: str, kind: type | tuple[type, ...] = int) -> Any:
        """A value of this kind; a number must be positive, or 0 where that means something."""
        value = self.get(key)
        fits = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
        if fits and kind is not bool:
            fits = value > 0 or (value == 0 and key in MAY_BE_ZERO)
        if not fits:
            problem = f"{key} is missing" if value is None else f"{key} is {value!r}"
            names = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
            raise WeightsError(f"{self.where}: {problem}, expected {'' if kind is bool else 'a positive '}{names}")
        return value

    def only(self, key: str, *allowed: Any) -> None:
        """Raises WeightsError for another value than the allowed ones; an absent key is allowed."""
        value = self.get(key)
        if key in self.fields and value not in allowed:
            listed = " or ".join(repr(one) for one in allowed)
            raise WeightsError(f"{self.where}: {key} is {value!r}, only {listed} is supported")

    def finish(self, ignore: Collection[str]) -> None:
        """Raises WeightsError for keys nobody has asked for."""
        unknown = sorted(set(self.fields) - self.seen - HARMLESS - set(ignore))
        if unknown:
            listed = ", ".join(f"{key} = {self.fields[key]!r}" for key in unknown)
            raise WeightsError(
                f"{self.where}: unknown settings that may change the model: {listed} (one that is known not to can be "
                "passed over by name)"
            )


def model_config(
    fields: Mapping[str, Any], *, ignore: Collection[str] = (), where: str = "config.json", **overrides: Any
) -> ModelConfig:
    """The model that a config.json describes.

    Args:
      fields: the parsed file.
      ignore: keys that the caller knows to make no difference.
      where: of the file, for errors.
      overrides: fields of ModelConfig that the file does not decide, such as `param_dtype`, `remat`, `mtp_depth=0`.

    Raises:
      WeightsError: a key is missing, or says something that our transformer does not compute, with its value.
    """
    reader = _Fields(fields, where)
    family = reader.get("model_type")
    if family not in ARCHITECTURES:
        raise WeightsError(f"{where}: model_type is {family!r}, known are {', '.join(ARCHITECTURES)}")
    deepseek = family.startswith("deepseek")
    for key, allowed in ONLY.items():
        reader.only(key, *allowed)
    reader.only("attention_bias", *((True, None) if family == "qwen2" else (False, None)))
    layers, width = reader.require("num_hidden_layers"), reader.require("hidden_size")
    _check_windows(reader, layers)
    moe = _moe(reader, family) if deepseek else None
    dense = layers
    if moe is not None:
        dense = min(reader.require("first_k_dense_replace"), layers)
        moe = moe if dense < layers else None
    mtp_key = "num_mtp_layers" if "num_mtp_layers" in fields else "num_nextn_predict_layers"
    reader.only(mtp_key, *((0, 1, None) if family == "deepseek_v3" else (0, None)))
    reader.only("tie_word_embeddings", False, True)
    dtype = str(reader.get("dtype", reader.get("torch_dtype"))).removeprefix("torch.")
    built: dict[str, Any] = {
        "vocab_size": reader.require("vocab_size"),
        "width": width,
        "num_dense_layers": dense,
        "ffn_dim": reader.require("intermediate_size"),
        "attention": _mla(reader) if deepseek else _gqa(reader, family, width),
        "rope": _rope(reader, family, ignore),
        "num_moe_layers": layers - dense,
        "moe": moe,
        "mtp_depth": reader.get(mtp_key) or 0,
        "norm_eps": float(reader.require("rms_norm_eps", (float, int))),
        "tied_embeddings": bool(reader.get("tie_word_embeddings", False)),
        "max_positions": reader.require("max_position_embeddings"),
        "init_std": float(reader.get("initializer_range", 0.02)),
        "dtype": "bfloat16" if dtype == "bfloat16" else "float32",
    }
    reader.finish(ignore)
    try:
        cfg = ModelConfig(**(built | overrides))
        if cfg.moe is not None:
            moe_config(cfg)  # raises for groups and experts that do not fit
        return cfg
    except ValueError as error:
        raise WeightsError(f"{where}: {error}") from error


def _check_windows(reader: _Fields, layers: int) -> None:
    """Refuses attention to a sliding window, unless no layer uses it."""
    used, window = reader.get("use_sliding_window"), reader.get("sliding_window")
    first = reader.get("max_window_layers", 0)
    in_use = window is not None and used is not False and (first is None or first < layers)
    if in_use and reader.get("layer_types") is None:
        raise WeightsError(f"{reader.where}: sliding_window is {window!r} and in use; only full attention is supported")
    other = sorted(set(reader.get("layer_types") or []) - {"full_attention"})
    if other:
        raise WeightsError(f"{reader.where}: layer_types has {other[0]!r}; only 'full_attention' is supported")


def _gqa(reader: _Fields, family: str, width: int) -> GQAConfig:
    heads = reader.require("num_attention_heads")
    stated = reader.get("head_dim")
    head_dim = width // heads if stated is None else reader.require("head_dim")
    if stated is None and width % heads:
        raise WeightsError(
            f"{reader.where}: head_dim is missing and hidden_size {width} is no multiple of {heads} heads"
        )
    return GQAConfig(
        num_heads=heads,
        num_kv_heads=heads if reader.get("num_key_value_heads") is None else reader.require("num_key_value_heads"),
        head_dim=head_dim,
        qkv_bias=family == "qwen2",
        qk_norm=family == "qwen3",
    )


def _mla(reader: _Fields) -> MLAConfig:
    heads, rope_dim = reader.require("num_attention_heads"), reader.require("qk_rope_head_dim")
    nope_dim = reader.require("qk_nope_head_dim")
    reader.only("num_key_value_heads", heads, None)
    reader.only("qk_head_dim", nope_dim + rope_dim, None)
    reader.only("head_dim", rope_dim, nope_dim + rope_dim, None)
    if reader.get("q_lora_rank") is not None:
        reader.require("q_lora_rank")
    return MLAConfig(
        num_heads=heads,
        q_lora_rank=reader.get("q_lora_rank"),
        kv_lora_rank=reader.require("kv_lora_rank"),
        qk_nope_head_dim=nope_dim,
        qk_rope_head_dim=rope_dim,
        v_head_dim=reader.require("v_head_dim"),
    )


def _moe(reader: _Fields, family: str) -> MoEConfig | None:
    experts = reader.get("n_routed_experts", reader.get("num_local_experts", reader.get("num_experts")))
    reader.only("num_local_experts", experts)
    reader.only("num_experts", experts)
    if experts is None:
        return None
    v3 = family == "deepseek_v3"
    reader.only("scoring_func", "sigmoid" if v3 else "softmax")
    reader.only("topk_method", *(["noaux_tc"] if v3 else ["greedy", "group_limited_greedy"]))
    if v3:
        groups, active_groups = reader.require("n_group"), reader.require("topk_group")
    else:
        groups, active_groups = reader.get("n_group") or 1, reader.get("topk_group") or 1
        reader.only("norm_topk_prob", False, None)
        if reader.get("topk_method", "greedy") == "greedy":
            groups = active_groups = 1
    return MoEConfig(
        num_experts=experts,
        num_active=reader.require("num_experts_per_tok"),
        expert_dim=reader.require("moe_intermediate_size"),
        num_shared=reader.get("n_shared_experts") or 0,
        scoring="sigmoid" if v3 else "softmax",
        num_groups=groups,
        num_active_groups=active_groups,
        group_score="top2_sum" if v3 else "max",
        normalize_gates=v3 and reader.require("norm_topk_prob", bool),
        routed_scaling=float(reader.require("routed_scaling_factor", (float, int))),
        selection_bias=v3,
    )


def _rope(reader: _Fields, family: str, ignore: Collection[str]) -> RopeConfig:
    new, old = reader.get("rope_parameters"), reader.get("rope_scaling")
    if new and old and new != old:
        raise WeightsError(f"{reader.where}: rope_parameters is {new!r}, but rope_scaling is {old!r}")
    nested = dict(new or old or {})
    outer = reader.get("rope_theta")
    theta = nested.pop("rope_theta", 10000.0 if outer is None else outer)
    if outer is not None and outer != theta:
        raise WeightsError(f"{reader.where}: rope_theta is {outer!r}, but that of rope_parameters is {theta!r}")
    if not isinstance(theta, (int, float)) or isinstance(theta, bool):
        raise WeightsError(f"{reader.where}: rope_theta is {theta!r}, expected a number")
    interleaved = bool(reader.get("rope_interleave", True)) if family == "deepseek_v3" else family == "deepseek_v2"
    return RopeConfig(theta=float(theta), scaling=_scaling(reader, nested, ignore), interleaved=interleaved)


def _scaling(reader: _Fields, nested: dict[str, Any], ignore: Collection[str]) -> YarnConfig | Llama3RopeConfig | None:
    part = _Fields(nested, f"{reader.where}: rope_parameters")
    kind = part.get("rope_type", part.get("type")) or "default"
    part.seen |= {"rope_type", "type"}
    part.only("partial_rotary_factor", 1, None)
    scaling: YarnConfig | Llama3RopeConfig | None = None
    if kind == "llama3":
        scaling = Llama3RopeConfig(
            factor=float(part.require("factor", (float, int))),
            low_freq_factor=float(part.require("low_freq_factor", (float, int))),
            high_freq_factor=float(part.require("high_freq_factor", (float, int))),
            original_max_positions=part.require("original_max_position_embeddings"),
        )
    elif kind == "yarn":
        scaling = _yarn(reader, part)
    elif kind != "default":
        raise WeightsError(f"{part.where}: rope_type is {kind!r}, known are 'default', 'yarn' and 'llama3'")
    part.finish(ignore)
    return scaling


def _yarn(reader: _Fields, part: _Fields) -> YarnConfig:
    original = part.require("original_max_position_embeddings")
    factor = part.get("factor")
    if factor is None:
        factor = reader.require("max_position_embeddings") / original

    def number(key: str) -> float | None:
        return None if part.get(key) is None else float(part.require(key, (float, int)))

    yarn = YarnConfig(
        factor=float(factor),
        original_max_positions=original,
        beta_fast=number("beta_fast") or 32.0,
        beta_slow=number("beta_slow") or 1.0,
        mscale=number("mscale"),
        mscale_all_dim=number("mscale_all_dim"),
    )
    part.only("truncate", True, None)
    stated, ours = number("attention_factor"), rope_amplitude(RopeConfig(scaling=yarn))
    if stated is not None and not math.isclose(stated, ours, rel_tol=1e-6):
        raise WeightsError(f"{part.where}: attention_factor is {stated}, the other settings give {ours}")
    return yarn


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
