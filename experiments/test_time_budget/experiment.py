"""Accuracy of the tiny R1-Zero when its chains of thought are cut after some tokens.

python -m tools.sweep experiments/test_time_budget
python -m tools.report experiments/test_time_budget
"""

from __future__ import annotations

import runpy
from pathlib import Path

from r1jax.evaluation.experiments import Arm, Claim, Experiment, Metric, Trend

PIPELINE = Path(__file__).parent / "pipeline.py"
BUDGETS = tuple(map(str, runpy.run_path(str(PIPELINE))["BUDGETS"]))
ROW = "evaluate_budgets/budgets/budget={arm}"
# What the page calls a difficulty -> its name in summary.json.
DIFFICULTIES = {
    **{f"sums of {steps} steps": f"chain_sum, {steps} steps" for steps in (3, 4, 5)},
    **{f"searches, {steps} tries": f"pair_search, {steps} steps" for steps in (1, 3, 6)},
}

EXPERIMENT = Experiment(
    title="Thinking budgets",
    question="Does accuracy rise with the tokens that a response may think, and do harder questions need more of them?",
    config=PIPELINE,
    argument="{seed}",
    # One evaluation cuts the same chains at every budget.
    arms={BUDGETS[0]: Arm(), **{name: Arm(run=BUDGETS[0]) for name in (*BUDGETS[1:], "none")}},
    seeds=(0, 1, 2),
    metrics=(
        Metric("pass@1", f"{ROW}/pass_at_1"),
        Metric("cons@16", f"{ROW}/cons_at_k"),
        Metric("thought", f"{ROW}/thinking_tokens", "tokens"),
        Metric("chains cut", f"{ROW}/share_cut"),
        Metric("well-formed", f"{ROW}/format"),
        *(Metric(f"pass@1, {told}", f"{ROW}/by_group/{name}/pass_at_1") for told, name in DIFFICULTIES.items()),
        *(
            Metric(f"response to {told}", f"{ROW}/by_group/{DIFFICULTIES[told]}/length_mean", "tokens")
            for told in ("sums of 3 steps", "searches, 6 tries")
        ),
    ),
    trends=(
        Trend("Accuracy by thinking budget", "budget in tokens", {"pass@1": "pass@1", "cons@16": "cons@16"}),
        Trend("pass@1 by difficulty", "budget in tokens", {told: f"pass@1, {told}" for told in DIFFICULTIES}),
    ),
    claims=(
        Claim(
            "Accuracy rises with the tokens spent on thinking.",
            "R1v2, test-time compute scaling: R1 solves 61.8 % of 366 contest problems with 8,793 tokens on average, "
            "GPT-4o 24.7 % with 711",
            "pass@1",
            "none",
            BUDGETS[0],
        ),
    ),
)
get_config = EXPERIMENT.get_config
