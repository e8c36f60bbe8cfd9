"""The format reward: 1 for a completion in the form that is asked for, else 0."""

from __future__ import annotations

from collections.abc import Callable

from r1jax.rewards.answer import Parsed, parse_response
from r1jax.types import Example, Score


def format_reward(completion: str, example: Example, parse: Callable[[str], Parsed] = parse_response) -> Score:
    """1 where `parse` finds the completion well-formed (see `patterns`), else 0 with the first fault as reason.

    R_format of the R1 paper (Nature version, eq. 4), which weighs as much as accuracy. The paper says that the thought
    must stand between tags; the R1-Zero template also asks for answer tags, and by default both are checked. The
    example plays no part.
    """
    parsed = parse(completion)
    return Score(float(parsed.well_formed), reason=parsed.problem)
