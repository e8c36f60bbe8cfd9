"""Our own small arithmetic and logic questions, for models that a laptop can train.

- **chain sum**: "compute 7 + 5 - 3 + 8 ?" with `operands` distinct digits; every running total lies in 0..20.
  A question with k operands takes k - 1 steps.
- **pair search**: "which two of 4 9 6 2 make 11 ?": exactly one pair of the listed distinct digits has that sum. Trying
  the pairs one after the other is the way to find it, so that looking again after a failed try pays.

Every question exists in English and in Chinese; both share one `key`. Questions that differ only in the order of their
numbers share a `split_key`, and the splits (corpus, RL, validation, evaluation) are made by a hash of that: no question
of one is in another, in either language or in another order.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Callable

import numpy as np

from r1jax.types import Example

MAX_TOTAL = 20
LANGUAGES = ("en", "zh")
# Shares of the question space by hash: evaluation questions are never trained on, nor looked at while a setting is
# sought (that is what validation questions are for), and corpus questions are never rewarded.
SPLIT_BOUNDS = {"evaluation": (0, 10), "rl": (10, 60), "validation": (60, 65), "corpus": (65, 100)}


@dataclasses.dataclass(frozen=True)
class ChainSum:
    """operands[0] (sign[0] operands[1]) (sign[1] operands[2]) ..."""

    operands: tuple[int, ...]
    signs: tuple[int, ...]  # +1 or -1, one fewer than operands

    @property
    def key(self) -> str:
        """The question itself, in no language."""
        return (
            "chain:"
            + str(self.operands[0])
            + "".join(f"{'+' if s > 0 else '-'}{x}" for s, x in zip(self.signs, self.operands[1:], strict=True))
        )

    @property
    def split_key(self) -> str:
        """What questions of the same signed numbers in any order share."""
        return "chain:" + ",".join(
            map(str, sorted(s * x for s, x in zip((1, *self.signs), self.operands, strict=True)))
        )

    @property
    def totals(self) -> tuple[int, ...]:
        """Running totals after each step."""
        return tuple(
            itertools.accumulate(
                (s * x for s, x in zip(self.signs, self.operands[1:], strict=True)), initial=self.operands[0]
            )
        )[1:]

    @property
    def expression(self) -> str:
        """As written in a prompt."""
        return str(self.operands[0]) + "".join(
            f" {'+' if s > 0 else '-'} {x}" for s, x in zip(self.signs, self.operands[1:], strict=True)
        )

    @property
    def answer(self) -> str:
        """The reference answer."""
        return str(self.totals[-1])

    @property
    def steps(self) -> int:
        """Sums and differences to work out."""
        return len(self.signs)

    def question(self, language: str) -> str:
        """The question in English or Chinese."""
        return f"compute {self.expression} ?" if language == "en" else f"计算 {self.expression} ?"


@dataclasses.dataclass(frozen=True)
class PairSearch:
    """Find the one pair of `numbers` whose sum is `target`."""

    numbers: tuple[int, ...]
    target: int

    @property
    def key(self) -> str:
        """The question itself, in no language."""
        return f"pair:{','.join(map(str, self.numbers))}={self.target}"

    @property
    def split_key(self) -> str:
        """What searches of the same numbers in any order share."""
        return f"pair:{','.join(map(str, sorted(self.numbers)))}={self.target}"

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """All pairs in the order in which a patient reader tries them."""
        return tuple(itertools.combinations(self.numbers, 2))

    @property
    def answer(self) -> str:
        """The reference answer."""
        return next(f"{a} {b}" for a, b in self.pairs if a + b == self.target)

    @property
    def steps(self) -> int:
        """Tries that the patient reader needs."""
        return 1 + next(i for i, (a, b) in enumerate(self.pairs) if a + b == self.target)

    def question(self, language: str) -> str:
        """The question in English or Chinese."""
        listed = " ".join(map(str, self.numbers))
        return (
            f"which two of {listed} make {self.target} ?"
            if language == "en"
            else f"{listed} 中 哪 两 个 得 {self.target} ?"
        )


Question = ChainSum | PairSearch


def sample_chain_sum(rng: np.random.Generator, operands: tuple[int, int] = (4, 6)) -> ChainSum:
    """A chain with a uniformly chosen number of operands in the closed range; totals stay in 0..20.

    No digit comes twice: where the question stands is then told by the last digit read, which a small model can learn.
    """
    count = int(rng.integers(operands[0], operands[1] + 1))
    total = int(rng.integers(1, 10))
    numbers, signs = [total], []
    for _ in range(count - 1):
        unused = [x for x in range(1, 10) if x not in numbers]
        choices = [(s, x) for s in (1, -1) for x in unused if 0 <= total + s * x <= MAX_TOTAL]
        sign, number = choices[int(rng.integers(len(choices)))]
        total += sign * number
        numbers.append(number)
        signs.append(sign)
    return ChainSum(tuple(numbers), tuple(signs))


def sample_pair_search(rng: np.random.Generator, count: int = 4) -> PairSearch:
    """`count` distinct digits and the sum of one pair that no other pair has."""
    while True:
        numbers = tuple(int(x) for x in rng.permutation(np.arange(1, 10))[:count])
        sums = [a + b for a, b in itertools.combinations(numbers, 2)]
        unique = [s for s in sums if sums.count(s) == 1]
        if unique:
            return PairSearch(numbers, unique[int(rng.integers(len(unique)))])


GENERATORS: dict[str, Callable[[np.random.Generator], Question]] = {
    "chain_sum": sample_chain_sum,
    "pair_search": sample_pair_search,
}


def split_of(key: str) -> str:
    """The name in `SPLIT_BOUNDS` of the one split that a question belongs to, by a hash of its split key."""
    bucket = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % 100
    return next(name for name, (low, high) in SPLIT_BOUNDS.items() if low <= bucket < high)


def sample_question(rng: np.random.Generator, task: str, split: str) -> Question:
    """A question of `task` from the given split."""
    generate = GENERATORS[task]
    while True:
        question = generate(rng)
        if split_of(question.split_key) == split:
            return question


def to_example(question: Question, language: str) -> Example:
    """The question in one language, as the other rooms know it."""
    task = "chain_sum" if isinstance(question, ChainSum) else "pair_search"
    return Example(
        id=f"{question.key}:{language}",
        question=question.question(language),
        answer=question.answer,
        task=task,
        language=language,
        metadata={"steps": question.steps, "any_order": task == "pair_search"},
    )


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """A finite list of distinct questions: how many, from which split, in which proportions."""

    size: int = 4096
    split: str = "rl"
    tasks: tuple[tuple[str, float], ...] = (("chain_sum", 0.8), ("pair_search", 0.2))
    seed: int = 0

    def __post_init__(self) -> None:
        if self.split not in SPLIT_BOUNDS:
            raise ValueError(f"split: {self.split!r} is not one of {sorted(SPLIT_BOUNDS)}")
        for name, share in self.tasks:
            if name not in GENERATORS:
                raise ValueError(f"tasks: {name!r} is not one of {sorted(GENERATORS)}")
            if share <= 0:
                raise ValueError(f"tasks: the share of {name!r} is {share}; it must be positive")


def make_examples(config: TaskConfig) -> list[Example]:
    """`config.size` distinct questions, half English and half Chinese.

    Raises:
      ValueError: the question space is too small for that many distinct questions.
    """
    rng = np.random.default_rng([config.seed, list(SPLIT_BOUNDS).index(config.split)])
    names = [name for name, _ in config.tasks]
    shares = np.array([share for _, share in config.tasks])
    examples: list[Example] = []
    seen: set[str] = set()
    failures = 0
    while len(examples) < config.size:
        question = sample_question(rng, names[int(rng.choice(len(names), p=shares / shares.sum()))], config.split)
        if question.key in seen:
            failures += 1
            if failures > 100 * config.size + 10_000:
                raise ValueError(
                    f"size: {config.size} distinct questions asked, only {len(seen)} found in split {config.split!r}"
                )
            continue
        seen.add(question.key)
        examples.append(to_example(question, LANGUAGES[int(rng.integers(2))]))
    return examples
