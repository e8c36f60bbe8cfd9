"""The presets have exactly the published shapes' number of parameters."""

from __future__ import annotations

import pytest

from r1jax.model.config import GQAConfig, ModelConfig, RopeConfig
from r1jax.model.presets import PRESETS, get_preset
from r1jax.model.transformer import param_count


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("smollm2_135m", 134_515_008),
        ("r1_distill_qwen_1_5b", 1_777_088_000),
        ("r1_distill_qwen_7b", 7_615_616_512),
        ("r1_distill_qwen_14b", 14_770_033_664),
        ("r1_distill_qwen_32b", 32_763_876_352),
        ("r1_distill_llama_8b", 8_030_261_248),
        ("r1_distill_llama_70b", 70_553_706_496),
    ],
)
def test_dense_presets_have_the_released_number_of_parameters(name: str, count: int) -> None:
    assert param_count(get_preset(name)) == count


def test_deepseek_v3_adds_up_layer_by_layer() -> None:
    attention, moe_layer, dense_mlp, norms = 187_107_328, 11_320_164_608, 396_361_728, 2 * 7168
    main = 2 * 129280 * 7168 + 7168 + 61 * (attention + norms) + 3 * dense_mlp + 58 * moe_layer
    assert param_count(get_preset("deepseek_v3_671b", mtp_depth=0)) == main
    assert round(main / 1e9, 3) == 671.026
    mtp = attention + norms + moe_layer + 2 * 7168 * 7168 + 3 * 7168
    assert param_count(get_preset("deepseek_v3_671b")) == main + mtp
    assert round(mtp / 1e9, 2) == 11.61


def test_tiny_presets_are_tiny() -> None:
    assert 0.5e6 < param_count(get_preset("tiny_mla_moe", mtp_depth=0)) < 1.2e6
    assert param_count(get_preset("tiny_dense")) < 1e6


def test_overrides_replace_fields_and_leave_the_preset_alone() -> None:
    assert get_preset("tiny_dense", vocab_size=300).vocab_size == 300
    assert PRESETS["tiny_dense"].vocab_size == 512


def test_unknown_names_are_errors_that_list_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'tiny_mla'.*'tiny_mla_moe'"):
        get_preset("tiny_mla")
    with pytest.raises(ValueError, match=r"widht.*'width'"):
        get_preset("tiny_dense", widht=3)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("remat", "full", r"remat is 'full', expected one of \('none', 'dots', 'attention', 'block', 'offload'\)"),
        ("dtype", "float16", "dtype is 'float16'"),
        ("mtp_depth", 2, r"mtp_depth is 2, expected one of \(0, 1\)"),
        ("num_moe_layers", 1, "moe must be given"),
        ("attention", GQAConfig(num_heads=3, num_kv_heads=2, head_dim=8), "num_kv_heads=2 does not divide"),
    ],
)
def test_impossible_configurations_are_refused(field: str, value: object, message: str) -> None:
    fields: dict = {
        "vocab_size": 8,
        "width": 8,
        "num_dense_layers": 1,
        "ffn_dim": 8,
        "attention": GQAConfig(2, 1, 8),
        "rope": RopeConfig(),
    }
    with pytest.raises(ValueError, match=message):
        ModelConfig(**(fields | {field: value}))
