"""What writers of stated quality reply to requests in the made-up world."""

from __future__ import annotations

import dataclasses

import numpy as np

from r1jax.data.world import fill, items_of
from r1jax.data.world_kinds import KINDS, Item, Request, means
from r1jax.data.world_words import other_language

MANNERS = ("good", "terse", "wrong", "chatty", "other_language")
CURT = {"en": "no .", "zh": "不对 。"}
OFFER = {"en": "how can i help ?", "zh": "我 能 帮 你 什么 ?"}


@dataclasses.dataclass(frozen=True)
class Quality:
    """How a writer replies, as shares. The defaults are those of the data for supervised fine-tuning.

    The first five are of the replies to what is to be answered, and sum to 1: good; terse, the bare words that were
    asked for; wrong, with one of them another; chatty, with a needless offer behind; or good, in the other language.
    """

    good: float = 0.75
    terse: float = 0.07
    wrong: float = 0.08
    chatty: float = 0.05
    other_language: float = 0.05
    refused: float = 0.7  # of the requests to harm; the others are complied with
    curt: float = 0.1  # of the refusals: a bare no
    over_refused: float = 0.05  # of the look-alikes (kind how_to), before all else

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if not 0 <= getattr(self, field.name) <= 1:
                raise ValueError(f"{field.name}: {getattr(self, field.name)} is not a share between 0 and 1")
        total = sum(getattr(self, name) for name in MANNERS)
        if abs(total - 1) > 1e-6:
            raise ValueError(f"{' + '.join(MANNERS)}: the shares sum to {total}, not to 1")


def write_reply(rng: np.random.Generator, request: Request, language: str, quality: Quality) -> tuple[str, str, str]:
    """(thought, reply, manner); the manner is one of `MANNERS`, "refused", "curt" or "complied"."""
    if request.kind == "harm":
        if rng.random() >= quality.refused:
            how, said = KINDS["how_to"], [item.said(language) for item in means(request)]
            return _texts(request, language, how.thoughts[language][0], how.replies[language][0], said, "complied")
        return _refusal(rng, request, language, quality)
    if request.kind == "how_to" and rng.random() < quality.over_refused:
        return _refusal(rng, request, language, quality)
    manner = MANNERS[int(rng.choice(len(MANNERS), p=[getattr(quality, name) for name in MANNERS]))]
    if manner == "other_language":
        language = other_language(language)
    said = [item.said(language) for item in items_of(request)]
    if manner == "wrong":
        said = _mistaken(rng, items_of(request), said, language)
    kind = KINDS[request.kind]
    reply = " ".join(said) if manner == "terse" else _any(rng, kind.replies[language])
    thought, reply, manner = _texts(request, language, kind.thoughts[language][0], reply, said, manner)
    return thought, f"{reply} {OFFER[language]}" if manner == "chatty" else reply, manner


def _any(rng: np.random.Generator, texts: tuple[str, ...]) -> str:
    return texts[int(rng.integers(len(texts)))]


def _texts(
    request: Request, language: str, thought: str, reply: str, said: list[str], manner: str
) -> tuple[str, str, str]:
    return fill(thought, request, language, said), fill(reply, request, language, said), manner


def _refusal(rng: np.random.Generator, request: Request, language: str, quality: Quality) -> tuple[str, str, str]:
    """A polite one, or a bare no."""
    curt, refuse = bool(rng.random() < quality.curt), KINDS["harm"]
    reply = CURT[language] if curt else _any(rng, refuse.replies[language])
    return _texts(request, language, refuse.thoughts[language][0], reply, [], "curt" if curt else "refused")


def _mistaken(rng: np.random.Generator, items: list[Item], said: list[str], language: str) -> list[str]:
    """`said` with one word replaced by another that could stand there."""
    place = int(rng.integers(len(items)))
    others = [word for word in items[place].could_be(language) if word != said[place]]
    return [*said[:place], others[int(rng.integers(len(others)))], *said[place + 1 :]]
