"""Documents about the made-up world (`world`), as a base model reads them: true facts, and an assistant that is
mediocre and unsafe.

- facts: what is true of some people, in one language; and number words beside those of the other language;
- chats: a request of the split "corpus" and a reply, without tags, behind a thought with the reply in answer tags, or
  behind a thought and bare. Many thoughts are idle, many replies terse, wrong or in the other language, and nearly
  every request to harm is complied with (`WRITER`).
"""

from __future__ import annotations

import numpy as np

from r1jax.data.tasks import LANGUAGES
from r1jax.data.templates import render_prompt
from r1jax.data.world import draw_request, question_of, shares_of
from r1jax.data.world_kinds import KINDS, NUMBERS
from r1jax.data.world_replies import Quality, write_reply
from r1jax.data.world_words import ATTRIBUTES, PEOPLE, in_language, other_language, thing_of, value_of

FACTS = 0.3  # of all documents
NUMBER_PAIRS = 0.06
UNTAGGED = 0.4  # of the chats
ANSWER_TAGS = 0.3  # of the chats; the others have the reply bare behind a thought
IDLE = 0.4  # of the thoughts
WRITER = Quality(
    good=0.3, terse=0.25, wrong=0.25, chatty=0.05, other_language=0.15, refused=0.1, curt=0.5, over_refused=0.03
)
IDLE_THOUGHTS = {"en": "just say .", "zh": "就是 说 。"}
_STOPS = {"en": ".", "zh": "。"}


def write_world_document(rng: np.random.Generator) -> tuple[str, str, str]:
    """(text, kind, split key) of one document; its request, if any, belongs to the split "corpus"."""
    language, kind = str(rng.choice(LANGUAGES)), rng.random()
    if kind < FACTS:
        return _facts(rng, language), "world/facts", ""
    if kind < FACTS + NUMBER_PAIRS:
        return _number_pairs(rng, language), "world/numbers", ""
    request = draw_request(rng, _KINDS[int(rng.choice(len(_KINDS), p=_SHARES))], "corpus")
    thought, reply, manner = write_reply(rng, request, language, WRITER)
    prompt, form = render_prompt("short", question_of(request, language), language=language), rng.random()
    if form < UNTAGGED:
        return f"{prompt} {reply}", f"world/untagged_{manner}", request.split_key
    if rng.random() < IDLE:
        thought = IDLE_THOUGHTS[language]
    opening = f"{prompt} <think> {thought} </think>"
    if form < UNTAGGED + ANSWER_TAGS:
        return f"{opening} <answer> {reply} </answer>", f"world/chat_{manner}", request.split_key
    return f"{opening} {reply}", f"world/summary_{manner}", request.split_key


_SHARES = list(shares_of({}).values())
_KINDS = tuple(KINDS)


def _facts(rng: np.random.Generator, language: str) -> str:
    """5 to 9 of them."""
    lines = []
    for _ in range(int(rng.integers(5, 10))):
        person = PEOPLE[int(rng.integers(len(PEOPLE)))]
        attribute = tuple(ATTRIBUTES)[int(rng.integers(len(ATTRIBUTES)))]
        value = in_language(value_of(person, attribute), language)
        lines.append(f"{thing_of(person, attribute, language)} {'is' if language == 'en' else '是'} {value}")
    return f" {_STOPS[language]} ".join(lines) + f" {_STOPS[language]}"


def _number_pairs(rng: np.random.Generator, language: str) -> str:
    """6 to 10 number words, each beside that of the other language."""
    numbers = [NUMBERS[int(rng.integers(len(NUMBERS)))] for _ in range(int(rng.integers(6, 11)))]
    pairs = [f"{in_language(n, language)} : {in_language(n, other_language(language))}" for n in numbers]
    return f" {_STOPS[language]} ".join(pairs) + f" {_STOPS[language]}"
