"""Small random checkpoints in the Hugging Face layout, with a tokenizer, for the tests of import and export."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors.numpy
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
VOCABULARY = 320  # 256 bytes, four special tokens, and padding

DEEPSEEK: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "vocab_size": VOCABULARY,
    "hidden_size": 144,  # no multiple of 128: ragged FP8 blocks
    "intermediate_size": 200,
    "moe_intermediate_size": 40,
    "num_hidden_layers": 3,
    "first_k_dense_replace": 1,
    "num_nextn_predict_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "q_lora_rank": 48,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "moe_layer_freq": 1,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 256,
    "rope_theta": 10000,
    "rope_scaling": {
        "type": "yarn",
        "factor": 4,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 64,
    },
    "attention_bias": False,
    "attention_dropout": 0.0,
    "tie_word_embeddings": False,
    "initializer_range": 0.02,
    "aux_loss_alpha": 0.001,
    "seq_aux": True,
    "ep_size": 1,
    "pretraining_tp": 1,
    "use_cache": True,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "torch_dtype": "bfloat16",
}
QWEN: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 256,
    "rope_theta": 10000.0,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 2,
    "use_mrope": False,
    "attention_dropout": 0.0,
    "tie_word_embeddings": False,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "torch_dtype": "float32",
}
MATRICES = ("_proj.weight", "_proj_with_mqa.weight")  # stored in FP8 where a checkpoint is
DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


def deepseek_shapes(fields: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of a deepseek_v3 checkpoint with MTP layer, from the published table."""
    width, heads, vocab = fields["hidden_size"], fields["num_attention_heads"], fields["vocab_size"]
    nope, rope, v_dim = fields["qk_nope_head_dim"], fields["qk_rope_head_dim"], fields["v_head_dim"]
    q_rank, kv_rank, experts = fields["q_lora_rank"], fields["kv_lora_rank"], fields["n_routed_experts"]
    layers, dense = fields["num_hidden_layers"], fields["first_k_dense_replace"]
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocab, width),
        "model.norm.weight": (width,),
        "lm_head.weight": (vocab, width),
    }
    for layer in range(layers + 1):
        prefix = f"model.layers.{layer}."
        attention = {
            "q_a_proj.weight": (q_rank, width),
            "q_a_layernorm.weight": (q_rank,),
            "q_b_proj.weight": (heads * (nope + rope), q_rank),
            "kv_a_proj_with_mqa.weight": (kv_rank + rope, width),
            "kv_a_layernorm.weight": (kv_rank,),
            "kv_b_proj.weight": (heads * (nope + v_dim), kv_rank),
            "o_proj.weight": (width, heads * v_dim),
        }
        shapes |= {f"{prefix}self_attn.{name}": shape for name, shape in attention.items()}
        shapes |= {f"{prefix}{name}.weight": (width,) for name in ("input_layernorm", "post_attention_layernorm")}
        if layer < dense:
            shapes |= mlp_shapes(f"{prefix}mlp", width, fields["intermediate_size"])
            continue
        shapes[f"{prefix}mlp.gate.weight"] = (experts, width)
        shapes[f"{prefix}mlp.gate.e_score_correction_bias"] = (experts,)
        inner = fields["moe_intermediate_size"]
        for expert in range(experts):
            shapes |= mlp_shapes(f"{prefix}mlp.experts.{expert}", width, inner)
        shapes |= mlp_shapes(f"{prefix}mlp.shared_experts", width, inner * fields["n_shared_experts"])
    prefix = f"model.layers.{layers}."
    return shapes | {
        f"{prefix}enorm.weight": (width,),
        f"{prefix}hnorm.weight": (width,),
        f"{prefix}eh_proj.weight": (width, 2 * width),
        f"{prefix}embed_tokens.weight": (vocab, width),
        f"{prefix}shared_head.head.weight": (vocab, width),
        f"{prefix}shared_head.norm.weight": (width,),
    }


def mlp_shapes(prefix: str, width: int, inner: int) -> dict[str, tuple[int, ...]]:
    """The three matrices of a gated MLP."""
    return {
        f"{prefix}.gate_proj.weight": (inner, width),
        f"{prefix}.up_proj.weight": (inner, width),
        f"{prefix}.down_proj.weight": (width, inner),
    }


def qwen_shapes(fields: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of an untied qwen2 checkpoint."""
    width, heads, kv_heads = fields["hidden_size"], fields["num_attention_heads"], fields["num_key_value_heads"]
    head_dim, vocab = width // heads, fields["vocab_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocab, width),
        "model.norm.weight": (width,),
        "lm_head.weight": (vocab, width),
    }
    for layer in range(fields["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        for short, count in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
            shapes[f"{prefix}self_attn.{short}_proj.weight"] = (count * head_dim, width)
            shapes[f"{prefix}self_attn.{short}_proj.bias"] = (count * head_dim,)
        shapes[f"{prefix}self_attn.o_proj.weight"] = (width, heads * head_dim)
        shapes |= {f"{prefix}{name}.weight": (width,) for name in ("input_layernorm", "post_attention_layernorm")}
        shapes |= mlp_shapes(f"{prefix}mlp", width, fields["intermediate_size"])
    return shapes


def random_tensors(fields: Mapping[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """Random values for every tensor, in the checkpoint's type; what the MTP layer repeats is repeated."""
    deepseek = fields["model_type"] == "deepseek_v3"
    shapes = deepseek_shapes(fields) if deepseek else qwen_shapes(fields)
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in shapes.items():
        value = rng.normal(scale=0.1, size=shape).astype(np.float32) + ("norm" in name)
        wide = name.endswith("e_score_correction_bias")
        tensors[name] = value.astype(np.float32 if wide else DTYPES[fields["torch_dtype"]])
    if deepseek:
        prefix = f"model.layers.{fields['num_hidden_layers']}."
        tensors[prefix + "embed_tokens.weight"] = tensors["model.embed_tokens.weight"]
        tensors[prefix + "shared_head.head.weight"] = tensors["lm_head.weight"]
    return tensors


def byte_tokenizer() -> tokenizers.Tokenizer:
    """Every byte is a token; then bos, eos, and the two speakers of R1's chat format."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([BOS, EOS, "<｜User｜>", "<｜Assistant｜>"])
    return tokenizer


def write_folder(
    path: Path, fields: Mapping[str, Any], tensors: Mapping[str, np.ndarray], shards: int = 1, *, scatter: bool = False
) -> None:
    """Writes config.json, tokenizer and tensors.

    shards: number of files; with more than one there is an index. scatter: deal the tensors out one by one, so that a
    matrix and its scales are in different files; otherwise files follow each other.
    """
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(fields, indent=2), encoding="utf-8")
    byte_tokenizer().save(str(path / "tokenizer.json"))
    names = {"bos_token": BOS, "eos_token": EOS, "tokenizer_class": "LlamaTokenizerFast", "model_max_length": 256}
    (path / "tokenizer_config.json").write_text(json.dumps(names), encoding="utf-8")
    if shards == 1:
        safetensors.numpy.save_file(dict(tensors), path / "model.safetensors", {"format": "pt"})
        return
    weight_map = {}
    for i, name in enumerate(tensors):
        number = i % shards if scatter else i * shards // len(tensors)
        weight_map[name] = f"model-{number + 1:05d}-of-{shards:06d}.safetensors"
    for file in sorted(set(weight_map.values())):
        part = {name: tensors[name] for name in tensors if weight_map[name] == file}
        safetensors.numpy.save_file(part, path / file, {"format": "pt"})
    total = sum(value.nbytes for value in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
