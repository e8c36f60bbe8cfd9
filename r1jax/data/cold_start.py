"""The stated rule that stands for a writer where a model is too small to be one (`:tiny`).

The paper has DeepSeek-V3 and people turn R1-Zero's samples into readable, conversational reasoning with a summary. Here
the thought is kept word for word (it has passed the filters, so it is readable already), and the answer is put into a
summary: a sentence in the question's language, one of `PHRASES`, in which the answer stands between its tags.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping

from r1jax.data.templates import render_completion

PHRASES: Mapping[str, tuple[str, ...]] = {
    "en": ("so the result is {answer}", "the answer is {answer}", "this makes {answer}"),
    "zh": ("所以 结果 是 {answer}", "答案 是 {answer}", "这 得 {answer}"),
}


def rewrite_by_rule(thought: str, answer: str, language: str, *seed: str | int) -> str:
    """The thought and a summary with the answer, in the pattern "summary", from the blank that it begins with.

    The phrase is drawn by the seed alone. ValueError where thought or answer is blank or contains a tag, or where there
    are no phrases of the language.
    """
    if language not in PHRASES:
        raise ValueError(f"language: {language!r}; there are summaries in {', '.join(PHRASES)}")
    begin, _, end = render_completion(thought, answer).partition("<answer>")
    phrase = random.Random(json.dumps(seed)).choice(PHRASES[language])
    return begin + phrase.replace("{answer}", "<answer>" + end)
