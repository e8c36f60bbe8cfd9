"""Shaping rewards: for repetition and half-finished tags. Neither is in the R1 papers; each has its source.

The third, DAPO's for overlong responses, depends on the update's response limit: `algorithms.grpo.overlong_penalty`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from r1jax.rewards.answer import TAGS


def repetition_share(tokens: Sequence[int] | Sequence[str], n: int = 20) -> float:
    """How much of a response repeats: 1 - distinct n-grams / n-grams, 0..1; 0 for a response shorter than n.

    The n-gram repetition measure of "Demystifying Long Chain-of-Thought" (arXiv 2502.03373, section 4.3), as a share; n
    is a choice. A penalty is a negative weight times this.

    Raises:
      ValueError: n is not positive.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    count = len(tokens) - n + 1
    if count < 1:
        return 0.0
    return 1.0 - len({tuple(tokens[i : i + n]) for i in range(count)}) / count


def tag_count_reward(completion: str) -> float:
    """A quarter for each of the four tags of the template that stands exactly once (open-r1's tag_count_reward), 0..1.

    Unlike the format reward it does not look at their order or at what is between them: it can be earned by tags alone,
    and is meant for the first steps of a model that writes none.
    """
    return math.fsum(0.25 for tag in TAGS if completion.count(tag) == 1)
