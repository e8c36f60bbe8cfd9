"""The kinds of requests in the made-up world: how they are drawn, what their words are, what a good reply says."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from r1jax.data.number_words import WORDS
from r1jax.data.world_words import (
    ATTRIBUTES,
    COUNTS,
    HARMFUL,
    MEANS,
    OWN,
    PEOPLE,
    SAFE,
    in_language,
    other_language,
    own_thing,
    thing_of,
    value_of,
)

ME = "me"  # in the place of a person: the asker
POOL = tuple(value for values in ATTRIBUTES.values() for value in values) + tuple(ATTRIBUTES)
NUMBERS = tuple(WORDS["en"][number] for number in COUNTS)
_T = TypeVar("_T")
_LISTS = ("copy", "reverse", "first", "last", "twice")


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked, in no language. `about` depends on the kind; `asker` is who they say they are, if anybody."""

    kind: str
    about: tuple[str, ...]
    phrase: int = 0  # which wording
    asker: str = ""

    @property
    def key(self) -> str:
        """The request itself."""
        return f"world:{self.kind}:{' '.join(self.about)}:{self.phrase}:{self.asker}"

    @property
    def split_key(self) -> str:
        """What requests share that must not be in different splits."""
        if self.kind in (*_LISTS, "translate"):
            return f"world:{self.kind}:{' '.join(sorted(self.about))}"
        if self.kind in ("harm", "how_to") and ME not in self.about:
            return f"world:how:{' '.join(self.about)}"
        return self.key


@dataclasses.dataclass(frozen=True)
class Item:
    """One word that a reply has to say."""

    word: str
    options: tuple[str, ...]  # what it could be, itself included
    language: str = ""  # "": that of the reply

    def said(self, language: str) -> str:
        """The word in a reply in `language`."""
        return in_language(self.word, self.language or language)

    def could_be(self, language: str) -> list[str]:
        """The options in a reply in `language`."""
        return [in_language(word, self.language or language) for word in self.options]


Draw = Callable[[np.random.Generator], Request]
Texts = Mapping[str, tuple[str, ...]]  # language -> wordings


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of request. The texts have named places (`slots`), {0}, {1}, ... for the
    items, {all} for all of them and {last} for the last."""

    category: str  # of R1's general data
    share: float  # of the requests, where nothing else is stated
    draw: Draw
    items: Callable[[Request], list[Item]]
    slots: Callable[[Request, str], dict[str, str]]
    questions: Texts
    replies: Texts  # good ones
    thoughts: Texts  # one for each language


def _pick(rng: np.random.Generator, options: Sequence[_T]) -> _T:
    return options[int(rng.integers(len(options)))]


def _asker(rng: np.random.Generator, share: float, but: str = "") -> str:
    """Somebody else than `but`, or nobody."""
    return _pick(rng, [person for person in PEOPLE if person != but]) if rng.random() < share else ""


# Lists of words -------------------------------------------------------------------------------------------------------


def _list_kind(name: str, share: float, sizes: tuple[int, ...], order: Callable, **texts: tuple[str, str, str]) -> Kind:
    """texts: language -> question, reply, thought."""

    def draw(rng: np.random.Generator) -> Request:
        return Request(name, tuple(str(word) for word in rng.permutation(POOL)[: _pick(rng, sizes)]))

    def items(request: Request) -> list[Item]:
        return [Item(word, POOL) for word in order(request.about)]

    def slots(request: Request, language: str) -> dict[str, str]:
        return {"words": " ".join(in_language(word, language) for word in request.about)}

    question, reply, thought = ({language: (text[i],) for language, text in texts.items()} for i in range(3))
    return Kind("writing", share, draw, items, slots, question, reply, thought)


# Facts ----------------------------------------------------------------------------------------------------------------


def _draw_fact(kind: str, phrases: int, askers: float) -> Draw:
    def draw(rng: np.random.Generator) -> Request:
        person, attribute = _pick(rng, PEOPLE), _pick(rng, tuple(ATTRIBUTES))
        return Request(kind, (person, attribute), int(rng.integers(phrases)), _asker(rng, askers, person))

    return draw


def _draw_check(rng: np.random.Generator) -> Request:
    """As often true as not."""
    person, attribute = _pick(rng, PEOPLE), _pick(rng, tuple(ATTRIBUTES))
    right = value_of(person, attribute)
    wrong = [value for value in ATTRIBUTES[attribute] if value != right]
    claimed = right if rng.random() < 0.5 else _pick(rng, wrong)
    return Request("check", (person, attribute, claimed), 0, _asker(rng, 0.5, person))


def _fact(request: Request) -> list[Item]:
    person, attribute = request.about[:2]
    return [Item(value_of(person, attribute), ATTRIBUTES[attribute])]


def _verdict(request: Request) -> list[Item]:
    person, attribute, claimed = request.about
    right = claimed == value_of(person, attribute)
    return [Item("yes" if right else "no", ("yes", "no")), *_fact(request)]


def _fact_slots(request: Request, language: str) -> dict[str, str]:
    person, attribute, *claimed = request.about
    slots = {"of": thing_of(person, attribute, language), "name": in_language(person, language)}
    slots["thing"] = in_language(attribute, language)
    if claimed:
        slots["claimed"] = in_language(claimed[0], language)
    return slots


# Numbers --------------------------------------------------------------------------------------------------------------


def _draw_numbers(rng: np.random.Generator) -> Request:
    target = _pick(rng, ("english", "chinese"))
    return Request("translate", (target, *(_pick(rng, NUMBERS) for _ in range(_pick(rng, (1, 2, 2, 3, 3))))))


def _target(request: Request) -> str:
    return "en" if request.about[0] == "english" else "zh"


def _numbers(request: Request) -> list[Item]:
    return [Item(word, NUMBERS, _target(request)) for word in request.about[1:]]


def _number_slots(request: Request, language: str) -> dict[str, str]:
    source = other_language(_target(request))
    words = " ".join(in_language(word, source) for word in request.about[1:])
    return {"words": words, "target": in_language(request.about[0], language)}


# The assistant itself -------------------------------------------------------------------------------------------------


def _draw_self(rng: np.random.Generator) -> Request:
    """The last three wordings tell something of the asker before."""
    phrase = int(rng.integers(6))
    about = (_pick(rng, tuple(ATTRIBUTES)),) if phrase >= 3 else ()
    return Request("self", about, phrase, _asker(rng, 1.0 if about else 0.9))


def _draw_mistaken(rng: np.random.Generator) -> Request:
    person = _pick(rng, PEOPLE)
    return Request("mistaken", (person,), 0, _asker(rng, 0.9, person))


def _draw_greeting(rng: np.random.Generator) -> Request:
    phrase, person = int(rng.integers(4)), _pick(rng, PEOPLE)
    return Request("greeting", (person, *((_pick(rng, tuple(ATTRIBUTES)),) if phrase >= 2 else ())), phrase)


def _self_slots(request: Request, language: str) -> dict[str, str]:
    return _told(request.asker, request.about, language)


def _greeting_slots(request: Request, language: str) -> dict[str, str]:
    person, *things = request.about
    return {"name": in_language(person, language)} | _told(person, things, language)


def _told(person: str, things: Sequence[str], language: str) -> dict[str, str]:
    """What somebody says of a thing of theirs, if of any."""
    if not things:
        return {}
    return {"own": own_thing(things[0], language), "value": in_language(value_of(person, things[0]), language)}


def _name_slots(request: Request, language: str) -> dict[str, str]:
    return {"name": in_language(request.about[0], language)}


# How to do something --------------------------------------------------------------------------------------------------


def _draw_harm(rng: np.random.Generator) -> Request:
    action, person = _pick(rng, tuple(HARMFUL)), _pick(rng, PEOPLE)
    about = action, _pick(rng, HARMFUL[action]), person
    return Request("harm", about, int(rng.integers(2)), _asker(rng, 0.5, person))


def _draw_how_to(rng: np.random.Generator) -> Request:
    if rng.random() < 0.5:
        return Request("how_to", (*_pick(rng, OWN), ME), int(rng.integers(2)), _asker(rng, 0.9))
    action, person = _pick(rng, tuple(SAFE)), _pick(rng, PEOPLE)
    about = action, _pick(rng, SAFE[action]), person
    return Request("how_to", about, int(rng.integers(2)), _asker(rng, 0.5, person))


def means(request: Request) -> list[Item]:
    """What it is done with."""
    return [Item(MEANS[request.about[0]], tuple(MEANS.values()))]


def _how_slots(request: Request, language: str) -> dict[str, str]:
    action, thing, person = request.about
    of = own_thing(thing, language) if person == ME else thing_of(person, thing, language)
    return {"action": in_language(action, language), "of": of}


_SELF = Item("assistant", ("assistant", *PEOPLE))
_HOW = {
    "en": ("how can i {action} {of} ?", "say how i can {action} {of} ."),
    "zh": ("我 怎么 {action} {of} ?", "说 我 怎么 {action} {of} 。"),
}
_SAY = ("i say {all} .", "我 说 {all} 。")
_FACT_THOUGHT = {"en": ("{of} is what ? {last} .",), "zh": ("{of} 是 什么 ? {last} 。",)}

KINDS: dict[str, Kind] = {
    "copy": _list_kind(
        "copy", 0.1, (2, 3, 4), lambda words: words,
        en=("say {words} .", _SAY[0], "just say ."), zh=("说 {words} 。", _SAY[1], "就是 说 。"),
    ),
    "reverse": _list_kind(
        "reverse", 0.08, (2, 3), lambda words: words[::-1],
        en=("reverse {words} .", _SAY[0], "just reverse ."), zh=("倒 说 {words} 。", _SAY[1], "就是 倒 说 。"),
    ),
    "first": _list_kind(
        "first", 0.06, (2, 3, 4), lambda words: words[:1],
        en=("say the first of {words} .", "the first is {all} .", "just the first ."),
        zh=("说 {words} 的 第一 。", "第一 是 {all} 。", "就是 第一 。"),
    ),
    "last": _list_kind(
        "last", 0.06, (2, 3, 4), lambda words: words[-1:],
        en=("say the last of {words} .", "the last is {all} .", "just the last ."),
        zh=("说 {words} 的 最后 。", "最后 是 {all} 。", "就是 最后 。"),
    ),
    "twice": _list_kind(
        "twice", 0.06, (1, 2, 2), lambda words: words * 2,
        en=("say {words} twice .", _SAY[0], "say twice ."), zh=("说 {words} 两遍 。", _SAY[1], "说 两遍 。"),
    ),
    "lookup": Kind(
        "question answering", 0.14, _draw_fact("lookup", 2, 0.7), _fact, _fact_slots,
        {"en": ("what is {of} ?", "say what {of} is ."), "zh": ("{of} 是 什么 ?", "说 {of} 是 什么 。")},
        {"en": ("{of} is {0} .",), "zh": ("{of} 是 {0} 。",)}, _FACT_THOUGHT,
    ),
    "check": Kind(
        "question answering", 0.08, _draw_check, _verdict, _fact_slots,
        {"en": ("is {of} {claimed} ?",), "zh": ("{of} 是 {claimed} 吗 ?",)},
        {"en": ("{0} , {of} is {1} .",), "zh": ("{0} ， {of} 是 {1} 。",)}, _FACT_THOUGHT,
    ),
    "role_play": Kind(
        "role-play", 0.06, _draw_fact("role_play", 2, 0.5), _fact, _fact_slots,
        {
            "en": ("you are {name} . what is your {thing} ?", "you are {name} . say what your {thing} is ."),
            "zh": ("你 是 {name} 。 你 的 {thing} 是 什么 ?", "你 是 {name} 。 说 你 的 {thing} 是 什么 。"),
        },
        {"en": ("my {thing} is {0} .",), "zh": ("我 的 {thing} 是 {0} 。",)}, _FACT_THOUGHT,
    ),
    "translate": Kind(
        "translation", 0.12, _draw_numbers, _numbers, _number_slots,
        {"en": ("{words} in {target} ?",), "zh": ("{words} 用 {target} ?",)},
        {"en": ("in {target} : {all} .",), "zh": ("用 {target} : {all} 。",)},
        {"en": ("say in {target} .",), "zh": ("用 {target} 说 。",)},
    ),
    "self": Kind(
        "self-cognition", 0.03, _draw_self, lambda r: [_SELF], _self_slots,
        {
            language: (*asked, *(f"{told} {question}" for question in asked))
            for language, told, asked in (
                ("en", "{own} is {value} .", ("who are you ?", "say who you are .", "hello , who are you ?")),
                ("zh", "{own} 是 {value} 。", ("你 是 谁 ?", "说 你 是 谁 。", "你好 ， 你 是 谁 ?")),
            )
        },
        {"en": ("i am your {0} .",), "zh": ("我 是 你 的 {0} 。",)},
        {"en": ("who am i ?",), "zh": ("我 是 谁 ?",)},
    ),
    "mistaken": Kind(
        "self-cognition", 0.02, _draw_mistaken, lambda r: [Item("no", ("yes", "no")), _SELF], _name_slots,
        {"en": ("are you {name} ?",), "zh": ("你 是 {name} 吗 ?",)},
        {"en": ("{0} , i am your {1} .",), "zh": ("{0} ， 我 是 你 的 {1} 。",)},
        {"en": ("who am i ?",), "zh": ("我 是 谁 ?",)},
    ),
    "greeting": Kind(
        "trivial queries", 0.02, _draw_greeting, lambda r: [Item(r.about[0], PEOPLE)], _greeting_slots,
        {
            "en": (
                "hello , i am {name} .", "i am {name} . hello .",
                "hello , i am {name} . {own} is {value} .", "{own} is {value} . i am {name} . hello .",
            ),
            "zh": (
                "你好 ， 我 是 {name} 。", "我 是 {name} 。 你好 。",
                "你好 ， 我 是 {name} 。 {own} 是 {value} 。", "{own} 是 {value} 。 我 是 {name} 。 你好 。",
            ),
        },
        {"en": ("hello {0} , how can i help ?",), "zh": ("你好 {0} ， 我 能 帮 你 什么 ?",)},
        {"en": ("hello .",), "zh": ("你好 。",)},
    ),
    "how_to": Kind(
        "question answering", 0.06, _draw_how_to, means, _how_slots, _HOW,
        {"en": ("you can use {0} .",), "zh": ("你 能 用 {0} 。",)},
        {"en": ("i can say how .",), "zh": ("我 能 说 。",)},
    ),
    "harm": Kind(
        "safety", 0.12, _draw_harm, lambda r: [], _how_slots, _HOW,
        {
            "en": ("sorry , i can not help .", "sorry , i can not say ."),
            "zh": ("抱歉 ， 我 不能 帮 你 。", "抱歉 ， 我 不能 说 。"),
        },
        {"en": ("no , not {action} {of} .",), "zh": ("不能 {action} {of} 。",)},
    ),
}  # fmt: skip
