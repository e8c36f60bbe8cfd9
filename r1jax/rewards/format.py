"""The format reward: 1 for a completion in the form the R1-Zero template asks for, else 0."""

from __future__ import annotations

from r1jax.rewards.answer import parse_response
from r1jax.types import Example, Score


def format_reward(completion: str, example: Example) -> Score:
    """1 where the completion is well-formed (see `answer.parse_response`), else 0 with the first fault as reason.

    R_format of the R1 paper (Nature version, eq. 4), which weighs as much as accuracy. The paper says that the thought
    must stand between tags; the template also asks for answer tags, and both are checked here. The example plays no
    part.
    """
    parsed = parse_response(completion)
    return Score(float(parsed.well_formed), reason=parsed.problem)
