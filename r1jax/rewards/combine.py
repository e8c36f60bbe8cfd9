"""What a completion is rewarded for: weights, by domain, and the weighted sum of the parts."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from r1jax.rewards.answer import exact_match
from r1jax.rewards.code.code_accuracy import Language
from r1jax.rewards.format import format_reward
from r1jax.rewards.instructions import instruction_score
from r1jax.rewards.isolation.confinement import Limits
from r1jax.rewards.isolation.grade_service import check_address
from r1jax.rewards.judges.judge import JudgeConfig
from r1jax.rewards.languages.language import language_reward
from r1jax.rewards.mathematics.math_accuracy import accuracy
from r1jax.rewards.patterns import PATTERNS
from r1jax.rewards.shaping import repetition_share, tag_count_reward
from r1jax.types import Example, Score, Status

RewardFunction = Callable[[str, Example], Score]
VerifyFunction = Callable[[Example, str], Callable[[], Score]]
"""Starts a task's own verifier on an example and a final answer; the result waits for the score."""

# Parts that a rule reads off the text, given the form it should have. They are measured even where they weigh nothing.
MEASURED = {"format": format_reward, "language": language_reward}
CODE_PARTS = ("lint", "runs", "speed")  # of a program, besides whether it is right: comparison "code" only
MODEL_PARTS = ("helpfulness", "safety")  # by scalar reward models
# How "accuracy" compares answers where the task has no verifier of its own. Those without a function need something to
# be opened first (`grading.Grading`): processes, a sandbox, a judge.
COMPARISONS: dict[str, RewardFunction | None] = {
    "math": accuracy,
    "exact": exact_match,
    "instruction": instruction_score,
    "expressions": None,
    "code": None,
    "judge": None,
}
NONE = "none"  # no accuracy at all: domains without right answers


@dataclasses.dataclass(frozen=True)
class CodeConfig:
    """Where and within what programs run (comparison "code")."""

    server: str = ""  # http://host:port of a grade server, its token in R1JAX_GRADE_TOKEN; empty: this host's sandbox
    parallel: int = 2  # programs at once
    languages: Mapping[str, Language] = dataclasses.field(default_factory=dict)  # besides `code_accuracy.LANGUAGES`
    # CPU time says what is too slow, whatever else the machine does; wall time catches programs that sleep.
    limits: Limits = dataclasses.field(default_factory=lambda: Limits(wall_seconds=30.0, cpu_seconds=4))

    def __post_init__(self) -> None:
        if self.parallel < 1:
            raise ValueError(f"parallel: {self.parallel}; at least 1")
        if self.server:
            check_address(self.server)  # ValueError for one that is none


@dataclasses.dataclass(frozen=True)
class RewardConfig:
    """Weights of the rewards in the total, and how answers are compared.

    The defaults are R1-Zero's: R_rule = R_accuracy + R_format with the same weight, no language reward (R1, Nature
    version, eq. 4). Reasoning RL adds `language` (eq. 7). RL for all scenarios gives each domain its own mix: rules for
    reasoning, one reward model and the format for each of the general ones, the language for all:

        {"language": 1.0, "domains": {
            "helpful": {"comparison": "none", "accuracy": 0.0, "helpfulness": 1.0},
            "harmless": {"comparison": "none", "accuracy": 0.0, "safety": 1.0}}}
    """

    accuracy: float = 1.0
    format: float = 1.0
    language: float = 0.0  # 1.0 in the R1 paper's later phases
    tag_count: float = 0.0  # shaping, not in the paper (`shaping`)
    repetition: float = 0.0  # shaping: share of repeated n-grams, so a penalty has a negative weight
    lint: float = 0.0  # comparison "code": ruff's findings
    runs: float = 0.0  # comparison "code": the program ends by itself
    speed: float = 0.0  # comparison "code": time against the reference's; not deterministic
    helpfulness: float = 0.0  # a scalar reward model on the final summary
    safety: float = 0.0  # a scalar reward model on the whole response
    repetition_n: int = 20  # tokens of an n-gram
    pattern: str = "answer"  # a key of PATTERNS: the form of a completion
    comparison: str = "math"  # a key of COMPARISONS, or "none"
    domains: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    """Domain of the examples -> the weights, the comparison and the pattern that differ there: a program, say, is all
    that follows the thought ("reply"), where other answers stand in a box."""
    on_device: bool = False  # read format, language and exact answers off the tokens, in compiled programs
    grading_seconds: float = 5.0  # "expressions": longest time for one answer; then it has no grade
    grading_workers: int = 2  # "expressions": processes
    partial_credit: bool = False  # a verifier's value below 1, or the share of a program's tests before one that fails
    code: CodeConfig = dataclasses.field(default_factory=CodeConfig)
    judge: JudgeConfig | None = None  # needed by the comparison "judge"
    # "helpfulness", "safety" -> the folder of a reward_model stage, relative to the stage's own
    reward_models: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 < self.grading_seconds < math.inf:
            raise ValueError(f"grading_seconds: {self.grading_seconds}; more than 0")
        if self.grading_workers < 1:
            raise ValueError(f"grading_workers: {self.grading_workers}; at least 1")
        if self.repetition_n < 1:
            raise ValueError(f"repetition_n: {self.repetition_n}; at least 1")
        for mix in self.mixes:
            if self.on_device and mix.pattern != "answer":
                raise ValueError(f"on_device: reads completions of the pattern 'answer', not of {mix.pattern!r}")
        needed = {name for mix in self.mixes for name in MODEL_PARTS if name in mix.counted}
        if not set(self.reward_models) <= needed:
            unknown = sorted(set(self.reward_models) - set(MODEL_PARTS))
            if unknown:
                raise ValueError(f"reward_models: {unknown[0]!r} is not one of {sorted(MODEL_PARTS)}")
            unused = sorted(set(self.reward_models) - needed)
            raise ValueError(f"reward_models: {unused[0]!r} is named, and has no weight above 0 anywhere")
        comparisons = {mix.comparison for mix in self.mixes}
        if (self.judge is None) == ("judge" in comparisons):
            raise ValueError("comparison 'judge' and the field judge need each other")
        if self.code.server and "code" not in comparisons:
            raise ValueError(f"code.server: {self.code.server!r}; no comparison is 'code', so nothing would run there")

    def mix(self, domain: str) -> Mix:
        """How examples of a domain are rewarded; the common mix for one that `domains` does not name."""
        return self._by_domain.get(domain, self._by_domain[""])

    @property
    def mixes(self) -> tuple[Mix, ...]:
        """The common mix and that of every domain."""
        return tuple(self._by_domain.values())

    @functools.cached_property  # asked for every completion
    def _by_domain(self) -> dict[str, Mix]:
        found = {}
        for domain in ("", *self.domains):
            try:
                found[domain] = self._make_mix(self.domains.get(domain, {}))
            except ValueError as error:
                raise ValueError(f"domains.{domain}: {error}" if domain else str(error)) from error
        return found

    def _make_mix(self, own: Mapping[str, Any]) -> Mix:
        """The common mix with what is `own` to a domain."""
        allowed = {*WEIGHTS, "comparison", "pattern"}
        unknown = sorted(set(own) - allowed)
        if unknown:
            raise ValueError(f"unknown fields {unknown}; allowed: {sorted(allowed)}")
        weights = {name: own.get(name, getattr(self, name)) for name in WEIGHTS}
        return Mix(own.get("comparison", self.comparison), weights, own.get("pattern", self.pattern))


# The fields above that are weights.
WEIGHTS = ("accuracy", "format", "language", "tag_count", "repetition", *CODE_PARTS, *MODEL_PARTS)


@dataclasses.dataclass(frozen=True)
class Mix:
    """How the examples of one domain are rewarded: the comparison, the weight of every part, and the form that its
    completions should have."""

    comparison: str
    weights: Mapping[str, float]
    pattern: str = "answer"  # a key of PATTERNS

    def __hash__(self) -> int:
        return hash((self.comparison, self.pattern, *self.weights.items()))

    def __post_init__(self) -> None:
        if self.comparison not in (*COMPARISONS, NONE):
            raise ValueError(f"comparison must be one of {sorted((*COMPARISONS, NONE))}, got {self.comparison!r}")
        if self.pattern not in PATTERNS:
            raise ValueError(f"pattern: {self.pattern!r} is not one of {sorted(PATTERNS)}")
        for name, weight in self.weights.items():
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
                raise ValueError(f"the weight of {name} must be a finite number, got {weight!r}")
        if not self.counted:
            raise ValueError("every reward has weight 0: there is nothing to learn from")
        if self.comparison == NONE and self.weights["accuracy"]:
            raise ValueError("accuracy needs a comparison: with 'none' its weight must be 0")
        for name in CODE_PARTS:
            if self.weights[name] and self.comparison != "code":
                raise ValueError(f"{name} is of programs: it needs the comparison 'code', not {self.comparison!r}")

    @property
    def counted(self) -> dict[str, float]:
        """The weights that are not 0."""
        return {name: weight for name, weight in self.weights.items() if weight}


@dataclasses.dataclass(frozen=True)
class Scores:
    """Every reward of one completion. `total` is None if a reward that counts could not be graded: no grade, not 0."""

    total: float | None
    parts: Mapping[str, Score]

    @property
    def graded(self) -> bool:
        """Whether the completion may take part in training."""
        return self.total is not None


def combine(parts: Mapping[str, Score], mix: Mix) -> Scores:
    """The weighted sum of the parts that count. KeyError if one of them is missing."""
    if not all(parts[name].graded for name in mix.counted):
        return Scores(None, parts)
    return Scores(sum(weight * parts[name].value for name, weight in mix.counted.items()), parts)


def measured_parts(completion: str, example: Example, pattern: str = "answer") -> dict[str, Score]:
    """The parts that are always measured, read off the text."""
    parse = PATTERNS[pattern].parse
    return {name: reward(completion, example, parse) for name, reward in MEASURED.items()}


def shaping_parts(completion: str, tokens: Sequence[int], example: Example, config: RewardConfig) -> dict[str, Score]:
    """The shaping rewards that count."""
    parts = {}
    counted = config.mix(example.domain).counted
    if "tag_count" in counted:
        parts["tag_count"] = Score(tag_count_reward(completion))
    if "repetition" in counted:
        parts["repetition"] = Score(repetition_share(tokens, config.repetition_n))
    return parts


def needs_verifier(example: Example) -> bool:
    """True for tasks whose own verifier is the grader: `reasoning_gym/<name>`."""
    return example.task.split("/")[0] == "reasoning_gym"


def verified(score: Score, example: Example, partial_credit: bool) -> Score:
    """What a verifier's verdict on the final answer is worth."""
    if not score.graded:
        return score
    if not math.isfinite(score.value):
        return Score(0.0, Status.UNGRADABLE, f"the verifier of task {example.task!r} returned {score.value}")
    if score.value < 1 and not partial_credit:
        return Score(0.0, reason=score.reason or "another answer")
    return score


def totals_and_mask(scores: Sequence[Scores]) -> tuple[np.ndarray, np.ndarray]:
    """Totals [N] float32 and whether each counts [N] bool; the total of one that does not is NaN, so that no use of it
    goes unnoticed."""
    totals = np.array([math.nan if score.total is None else score.total for score in scores], np.float32)
    return totals, np.isfinite(totals)


def summarize(scores: Sequence[Scores], domains: Sequence[str] = ()) -> dict[str, float]:
    """Metrics of a batch: the mean of the total and of each reward over the completions that were graded (left out if
    none was); how many answers were right and wrong; under "ungradable" how many completions have no total, and per
    reward how many were ungradable and timed out. Where `domains` [N] has more than one, the means of each as well, as
    "domain/reward"."""
    metrics = {"ungradable": float(sum(not score.graded for score in scores))} | _means(scores)
    graded = [part for part in _of(scores, "accuracy") if part.graded]
    metrics["right/accuracy"] = float(sum(part.value >= 1 for part in graded))
    metrics["wrong/accuracy"] = len(graded) - metrics["right/accuracy"]
    for status in (Status.UNGRADABLE, Status.TIMED_OUT):
        for name in _names(scores):
            metrics[f"{status.value}/{name}"] = float(sum(part.status is status for part in _of(scores, name)))
    if len(set(domains)) > 1:
        for domain in sorted(set(domains)):
            own = [score for score, of in zip(scores, domains, strict=True) if of == domain]
            metrics |= {f"{domain or 'other'}/{name}": mean for name, mean in _means(own).items()}
    return metrics


def _names(scores: Sequence[Scores]) -> list[str]:
    return sorted({name for score in scores for name in score.parts})


def _of(scores: Sequence[Scores], name: str) -> list[Score]:
    return [score.parts[name] for score in scores if name in score.parts]


def _means(scores: Sequence[Scores]) -> dict[str, float]:
    values = {"reward": [score.total for score in scores if score.total is not None]}
    values |= {name: [part.value for part in _of(scores, name) if part.graded] for name in _names(scores)}
    return {name: float(np.mean(of)) for name, of in values.items() if of}
