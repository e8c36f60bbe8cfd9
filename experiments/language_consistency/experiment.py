"""R1-Zero on the tiny model with and without the language consistency reward.

python -m tools.sweep experiments/language_consistency
python -m tools.report experiments/language_consistency
"""

from __future__ import annotations

from pathlib import Path

from r1jax.evaluation.experiments import Arm, Claim, Curve, Experiment, Metric

PAPER = "R1v2, supplement B.6"

EXPERIMENT = Experiment(
    title="Language consistency",
    question="Does the language consistency reward keep responses in the prompt's language, and what does it cost?",
    config=Path(__file__).parents[2] / "configs" / "r1_zero.py",
    argument="tiny,seed={seed}",
    arms={
        "off": Arm({"r1_zero.rewards.language": 0.0}),
        "on": Arm({"r1_zero.rewards.language": 1.0}),
    },
    seeds=(0, 1, 2),
    metrics=(
        Metric("words in the prompt's language", "evaluate_zero/language"),
        Metric("pass@1", "evaluate_zero/pass_at_1"),
        Metric("cons@16", "evaluate_zero/cons_at_k"),
        Metric("well-formed", "evaluate_zero/format"),
        Metric("response length", "evaluate_zero/length_mean", "tokens"),
        Metric("words in the prompt's language, before RL", "evaluate_base/language"),
        Metric("pass@1, before RL", "evaluate_base/pass_at_1"),
    ),
    curves=(
        Curve("Words in the prompt's language", "r1_zero", "language"),
        Curve("Accuracy of the training batches", "r1_zero", "accuracy"),
        Curve("Held-out pass@1", "r1_zero", "eval/pass_at_1"),
        Curve("Response length", "r1_zero", "length_mean", "tokens"),
    ),
    claims=(
        Claim(
            "Without the reward, language consistency gets worse as training goes on; with it, it stays stable.",
            f"{PAPER} (DeepSeek-R1-Distill-Qwen-7B, curves without numbers)",
            "words in the prompt's language",
            "on",
            "off",
        ),
        Claim(
            "Mathematics is as good with the reward as without (programs are slightly worse).",
            PAPER,
            "pass@1",
            "on",
            "off",
            "equal",
        ),
    ),
)
get_config = EXPERIMENT.get_config
