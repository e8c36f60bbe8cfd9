"""What an RL run says of itself: its cost, its stability, and the figures of its evaluations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from r1jax.metrics import elapsed_seconds
from r1jax.model.config import ModelConfig
from r1jax.model.flops import forward_flops, sampling_flops, training_flops
from r1jax.stages.rl_config import RLConfig

EVALUATION_FIGURES = (
    *("pass_at_1", "pass_at_1_se", "cons_at_k", "length_mean", "format", "language", "truncation_rate"),
    *("single_language", "readable_summary"),
)


def evaluation_row(figures: Mapping[str, Any]) -> dict[str, float]:
    """What of an in-run evaluation goes to metrics.jsonl, as `eval/...`; of several domains pass@1 each."""
    values = {f"eval/{name}": figures[name] for name in EVALUATION_FIGURES}
    if len(figures["by_domain"]) > 1:
        values |= {f"eval/{name}/pass_at_1": of["pass_at_1"] for name, of in figures["by_domain"].items()}
    return {name: value for name, value in values.items() if value is not None}


def summarize_rows(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a whole run says of itself: how far sampler and trainer were apart, and how much was compiled when."""
    ends = [row for row in rows if "logprob_gap_max" in row]
    summary: dict[str, Any] = {
        "logprob_gap_mean": float(np.mean([row["logprob_gap_mean"] for row in ends])),
        "logprob_gap_max": max(row["logprob_gap_max"] for row in ends),
        "kl_ref": ends[-1]["kl_ref"],
        "entropy": ends[-1]["entropy"],
    }
    if "expert_difference" in ends[0]:
        summary["expert_difference"] = float(np.mean([row["expert_difference"] for row in ends]))
    compiled = [int(row["time"]["compilations"]) for row in ends]
    return summary | {"time": {"compilations_first_rollout": compiled[0], "compilations_later": sum(compiled[1:])}}


def cost_of(rows: Sequence[Mapping[str, Any]], config: RLConfig, model: ModelConfig) -> dict[str, float]:
    """What a whole run took: sampling, a pass each for old and reference log-probs, and the updates. Evaluations apart.

    tokens_trained counts prompts too, as often as they are packed.
    """
    ends = [row for row in rows if "packed_tokens" in row]
    responses = len(ends) * config.prompts * config.group_size
    packed = sum(row["packed_tokens"] for row in ends)
    sampled = sum(row["length_mean"] for row in ends) * config.prompts * config.group_size
    prompts = sum(row["sampled_tokens"] for row in ends) - sampled  # each is read once
    response, prompt = sampled / responses, prompts / (len(ends) * config.prompts)
    trained = packed * config.inner_epochs
    flops = sampling_flops(model, sampled, response, prompt) + forward_flops(model, prompts, prompt)
    flops += 2 * forward_flops(model, packed, prompt + response) + training_flops(model, trained, prompt + response)
    return {
        "tokens_trained": trained,
        "tokens_sampled": sampled,
        "seconds": elapsed_seconds(rows),
        "flops": flops,
    }
