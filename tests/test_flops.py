"""Counted operations against the products of a traced model and against the published size of V3."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest
from flax.core import meta

from r1jax.model import flops
from r1jax.model.cache import init_cache
from r1jax.model.config import GQAConfig, MLAConfig, ModelConfig, RopeConfig
from r1jax.model.presets import PRESETS
from r1jax.model.transformer import Transformer, abstract_params

GQA = GQAConfig(num_heads=4, num_kv_heads=2, head_dim=8, qkv_bias=True)
MLA = MLAConfig(num_heads=3, q_lora_rank=12, kv_lora_rank=10, qk_nope_head_dim=6, qk_rope_head_dim=4, v_head_dim=5)


def dense(attention: GQAConfig | MLAConfig, **changes: object) -> ModelConfig:
    shape = ModelConfig(vocab_size=50, width=24, num_dense_layers=2, ffn_dim=36, attention=attention, rope=RopeConfig())
    return dataclasses.replace(shape, **changes)


def traced_products(jaxpr: jax.extend.core.Jaxpr, times: int = 1) -> int:
    """Multiply-adds of every dot_general of a program, loops unrolled."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            summed = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += times * summed * equation.outvars[0].aval.size
        inner = times * equation.params.get("length", 1) if equation.primitive.name == "scan" else times
        for parameter in equation.params.values():
            for found in parameter if isinstance(parameter, list | tuple) else (parameter,):
                if hasattr(found, "jaxpr"):
                    found = found.jaxpr
                if hasattr(found, "eqns"):
                    total += traced_products(found, inner)
    return total


@pytest.mark.parametrize(
    "model",
    [
        dense(GQA),
        dense(GQA, tied_embeddings=True),
        dense(MLA),
        dense(dataclasses.replace(MLA, q_lora_rank=None), mtp_depth=1),
    ],
    ids=["gqa", "tied", "mla", "full-rank query, mtp"],
)
def test_a_forward_pass_is_the_products_of_the_traced_model(model: ModelConfig) -> None:
    batch, length = 2, 7
    tokens = jnp.zeros((batch, length), jnp.int32)
    params = meta.unbox(abstract_params(model))
    program = jax.make_jaxpr(lambda params: Transformer(model).apply({"params": params}, tokens, tokens))(params)
    # The program computes the hidden scores too: as if every token saw `length` tokens, itself included.
    seen = 2 * length - 1
    counted = flops.forward_flops(model, batch * length, seen)
    # The module's own head belongs to its loss, which is not traced here.
    head = 2.0 * batch * length * model.width * model.vocab_size
    counted += flops.mtp_flops(model, batch * length, seen) - head if model.mtp_depth else 0.0
    assert counted == 2 * traced_products(program.jaxpr)


@pytest.mark.parametrize("attention", [GQA, MLA], ids=["gqa", "mla"])
def test_a_sampled_token_is_the_products_of_a_traced_decode_step(attention: GQAConfig | MLAConfig) -> None:
    model, batch, slots = dense(attention), 3, 9
    cache = init_cache(model, jnp.zeros(batch, jnp.int32), 0, slots)
    tokens = jnp.zeros((batch, 1), jnp.int32)
    params = meta.unbox(abstract_params(model))
    program = jax.make_jaxpr(
        lambda params: Transformer(model).apply({"params": params}, tokens, tokens, None, cache).logits
    )(params)
    # The new token's own value is added without a matrix product, in the width that attention sums over.
    width = attention.num_heads * (attention.kv_lora_rank if attention is MLA else attention.head_dim)  # type: ignore[union-attr]
    own = 2 * batch * model.num_layers * width
    assert flops.sampling_flops(model, batch, 1, prompt_length=slots) == 2 * traced_products(program.jaxpr) + own


def test_sampling_averages_over_a_response() -> None:
    model = PRESETS["tiny_mla_moe"]
    each = [flops.sampling_flops(model, 1, 1, prompt_length=20 + i) for i in range(5)]  # the i-th token of a response
    assert flops.sampling_flops(model, 5, 5, prompt_length=20) == pytest.approx(sum(each), rel=1e-12)


@pytest.mark.parametrize("name", ["tiny_mla_moe", "tiny_dense", "smollm2_135m", "r1_distill_qwen_1_5b"])
def test_token_weights_are_the_matrices_of_the_model(name: str) -> None:
    model = PRESETS[name]
    expected = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(meta.unbox(abstract_params(model))):
        parts = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        looked_up = parts[0] == "embed" and not model.tied_embeddings
        if parts[0] == "mtp" or looked_up or parts[-1] in ("scale", "bias"):
            continue
        share = model.moe.num_active / model.moe.num_experts if model.moe and "experts" in parts else 1
        expected += leaf.size * share
    assert sum(flops.token_weights(model).values()) == expected


def test_v3_has_its_published_size() -> None:
    """DeepSeek-V3: 37B activated parameters; its weights' description says 36.7B with one of embedding and head."""
    model = PRESETS["deepseek_v3_671b"]
    weights = flops.token_weights(model)
    assert weights["attention"] == 61 * 187_105_280
    assert weights["dense"] == 3 * 396_361_728
    assert weights["experts"] == 58 * 8 * 44_040_192
    assert sum(weights.values()) == pytest.approx(36.6e9, rel=1e-3)
    assert flops.forward_flops(model, 1, 1) == pytest.approx(2 * 36.6e9, rel=1e-3)
    # A pre-training sequence of 4,096 tokens: attention between tokens adds 61 * 128 * 320 * 2 * 2048.5.
    added = flops.forward_flops(model, 1, 4096) - 2 * sum(weights.values())
    assert added == 61 * 128 * 320 * 2 * 2048.5
    projection, router, head = 2 * 7168**2, 256 * 7168, 129_280 * 7168
    assert flops.mtp_weights(model) == projection + 187_105_280 + router + 9 * 44_040_192 + head


def test_training_is_three_forward_passes() -> None:
    model = PRESETS["tiny_mla_moe"]
    forward, module = flops.forward_flops(model, 100, 33), flops.mtp_flops(model, 100, 33)
    assert flops.training_flops(model, 100, 33) == 3 * forward
    assert flops.training_flops(model, 100, 33, mtp=True) == 3 * (forward + module)
    assert flops.mtp_flops(PRESETS["tiny_dense"], 100, 33) == 0
