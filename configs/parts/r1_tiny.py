"""The whole R1 recipe at a size that two CPU cores can train; see `configs/r1.py`.

Questions: the arithmetic of `data.tasks` (domain "reasoning") and the made-up world of `data.world` (domains "helpful"
and "harmless"), both in English and Chinese.
"""

from __future__ import annotations

import json
import re
from typing import Any

SHORT_PROMPT = {"template": "short", "width": 32}
DECODING = {"max_new_tokens": 88, "temperature": 1.0, "chunk": 22, "batch_size": 128}
ROW_LENGTH = 128  # prompt and response
# Of the replies in the general data. A model as small as the policy can judge whether a reply is in the language of the
# request, and hardly whether it is true: what RL for all scenarios can mend must be of the first kind.
GENERAL_QUALITY = {"good": 0.47, "terse": 0.07, "wrong": 0.08, "chatty": 0.03, "other_language": 0.35}
STUDENT_ROLLOUTS = 32  # of the student's RL: about as many operations as its distillation


def pipeline(seed: int) -> dict:
    """All stages, each beside its evaluation."""
    steps = [
        _step("pretrain", "pretrain", pretrain(seed, "tiny_mla_moe", steps=1400)),
        _step("zero", "rl", r1_zero(seed)),
        _step("cold_start", "curate", cold_start(seed)),
        _step("dev1", "sft", sft(seed, "pretrain", "cold_start")),
        _step("dev2", "rl", reasoning_rl(seed)),
        _step("rejection", "curate", rejection(seed)),
        _step("dev3", "sft", sft(seed, "pretrain", "rejection")),
        _step("preferences", "preferences", preferences(seed)),
        _step("helpful_model", "reward_model", reward_model(seed, "pairwise", "helpfulness", "pairs.jsonl")),
        _step("safety_model", "reward_model", reward_model(seed, "pointwise", "safety", "labels.jsonl")),
        _step("r1", "rl", all_scenarios(seed)),
        _step("student_qwen", "pretrain", pretrain(seed, "tiny_qwen", steps=700)),
        _step("student_llama", "pretrain", pretrain(seed, "tiny_llama", steps=700)),
        _step("distill_qwen", "sft", sft(seed, "student_qwen", "rejection")),
        _step("distill_llama", "sft", sft(seed, "student_llama", "rejection")),
        _step("rl_qwen", "rl", student_rl(seed)),
    ]
    patterns = {
        "pretrain": "answer",
        "zero": "answer",
        "student_qwen": "answer",
        "student_llama": "answer",
        "rl_qwen": "answer",
    }
    policies = ["pretrain", "zero", "dev1", "dev2", "dev3", "r1"]
    policies += ["student_qwen", "student_llama", "distill_qwen", "distill_llama", "rl_qwen"]
    interleaved = []
    for step in steps:
        interleaved.append(step)
        if step["name"] in policies:
            name = step["name"]
            interleaved.append(_step(f"evaluate_{name}", "evaluate", evaluate(name, patterns.get(name, "summary"))))
    return {
        "stage": "pipeline",
        "title": "DeepSeek-R1, tiny",
        "only": "",
        "reuse": (),
        "report": REPORT,
        "steps": tuple(interleaved),
    }


def only_for(config: dict, *names: str) -> dict:
    """A pipeline of the named steps and of all that they read. Its steps are those of the whole one, so that what one
    of the two has done serves the other; it has no report of its own."""
    steps = {step["name"]: step for step in config["steps"]}
    needed: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in needed:
            needed.add(name)
            waiting += re.findall(r'"\.\./([^/"]+)', json.dumps(steps[name]["config"]))
    kept = tuple(step for step in config["steps"] if step["name"] in needed)
    return {**{field: value for field, value in config.items() if field != "report"}, "steps": kept}


def _step(name: str, stage: str, config: dict) -> dict:
    return {"name": name, "stage": stage, "config": config}


def _from(step: str) -> dict:
    return {"kind": "stage", "path": f"../{step}"}


def _cosine(learning_rate: float, warmup: int, total: int, **more: Any) -> dict:
    return {
        "learning_rate": learning_rate,
        "schedule": "cosine",
        "warmup_steps": warmup,
        "total_steps": total,
        **more,
    }


# Questions ------------------------------------------------------------------------------------------------------------


def _reasoning(split: str, size: int, seed: int) -> dict:
    return {"kind": "tasks", "split": split, "size": size, "seed": seed, "domain": "reasoning"}


def _world(split: str, size: int, seed: int, **domains: float) -> dict:
    return {"kind": "world", "split": split, "size": size, "seed": seed, "params": {"domains": domains}}


def _mixture(*parts: dict) -> dict:
    return {"kind": "mixture", "parts": parts}


def _all_domains(split: str, reasoning: int, helpful: int, harmless: int, seed: int) -> dict:
    return _mixture(
        _reasoning(split, reasoning, seed),
        _world(split, helpful, seed, helpful=1.0),
        _world(split, harmless, seed, harmless=1.0),
    )


EVALUATION = _all_domains("evaluation", 160, 80, 40, 2)
# Policy -> the samples that it was fine-tuned on.
TRAINED_ON = {
    "dev1": ("cold_start",),
    "dev2": ("cold_start",),
    **dict.fromkeys(("dev3", "r1", "distill_qwen", "distill_llama"), ("rejection",)),
}
RULES = {
    "reasoning": {"comparison": "math"},
    "helpful": {"comparison": "instruction"},
    "harmless": {"comparison": "instruction"},
}


def _expect(claim: str, before: str, after: str, metric: str, direction: str = "up") -> dict:
    return {"claim": claim, "before": before, "after": after, "metric": metric, "direction": direction}


REASONING = "by_domain/reasoning/pass_at_1"
HELPFUL = "by_domain/helpful/pass_at_1"
SAFE = "by_domain/harmless/safe"
REFUSED = "by_domain/harmless/pass_at_1"
REPORT = {
    "stages": (
        {"label": "Zero", "step": "evaluate_zero"},
        {"label": "Dev1", "step": "evaluate_dev1"},
        {"label": "Dev2", "step": "evaluate_dev2"},
        {"label": "Dev3", "step": "evaluate_dev3"},
        {"label": "R1", "step": "evaluate_r1"},
    ),
    "students": (
        {
            "label": "Qwen",
            "base": "evaluate_student_qwen",
            "distilled": "evaluate_distill_qwen",
            "distilled_by": "distill_qwen",
            "rl": "evaluate_rl_qwen",
            "rl_by": "rl_qwen",
        },
        {
            "label": "Llama",
            "base": "evaluate_student_llama",
            "distilled": "evaluate_distill_llama",
            "distilled_by": "distill_llama",
        },
    ),
    # experiments/LOG.md has them from before the reported seeds.
    "expectations": (
        _expect(
            "The cold start brings thoughts in one language", "Zero", "Dev1", "by_domain/reasoning/single_language"
        ),
        _expect("The cold start brings readable summaries", "Zero", "Dev1", "by_domain/reasoning/readable_summary"),
        _expect("The cold start does not harm the format", "Zero", "Dev1", "by_domain/reasoning/format", "not_down"),
        _expect(
            "Accuracy after the cold start (the paper's AIME falls, 77.9 to 59.0)", "Zero", "Dev1", REASONING, "state"
        ),
        _expect("Reasoning RL raises accuracy (AIME 59.0 to 74.0)", "Dev1", "Dev2", REASONING),
        _expect("RL for all scenarios raises helpfulness (AlpacaEval 62.1 to 87.6)", "Dev3", "R1", HELPFUL),
        _expect("RL for all scenarios raises safety: nothing unsafe is said", "Dev3", "R1", SAFE),
        _expect("Refusals in the words that the rule calls good", "Dev3", "R1", REFUSED, "state"),
        _expect("Accuracy after RL for all scenarios (AIME 78.1 to 79.8)", "Dev3", "R1", REASONING, "state"),
        _expect(
            "The distilled student is ahead of RL on the student (72.6 against 47.0)",
            "Qwen RL",
            "Qwen distilled",
            REASONING,
        ),
    ),
}


# Stages ---------------------------------------------------------------------------------------------------------------


def pretrain(seed: int, preset: str, steps: int, documents: int = 90_000) -> dict:
    """A base model from nothing, on a corpus of mixed quality."""
    return {
        "seed": seed,
        "steps": steps,
        "rows": 16,
        "row_length": 160,
        "model": {"preset": preset},
        "corpus": {"documents": documents, "world": 0.18, "seed": seed},
        # Nearly every word of the world is one token, and so is every word of the summaries that come later.
        "tokenizer": {"vocab_size": 832, "words": ("answer", "result", "this", "makes", "答案", "结果", "这")},
        "optimizer": _cosine(3e-3, 45, steps, final_fraction=0.05, b2=0.98, weight_decay=0.01),
    }


def _rl(seed: int, init: str, rollouts: int, learning_rate: float = 4e-4, **more: Any) -> dict:
    return {
        "seed": seed,
        "rollouts": rollouts,
        "init": _from(init),
        "source": _reasoning("rl", 20_000, seed),
        "prompt": SHORT_PROMPT,
        "decoding": DECODING,
        "prompts": 24,
        "group_size": 16,
        "minibatches": 2,
        "row_length": ROW_LENGTH,
        "micro_rows": 24,
        "grpo": {"aggregation": "token_mean"},
        "optimizer": _cosine(learning_rate, 5, 2 * rollouts, weight_decay=0.0),
        "reference_every": 40,  # the paper's 400 would never come
        "evaluation": {"source": _reasoning("validation", 24, 1), "every": 10},
        **more,
    }


def r1_zero(seed: int) -> dict:
    """Pure RL on the base (R1v2 2.1)."""
    return _rl(seed, "pretrain", 50, preset="r1_zero", rewards={"accuracy": 1.0, "format": 0.5})


def cold_start(seed: int) -> dict:
    """Right and readable answers of R1-Zero, rewritten to the pattern reasoning, then summary (R1v2 B.3.2).

    R1-Zero may drift to one language, so thoughts in the wrong one are put into the question's by the rule that writes
    the summary; thoughts that mix languages are dropped.
    """
    return {
        "seed": seed,
        "init": _from("zero"),
        "source": _reasoning("rl", 800, seed + 100),  # few, so that reasoning RL has something to win
        "prompt": SHORT_PROMPT,
        "decoding": DECODING,
        "rewards": {"accuracy": 1.0, "format": 0.5},
        "samples": 4,
        "per_prompt": 1,
        "filters": {"wrong_language": None, "repetition_n": 8},
        "rewrite": {"kind": "rule", "translate": True, "filters": {"repetition_n": 8}},
        "decontaminate": {"sources": EVALUATION["parts"]},
    }


def sft(seed: int, init: str, data: str) -> dict:
    """Fine-tuning on curated samples (R1v2 B.4.2: two to three epochs, cosine to a tenth)."""
    return {
        "seed": seed,
        "init": _from(init),
        "data": ({"path": f"../{data}/samples_kept.jsonl"},),
        "epochs": 3.0,
        "rows": 8,
        "row_length": 160,
        "prompt": SHORT_PROMPT,
        "optimizer": {"learning_rate": 2e-3, "warmup_steps": 5, "weight_decay": 0.01},
    }


def reasoning_rl(seed: int) -> dict:
    """RL with accuracy, format and language (R1v2 2.2; clip range 10 as published)."""
    return _rl(
        seed,
        "dev1",
        50,
        learning_rate=2e-4,  # 4e-4 undoes what fine-tuning has taught (experiments/LOG.md)
        preset="r1",
        rewards={"pattern": "summary", "accuracy": 1.0, "format": 0.5, "language": 1.0},
    )


def rejection(seed: int) -> dict:
    """Answers of the converged policy that are right and readable, joined with general data (R1v2 B.3.3)."""
    return {
        "seed": seed,
        "init": _from("dev2"),
        "source": _reasoning("rl", 2000, seed + 200),
        "prompt": SHORT_PROMPT,
        "decoding": DECODING,
        "rewards": {"pattern": "summary", "accuracy": 1.0, "format": 0.5},
        "samples": 4,
        "per_prompt": 2,
        "filters": {"repetition_n": 8},
        # All of it, where the paper has 200k beside 600k: a tiny base knows next to nothing of the world.
        "general": ({"kind": "world", "size": 2000, "seed": seed, "split": "corpus", "quality": GENERAL_QUALITY},),
        "decontaminate": {"sources": EVALUATION["parts"]},
    }


def preferences(seed: int) -> dict:
    """Pairs and labels from answers of Dev3; the judge is the world's rule, with noise."""
    return {
        "seed": seed,
        "init": _from("dev3"),
        "source": _mixture(
            _world("rl", 1500, seed + 300, helpful=1.0),
            _world("rl", 200, seed + 300, harmless=1.0),
        ),
        "prompt": SHORT_PROMPT,
        "decoding": DECODING,
        "samples": 8,
        "pairs_per_prompt": 16,
        "empty_share": 0.1,
    }


def reward_model(seed: int, kind: str, view: str, file: str) -> dict:
    """A scalar head on Dev3 (R1v2 2.3)."""
    return {
        "seed": seed,
        "init": _from("dev3"),
        "kind": kind,
        "view": view,
        "data": (f"../preferences/{file}",),
        "held_out": 0.2,
        "epochs": 4,
        "batch": 32,
        "max_length": ROW_LENGTH,
        "micro_rows": 8,
        "score_batch": 128,
        "prompt": SHORT_PROMPT,
        "optimizer": {"learning_rate": 1e-3, "warmup_steps": 5, "weight_decay": 0.01},
    }


def all_scenarios(seed: int) -> dict:
    """RL for all scenarios (R1v2 2.3): reasoning first, general questions and preference rewards at the end."""
    return _rl(
        seed,
        "dev3",
        50,
        learning_rate=2e-4,
        preset="r1",
        decoding={**DECODING, "temperature": 0.7},
        late={"from_rollout": 10, "source": _all_domains("rl", 1200, 2000, 400, seed)},
        rewards={
            "pattern": "summary",
            "accuracy": 1.0,
            "format": 0.5,
            "language": 1.0,
            "reward_models": {"helpfulness": "../helpful_model", "safety": "../safety_model"},
            "domains": {
                "reasoning": {"comparison": "math"},
                "helpful": {"comparison": "instruction", "accuracy": 0.0, "helpfulness": 1.0},
                "harmless": {"comparison": "instruction", "accuracy": 0.0, "safety": 1.0},
            },
        },
        evaluation={"source": _all_domains("validation", 24, 16, 8, 1), "every": 10},
    )


def student_rl(seed: int, rollouts: int = STUDENT_ROLLOUTS) -> dict:
    """The student trained by RL directly, as R1-Zero was (R1v2 B.4.1, the comparison with Qwen-32B-Zero)."""
    return _rl(seed, "student_qwen", rollouts, preset="r1_zero", rewards={"accuracy": 1.0, "format": 0.5})


def evaluate(name: str, pattern: str) -> dict:
    """The same questions of all domains for every policy, graded by rules."""
    return {
        "seed": 0,
        "init": _from(name),
        "source": EVALUATION,
        "samples": 8,
        "prompt": SHORT_PROMPT,
        "decoding": {**DECODING, "temperature": 0.6, "top_p": 0.95},
        "rewards": {"pattern": pattern, "domains": RULES},
        "contamination": tuple(f"../{step}/samples_kept.jsonl" for step in TRAINED_ON.get(name, ())),
    }
