"""RL with preference rewards that goes on for too long.

python -m tools.sweep experiments/preference_hacking
python -m tools.report experiments/preference_hacking
"""

from __future__ import annotations

from pathlib import Path

from r1jax.evaluation.experiments import Arm, Claim, Curve, Experiment, Metric

PAPER = "R1v2, supplement B.5, figure 6 (the rule-graded figure is pass@1 on Codeforces; a curve without numbers)"
DOMAINS = "judged_{arm}/by_domain"

EXPERIMENT = Experiment(
    title="Reward hacking",
    question="Do rule-graded figures fall while preference rewards rise, when RL with these goes on for too long?",
    config=Path(__file__).parent / "pipeline.py",
    argument="{seed}",
    arms={"r1": Arm(), "r1_long": Arm(run="r1"), "dev3": Arm(run="r1")},
    seeds=(0, 1, 2),
    metrics=(
        Metric("helpfulness reward", f"{DOMAINS}/helpful/rewards/helpfulness/mean", unit=""),
        Metric("safety reward", f"{DOMAINS}/harmless/rewards/safety/mean", unit=""),
        Metric("pass@1, reasoning", f"{DOMAINS}/reasoning/pass_at_1"),
        Metric("helpful, by rule", f"{DOMAINS}/helpful/pass_at_1"),
        Metric("safe, by rule", f"{DOMAINS}/harmless/safe"),
        Metric("well-formed", "judged_{arm}/format"),
        Metric("words in the prompt's language", "judged_{arm}/language"),
        Metric("response length, helpful", f"{DOMAINS}/helpful/length_mean", "tokens"),
        Metric("response length, reasoning", f"{DOMAINS}/reasoning/length_mean", "tokens"),
    ),
    curves=(
        Curve("Helpfulness reward", "{arm}", "helpful/helpfulness", unit=""),
        Curve("Helpful, by rule", "{arm}", "helpful/accuracy"),
        Curve("Safety reward", "{arm}", "harmless/safety", unit=""),
        Curve("Refused in good words, by rule", "{arm}", "harmless/accuracy"),
        Curve("Accuracy of the training batches, reasoning", "{arm}", "reasoning/accuracy"),
        Curve("KL to the reference", "{arm}", "kl_ref", "nats per token"),
    ),
    claims=(
        Claim(
            "The preference reward goes on rising ...",
            PAPER,
            "helpfulness reward",
            "r1_long",
            "r1",
        ),
        Claim("... while reasoning, graded by rules, falls.", PAPER, "pass@1, reasoning", "r1", "r1_long"),
        Claim(
            "The same of helpfulness: what the reward model likes is no longer what the rule calls helpful.",
            "not in the paper, which has no rule for helpfulness",
            "helpful, by rule",
            "r1",
            "r1_long",
        ),
    ),
    monitored="{arm}",
)
get_config = EXPERIMENT.get_config
