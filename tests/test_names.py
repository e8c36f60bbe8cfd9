"""The name table of DeepSeek-V3, both ways, against the published tensor listing."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from folders import deepseek_shapes

from r1jax.model.presets import PRESETS, get_preset
from r1jax.model.transformer import param_count
from r1jax.settings import ConfigError
from r1jax.stages.policy import check_preset
from r1jax.weights.exporter import plan_shards, plan_tensors
from r1jax.weights.hf_config import model_config
from r1jax.weights.names import Source, WeightsError, check_filled, check_names, hf_table, to_parameter, to_stored

V3 = {
    "vocab_size": 129280,
    "hidden_size": 7168,
    "num_hidden_layers": 61,
    "first_k_dense_replace": 3,
    "num_attention_heads": 128,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
}
PUBLISHED_TENSORS, PUBLISHED_ELEMENTS = 91_991, 684_531_386_000
KEPT_IN_BF16 = ("norm", "embed_tokens", "head.weight", "mlp.gate.weight", "eh_proj")


def published() -> dict[str, tuple[tuple[int, ...], str]]:
    """Name -> (shape, type) of every tensor of the released checkpoint, from its listing."""
    tensors: dict[str, tuple[tuple[int, ...], str]] = {}
    for name, shape in deepseek_shapes(V3).items():
        if name.endswith("e_score_correction_bias"):
            tensors[name] = shape, "float32"
        elif any(part in name for part in KEPT_IN_BF16):
            tensors[name] = shape, "bfloat16"
        else:
            tensors[name] = shape, "float8_e4m3fn"
            tensors[name + "_scale_inv"] = tuple(math.ceil(size / 128) for size in shape), "float32"
    return tensors


def test_the_generated_listing_is_the_published_one() -> None:
    tensors = published()
    assert len(tensors) == PUBLISHED_TENSORS
    assert sum(math.prod(shape) for shape, _ in tensors.values()) == PUBLISHED_ELEMENTS
    attention = "model.layers.60.self_attn."
    assert tensors[attention + "kv_a_proj_with_mqa.weight"] == ((576, 7168), "float8_e4m3fn")
    assert tensors[attention + "kv_a_proj_with_mqa.weight_scale_inv"] == ((5, 56), "float32")
    assert tensors[attention + "q_b_proj.weight_scale_inv"][0] == (192, 12)
    assert tensors["model.layers.0.mlp.down_proj.weight_scale_inv"][0] == (56, 144)
    assert tensors["model.layers.61.mlp.experts.255.down_proj.weight"][0] == (7168, 2048)


def test_import_uses_every_published_tensor_once_and_fills_every_parameter() -> None:
    cfg, tensors = get_preset("deepseek_v3_671b"), published()
    table = hf_table(cfg)
    plain = [name for name in tensors if not name.endswith("_scale_inv")]
    check_names(table, plain, "the published listing")
    assert {source.name: source.shape for source in table} == {name: tensors[name][0] for name in plain}
    check_filled(cfg, table)
    copies = {source.name: source.copy_of for source in table if source.copy_of}
    assert copies == {
        "model.layers.61.embed_tokens.weight": "model.embed_tokens.weight",
        "model.layers.61.shared_head.head.weight": "lm_head.weight",
    }
    mtp = sum(math.prod(s.shape) for s in table if s.path[0] == "mtp")
    main = sum(math.prod(s.shape) for s in table if s.path[0] != "mtp" and s.copy_of is None)
    assert main + mtp == param_count(cfg)
    assert round(main / 1e9, 3) == 671.026
    assert round(mtp / 1e9, 2) == 11.61


def test_export_gives_the_published_tensors_back() -> None:
    planned = plan_tensors(get_preset("deepseek_v3_671b"), "fp8")
    specs = [tensor.spec for tensor in planned]
    assert len(specs) == PUBLISHED_TENSORS
    assert {spec.name: (spec.shape, spec.dtype.name) for spec in specs} == published()
    shards = plan_shards(planned, 5_000_000_000)
    assert [spec.name for shard in shards.values() for spec in (t.spec for t in shard)] == [s.name for s in specs]
    assert all(sum(t.spec.nbytes for t in shard) <= 5_000_000_000 for shard in shards.values())
    first, *_, last = shards
    total = len(shards)
    assert first == f"model-00001-of-{total:06d}.safetensors"
    assert last == f"model-{total:05d}-of-{total:06d}.safetensors"


@pytest.mark.parametrize(
    ("preset", "count"),
    [
        ("r1_distill_qwen_1_5b", 1_777_088_000),
        ("r1_distill_qwen_7b", 7_615_616_512),
        ("r1_distill_qwen_14b", 14_770_033_664),
        ("r1_distill_qwen_32b", 32_763_876_352),
        ("r1_distill_llama_8b", 8_030_261_248),
        ("r1_distill_llama_70b", 70_553_706_496),
        ("smollm2_135m", 134_515_008),
    ],
)
def test_tables_of_the_dense_presets_hold_the_published_number_of_parameters(preset: str, count: int) -> None:
    cfg = get_preset(preset)
    table = hf_table(cfg)
    check_filled(cfg, table)
    assert sum(math.prod(source.shape) for source in table) == count == param_count(cfg)
    if preset == "r1_distill_qwen_1_5b":
        assert len(table) == 339


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_every_preset_has_a_table_that_fills_it(preset: str) -> None:
    check_filled(get_preset(preset), hf_table(get_preset(preset)))


def test_layouts_by_hand() -> None:
    stored = np.arange(12.0).reshape(4, 3)  # [out = 2 heads x 2, in = 3]
    source = Source("q", (4, 3), ("q",), "transposed")
    heads = to_parameter(source, stored, (3, 2, 2))
    np.testing.assert_array_equal(heads[1], [[1, 4], [7, 10]])  # input 1: head 0 rows 0, 1; head 1 rows 2, 3
    np.testing.assert_array_equal(to_stored(source, heads), stored)
    rotary = Source("q", (4, 3), ("q",), "rotary")
    np.testing.assert_array_equal(to_stored(rotary, to_parameter(rotary, stored, (3, 1, 4))), stored)


def test_a_table_with_a_hole_is_refused() -> None:
    cfg = get_preset("tiny_mla_moe")
    table = hf_table(cfg)
    lacking = [s for s in table if s.name != "model.layers.2.mlp.experts.5.up_proj.weight"]
    with pytest.raises(WeightsError, match="moe_layers/moe/experts/up is not filled exactly once"):
        check_filled(cfg, lacking)
    with pytest.raises(WeightsError, match="moe_layers/moe/experts/up is not filled exactly once"):
        check_filled(cfg, [*table, next(s for s in table if s.path[-1] == "up" and "moe_layers" in s.path)])


def test_the_published_config_of_v3_is_the_preset() -> None:
    config = V3 | {
        "architectures": ["DeepseekV3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"},
        "aux_loss_alpha": 0.001,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "ep_size": 1,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "max_position_embeddings": 163840,
        "model_type": "deepseek_v3",
        "moe_layer_freq": 1,
        "n_group": 8,
        "norm_topk_prob": True,
        "num_experts_per_tok": 8,
        "num_key_value_heads": 128,
        "num_nextn_predict_layers": 1,
        "pretraining_tp": 1,
        "quantization_config": {"quant_method": "fp8"},
        "rms_norm_eps": 1e-6,
        "rope_scaling": {
            "beta_fast": 32,
            "beta_slow": 1,
            "factor": 40,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 4096,
            "type": "yarn",
        },
        "rope_theta": 10000,
        "routed_scaling_factor": 2.5,
        "scoring_func": "sigmoid",
        "seq_aux": True,
        "tie_word_embeddings": False,
        "topk_group": 4,
        "topk_method": "noaux_tc",
        "torch_dtype": "bfloat16",
        "transformers_version": "4.46.3",
        "use_cache": True,
    }
    cfg = model_config(config, remat="block")
    check_preset("deepseek_v3_671b", cfg)
    assert dataclasses.replace(cfg, init_std=0.006) == get_preset("deepseek_v3_671b")
    with pytest.raises(ConfigError, match=r"norm_eps = 1e-05, not 1e-06"):
        check_preset("deepseek_v3_671b", dataclasses.replace(cfg, norm_eps=1e-5))
