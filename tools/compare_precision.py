"""bfloat16 against float32 on the same parameters: logits, and the gap between sampler and trainer in each.

    python -m tools.compare_precision --checkpoint DIR_OR_GGUF [--prompts FILE]

Answers are drawn with the float32 model, and every token of prompt and answer is run through both. Then each model
draws for itself, and its trainer's log-probs of the drawn tokens are compared with the sampler's: the importance ratio
of the first update should be 1, and this is how far it is from that.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from r1jax.algorithms.logprobs import token_logprobs
from r1jax.data.packing import PackedPolicy, pack_policy
from r1jax.data.tokenizer import Tokenizer
from r1jax.model.config import ModelConfig
from r1jax.model.heads import unembedding
from r1jax.model.transformer import Transformer
from r1jax.sampling.sampler import Sampler, SamplingConfig, left_pad
from r1jax.sharding import MeshConfig, make_mesh
from r1jax.stages.policy import load_policy
from r1jax.types import Params, Rollout
from tools.command_line import run_tool
from tools.sample import find_source

PRECISIONS = ("float32", "bfloat16")
PROMPTS = (
    "User: 3 + 8 + 5 = ? Assistant:",
    "User: Which two of 4, 9, 13 and 20 make 24? Assistant:",
    "The first step is to",
    "Once upon a time there was",
)


def draw(model: ModelConfig, params: Params, prompts: Sequence[Sequence[int]], new_tokens: int, seed: int) -> Rollout:
    """One answer of `new_tokens` tokens to each prompt at temperature 1."""
    tokens, lengths = left_pad(prompts, max(map(len, prompts)))
    config = SamplingConfig(new_tokens, record_experts=model.num_moe_layers > 0)
    sampler = Sampler(model, None, config, tokens.shape[1], len(prompts))
    return sampler.sample(params, tokens, lengths, jax.random.split(jax.random.key(seed), len(prompts)))


def pack(rollout: Rollout) -> PackedPolicy:
    """Prompts and answers as the trainer sees them, one to a row."""
    row = int((rollout.prompt_lengths + rollout.response_lengths).max())
    return pack_policy(
        rollout.prompt_tokens, rollout.prompt_lengths, rollout.response_tokens, rollout.response_lengths, row
    )


def run_trainer(model: ModelConfig, params: Params, policy: PackedPolicy) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits [R, T, V], log-probs of the targets [R, T], and experts chosen [R, T, M, A] (M may be 0)."""

    @jax.jit
    def forward(params: Params) -> tuple[jax.Array, jax.Array, jax.Array]:
        output: Any = Transformer(model).apply({"params": params}, policy.tokens, policy.positions, policy.segment_ids)
        logprobs, _ = token_logprobs(output.hidden, unembedding(params, model), jnp.asarray(policy.targets))
        return output.logits, logprobs, jnp.moveaxis(output.aux.experts, 0, 2)

    logits, logprobs, experts = (np.asarray(array) for array in forward(params))
    return logits, logprobs, experts


def gap(rollout: Rollout, policy: PackedPolicy, logprobs: np.ndarray, experts: np.ndarray) -> dict[str, float]:
    """How far the sampler's log-probs are from the trainer's on the tokens that were drawn, in nats."""
    drawn = policy.to_responses >= 0
    distance = np.abs(rollout.sampler_logprobs - policy.gather_from_rows(logprobs))[drawn]
    found = {"gap_mean": float(distance.mean()), "gap_max": float(distance.max())}
    if rollout.experts is not None:
        trained = np.sort(policy.gather_from_rows(experts, fill=-1), axis=-1)
        other = np.any(trained != np.sort(np.asarray(rollout.experts), axis=-1), axis=(-1, -2))
        found["other_experts"] = float(other[drawn].mean())
    return found


def compare(
    model: ModelConfig, params: Params, prompts: Sequence[Sequence[int]], new_tokens: int, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Precision -> what was measured. `params` are used as they are; only the type of the computation changes."""
    models = {precision: dataclasses.replace(model, dtype=precision) for precision in PRECISIONS}
    shared = draw(models["float32"], params, prompts, new_tokens, seed)
    policy = pack(shared)
    real = policy.segment_ids > 0
    reference, reference_logprobs, _ = run_trainer(models["float32"], params, policy)
    found: dict[str, dict[str, float]] = {}
    for precision, cfg in models.items():
        logits, logprobs, _ = run_trainer(cfg, params, policy)
        own = shared if precision == "float32" else draw(cfg, params, prompts, new_tokens, seed)
        own_policy = pack(own)
        _, own_logprobs, own_experts = run_trainer(cfg, params, own_policy)
        difference = np.abs(logits - reference)[real]
        found[precision] = {
            "logits_max": float(difference.max()),
            "logits_mean": float(difference.mean()),
            "largest_logit": float(np.abs(reference[real]).max()),
            "logprobs_mean": float(np.abs(logprobs - reference_logprobs)[policy.loss_mask > 0].mean()),
            "same_best_token": float((logits.argmax(-1) == reference.argmax(-1))[real].mean()),
            **gap(own, own_policy, own_logprobs, own_experts),
        }
    return found


def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Texts as prompts, after the beginning-of-document token if there is one."""
    bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    return [bos + tokenizer.encode(text) for text in texts]


def main() -> None:
    """Parses the command line, measures, prints JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="as for tools.sample: folder, .gguf file, or smollm2")
    parser.add_argument("--prompts", type=pathlib.Path, help="text file with one prompt a line")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    texts = args.prompts.read_text(encoding="utf-8").splitlines() if args.prompts else PROMPTS
    policy = load_policy(find_source(args.checkpoint), pathlib.Path(), make_mesh(MeshConfig(data=1), jax.devices()[:1]))
    found = compare(policy.model, policy.params, encode(policy.tokenizer, texts), args.new_tokens, args.seed)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    run_tool(main)
