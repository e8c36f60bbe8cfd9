"""Makes tests/goldens/*.npz: tiny random-weight checkpoints of the transformers library and what it computes from them.

    python tools/make_goldens.py [--out tests/goldens]

Needs the extra `parity` (torch, transformers). Each file holds

    config           the text of config.json as `save_pretrained` writes it
    weights/<name>   the tensors under the names they have on disk there
    tokens           [B, T] int32
    logits           [B, T, V] float32
    experts          [M, B, T, A] int32, mixtures only: each token's experts, sorted
    greedy           [B, 16] int32, what `generate` puts behind tokens[:, :9]
    greedy_logprobs  [B, 16] float32, their log-probs

and, of checkpoints with a multi-token prediction module, `mtp_logits` [B, T-1, V] and the module's experts (the last
of the M, for T-1 tokens and one of padding). The module's tensors have the names of the released checkpoints. Norm
scales, biases and the selection bias are random too, so that none can be forgotten unnoticed.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import safetensors.torch
import torch
import transformers
from transformers.modeling_layers import MtpLayer, MtpModel

BATCH, LENGTH = 2, 24
PROMPT, NEW_TOKENS = 9, 16
SMALLEST_GAP = 1e-3  # between the best and the second-best logit of every greedy token

# Both kinds of scaling get an original window in which some frequencies are kept, some blended and some stretched.
PLAIN = {"rope_type": "default", "rope_theta": 10000.0}
YARN = {"rope_type": "yarn", "rope_theta": 100.0, "factor": 8.0, "original_max_position_embeddings": 64}
BETAS = {"beta_fast": 2.0, "beta_slow": 0.25}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}

DENSE = {
    "vocab_size": 96,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rope_parameters": PLAIN,
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
    "q_lora_rank": None,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 10,
    "n_routed_experts": 8,
    "n_group": 1,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "max_position_embeddings": 512,
    "rope_parameters": PLAIN,
}
V3 = MLA | {"model_type": "deepseek_v3", "num_nextn_predict_layers": 0, "routed_scaling_factor": 2.5}
V2 = MLA | {"model_type": "deepseek_v2", "topk_method": "group_limited_greedy"}
EIGHT_GROUPS = {"n_routed_experts": 16, "moe_intermediate_size": 8, "n_group": 8, "topk_group": 3}

SHAPES: dict[str, dict[str, Any]] = {
    # q low-rank, neighbours rotated, 4 groups, normalised gates, 2 shared, yarn with differing mscale, MTP
    "deepseek_v3": V3
    | {
        "q_lora_rank": 24,
        "n_group": 4,
        "topk_group": 2,
        "num_experts_per_tok": 3,
        "n_shared_experts": 2,
        "num_nextn_predict_layers": 1,
        "rms_norm_eps": 1e-5,
        "rope_parameters": YARN | BETAS | {"mscale": 0.8, "mscale_all_dim": 1.0},
    },
    # halves rotated, 8 groups, normalised gates, 1 shared, yarn with equal mscale, two dense layers, MTP
    "deepseek_v3_halves": V3
    | EIGHT_GROUPS
    | {
        "rope_interleave": False,
        "q_lora_rank": 24,
        "first_k_dense_replace": 2,
        "num_experts_per_tok": 4,
        "num_nextn_predict_layers": 1,
        "rope_parameters": YARN | BETAS | {"mscale": 1.0, "mscale_all_dim": 1.0},
    },
    # full-rank q, neighbours rotated, 1 group, plain gates, 1 shared, yarn without mscale and betas
    "deepseek_v3_plain_gates": V3 | {"norm_topk_prob": False, "routed_scaling_factor": 1.0, "rope_parameters": YARN},
    # full-rank q, halves rotated, 8 groups, plain gates, 2 shared, no frequency scaling, tied embeddings
    "deepseek_v3_tied": V3
    | EIGHT_GROUPS
    | {"rope_interleave": False, "norm_topk_prob": False, "n_shared_experts": 2, "tie_word_embeddings": True},
    # softmax scores, full-rank q, 4 groups, 2 shared, yarn with equal mscale
    "deepseek_v2": V2
    | {
        "n_group": 4,
        "topk_group": 2,
        "num_experts_per_tok": 3,
        "n_shared_experts": 2,
        "routed_scaling_factor": 4.0,
        "rope_parameters": YARN | BETAS | {"mscale": 0.707, "mscale_all_dim": 0.707},
    },
    # softmax scores, q low-rank, 8 groups, 1 shared, yarn with differing mscale, no dense layer
    "deepseek_v2_q_lora": V2
    | EIGHT_GROUPS
    | {
        "q_lora_rank": 24,
        "num_hidden_layers": 2,
        "first_k_dense_replace": 0,
        "rope_parameters": YARN | BETAS | {"mscale": 1.0, "mscale_all_dim": 0.5},
    },
    # softmax scores, the best of all experts without groups, 2 shared, no frequency scaling
    "deepseek_v2_greedy": V2 | {"topk_method": "greedy", "n_shared_experts": 2, "num_experts_per_tok": 3},
    # llama3 scaling, head_dim other than width / heads, untied
    "llama": DENSE | {"model_type": "llama", "head_dim": 16, "rms_norm_eps": 1e-5, "rope_parameters": LLAMA3},
    # no frequency scaling, head_dim not given, one key head per query head, tied
    "llama_tied": DENSE | {"model_type": "llama", "num_key_value_heads": 4, "tie_word_embeddings": True},
    # qkv bias, tied, an odd number of heads on one key head
    "qwen2": DENSE
    | {"model_type": "qwen2", "num_attention_heads": 3, "num_key_value_heads": 1, "tie_word_embeddings": True},
    # qkv bias, untied
    "qwen2_untied": DENSE | {"model_type": "qwen2"},
    # qkv bias, yarn without mscale in grouped-query attention
    "qwen2_yarn": DENSE | {"model_type": "qwen2", "rope_parameters": YARN},
    # qk norm, head_dim other than width / heads, untied
    "qwen3": DENSE | {"model_type": "qwen3", "head_dim": 16, "rope_parameters": PLAIN | {"rope_theta": 1e6}},
    # qk norm, head_dim equal to width / heads, one key head, tied
    "qwen3_tied": DENSE
    | {"model_type": "qwen3", "head_dim": 12, "num_key_value_heads": 1, "tie_word_embeddings": True},
    # qk norm, head_dim other than width / heads, yarn without mscale
    "qwen3_yarn": DENSE | {"model_type": "qwen3", "head_dim": 16, "rope_parameters": YARN | BETAS},
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


def unfused(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """A module's tensor under its names on disk: all experts' matrices in one [E, out, in] become one each."""
    stem, _, last = name.rpartition(".")
    parts = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
    if not stem.endswith("experts"):
        return {name: tensor}
    return {
        f"{stem}.{expert}.{part}.weight": piece
        for expert, matrix in enumerate(tensor)
        for part, piece in zip(parts[last], matrix.chunk(len(parts[last])), strict=True)
    }


def mtp_tensors(model: Any, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """A random prediction module's tensors, named as in the released checkpoints: one layer more than the model has."""
    decoder, config = model.model, model.config
    module = MtpLayer(config, type(decoder.layers[-1]), type(decoder.norm), layer_idx=config.num_hidden_layers)
    randomize(module.float(), generator)
    tensors = {"embed_tokens.weight": decoder.embed_tokens.weight, "shared_head.head.weight": model.lm_head.weight}
    for name, tensor in module.state_dict().items():
        tensors |= unfused(name.removeprefix("mtp_block.").replace("post_norm", "shared_head.norm"), tensor)
    prefix = f"model.layers.{config.num_hidden_layers}"
    return {f"{prefix}.{name}": tensor.detach().clone().contiguous() for name, tensor in tensors.items()}


def write_checkpoint(fields: dict[str, Any], generator: torch.Generator, folder: Path) -> None:
    """Writes config.json and model.safetensors of a random model."""
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**fields)).float()
    randomize(model, generator)
    model.save_pretrained(folder)
    if fields.get("num_nextn_predict_layers"):
        path = folder / "model.safetensors"
        tensors = safetensors.torch.load_file(path) | mtp_tensors(model, generator)
        safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})


@contextlib.contextmanager
def recorded_experts(model: torch.nn.Module) -> Iterator[list[torch.Tensor]]:
    """A list that gets the experts [B * T, A] of each MoE layer when the model runs."""
    chosen: list[torch.Tensor] = []
    gates = [module for name, module in model.named_modules() if name.endswith("mlp.gate")]
    hooks = [gate.register_forward_hook(lambda _, inputs, outputs: chosen.append(outputs[2])) for gate in gates]
    yield chosen
    for hook in hooks:
        hook.remove()


def sorted_experts(chosen: torch.Tensor) -> np.ndarray:
    """[B * T', A] -> [B, T, A] int32, sorted; zeros for the T - T' tokens that are not there."""
    experts = chosen.reshape(BATCH, -1, chosen.shape[-1]).sort(-1).values.numpy().astype(np.int32)
    return np.pad(experts, ((0, 0), (0, LENGTH - experts.shape[1]), (0, 0)))


def mtp_logits(model: Any, tokens: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Logits [B, T-1, V] of the prediction module in the model's checkpoint on tokens [B, T], and its experts."""
    # The library finds the module by this pattern, which has the released checkpoint's number of layers in it.
    model._keys_to_ignore_on_load_unexpected = [rf"model\.layers\.{model.config.num_hidden_layers}\."]
    module = MtpModel.from_pretrained(model).eval()
    hidden = model.model(tokens, use_cache=False).last_hidden_state
    positions = torch.arange(1, LENGTH)[None]
    with recorded_experts(module) as experts:
        state = module.forward_layer(0, hidden[:, :-1], positions, None, input_ids=tokens[:, 1:])
    return model.lm_head(state), experts


def greedy(model: Any, prompts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, float]:
    """What `generate` puts behind prompts [B, P]: tokens and log-probs [B, 16], and the narrowest win of a token."""
    model.generation_config = transformers.GenerationConfig(do_sample=False, max_new_tokens=NEW_TOKENS, pad_token_id=0)
    output = model.generate(
        prompts, attention_mask=torch.ones_like(prompts), output_logits=True, return_dict_in_generate=True
    )
    tokens = output.sequences[:, prompts.shape[1] :]
    logprobs = torch.stack(output.logits, dim=1).log_softmax(-1)
    best = logprobs.topk(2).values
    return tokens, logprobs.gather(-1, tokens[..., None])[..., 0], (best[..., 0] - best[..., 1]).min().item()


@torch.no_grad()
def reference(folder: Path, tokens: torch.Tensor) -> tuple[dict[str, np.ndarray], float]:
    """What the library computes from the checkpoint on tokens [B, T], and the narrowest win of a greedy token."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with recorded_experts(model) as experts:
        output = model(tokens, use_cache=False)
    arrays = {"tokens": tokens.numpy().astype(np.int32), "logits": output.logits.numpy()}
    if getattr(model.config, "num_nextn_predict_layers", 0):
        logits, more = mtp_logits(model, tokens)
        arrays["mtp_logits"] = logits.numpy()
        experts += more
    if experts:
        arrays["experts"] = np.stack([sorted_experts(chosen) for chosen in experts])
    continuation, logprobs, gap = greedy(model, tokens[:, :PROMPT])
    arrays |= {"greedy": continuation.numpy().astype(np.int32), "greedy_logprobs": logprobs.numpy()}
    return arrays, gap


def make(fields: dict[str, Any], seed: int, folder: Path) -> dict[str, np.ndarray]:
    """Writes a random checkpoint into the folder and returns what the library computes from it.

    The first seed from `seed` on is taken with which no greedy token is nearly a tie and every expert is used.
    """
    for number in itertools.count(seed):
        generator = torch.Generator().manual_seed(number)
        write_checkpoint(fields, generator, folder)
        tokens = torch.randint(fields["vocab_size"], (BATCH, LENGTH), generator=generator)
        arrays, gap = reference(folder, tokens)
        used = len(np.unique(arrays.get("experts", [])))
        if gap > SMALLEST_GAP and used == fields.get("n_routed_experts", 0):
            return arrays
    raise AssertionError("unreachable: seeds do not end")


def golden(fields: dict[str, Any], seed: int) -> dict[str, np.ndarray]:
    """The content of one golden file."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        arrays = make(fields, seed, folder)
        weights = safetensors.numpy.load_file(folder / "model.safetensors")
        config = (folder / "config.json").read_text(encoding="utf-8")
    arrays |= {f"weights/{name}": tensor for name, tensor in weights.items()}
    made_with = f"transformers {transformers.__version__}, torch {torch.__version__}"
    return arrays | {"config": np.array(config), "made_with": np.array(made_with)}


def main() -> None:
    """Writes every golden file and prints its size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("tests/goldens"))
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for number, (name, fields) in enumerate(SHAPES.items()):
        path = out / f"{name}.npz"
        np.savez_compressed(path, **golden(fields, seed=100 * number))
        print(f"{path}  {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
