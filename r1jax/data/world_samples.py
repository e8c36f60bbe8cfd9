"""General data for supervised fine-tuning: requests in the made-up world with replies of a writer of stated quality.

R1's general SFT data were written by DeepSeek-V3, which also wrote a thought before each reply but for trivial queries.
Here every reply stands behind a short thought, since the format that is rewarded asks for one; that of a greeting is
one word.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from r1jax.data.samples import Sample
from r1jax.data.world import draw_requests, shares_of, to_example
from r1jax.data.world_replies import Quality, write_reply


def write_samples_of(
    size: int,
    seed: int,
    quality: Quality | None = None,
    split: str = "rl",
    params: Mapping[str, Any] | None = None,
) -> list[Sample]:
    """`size` requests of a split, each with ` <think> thought </think> reply`.

    quality: of the replies; None: the defaults of `Quality`.
    params: which requests, as for `world.shares_of`.

    `metadata` is that of the request (`world.to_example`) and how the reply was written ("manner"). Errors as of
    `world.make_examples`.
    """
    quality = quality or Quality()
    rng = np.random.default_rng([seed, 13])
    samples = []
    for request, language in draw_requests(size, split, seed, shares_of(params or {})):
        thought, reply, manner = write_reply(rng, request, language, quality)
        example = to_example(request, language)
        samples.append(
            Sample(
                id=example.id,
                question=example.question,
                completion=f" <think> {thought} </think> {reply}",
                answer=example.answer,
                task=example.task,
                language=language,
                domain=example.domain,
                source="world",
                metadata={**example.metadata, "manner": manner},
            )
        )
    return samples
