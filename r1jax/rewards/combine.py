"""All rewards of a completion and their weighted sum."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from r1jax.rewards.answer import exact_match, extract_final_answer
from r1jax.rewards.format import format_reward
from r1jax.rewards.language import language_reward
from r1jax.rewards.math_accuracy import accuracy
from r1jax.types import Example, Score, Status

RewardFunction = Callable[[str, Example], Score]
VerifyFunction = Callable[[Example, str], Score]  # (example, final answer): a task's own verifier

REWARDS: dict[str, RewardFunction] = {
    "accuracy": accuracy,
    "format": format_reward,
    "language": language_reward,
}
# How "accuracy" compares answers where the task has no verifier of its own. "expressions" needs processes of its own,
# which the stage opens (`math_grader.open_grader`).
COMPARISONS: dict[str, RewardFunction | None] = {"math": accuracy, "exact": exact_match, "expressions": None}


@dataclasses.dataclass(frozen=True)
class RewardConfig:
    """Weights of the rewards in the total, and how answers are compared.

    The defaults are R1-Zero's: R_rule = R_accuracy + R_format with the same weight, no language reward.
    """

    accuracy: float = 1.0
    format: float = 1.0
    language: float = 0.0  # 1.0 in the R1 paper's later phases
    comparison: str = "math"  # a key of COMPARISONS
    grading_seconds: float = 5.0  # "expressions": longest time for one answer; then it has no grade
    grading_workers: int = 2  # "expressions": processes
    partial_credit: bool = False  # False: a verifier's value below 1 counts as 0, so that listing answers earns nothing

    def __post_init__(self) -> None:
        if self.comparison not in COMPARISONS:
            raise ValueError(f"comparison must be one of {sorted(COMPARISONS)}, got {self.comparison!r}")
        if not 0 < self.grading_seconds < math.inf:
            raise ValueError(f"grading_seconds: {self.grading_seconds}; more than 0")
        if self.grading_workers < 1:
            raise ValueError(f"grading_workers: {self.grading_workers}; at least 1")
        for name, weight in self.weights.items():
            if not math.isfinite(weight):
                raise ValueError(f"the weight of {name} must be finite, got {weight}")
        if not any(self.weights.values()):
            raise ValueError("every reward has weight 0: there is nothing to learn from")

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each of `REWARDS`."""
        return {name: getattr(self, name) for name in REWARDS}


@dataclasses.dataclass(frozen=True)
class Scores:
    """Every reward of one completion. `total` is None if a reward that counts could not be graded: no grade, not 0."""

    total: float | None
    parts: Mapping[str, Score]

    @property
    def graded(self) -> bool:
        """Whether the completion may take part in training."""
        return self.total is not None


def _verified(completion: str, example: Example, verify: VerifyFunction, partial_credit: bool) -> Score:
    answer = extract_final_answer(completion)
    if answer is None:
        return Score(0.0, reason="no single final answer")
    score = verify(example, answer)
    if not score.graded:
        return score
    if not math.isfinite(score.value):
        return Score(0.0, Status.UNGRADABLE, f"the verifier of task {example.task!r} returned {score.value}")
    if score.value < 1 and not partial_credit:
        return Score(0.0, reason=score.reason or "another answer")
    return score


def needs_verifier(example: Example) -> bool:
    """True for tasks whose own verifier is the grader: `reasoning_gym/<name>`."""
    return example.task.split("/")[0] == "reasoning_gym"


def score_completion(
    completion: str,
    example: Example,
    config: RewardConfig,
    verify: VerifyFunction | None = None,
    compare: RewardFunction | None = None,
) -> Scores:
    """All of `REWARDS` for one completion, also those of weight 0 (they are measures then), and the weighted total.

    `verify` grades the final answer of tasks that bring their own verifier, `compare` is the comparison "expressions".
    ValueError where one of them is needed and missing.
    """
    parts = {name: reward(completion, example) for name, reward in REWARDS.items() if name != "accuracy"}
    if needs_verifier(example):
        if verify is None:
            raise ValueError(f"task {example.task!r} is graded by its own verifier, but none was given")
        parts["accuracy"] = _verified(completion, example, verify, config.partial_credit)
    else:
        compare = COMPARISONS[config.comparison] or compare
        if compare is None:
            raise ValueError(f"the comparison {config.comparison!r} needs a grader, but none was given")
        parts["accuracy"] = compare(completion, example)
    counted = {name: weight for name, weight in config.weights.items() if weight}
    if not all(parts[name].graded for name in counted):
        return Scores(None, parts)
    return Scores(sum(weight * parts[name].value for name, weight in counted.items()), parts)


def totals_and_mask(scores: Sequence[Scores]) -> tuple[np.ndarray, np.ndarray]:
    """Totals [N] float32 and whether each counts [N] bool; the total of one that does not is NaN, so that no use of it
    goes unnoticed."""
    totals = np.array([math.nan if score.total is None else score.total for score in scores], np.float32)
    return totals, np.isfinite(totals)


def summarize(scores: Sequence[Scores]) -> dict[str, float]:
    """Metrics of a batch: the mean of the total and of each reward over the completions that were graded (left out if
    none was); how many answers were right and wrong; under "ungradable" how many completions have no total, and per
    reward how many were ungradable and timed out."""
    metrics = {"ungradable": float(sum(not score.graded for score in scores))}
    totals = [score.total for score in scores if score.total is not None]
    if totals:
        metrics["reward"] = float(np.mean(totals))
    for name in scores[0].parts:
        values = [score.parts[name].value for score in scores if score.parts[name].graded]
        if values:
            metrics[name] = float(np.mean(values))
    accuracies = [score.parts["accuracy"] for score in scores if "accuracy" in score.parts]
    graded = [score for score in accuracies if score.graded]
    metrics["right/accuracy"] = float(sum(score.value >= 1 for score in graded))
    metrics["wrong/accuracy"] = len(graded) - metrics["right/accuracy"]
    for status in (Status.UNGRADABLE, Status.TIMED_OUT):
        for name in scores[0].parts:
            metrics[f"{status.value}/{name}"] = float(sum(score.parts[name].status is status for score in scores))
    return metrics
