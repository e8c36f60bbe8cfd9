"""DeepSeek-R1 as published, stage by stage; see `configs/r1.py`.

What is `given` stands in a paper, with its section (R1v2: arXiv 2501.12948 v2; Nature: the Nature version and its
Methods); all else is r1jax's choice, stated here. Not published among others: optimiser, betas, decay, clip norm and
warm-up of RL, the length of reasoning RL ("until convergence"), how many cold-start samples ("thousands"), thresholds
of the filters, samples per prompt of rejection sampling, the start of the reward models' heads.

Inputs: the released folder of DeepSeek-V3-Base and questions under `data/` where the command is given, general samples
in the workdir as `general_samples.jsonl`, an endpoint that serves DeepSeek-V3 as writer and judge.
The base's folder needs the tokenizer files of the released R1: DeepSeek-V3's have placeholders where <think> and
</think> are, and the chat format wants each of them as one token.
Hardware: 64 x 8 H800, 198 hours for R1-Zero and about 80 for R1 (R1v2 B.4.4).
"""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

from r1jax.provenance import given

BASE = {
    "kind": "huggingface",
    "path": "DeepSeek-V3-Base",
    "preset": given("deepseek_v3_671b", "R1v2 2: DeepSeek-V3-Base"),
    "overrides": {"dtype": "bfloat16", "remat": "block"},
}
MESH = {"data": 1, "fsdp": -1, "expert": 64, "tensor": 1}
CHAT = {"template": given("chat", "R1v1 2.3.1; released chat template"), "chat_format": "r1", "width": 2048}
BOXED = given("boxed", "R1v1 2.2.2: the final answer in a box")
JUDGE = {
    "kind": "endpoint",
    "url": "http://localhost:8000/v1",
    "model": given("deepseek-v3", "R1v1 2.3.3, R1v2 B.3: DeepSeek-V3 writes and judges"),
    "max_new_tokens": 8192,
}
CONTEXT = 32_768
BENCHMARKS = ("data/aime_2024.jsonl", "data/math_500.jsonl")
DOMAINS = {
    "math": {"comparison": "expressions"},
    "code": {"comparison": "code"},
    "stem": {"comparison": "math"},
    "logic": {"comparison": "math"},
}
# The same where answers stand in a box: a program is all of what follows the thought.
BOXED_DOMAINS = {**DOMAINS, "code": {"comparison": "code", "pattern": "reply"}}


def pipeline(seed: int) -> dict:
    """All stages of R1, R1-Zero first."""
    steps = (
        ("zero", "rl", r1_zero(seed)),
        ("cold_start", "curate", cold_start(seed)),
        ("dev1", "sft", sft(seed, "cold_start")),
        ("dev2", "rl", reasoning_rl(seed)),
        ("rejection", "curate", rejection(seed)),
        ("dev3", "sft", sft(seed, "rejection")),
        ("preferences", "preferences", preferences(seed)),
        ("helpful_model", "reward_model", reward_model(seed, "pairwise", "helpfulness", "pairs.jsonl")),
        ("safety_model", "reward_model", reward_model(seed, "pointwise", "safety", "labels.jsonl")),
        ("r1", "rl", all_scenarios(seed)),
        *((f"evaluate_{name}", "evaluate", evaluate(name)) for name in ("zero", "dev1", "dev2", "dev3", "r1")),
    )
    return {
        "stage": "pipeline",
        "title": "DeepSeek-R1",
        "only": "",
        "reuse": (),
        "steps": tuple({"name": name, "stage": stage, "config": config} for name, stage, config in steps),
    }


def _from(step: str) -> dict:
    return {"kind": "stage", "path": f"../{step}"}


def r1_zero(seed: int) -> dict:
    """`configs/r1_zero.py`, as a step."""
    config = runpy.run_path(str(Path(__file__).parents[1] / "r1_zero.py"))["paper"](seed)
    return {name: value for name, value in config.items() if name != "stage"}


def _rl(seed: int, init: str, rollouts: Any, source: dict, **more: Any) -> dict:
    """What both RL phases of R1 share (R1v2 3.2: "most parameters" are kept in the second)."""
    return {
        "seed": seed,
        "rollouts": rollouts,
        "init": _from(init),
        "mesh": MESH,
        "source": source,
        "prompt": CHAT,
        "decoding": _decoding(given(1.0, "R1v2 3.2.1"), given(CONTEXT, "R1v2 3.2.1")),
        "prompts": given(512, "R1v2 3.2.1: 32 questions an update, 16 updates"),
        "group_size": given(16, "R1v2 3.2.1"),
        "minibatches": given(16, "R1v2 3.2.1: 8,192 outputs in 16 mini-batches"),
        "inner_epochs": given(1, "R1v2 3.2.1"),
        "row_length": 2048 + CONTEXT,
        "micro_rows": 512,
        "preset": "r1",
        "grpo": {
            "clip_low": given(10.0, "R1v2 3.2.1"),
            "clip_high": given(10.0, "R1v2 3.2.1"),
            "kl_coefficient": given(0.001, "R1v2 3.2.1"),
        },
        "optimizer": {"learning_rate": given(3e-6, "R1v2 3.2.1"), "weight_decay": 0.0},
        "reference_every": given(400, "R1v2 3.2.1"),
        "evaluation": {"every": 0},
        "checkpoint_every": 1,
        **more,
    }


def _decoding(temperature: Any, max_new_tokens: Any = CONTEXT, **more: Any) -> dict:
    return {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "chunk": 2048,
        "batch_size": 8192,
        **more,
    }


def _questions(name: str, **more: Any) -> dict:
    return {
        "kind": "jsonl",
        "path": f"data/{name}.jsonl",
        "columns": {"domain": "domain", "language": "language"},
        **more,
    }


def cold_start(seed: int) -> dict:
    """Right, readable answers of R1-Zero, rewritten by DeepSeek-V3 (R1v2 B.3.2)."""
    return {
        "seed": seed,
        "init": _from("zero"),
        "mesh": MESH,
        "source": _questions("cold_start_prompts"),
        "prompt": {"template": given("r1_zero", "R1v2 B.3.2: answers of R1-Zero"), "width": 2048},
        "decoding": _decoding(given(1.0, "R1v2 B.3.2")),
        "rewards": {"accuracy": 1.0, "format": 1.0, "domains": DOMAINS},
        "samples": 16,
        "per_prompt": 1,
        "filters": {
            "wrong": given(True, "R1v2 B.3.2: right answers, sympy for mathematics"),
            "repetition": 0.2,  # given is that there is a filter, not its threshold
            "wrong_language": 0.9,
        },
        "rewrite": {"kind": given("model", "R1v2 B.3.2: DeepSeek-V3"), "pattern": "boxed", "model": JUDGE},
        "decontaminate": _decontaminate(),
    }


def _decontaminate() -> dict:
    sources = tuple(
        {"kind": "jsonl", "path": path, "layout": layout}
        for path, layout in zip(BENCHMARKS, ("aime", "math_500"), strict=True)
    )
    return {"n": given(10, "R1v2 B.3: 10-gram overlap"), "sources": sources}


def sft(seed: int, data: str) -> dict:
    """Cold start and second fine-tuning alike, both from DeepSeek-V3-Base (R1v2 B.4.2)."""
    return {
        "seed": seed,
        "init": BASE,
        "mesh": MESH,
        "data": ({"path": f"../{data}/samples_kept.jsonl"},),
        "epochs": given(2.0, "R1v2 B.4.2: two to three; R1v1: two"),
        "rows": given(128, "R1v2 B.4.2: batch 128; here packed rows"),
        "micro_rows": 128,
        "row_length": given(CONTEXT, "R1v2 B.4.2"),
        "too_long": "drop",  # a response of all 32,768 tokens does not fit with its prompt; they are counted
        "prompt": CHAT,
        "optimizer": {
            "learning_rate": given(5e-5, "R1v2 B.4.2"),
            "schedule": given("cosine", "R1v2 B.4.2"),
            "final_fraction": given(0.1, "R1v2 B.4.2: to 5e-6"),
        },
    }


def reasoning_rl(seed: int) -> dict:
    """RL with accuracy, format and language (R1v2 2.2, 3.2.1). Its length is not published: a stated default."""
    rewards = {
        "pattern": BOXED,
        "accuracy": given(1.0, "Nature, eq. 4"),
        "format": given(1.0, "Nature, eq. 4: the same weight"),
        "language": given(1.0, "Nature, eq. 7: added directly"),
        "domains": BOXED_DOMAINS,
    }
    return _rl(seed, "dev1", 400, _questions("reasoning_prompts"), rewards=rewards)


def rejection(seed: int) -> dict:
    """600k reasoning samples of the converged policy, joined with 200k general ones (R1v2 B.3.3).

    Its questions are more than those of RL: some of them only a judge can grade (domain "judged").
    """
    return {
        "seed": seed,
        "init": _from("dev2"),
        "mesh": MESH,
        "source": _questions("rejection_prompts"),
        "prompt": CHAT,
        "decoding": _decoding(1.0),  # not published
        "rewards": {
            "pattern": BOXED,
            "domains": {
                **BOXED_DOMAINS,
                "judged": {"comparison": given("judge", "R1v2 B.3.3: V3 judges part of them")},
            },
            "judge": JUDGE,
        },
        "samples": 16,
        "per_prompt": 8,
        "filters": {
            "wrong": given(True, "R1v2 B.3.3"),
            "mixed_language": 0.9,  # given is that mixed languages, long paragraphs and code blocks are dropped
            "paragraph": 4000,
            "code_block": given(True, "R1v2 B.3.3"),
        },
        "general": ({"kind": "samples", "path": "../general_samples.jsonl"},),
        "proportions": given({"reasoning": 3.0, "general": 1.0}, "R1v2 B.3.3: 600k and 200k"),
        "decontaminate": _decontaminate(),
    }


def preferences(seed: int) -> dict:
    """Pairs (helpfulness) and labels (safety); DeepSeek-V3 judges (Nature, Methods)."""
    return {
        "seed": seed,
        "init": _from("dev3"),
        "mesh": MESH,
        "source": _questions("general_prompts"),
        "prompt": CHAT,
        "decoding": _decoding(1.0, 6000),  # with its prompt within the 8,192 tokens that a reward model learns from
        "samples": 4,
        "judge": {**JUDGE, "temperature": 0.7},  # at 0 two votes in the same order would be one vote
        "times": given(4, "Nature, Methods: asked four times, in random order"),
        "min_gap": given(1.0, "Nature, Methods: kept if the difference exceeds 1"),
    }


def reward_model(seed: int, kind: str, view: str, file: str) -> dict:
    """A scalar head on R1's architecture (Nature, Methods)."""
    source = "Nature, Methods"
    return {
        "seed": seed,
        "init": _from("dev3"),
        "mesh": MESH,
        "kind": given(kind, source),
        "view": given(view, f"{source}: the summary for helpfulness, all of the response for safety"),
        "data": (f"../preferences/{file}",),
        "epochs": given(1, source),
        "batch": given(256, source),
        "max_length": given(8192, source),
        "micro_rows": 64,
        "prompt": CHAT,
        "optimizer": {"learning_rate": given(6e-6, source)},
    }


def all_scenarios(seed: int) -> dict:
    """RL for all scenarios: 1,700 updates, general data and preference rewards in the last 400 (R1v2 3.2.2)."""
    return _rl(
        seed,
        "dev3",
        given(106, "R1v2 3.2.2: 1,700 updates, in whole rollouts of 16"),
        _questions("reasoning_prompts"),
        decoding=_decoding(given(0.7, "R1v2 3.2.2"), given(CONTEXT, "R1v2 3.2: kept")),
        late={
            "from_rollout": given(81, "R1v2 3.2.2: the last 400 updates"),
            "source": _questions("all_prompts"),
        },
        rewards={
            "pattern": BOXED,
            "accuracy": given(1.0, "Nature, eq. 8-10"),
            "format": given(1.0, "Nature, eq. 8-10"),
            "language": given(1.0, "Nature, eq. 8: for reasoning and other data"),
            "reward_models": {"helpfulness": "../helpful_model", "safety": "../safety_model"},
            "domains": {
                **BOXED_DOMAINS,
                "helpful": {"comparison": "none", "accuracy": 0.0, "helpfulness": given(1.0, "Nature, eq. 9-10")},
                "harmless": {"comparison": "none", "accuracy": 0.0, "safety": given(1.0, "Nature, eq. 9-10")},
            },
        },
    )


def evaluate(name: str) -> dict:
    """AIME 2024 by the paper's protocol (R1v1, section 3)."""
    zero = name == "zero"
    benchmark = {"name": given("aime", "R1v1 Table 4"), "path": BENCHMARKS[0]}
    if zero:  # its template asks for answer tags
        benchmark |= {"suffix": "", "pattern": "answer"}
    trained_on = {"zero": (), "dev1": ("cold_start",), "dev2": ("cold_start",)}.get(name, ("rejection",))
    return {
        "init": _from(name),
        "mesh": MESH,
        "benchmark": benchmark,
        "samples": given(64, "R1v2 4: 64 for AIME and GPQA"),
        "prompt": {"template": "r1_zero", "width": 2048} if zero else CHAT,
        "decoding": _decoding(given(0.6, "R1v1 3"), given(CONTEXT, "R1v1 3"), top_p=given(0.95, "R1v1 3")),
        "contamination": tuple(f"../{step}/samples_kept.jsonl" for step in trained_on),
    }
