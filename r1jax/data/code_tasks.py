"""Our own small programming problems, for models that know some Python: one function of a list, in one line.

"Write f(xs) that returns the largest of xs plus 7." Every problem comes with hidden tests (lists and what the function
must return) and a reference program. Problems are told apart by their words and number; the splits are made by a hash
of that (`tasks.split_of`), so a held-out problem has words that were seen with other numbers, and a number that was
not seen with these words.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from r1jax.data.tasks import SPLIT_BOUNDS, split_of
from r1jax.types import Example

Function = Callable[[list[int]], Any]

# Words -> (Python, what it means). The meaning is what tests are made with; the Python is the reference.
NUMBERS: dict[str, tuple[str, Function]] = {
    "the sum of xs": ("sum(xs)", sum),
    "the largest of xs": ("max(xs)", max),
    "the smallest of xs": ("min(xs)", min),
    "the length of xs": ("len(xs)", len),
    "the first item of xs": ("xs[0]", lambda xs: xs[0]),
    "the last item of xs": ("xs[-1]", lambda xs: xs[len(xs) - 1]),
}
LISTS: dict[str, tuple[str, Function]] = {
    "xs sorted": ("sorted(xs)", sorted),
    "xs reversed": ("xs[::-1]", lambda xs: list(reversed(xs))),
    "xs without its first item": ("xs[1:]", lambda xs: [x for i, x in enumerate(xs) if i > 0]),
    "xs without its last item": ("xs[:-1]", lambda xs: [x for i, x in enumerate(xs) if i < len(xs) - 1]),
}
# Words with {k} -> (Python around {e}, what it means).
ON_NUMBERS: dict[str, tuple[str, Callable[[Any, int], Any]]] = {
    "plus {k}": ("{e} + {k}", lambda value, k: value + k),
    "minus {k}": ("{e} - {k}", lambda value, k: value - k),
    "times {k}": ("{e} * {k}", lambda value, k: value * k),
}
ON_LISTS: dict[str, tuple[str, Callable[[Any, int], Any]]] = {
    "with {k} added at the start": ("[{k}] + {e}", lambda value, k: [k, *value]),
    "with {k} added at the end": ("{e} + [{k}]", lambda value, k: [*value, k]),
}
CONSTANTS = range(2, 42)
TESTS = 5  # drawn for each problem, besides `CORNERS`
# Lists on which near misses of the words differ: a repeated item, nothing but negative ones, a single item.
CORNERS = ([7, 31, 7, -4, 31, 7], [-3, -25, -1, -60, -2, -3], [19])
_Home = tuple[dict[str, tuple[str, Function]], dict[str, tuple[str, Callable[[Any, int], Any]]]]
_HOMES: tuple[_Home, ...] = ((NUMBERS, ON_NUMBERS), (LISTS, ON_LISTS))


def home_of(first: str) -> _Home:
    """The table that has `first`, and the one of what can follow."""
    return next(home for home in _HOMES if first in home[0])


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is done to xs, what is done to the result, and with which constant."""

    first: str  # a key of NUMBERS or LISTS
    then: str  # a key of ON_NUMBERS or ON_LISTS
    constant: int

    @property
    def question(self) -> str:
        """As it stands in a prompt."""
        return f"Write f(xs) that returns {self.first} {self.then.format(k=self.constant)}."

    @property
    def reference(self) -> str:
        """A right program."""
        home, on = home_of(self.first)
        return f"def f(xs): return {on[self.then][0].format(e=home[self.first][0], k=self.constant)}"

    def result(self, xs: list[int]) -> Any:
        """What f(xs) must return."""
        home, on = home_of(self.first)
        return on[self.then][1](home[self.first][1](list(xs)), self.constant)


def all_problems() -> Iterator[Problem]:
    """Every problem there is, in a fixed order."""
    for home, on in _HOMES:
        for first, then, constant in itertools.product(home, on, CONSTANTS):
            yield Problem(first, then, constant)


def _inputs(problem: Problem) -> Iterator[list[int]]:
    """The hidden lists, the same whenever asked. In those that are drawn, first, last, largest and smallest item are
    four different ones."""
    yield from CORNERS
    seed = int.from_bytes(hashlib.sha256(problem.question.encode()).digest()[:8], "big")
    rng = np.random.default_rng(seed)
    for _ in range(TESTS):
        xs = [int(x) for x in rng.choice(np.arange(-30, 100), size=int(rng.integers(4, 8)), replace=False)]
        low, high = sorted(xs)[0], sorted(xs)[-1]
        xs.remove(low)
        xs.remove(high)
        middle = len(xs) // 2
        yield [*xs[:middle], high, low, *xs[middle:]]


def to_example(problem: Problem) -> Example:
    """The problem as the other rooms know it; the tests are `calls` for `rewards.code_accuracy`."""
    return Example(
        id=f"program:{problem.first}:{problem.then.format(k=problem.constant)}",
        question=problem.question,
        answer=problem.reference,
        task="programs",
        domain="code",
        metadata={
            "function": "f",
            "calls": [{"args": [xs], "expected": problem.result(xs)} for xs in _inputs(problem)],
            "reference": problem.reference,
        },
    )


def make_examples(size: int, split: str, seed: int) -> list[Example]:
    """`size` distinct problems of a split, in an order that the seed decides.

    Raises:
      ValueError: an unknown split, or it has fewer problems.
    """
    if split not in SPLIT_BOUNDS:
        raise ValueError(f"split: {split!r} is not one of {sorted(SPLIT_BOUNDS)}")
    problems = [p for p in all_problems() if split_of(p.question) == split]
    if not 1 <= size <= len(problems):
        raise ValueError(f"size: {size} problems asked, split {split!r} has 1 to {len(problems)}")
    order = np.random.default_rng(seed).permutation(len(problems))[:size]
    return [to_example(problems[i]) for i in order]
