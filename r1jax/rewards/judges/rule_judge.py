"""Judges made of a rule with stated errors: what a judge model and human labels are for real data.

The rule is `instructions.instruction_score`. Its noise and its biases are the settings, so that it is known how far the
data that a reward model learns from are from the truth.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence

import numpy as np

from r1jax.rewards.instructions import instruction_score, is_safe
from r1jax.rewards.judges.judge import Preference, check_times
from r1jax.types import Example, Status


def _generator(*told: object) -> np.random.Generator:
    """One that depends on what is told and on nothing else."""
    digest = hashlib.sha256(json.dumps(told).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))


class RuleJudge:
    """Compares two responses to a request by their quality under the rule, asked `times` times in random order.

    A vote in favour of what is shown first is 2 (q_first - q_second) + noise + biases, rounded to one of the five
    grades -2..2: `noise` is the standard deviation of a Gaussian, `length_bias` is what the first gains by being the
    only one with words, (n_first - n_second) / (n_first + n_second) of it in general, and `place_bias` what it gains by
    being first. Half of the votes show `a` first, in an order drawn from the seed, as `judge.PairwiseJudge` does. The
    votes depend on the seed and the pair alone, not on what else is asked.
    """

    def __init__(
        self, noise: float, times: int = 4, seed: int = 0, length_bias: float = 0.0, place_bias: float = 0.0
    ) -> None:
        """ValueError for negative noise, a bias that is not finite, or `times` that is not an even number."""
        check_times(times)
        if not 0 <= noise < math.inf:
            raise ValueError(f"noise: {noise}; 0 or more")
        for name, bias in (("length_bias", length_bias), ("place_bias", place_bias)):
            if not math.isfinite(bias):
                raise ValueError(f"{name}: {bias}; a finite number")
        self._noise, self._times, self._seed = noise, times, seed
        self._length_bias, self._place_bias = length_bias, place_bias

    def prefer_all(self, pairs: Sequence[tuple[Example, str, str]]) -> list[Preference]:
        """What the votes on each (example, a, b) say."""
        return [self._prefer(*pair) for pair in pairs]

    def _prefer(self, example: Example, a: str, b: str) -> Preference:
        scores = [instruction_score(text, example) for text in (a, b)]
        for score in scores:
            if not score.graded:
                return Preference(0.0, 0, 0, 0, Status.UNGRADABLE, score.reason)
        rng = _generator("preference", self._seed, example.id, a, b)
        gap = 2 * (scores[0].value - scores[1].value) + self._length_bias * _length_gap(a, b)
        # +1 where a is shown first, else -1: a vote for the first is one for a, or one for b.
        sides = rng.permutation([1, -1] * (self._times // 2))
        votes = sides * gap + self._place_bias + self._noise * rng.standard_normal(self._times)
        grades = sides * np.clip(np.rint(votes), -2, 2)
        return Preference(float(grades.mean()), self._times, 0, 0)


def _length_gap(a: str, b: str) -> float:
    """-1..1: by how much a has more words (between blanks) than b."""
    more, fewer = len(a.split()), len(b.split())
    return (more - fewer) / max(more + fewer, 1)


class RuleLabeller:
    """Labels responses safe or unsafe by the rule, and wrongly with probability `flip`."""

    def __init__(self, flip: float = 0.0, seed: int = 0) -> None:
        """ValueError unless `flip` is a probability."""
        if not 0 <= flip <= 1:
            raise ValueError(f"flip: {flip} is not a probability between 0 and 1")
        self._flip, self._seed = flip, seed

    def label_all(self, responses: Sequence[tuple[Example, str]]) -> list[bool]:
        """Whether each (example, response) is safe; depends on the seed and the response alone.

        ValueError for an example that the rule cannot read.
        """
        return [self._label(*response) for response in responses]

    def _label(self, example: Example, response: str) -> bool:
        flips = _generator("label", self._seed, example.id, response).random() < self._flip
        return is_safe(response, example) != bool(flips)
