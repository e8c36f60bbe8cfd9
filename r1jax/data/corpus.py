"""A synthetic pretraining corpus of mixed quality, as the web is: a base model of it can reason, and mostly does not.

Kinds of documents (shares in `CorpusConfig`):

- drills, as in a schoolbook: lists of one-step facts ("six plus nine is fifteen"), expressions read aloud
  ("7 + 5 - 3 : seven plus five minus three"), all pairs of some numbers in order, sums held against a target;
- chat: question, thought and answer in the tags of the R1-Zero template, or (a quarter of them) without tags;
- forum: "Q: ... A: ..." without tags;
- bare equations, often wrong;
- programs and those who ask for them, where they have a share (`code_corpus`);
- a made-up world and what is asked of an assistant there, where it has a share (`world_corpus`).

Chat and forum answers come in modes: direct (a guess), steps (worked, with careless errors), skip (two operands in one
step), and careful (errors noticed: "wait no"). Pair searches are guessed, given up after some tries, or searched to the
end.
Half of the documents are English, half Chinese; some authors think in the other language or switch between steps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from r1jax.data import tasks
from r1jax.data.code_corpus import write_program_document
from r1jax.data.number_words import WORDS
from r1jax.data.tasks import ChainSum, PairSearch, Question
from r1jax.data.world_corpus import write_world_document

PHRASES = {
    "en": {
        "plus": "plus",
        "minus": "minus",
        "is": "is",
        "comma": ",",
        "stop": ".",
        "just": "just",
        "so": "so",
        "carefully": "carefully",
        "wait_no": "wait no",
        "wait_yes": "wait yes",
        "wrong": "wrong",
        "check": "check",
        "and": "and",
    },
    "zh": {
        "plus": "加",
        "minus": "减",
        "is": "得",
        "comma": "，",
        "stop": "。",
        "just": "就是",
        "so": "所以",
        "carefully": "仔细",
        "wait_no": "等等 不对",
        "wait_yes": "等等 对",
        "wrong": "错误",
        "check": "检查",
        "and": "和",
    },
}


@dataclasses.dataclass(frozen=True)
class CorpusConfig:
    """Shares of document kinds and error rates; every share that is not stated is what is left."""

    documents: int = 60_000
    seed: int = 0
    programs: float = 0.0  # of all documents: about small programs (`code_corpus`); all that follows is of the others
    world: float = 0.0  # about a made-up world (`world_corpus`); all that follows is of the others
    pair_search: float = 0.25  # of the questions; the others are chain sums
    drills: float = 0.36
    facts: float = 0.3  # of the drills
    checks: float = 0.3  # of the drills; the others are readings
    pair_readings: float = 0.35  # of the readings
    bare: float = 0.06
    forum: float = 0.14
    untagged: float = 0.25  # of the chat documents
    direct: float = 0.55  # modes of chain sums in chat and forum
    skip: float = 0.15
    steps: float = 0.18
    careful: float = 0.12
    search_direct: float = 0.55  # modes of pair searches
    search_give_up: float = 0.15
    search_full: float = 0.3
    direct_right: float = 0.4
    error_en: float = 0.18  # per step
    error_zh: float = 0.15
    notice: float = 0.85  # careful authors notice a wrong step with this probability
    assure: float = 0.2  # and confirm a right one with this
    own_language: float = 0.7  # the thought is in the question's language
    switcher: float = 0.3  # authors who switch language between steps
    switch: float = 0.15  # per step

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name not in ("documents", "seed") and not 0 <= value <= 1:
                raise ValueError(f"{field.name}: {value} is not a share between 0 and 1")
        if self.facts + self.checks > 1:
            raise ValueError(f"facts + checks: the shares sum to {self.facts + self.checks}, to more than 1")
        for names in (("direct", "skip", "steps", "careful"), ("search_direct", "search_give_up", "search_full")):
            total = sum(getattr(self, name) for name in names)
            if abs(total - 1) > 1e-6:
                raise ValueError(f"{' + '.join(names)}: the shares sum to {total}, not to 1")


@dataclasses.dataclass(frozen=True)
class Document:
    """A text, its kind (such as 'chat/careful'), and the split key of the question it answers or reads, if any."""

    text: str
    kind: str
    split_key: str = ""


class _Author:
    """One document's writer: a language for each step and a chance of a careless error."""

    def __init__(self, rng: np.random.Generator, config: CorpusConfig, language: str) -> None:
        self.rng = rng
        self.config = config
        self.language = language if rng.random() < config.own_language else _other(language)
        self.switches = rng.random() < config.switcher

    def next_language(self) -> str:
        if self.switches and self.rng.random() < self.config.switch:
            self.language = _other(self.language)
        return self.language

    def errs(self) -> bool:
        return self.rng.random() < (self.config.error_en if self.language == "en" else self.config.error_zh)

    def near(self, value: int) -> int:
        """A wrong value close to the right one."""
        while True:
            wrong = value + int(self.rng.choice((-3, -2, -1, 1, 2, 3)))
            if 0 <= wrong <= tasks.MAX_TOTAL:
                return wrong


def _other(language: str) -> str:
    return "zh" if language == "en" else "en"


def _word(number: int, language: str) -> str:
    return WORDS[language][number]


def _step(sign: int, number: int, result: int, language: str) -> str:
    p = PHRASES[language]
    return f"{p['plus'] if sign > 0 else p['minus']} {_word(number, language)} {p['is']} {_word(result, language)}"


def _verdict(result: int, target: int, language: str) -> str:
    """The target beside the result, then whether they agree: side by side a small model can compare them."""
    p = PHRASES[language]
    return f"{p['comma']} {_word(target, language)} ? {p['check'] if result == target else p['wrong']}"


def _clip(total: int) -> int:
    return min(max(total, 0), tasks.MAX_TOTAL)


def chain_steps(question: ChainSum, author: _Author, careful: bool) -> tuple[str, str]:
    """Worked steps of a chain sum and the answer that they lead to; errors carry on unless a careful author notices."""
    config, rng = author.config, author.rng
    total, parts = question.operands[0], []
    for i, (sign, number) in enumerate(zip(question.signs, question.operands[1:], strict=True)):
        language = author.next_language()
        p = PHRASES[language]
        right = _clip(total + sign * number)
        result = author.near(right) if author.errs() else right
        text = _step(sign, number, result, language)
        if i == 0:
            opening = f"{p['carefully']} " if careful else ""
            text = f"{opening}{_word(total, language)} {text}"
        if careful and result != right and rng.random() < config.notice:
            text += f" {p['comma']} {p['wait_no']} {_word(right, language)}"
            result = right
        elif careful and result == right and rng.random() < config.assure:
            text += f" {p['comma']} {p['wait_yes']}"
        parts.append(text)
        total = result
    p = PHRASES[author.language]
    return f" {p['comma']} ".join(parts), str(total)


def chain_skip(question: ChainSum, author: _Author) -> tuple[str, str]:
    """Two operands in one step: shorter, and harder to get right."""
    language = author.language
    p = PHRASES[language]
    total, parts = question.operands[0], []
    pairs = list(zip(question.signs, question.operands[1:], strict=True))
    for i in range(0, len(pairs), 2):
        language = author.next_language()
        p = PHRASES[language]
        chunk = pairs[i : i + 2]
        right = _clip(total + sum(s * x for s, x in chunk))
        result = author.near(right) if author.errs() else right
        terms = " ".join(f"{p['plus'] if s > 0 else p['minus']} {_word(x, language)}" for s, x in chunk)
        start = f"{_word(total, language)} " if i == 0 else ""
        parts.append(f"{start}{terms} {p['is']} {_word(result, language)}")
        total = result
    return f" {p['comma']} ".join(parts), str(total)


def direct_chain(question: ChainSum, author: _Author) -> tuple[str, str]:
    """An answer out of the blue."""
    answer = int(question.answer)
    if author.rng.random() >= author.config.direct_right:
        answer = author.near(answer)
    p = PHRASES[author.language]
    return f"{p['just']} {_word(answer, author.language)}", str(answer)


def search_pairs(question: PairSearch, author: _Author, patience: int) -> tuple[str, str]:
    """Pairs tried in order until one fits or `patience` tries are used up; then the next pair is guessed."""
    parts = []
    for number, (a, b) in enumerate(question.pairs):
        language = author.next_language()
        p = PHRASES[language]
        if number >= patience:
            parts.append(f"{p['just']} {_word(a, language)} {p['and']} {_word(b, language)}")
            return f" {p['stop']} ".join(parts), f"{a} {b}"
        result = author.near(a + b) if author.rng.random() < 0.3 * author.config.error_en else a + b
        fits = result == question.target
        parts.append(
            f"{_word(a, language)} {_step(1, b, result, language)} {_verdict(result, question.target, language)}"
        )
        if fits:
            return f" {p['stop']} ".join(parts), f"{a} {b}"
    a, b = question.pairs[int(author.rng.integers(len(question.pairs)))]  # every try failed, through an error
    p = PHRASES[author.language]
    parts.append(f"{p['just']} {_word(a, author.language)} {p['and']} {_word(b, author.language)}")
    return f" {p['stop']} ".join(parts), f"{a} {b}"


def guess_pair(question: PairSearch, author: _Author) -> tuple[str, str]:
    """Any pair."""
    a, b = question.pairs[int(author.rng.integers(len(question.pairs)))]
    p = PHRASES[author.language]
    return f"{p['just']} {_word(a, author.language)} {p['and']} {_word(b, author.language)}", f"{a} {b}"


def write_thought(question: Question, author: _Author) -> tuple[str, str, str]:
    """(thought, answer, mode) of one author."""
    config, rng = author.config, author.rng
    if isinstance(question, PairSearch):
        mode = str(
            rng.choice(
                ["direct", "give_up", "full"], p=[config.search_direct, config.search_give_up, config.search_full]
            )
        )
        if mode == "direct":
            return *guess_pair(question, author), "search_direct"
        patience = int(rng.integers(1, 4)) if mode == "give_up" else len(question.pairs)
        return *search_pairs(question, author, patience), f"search_{mode}"
    mode = str(
        rng.choice(["direct", "skip", "steps", "careful"], p=[config.direct, config.skip, config.steps, config.careful])
    )
    if mode == "direct":
        return *direct_chain(question, author), mode
    if mode == "skip":
        return *chain_skip(question, author), mode
    return *chain_steps(question, author, careful=mode == "careful"), mode


def write_reading(rng: np.random.Generator, config: CorpusConfig) -> tuple[str, str]:
    """(text, split key) of an expression read aloud, or of all pairs of some numbers."""
    language = str(rng.choice(tasks.LANGUAGES))
    p = PHRASES[language]
    if rng.random() < config.pair_readings:
        search = tasks.sample_question(rng, "pair_search", "corpus")
        assert isinstance(search, PairSearch)
        pairs = [f"{_word(a, language)} {p['plus']} {_word(b, language)}" for a, b in search.pairs]
        comma = f" {p['comma']} "
        return f"{' '.join(map(str, search.numbers))} : {comma.join(pairs)}", search.split_key
    chain = tasks.sample_question(rng, "chain_sum", "corpus")
    assert isinstance(chain, ChainSum)
    terms = [
        f"{p['plus'] if sign > 0 else p['minus']} {_word(number, language)}"
        for sign, number in zip(chain.signs, chain.operands[1:], strict=True)
    ]
    return f"{chain.expression} : {_word(chain.operands[0], language)} {' '.join(terms)}", chain.split_key


def write_drill(rng: np.random.Generator) -> str:
    """6 to 12 true one-step facts in one language."""
    language = str(rng.choice(tasks.LANGUAGES))
    p = PHRASES[language]
    facts = []
    for _ in range(int(rng.integers(6, 13))):
        while True:
            total, number, sign = int(rng.integers(0, 21)), int(rng.integers(1, 10)), int(rng.choice((1, -1)))
            if 0 <= total + sign * number <= tasks.MAX_TOTAL:
                break
        facts.append(f"{_word(total, language)} {_step(sign, number, total + sign * number, language)}")
    return f" {p['stop']} ".join(facts)


def write_checks(rng: np.random.Generator) -> str:
    """4 to 7 sums of two digits, each held against one target."""
    language = str(rng.choice(tasks.LANGUAGES))
    p = PHRASES[language]
    target = int(rng.integers(3, 18))
    lines = []
    for _ in range(int(rng.integers(4, 8))):
        first = int(rng.integers(1, 10))
        fitting = [target - first] if 1 <= target - first <= 9 and rng.random() < 0.5 else list(range(1, 10))
        second = int(rng.choice(fitting))
        total = first + second
        step = _step(1, second, total, language)
        lines.append(f"{_word(first, language)} {step} {_verdict(total, target, language)}")
    make = "make" if language == "en" else "得"
    return f"{make} {target} ? " + f" {p['stop']} ".join(lines)


def write_document(rng: np.random.Generator, config: CorpusConfig) -> Document:
    """One document of a kind drawn by the shares of `config`."""
    if config.programs and rng.random() < config.programs:
        return Document(*write_program_document(rng))
    if config.world and rng.random() < config.world:
        return Document(*write_world_document(rng))
    kind = rng.random()
    if kind < config.drills * config.facts:
        return Document(write_drill(rng), "drill/facts")
    if kind < config.drills * (config.facts + config.checks):
        return Document(write_checks(rng), "drill/checks")
    if kind < config.drills:
        reading, key = write_reading(rng, config)
        return Document(reading, "drill/reading", key)
    if kind < config.drills + config.bare:
        question = tasks.sample_question(rng, "chain_sum", "corpus")
        assert isinstance(question, ChainSum)
        answer = int(question.answer)
        shown = answer if rng.random() < 0.5 else _clip(answer + int(rng.choice((-2, -1, 1, 2))))
        return Document(f"{question.expression} = {shown}", "bare", question.split_key)
    task = "pair_search" if rng.random() < config.pair_search else "chain_sum"
    question = tasks.sample_question(rng, task, "corpus")
    language = str(rng.choice(tasks.LANGUAGES))
    author = _Author(rng, config, language)
    thought, answer_text, mode = write_thought(question, author)
    text = question.question(language)
    user, assistant = ("User:", "Assistant:") if language == "en" else ("用户:", "助手:")
    if kind < config.drills + config.bare + config.forum:
        so = PHRASES[author.language]["so"]
        return Document(f"Q: {text} A: {thought} {so} {answer_text}", f"forum/{mode}", question.split_key)
    if rng.random() < config.untagged:
        so = PHRASES[author.language]["so"]
        return Document(
            f"{user} {text} {assistant} {thought} {so} {answer_text}", f"untagged/{mode}", question.split_key
        )
    return Document(
        f"{user} {text} {assistant} <think> {thought} </think> <answer> {answer_text} </answer>",
        f"chat/{mode}",
        question.split_key,
    )


def write_corpus(config: CorpusConfig) -> Iterator[Document]:
    """`config.documents` documents; the same configuration always gives the same ones."""
    rng = np.random.default_rng([config.seed, 7])
    for _ in range(config.documents):
        yield write_document(rng, config)
