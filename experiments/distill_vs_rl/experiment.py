"""The tiny dense student fine-tuned on the pipeline's samples, and trained by RL directly.

python -m tools.sweep experiments/distill_vs_rl
python -m tools.report experiments/distill_vs_rl
"""

from __future__ import annotations

from pathlib import Path

from r1jax.evaluation.experiments import Arm, Claim, Curve, Experiment, Metric

REASONING = "evaluate_{arm}/by_domain/reasoning"
PAPER = "R1v1 section 4.1 (Qwen2.5-32B: AIME 72.6 against 47.0, MATH-500 94.3 against 91.6)"

EXPERIMENT = Experiment(
    title="Distillation against RL",
    question="Is a small model better fine-tuned on a larger one's reasoning than trained by RL directly?",
    config=Path(__file__).parent / "pipeline.py",
    argument="{seed}",
    arms={
        "distill_qwen": Arm(),
        "rl_qwen": Arm(run="distill_qwen"),
        "rl_qwen_long": Arm(run="distill_qwen"),
    },
    seeds=(0, 1, 2),
    metrics=(
        Metric("pass@1", f"{REASONING}/pass_at_1"),
        Metric("cons@8", f"{REASONING}/cons_at_k"),
        Metric("readable summaries", f"{REASONING}/readable_summary"),
        Metric("thoughts in one language", f"{REASONING}/single_language"),
        Metric("words in the prompt's language", f"{REASONING}/language"),
        Metric("response length", f"{REASONING}/length_mean", "tokens"),
        Metric("operations to train the student", "{arm}/cost/flops", "FLOPs"),
        Metric("time to train the student", "{arm}/cost/seconds", "s"),
        Metric("pass@1 of the student before", "evaluate_student_qwen/by_domain/reasoning/pass_at_1"),
        Metric("pass@1 of the teacher", "evaluate_dev2/by_domain/reasoning/pass_at_1"),
    ),
    curves=(
        Curve("Held-out pass@1 during RL", "{arm}", "eval/pass_at_1"),
        Curve("Accuracy of the training batches", "{arm}", "accuracy"),
        Curve("Response length during RL", "{arm}", "length_mean", "tokens"),
    ),
    claims=(
        Claim(
            "Distilling a larger model gives better results than large-scale RL on the smaller one.",
            f"{PAPER}; here at about equal operations of training (the table has both)",
            "pass@1",
            "distill_qwen",
            "rl_qwen",
        ),
        Claim("The same, against RL that goes on for longer.", PAPER, "pass@1", "distill_qwen", "rl_qwen_long"),
        Claim("The same, by majority vote (AIME 83.3 against 60.0).", PAPER, "cons@8", "distill_qwen", "rl_qwen_long"),
    ),
)
get_config = EXPERIMENT.get_config
