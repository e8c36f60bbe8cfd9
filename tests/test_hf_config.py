"""config.json: what is read, in both styles, and everything that is refused with its name and value."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from folders import DEEPSEEK, QWEN

from r1jax.model.config import GQAConfig, Llama3RopeConfig, ModelConfig, RopeConfig, YarnConfig
from r1jax.model.presets import PRESETS
from r1jax.weights.export_config import config_fields, family_of
from r1jax.weights.hf_config import model_config
from r1jax.weights.names import WeightsError

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 131072,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "tie_word_embeddings": True,
    "attention_bias": False,
    "mlp_bias": False,
    "eos_token_id": [128001, 128008, 128009],
    "torch_dtype": "bfloat16",
}
QWEN3 = QWEN | {"model_type": "qwen3", "head_dim": 32, "attention_bias": False}
V2 = {
    **{key: value for key, value in DEEPSEEK.items() if key != "num_nextn_predict_layers"},
    "model_type": "deepseek_v2",
    "scoring_func": "softmax",
    "topk_method": "group_limited_greedy",
    "norm_topk_prob": False,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}


def changed(base: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """`base` with fields replaced; a value of ... removes the field."""
    return {key: value for key, value in (base | changes).items() if value is not ...}


def test_llama_in_both_styles() -> None:
    cfg = model_config(LLAMA)
    assert cfg.rope == RopeConfig(500000.0, Llama3RopeConfig(32.0, 1.0, 4.0, 8192))
    assert cfg.attention == GQAConfig(32, 8, 64)
    assert (cfg.tied_embeddings, cfg.norm_eps, cfg.dtype) == (True, 1e-5, "bfloat16")
    new = LLAMA["rope_scaling"] | {"rope_theta": 500000.0}
    assert model_config(changed(LLAMA, rope_scaling=..., rope_theta=..., rope_parameters=new)) == cfg


def test_a_yarn_factor_may_follow_from_the_lengths() -> None:
    scaling = {"type": "yarn", "factor": None, "original_max_position_embeddings": 64}
    cfg = model_config(changed(QWEN, rope_scaling=scaling))
    assert cfg.rope.scaling == YarnConfig(4.0, 64, mscale=None, mscale_all_dim=None)


def test_windows_that_no_layer_uses_are_no_windows() -> None:
    model_config(changed(QWEN, use_sliding_window=True, max_window_layers=2))
    model_config(changed(QWEN, layer_types=["full_attention"] * 2))


def test_v2_takes_all_experts_where_it_is_greedy() -> None:
    moe = model_config(V2 | {"topk_method": "greedy"}).moe
    assert moe is not None
    assert (moe.num_groups, moe.num_active_groups) == (1, 1)
    moe = model_config(V2).moe
    assert moe is not None
    assert (moe.num_groups, moe.group_score, moe.selection_bias) == (2, "max", False)


REFUSED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (QWEN, {"model_type": "mistral"}, "model_type is 'mistral', known are"),
    (QWEN, {"hidden_act": "gelu"}, "hidden_act is 'gelu', only 'silu'"),
    (QWEN, {"attention_dropout": 0.1}, "attention_dropout is 0.1"),
    (QWEN, {"attention_bias": False}, "attention_bias is False, only True"),
    (LLAMA, {"attention_bias": True}, "attention_bias is True, only False"),
    (LLAMA, {"mlp_bias": True}, "mlp_bias is True"),
    (QWEN, {"use_sliding_window": True, "max_window_layers": 1}, "sliding_window is 4096 and in use"),
    (LLAMA, {"sliding_window": 4096}, "sliding_window is 4096 and in use"),
    (QWEN, {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types has 'sliding_attention'"),
    (QWEN, {"use_mrope": True}, "use_mrope is True"),
    (QWEN, {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    (QWEN, {"some_new_key": 3}, "unknown settings that may change the model: some_new_key = 3"),
    (QWEN, {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type is 'dynamic', known are"),
    (QWEN, {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type is 'linear'"),
    (
        QWEN,
        {"rope_scaling": YARN | {"attention_factor": 2.0}},
        "attention_factor is 2.0, the other settings give",
    ),
    (QWEN, {"rope_scaling": YARN | {"truncate": False}}, "truncate is False"),
    (QWEN, {"rope_scaling": YARN | {"attn_factor": 0.8}}, "unknown settings .* attn_factor = 0.8"),
    (QWEN, {"rope_scaling": {"type": "yarn", "factor": 4.0}}, "original_max_position_embeddings is missing"),
    (
        QWEN,
        {"rope_scaling": YARN, "rope_parameters": {"rope_type": "default"}},
        "rope_parameters is .* but",
    ),
    (QWEN, {"rope_parameters": {"rope_type": "default", "rope_theta": 5.0}}, "rope_theta is 10000.0, but that of"),
    (QWEN, {"rope_theta": "big"}, "rope_theta is 'big', expected a positive number"),
    (QWEN, {"rope_theta": -5.0}, "rope_theta is -5.0, expected a positive number"),
    (QWEN, {"rope_parameters": "yarn"}, "rope_parameters is 'yarn', expected an object"),
    (QWEN, {"rope_scaling": YARN | {"factor": "2"}}, "factor is '2', expected a positive float or int"),
    (QWEN, {"rope_scaling": YARN | {"original_max_position_embeddings": 0}}, "original_max_position_embeddings is 0"),
    (QWEN, {"layer_types": 3}, "layer_types is 3, expected a list"),
    (QWEN, {"rms_norm_eps": -1.0}, "rms_norm_eps is -1.0, expected a positive float or int"),
    (QWEN, {"intermediate_size": 0}, "intermediate_size is 0"),
    (DEEPSEEK, {"routed_scaling_factor": float("nan")}, "routed_scaling_factor is nan"),
    (DEEPSEEK, {"n_routed_experts": "8"}, "n_routed_experts is '8', expected a positive int"),
    (DEEPSEEK, {"rope_interleave": "false"}, "rope_interleave is 'false', only True or False"),
    (QWEN, {"num_key_value_heads": "8"}, "num_key_value_heads is '8', expected a positive int"),
    (QWEN, {"num_key_value_heads": 3}, "num_kv_heads=3 does not divide"),
    (QWEN3, {"head_dim": 0}, "head_dim is 0, expected a positive int"),
    (QWEN, {"hidden_size": ...}, "hidden_size is missing, expected a positive int"),
    (QWEN, {"tie_word_embeddings": "false"}, "tie_word_embeddings is 'false', only False or True"),
    (QWEN, {"num_nextn_predict_layers": 1}, "num_nextn_predict_layers is 1, only 0"),
    (V2, {"num_nextn_predict_layers": 1}, "num_nextn_predict_layers is 1, only 0"),
    (DEEPSEEK, {"num_nextn_predict_layers": 2}, "num_nextn_predict_layers is 2, only 0 or 1"),
    (DEEPSEEK, {"moe_layer_freq": 2}, "moe_layer_freq is 2"),
    (DEEPSEEK, {"scoring_func": "softmax"}, "scoring_func is 'softmax', only 'sigmoid'"),
    (DEEPSEEK, {"topk_method": "greedy"}, "topk_method is 'greedy', only 'noaux_tc'"),
    (DEEPSEEK, {"n_group": 3}, "num_groups=3 does not divide"),
    (DEEPSEEK, {"n_group": ...}, "n_group is missing"),
    (DEEPSEEK, {"topk_group": 9}, "num_active_groups=9 is not in"),
    (DEEPSEEK, {"num_experts_per_tok": 300}, "num_active=300 is not in"),
    (DEEPSEEK, {"num_key_value_heads": 1}, "num_key_value_heads is 1, only 2"),
    (DEEPSEEK, {"q_lora_rank": 0}, "q_lora_rank is 0"),
    (V2, {"norm_topk_prob": True}, "norm_topk_prob is True"),
    (V2, {"topk_method": "noaux_tc"}, "topk_method is 'noaux_tc', only 'greedy' or 'group_limited_greedy'"),
]


@pytest.mark.parametrize(("base", "changes", "message"), REFUSED, ids=[str(case[1]) for case in REFUSED])
def test_what_we_do_not_compute_is_refused(base: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    model_config(base)
    with pytest.raises(WeightsError, match=message):
        model_config(changed(base, **changes))


def test_a_key_known_to_be_harmless_can_be_passed_over() -> None:
    fields = QWEN | {"some_new_key": 3, "rope_scaling": YARN | {"attn_factor": 0.8}}
    assert model_config(fields, ignore=("some_new_key", "attn_factor")) == model_config(QWEN | {"rope_scaling": YARN})


@pytest.mark.parametrize("base", [LLAMA, QWEN, QWEN3, DEEPSEEK, V2], ids=lambda base: base["model_type"])
def test_what_is_written_is_read_as_the_same_model(base: dict[str, Any]) -> None:
    cfg = dataclasses.replace(model_config(base), dtype="float32")
    assert family_of(cfg) == base["model_type"]
    assert model_config(config_fields(cfg)) == cfg


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_every_preset_can_be_exported(preset: str) -> None:
    cfg: ModelConfig = dataclasses.replace(PRESETS[preset], dtype="float32", remat="none")
    assert model_config(config_fields(cfg)) == cfg


@pytest.mark.parametrize(
    ("preset", "changes", "message"),
    [
        ("tiny_dense", {"rope": RopeConfig(interleaved=True)}, r"rope\.interleaved is True"),
        ("tiny_dense", {"attention": GQAConfig(2, 1, 64, True, True)}, "qkv_bias and attention.qk_norm are both True"),
        ("tiny_dense", {"mtp_depth": 1}, "no released family has grouped-query attention with"),
    ],
)
def test_models_that_no_family_computes_are_not_exported(preset: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        config_fields(dataclasses.replace(PRESETS[preset], **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"selection_bias": False}, r"moe\.selection_bias is False, deepseek_v3 has True"),
        ({"scoring": "softmax"}, "mtp_depth is 1, deepseek_v2 has no MTP module"),
        ({"num_shared": 0}, r"moe\.num_shared is 0"),
    ],
)
def test_mixtures_that_no_family_computes_are_not_exported(changes: dict[str, Any], message: str) -> None:
    cfg = PRESETS["tiny_mla_moe"]
    assert cfg.moe is not None
    with pytest.raises(WeightsError, match=message):
        config_fields(dataclasses.replace(cfg, moe=dataclasses.replace(cfg.moe, **changes)))
