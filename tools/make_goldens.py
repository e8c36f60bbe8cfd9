"""Makes tests/goldens/*.npz: tiny random-weight models of the transformers library with their logits.

    python tools/make_goldens.py [--out tests/goldens]

Needs the extra `parity` (torch, transformers). Each file holds the configuration (JSON), the weights under their
names in the library, tokens [B, T], float32 logits [B, T, V] and, for mixtures, the sorted experts of every token
[M, B, T, A]; with a multi-token prediction module also its logits [B, T-1, V] and experts (the last of the M, for
T-1 tokens and one of padding). Norm scales, biases and the selection bias are random too, so that none can be
forgotten unnoticed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers.modeling_layers import MtpLayer

BATCH, LENGTH, VOCAB = 2, 24, 96
DENSE = {"vocab_size": VOCAB, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 32,
    "beta_slow": 1,
}
MLA = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 3,
    "first_k_dense_replace": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 10,
    "n_routed_experts": 8,
    "max_position_embeddings": 128,
    "n_group": 4,
}

# name -> (configuration class, model class, configuration)
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "deepseek_v3": (
        "DeepseekV3Config",
        "DeepseekV3ForCausalLM",
        MLA
        | {
            "q_lora_rank": 24,
            "n_shared_experts": 2,
            "num_experts_per_tok": 3,
            "topk_group": 2,
            "norm_topk_prob": True,
            "routed_scaling_factor": 2.5,
            "num_nextn_predict_layers": 1,
            "rms_norm_eps": 1e-5,
            "rope_parameters": YARN | {"mscale": 0.8, "mscale_all_dim": 1.0},
        },
    ),
    "deepseek_v3_no_mscale": (
        "DeepseekV3Config",
        "DeepseekV3ForCausalLM",
        MLA
        | {
            "q_lora_rank": None,
            "n_shared_experts": 1,
            "num_experts_per_tok": 2,
            "topk_group": 1,
            "norm_topk_prob": False,
            "routed_scaling_factor": 1.0,
            "num_nextn_predict_layers": 0,
            "rope_parameters": YARN,
        },
    ),
    "deepseek_v2": (
        "DeepseekV2Config",
        "DeepseekV2ForCausalLM",
        MLA
        | {
            "q_lora_rank": None,
            "n_shared_experts": 2,
            "num_experts_per_tok": 3,
            "topk_group": 2,
            "topk_method": "group_limited_greedy",
            "routed_scaling_factor": 4.0,
            "rope_parameters": YARN | {"mscale": 0.707, "mscale_all_dim": 0.707},
        },
    ),
    "llama": (
        "LlamaConfig",
        "LlamaForCausalLM",
        DENSE
        | {
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 128,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500.0,
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        },
    ),
    "qwen2": (
        "Qwen2Config",
        "Qwen2ForCausalLM",
        DENSE
        | {
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "tie_word_embeddings": True,
            "max_position_embeddings": 128,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
    ),
    "qwen3": (
        "Qwen3Config",
        "Qwen3ForCausalLM",
        DENSE
        | {
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "tie_word_embeddings": False,
            "max_position_embeddings": 128,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
        },
    ),
}


def randomize(model: torch.nn.Module, generator: torch.Generator) -> None:
    """Random values for every parameter and selection bias: norms about 1, biases and matrices about 0."""
    scales = {"norm": 0.2, "e_score_correction_bias": 0.1, "mlp.gate.weight": 0.5}
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith("inv_freq"):
                continue
            scale = next((scale for part, scale in scales.items() if part in name), 0.15)
            noise = torch.randn(tensor.shape, generator=generator) * scale
            noise = (noise * 512).round() / 512  # few digits: the files compress well
            tensor.copy_(1.0 + noise if "norm" in name else noise)


def mtp_logits(
    model: Any, tokens: torch.Tensor, generator: torch.Generator, record: Callable[..., None]
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Logits [B, T-1, V] of a random prediction module on top of the model, and its weights as on disk."""
    decoder, config = model.model, model.config
    layer, norm = type(decoder.layers[-1]), type(decoder.norm)
    module = MtpLayer(config, layer, norm, layer_idx=config.num_hidden_layers).float().eval()
    randomize(module, generator)
    module.mtp_block.mlp.gate.register_forward_hook(record)
    with torch.no_grad():
        hidden = decoder(tokens, use_cache=False).last_hidden_state[:, :-1]
        embedded = decoder.embed_tokens(tokens[:, 1:])
        positions = torch.arange(1, tokens.shape[1])[None]
        mask = torch.full((positions.shape[1],) * 2, float("-inf")).triu(1)[None, None]
        rotation = decoder.rotary_emb(hidden, positions)
        logits = model.lm_head(module(embedded, hidden, rotation, mask, positions, None))
    weights = {}
    for name, value in module.state_dict().items():
        name = name.removeprefix("mtp_block.").replace("post_norm", "shared_head.norm")
        weights[f"weights/model.layers.{config.num_hidden_layers}.{name}"] = value.numpy()
    return logits, weights


def make(name: str, seed: int) -> dict[str, np.ndarray]:
    """The content of one golden file."""
    config_class, model_class, fields = MODELS[name]
    config = getattr(transformers, config_class)(**fields)
    config._attn_implementation = "eager"
    model = getattr(transformers, model_class)(config).float().eval()
    generator = torch.Generator().manual_seed(seed)
    randomize(model, generator)
    experts: list[np.ndarray] = []

    def record(module: torch.nn.Module, inputs: Any, outputs: tuple[torch.Tensor, ...]) -> None:
        chosen = outputs[2].reshape(BATCH, -1, outputs[2].shape[-1]).sort(-1).values.numpy().astype(np.int32)
        experts.append(np.pad(chosen, ((0, 0), (0, LENGTH - chosen.shape[1]), (0, 0))))

    gates = [module for module_name, module in model.named_modules() if module_name.endswith("mlp.gate")]
    hooks = [gate.register_forward_hook(record) for gate in gates]
    tokens = torch.randint(config.vocab_size, (BATCH, LENGTH), generator=generator)
    with torch.no_grad():
        logits = model(tokens, use_cache=False).logits
    golden = {f"weights/{key}": value.numpy() for key, value in model.state_dict().items()}
    if config.tie_word_embeddings:
        del golden["weights/lm_head.weight"]
    for hook in hooks:
        hook.remove()
    if fields.get("num_nextn_predict_layers"):
        logits_mtp, weights = mtp_logits(model, tokens, generator, record)
        golden |= weights | {"mtp_logits": logits_mtp.numpy()}
    golden |= {"tokens": tokens.numpy().astype(np.int32), "logits": logits.numpy()}
    if experts:
        golden["experts"] = np.stack(experts)
    defaults = {"model_type": config.model_type, "rms_norm_eps": config.rms_norm_eps}
    golden["config"] = np.array(json.dumps(defaults | fields))
    golden["made_with"] = np.array(f"transformers {transformers.__version__}, torch {torch.__version__}")
    return golden


def main() -> None:
    """Writes every golden file and prints its size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("tests/goldens"))
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(MODELS):
        path = out / f"{name}.npz"
        np.savez_compressed(path, **make(name, seed))
        print(f"{path}  {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
