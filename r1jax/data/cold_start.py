"""The stated rule that stands for a writer where a model is too small to be one (`:tiny`).

The paper has DeepSeek-V3 and people turn R1-Zero's samples into readable, conversational reasoning with a summary. Here
the thought is kept word for word (it has passed the filters, so it is readable already) or, where that is asked for,
translated word by word; and the answer is put into a summary: a sentence in the question's language, one of `PHRASES`,
in which the answer stands between its tags.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping

from r1jax.data.corpus import PHRASES as CORPUS_PHRASES
from r1jax.data.number_words import WORDS
from r1jax.data.templates import render_completion

PHRASES: Mapping[str, tuple[str, ...]] = {
    "en": ("so the result is {answer}", "the answer is {answer}", "this makes {answer}"),
    "zh": ("所以 结果 是 {answer}", "答案 是 {answer}", "这 得 {answer}"),
}


def _dictionary(language: str) -> dict[str, str]:
    """Every word of the corpus's reasoning in the other languages -> the word in `language`."""
    pairs: dict[str, str] = {}
    for other in WORDS.keys() - {language}:
        pairs |= zip(WORDS[other], WORDS[language], strict=True)
        for name, phrase in CORPUS_PHRASES[other].items():
            pairs |= zip(phrase.split(" "), CORPUS_PHRASES[language][name].split(" "), strict=True)
    return pairs


_DICTIONARIES = {language: _dictionary(language) for language in PHRASES}


def translate_by_rule(thought: str, language: str) -> str:
    """The thought with all words of the corpus's reasoning in one language, word by word; other words stay as they are.

    R1-Zero's language drifts away from that of the question, up to a policy that thinks in one language alone: without
    a translation there would be no cold-start data for questions in the other. A writer who is asked for reasoning in
    the question's language translates as well.
    """
    words = _DICTIONARIES[language]
    return " ".join(words.get(word, word) for word in thought.split(" "))


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
