"""config.json of a Hugging Face folder -> ModelConfig, for deepseek_v3, deepseek_v2, qwen2, qwen3 and llama.

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
                "passed over: --ignore of tools.import_weights)"
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
        return ModelConfig(**(built | overrides))
    except ValueError as error:
        raise WeightsError(f"{where}: {error}") from error


def _check_windows(reader: _Fields, layers: int) -> None:
    """Refuses attention to a sliding window, unless no layer uses it."""
    used, window = reader.get("use_sliding_window"), reader.get("sliding_window")
    first = reader.get("max_window_layers", 0)
    in_use = window is not None and used is not False and (first is None or first < layers)
    if in_use and reader.get("layer_types") is None:
        raise WeightsError(f"{reader.where}: sliding_window is {window!r} and in use; only full attention is supported")
    layer_types = reader.get("layer_types") or []
    if not isinstance(layer_types, list):
        raise WeightsError(f"{reader.where}: layer_types is {layer_types!r}, expected a list")
    other = sorted({str(kind) for kind in layer_types} - {"full_attention"})
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
    if not isinstance(experts, int) or experts < 1:
        raise WeightsError(f"{reader.where}: n_routed_experts is {experts!r}, expected a positive int")
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
    built: dict[str, Any] = {
        "num_experts": experts,
        "num_active": reader.require("num_experts_per_tok"),
        "expert_dim": reader.require("moe_intermediate_size"),
        "num_shared": reader.require("n_shared_experts") if reader.get("n_shared_experts") else 0,
        "scoring": "sigmoid" if v3 else "softmax",
        "num_groups": groups,
        "num_active_groups": active_groups,
        "group_score": "top2_sum" if v3 else "max",
        "normalize_gates": v3 and reader.require("norm_topk_prob", bool),
        "routed_scaling": float(reader.require("routed_scaling_factor", (float, int))),
        "selection_bias": v3,
    }
    try:
        return MoEConfig(**built)
    except ValueError as error:  # groups and experts that do not fit
        raise WeightsError(f"{reader.where}: experts: {error}") from error


def _rope(reader: _Fields, family: str, ignore: Collection[str]) -> RopeConfig:
    new, old = reader.get("rope_parameters"), reader.get("rope_scaling")
    if new and old and new != old:
        raise WeightsError(f"{reader.where}: rope_parameters is {new!r}, but rope_scaling is {old!r}")
    for key, value in (("rope_parameters", new), ("rope_scaling", old)):
        if value is not None and not isinstance(value, Mapping):
            raise WeightsError(f"{reader.where}: {key} is {value!r}, expected an object")
    nested = dict(new or old or {})
    outer = reader.get("rope_theta")
    theta = nested.pop("rope_theta", 10000.0 if outer is None else outer)
    if outer is not None and outer != theta:
        raise WeightsError(f"{reader.where}: rope_theta is {outer!r}, but that of rope_parameters is {theta!r}")
    if not isinstance(theta, (int, float)) or isinstance(theta, bool) or not theta > 0:
        raise WeightsError(f"{reader.where}: rope_theta is {theta!r}, expected a positive number")
    reader.only("rope_interleave", True, False)
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
    if part.get("factor") is None:
        factor = reader.require("max_position_embeddings") / original
    else:
        factor = part.require("factor", (float, int))

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
