"""Code problems of the audit: what is asked, inputs, and the answer in a line or two of ours.

Each has a number K that changes from task to task, and its programs, known right or wrong, stand in `programs.md`
under its name. The inputs hold a case that every wrong program fails, which tests/test_audit.py checks by running them
all, without the grader.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import math
import pathlib
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby, pairwise
from typing import Any

Inputs = list[tuple[Any, ...]]
LARGE = 20_000
PROGRAMS = pathlib.Path(__file__).with_name("programs.md")
_ENTRY = re.compile(r"^# ([^\n]+)$|^## ([^\n]+)\n```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Program:
    """A program of the audit and what is true of it."""

    kind: str  # "right", "slow", or why it is wrong
    source: str  # Python: defines solve(...); C++: all of it
    language: str = "python"

    @property
    def right(self) -> bool:
        """Whether it passes every test in time."""
        return self.kind == "right"


@dataclasses.dataclass(frozen=True)
class Problem:
    """A kind of problem. `arguments` has a letter for each argument: i(nteger), l(ist of integers), s(tring)."""

    question: str
    arguments: str
    result: str  # a letter as well
    numbers: tuple[int, ...]  # K
    answer: Callable[..., Any]  # of K and the arguments
    inputs: Callable[[random.Random, int], Inputs]
    large: Callable[[random.Random], tuple[Any, ...]] | None = None  # the input that is too much for slow programs


def put_number(text: str, number: int) -> str:
    """`text` with the number in place of K."""
    return re.sub(r"\bK\b", str(number), text)


@functools.cache
def read_programs(path: pathlib.Path = PROGRAMS) -> dict[str, tuple[Program, ...]]:
    """The programs of each problem, K not yet replaced."""
    found: dict[str, list[Program]] = {}
    for name, kind, language, source in _ENTRY.findall(path.read_text(encoding="utf-8")):
        if name:
            programs = found.setdefault(name, [])
        else:
            programs.append(Program(kind, source, language))
    return {name: tuple(programs) for name, programs in found.items()}


def _integers(*fixed: int, low: int = 1, high: int = 300) -> Callable[[random.Random, int], Inputs]:
    def make(draw: random.Random, number: int) -> Inputs:
        drawn = [draw.randint(low, high) for _ in range(5)]
        return [(value,) for value in [*drawn[:1], *fixed, *drawn[1:]]]

    return make


def _texts(*fixed: str, letters: str = "abc") -> Callable[[random.Random, int], Inputs]:
    def make(draw: random.Random, number: int) -> Inputs:
        drawn = ["".join(draw.choices(letters, k=draw.randint(3, 15))) for _ in range(5)]
        return [(text,) for text in [*drawn[:1], *fixed, *drawn[1:]]]

    return make


def _climbs(k: int, n: int) -> int:
    ways = [1]
    for _ in range(n):
        ways.append(sum(ways[-k:]))
    return ways[n]


def _encoded(k: int, text: str) -> str:
    runs = ((letter, len(list(group))) for letter, group in groupby(text))
    return "".join(f"{letter}{length}" if length >= k else letter * length for letter, length in runs)


def _is_nested(k: int, text: str) -> bool:
    depths = [text[:i].count("(") - text[:i].count(")") for i in range(len(text) + 1)]
    return min(depths) >= 0 and max(depths) <= k and depths[-1] == 0


def _hailstones(n: int) -> Iterator[int]:
    for _ in range(1000):
        yield n
        n = 3 * n + 1 if n % 2 else n // 2


def _last_of_circle(k: int, n: int) -> int:
    people, at = list(range(1, n + 1)), 0
    while len(people) > 1:
        at = (at + k - 1) % len(people)
        people.pop(at)
    return people[0]


def _lists(*fixed: Sequence[int], low: int = -30, high: int = 30) -> Callable[[random.Random, int], Inputs]:
    """These lists, and five of random numbers."""

    def make(draw: random.Random, number: int) -> Inputs:
        drawn = [[draw.randint(low, high) for _ in range(draw.randint(4, 12))] for _ in range(5)]
        return [(values,) for values in [*drawn[:1], *map(list, fixed), *drawn[1:]]]

    return make


def _many(high: int) -> Callable[[random.Random], tuple[Any, ...]]:
    return lambda draw: ([draw.randint(-high, high) for _ in range(LARGE)],)


def _pairs(k: int, xs: Sequence[int]) -> int:
    count = Counter(xs)
    return sum(count[x] * (count[k - x] - (2 * x == k)) for x in set(xs)) // 2


def _longest_rise(k: int, xs: Sequence[int]) -> int:
    broken = [0, *(i for i in range(1, len(xs)) if xs[i] - xs[i - 1] < k), len(xs)]
    return max((b - a for a, b in pairwise(broken)), default=0)


def _inverted(k: int, xs: Sequence[int]) -> int:
    before: list[int] = []
    pairs = 0
    for x in xs:
        pairs += len(before) - bisect.bisect_right(before, x + k)
        bisect.insort(before, x)
    return pairs


SORT_IN_FRONT = Problem(
    "Given a list of numbers, return them in a sorted order, but also add K at the start.",
    "l",
    "l",
    (42, 7, 0),
    lambda k, xs: [k, *sorted(xs)],
    _lists([], [3, 1, 2], [5, 5, -1], [9, 8, 7, 6]),
)
KTH_LARGEST = Problem(
    "Given a list of numbers, return its K-th largest distinct value, or -1000 if there are fewer.",
    "l",
    "i",
    (2, 3, 4),
    lambda k, xs: dict(enumerate(sorted(set(xs), reverse=True))).get(k - 1, -1000),
    _lists([], [1], [4, 4, 4, 3, 3, 2, 1], [9, 9, 8, 7, 6]),
)
ROTATE = Problem(
    "Given a list, return it rotated to the left by K places.",
    "l",
    "l",
    (1, 3, 5),
    lambda k, xs: [xs[(i + k) % len(xs)] for i in range(len(xs))],
    _lists([], [1, 2], [1, 2, 3, 4, 5, 6, 7], [8, 9, 10, 11]),
)
PAIRS = Problem(
    "Given a list, return how many pairs of positions i < j have values that add up to K.",
    "l",
    "i",
    (10, 0, 7),
    _pairs,
    _lists([], [5, 5, 5, 2, 8, 3, 4, 0, 0, 7], [0, 0, 10, 10, 7, 7, 0], low=-5, high=12),
    _many(10**6),
)
LONGEST_RISE = Problem(
    "Given a list, return the length of its longest run in which each value is at least K more than the one before.",
    "l",
    "i",
    (1, 2, 5),
    _longest_rise,
    _lists([], [7], [5, 4, 3], [1, 1, 1], [0, 9, 1, 10, 20, 30], [1, 2, 4, 9, 14, 14, 15]),
)
WINDOW = Problem(
    "Given a list, return the largest sum of K values in a row, or 0 if there are fewer than K.",
    "l",
    "i",
    (2, 3, 5),
    lambda k, xs: max((sum(xs[i : i + k]) for i in range(len(xs) - k + 1)), default=0),
    _lists([], [4], [-9, -8, -7, -6, -5, -4], [1, 1, 1, 1, 1, 50], [50, 1, 1, 1, 1, 1]),
)
GCD = Problem(
    "Given a list, add K to each value and return the greatest common divisor of what you get, or 0 if it is empty.",
    "l",
    "i",
    (0, 2, 6),
    lambda k, xs: math.gcd(*(x + k for x in xs)),
    lambda draw, k: (
        [
            ([factor * draw.randint(-40, 40) - k for _ in range(size)],)
            for factor, size in ((12, 5), (1, 0), (5, 1), (1, 6), (35, 4), (210, 7))
        ]
        + [([-15 - k],), ([10 - k, -4 - k],), ([7 - k, -k, 21 - k],)]
    ),
)
INVERSIONS = Problem(
    "Given a list, return how many pairs of positions i < j there are where the value at i is more than K greater than "
    "the value at j.",
    "l",
    "i",
    (0, 2, 5),
    lambda k, xs: (
        sum(xs[i] - xs[j] > k for j in range(len(xs)) for i in range(j)) if len(xs) < 100 else _inverted(k, xs)
    ),
    _lists([], [1], [9, 7, 5, 3, 1, 0], [3, 3, 3], [8, 6, 3, 2, 2, -4]),
    _many(10**6),
)
COMMON = Problem(
    "Given a list, return the value that occurs most often in it, the smallest of several such, or -1000 if none "
    "occurs at least K times.",
    "l",
    "i",
    (1, 2, 3),
    lambda k, xs: min((-xs.count(x), x) for x in xs)[1] if any(xs.count(x) >= k for x in xs) else -1000,
    _lists([], [2], [5, 5, 5, 4, 4, 4, 9], [9, 8, 9, 8, 8, 9], [1, 2, 3], [7, 7], low=0, high=4),
)
THIN = Problem(
    "Given a list, return it without every K-th value: without those at places K, K + K and so on, counted from 1.",
    "l",
    "l",
    (2, 3, 4),
    lambda k, xs: [xs[i] for i in range(len(xs)) if i % k != k - 1],
    _lists([], [1], [1, 2, 3, 4], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]),
)
TRANSPOSE = Problem(
    "A list holds a table row by row, each row with K values (the last one may be shorter). Return the values column "
    "by column.",
    "l",
    "l",
    (2, 3, 4),
    lambda k, xs: [xs[i] for column in range(k) for i in range(len(xs)) if i % k == column],
    _lists([], [5], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]),
)
MULTIPLES = Problem(
    "Given n, return the sum of the positive multiples of K that are at most n.",
    "i",
    "i",
    (3, 4, 7),
    lambda k, n: sum(i for i in range(1, n + 1) if i % k == 0),
    lambda draw, k: [(10 * k + 1,), (0,), (k,), (k - 1,), (5 * k,), (draw.randint(100, 10**5),)],
)
CAESAR = Problem(
    "Given a text, shift each letter of the Latin alphabet by K places, Z being followed by A; keep case and the rest.",
    "s",
    "s",
    (1, 3, 13),
    lambda k, text: text.translate(
        {
            ord(a): ord(b)
            for case in ("abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ")
            for a, b in zip(case, case[k:] + case[:k], strict=True)
        }
    ),
    _texts("xyz XYZ", "Hello, world!", "a", "ZzZ-z", letters="abcxyzABCXYZ ,.0"),
)
DIGIT_SUM = Problem(
    "Given n, return the sum of the digits of n written in base K.",
    "i",
    "i",
    (2, 7, 16),
    lambda k, n: sum(n // k**i % k for i in range(64)),
    _integers(0, 1, 255, 10**18 - 1, high=10**6),
)
CLIMB = Problem(
    "Given n, return in how many ways one can climb n stairs with 1 to K stairs at a time.",
    "i",
    "i",
    (2, 3, 4),
    _climbs,
    _integers(0, 1, 2, 3, 5, 9, low=4, high=25),
    lambda draw: (90,),
)
BRACKETS = Problem(
    'Given a text of round brackets, return "yes" if they are balanced and nested at most K deep, else "no".',
    "s",
    "s",
    (1, 2, 3),
    lambda k, text: "yes" if _is_nested(k, text) else "no",
    lambda draw, k: [
        ("()()" + "(" * k + ")" * k,),
        ("(" * (k + 1) + ")" * (k + 1),),
        (")(",),
        ("())",),
        ("(()",),
        ("()(",),
        ("())(()" if k > 1 else "())(",),
        *(("".join(draw.choices("()", k=2 * draw.randint(1, 5))),) for _ in range(3)),
    ],
)
ENCODE = Problem(
    "Given a text of letters, replace each run of at least K equal letters by the letter and the length of the run.",
    "s",
    "s",
    (2, 3, 4),
    _encoded,
    _texts("a", "aaaa", "abbbbccccccccccc", "aabbaa", "zzzzz", letters="aaaab"),
)
PRIMES = Problem(
    "Given n, return how many primes p with p <= n leave the remainder 1 when divided by K.",
    "i",
    "i",
    (3, 4, 5),
    lambda k, n: sum(p % k == 1 and all(p % d for d in range(2, math.isqrt(p) + 1)) for p in range(2, n + 1)),
    lambda draw, k: [(100,), (0,), (1,), (2,), (7,), (13,), (31,), (61,), (draw.randint(50, 500),)],
    lambda draw: (LARGE,),
)
PALINDROME = Problem(
    'Drop the first K characters of a text; return "yes" if what remains reads the same backwards, else "no". Only '
    "letters count, and not their case.",
    "s",
    "s",
    (0, 1, 2),
    lambda k, text: "yes" if (t := [c.lower() for c in text[k:] if c.isalpha()]) == t[::-1] else "no",
    lambda draw, k: [
        ("xyz"[:k] + "Never odd or even",),
        ("xy"[:k] + "No lemon, no melon!",),
        ("a",),
        ("ab" + "abba",),
        ("abcd" + "ab" * 3,),
        ("xy"[:k] + "Aa",),
        ("xy"[:k] + "a1b2a",),
        ("Q" + "racecar"[k:],),
        ("".join(draw.choices("abA ", k=6)) + "xy",),
    ],
)
COLLATZ = Problem(
    "Given n, halve it where it is even, else replace it by 3n + 1, until it is 1. Return the number of steps, or -1 "
    "if that takes more than K.",
    "i",
    "i",
    (20, 50, 111),
    lambda k, n: next((i for i, m in enumerate(_hailstones(n)) if m == 1 and i <= k), -1),
    lambda draw, k: [(6,), (1,), (2,), (27,), (97,), (2**k,), (2 ** (k + 1),), (draw.randint(2, 60),)],
)
PREFIX = Problem(
    "Given words with blanks between them, return their longest common prefix, cut to K letters.",
    "s",
    "s",
    (2, 3, 5),
    lambda k, text: next(
        p for n in range(k, -1, -1) for p in [text[:n]] if all(w[:n] == p and len(w) >= n for w in text.split())
    ),
    lambda draw, k: [
        ("flower flow flight",),
        ("abcdefgh abcdefxx abcdefyy",),
        ("word",),
        ("a b c",),
        ("interval inter interior",),
        ("same same same",),
        ("ba aa ba",),
        (" ".join("a" * draw.randint(1, 7) + draw.choice("abc") for _ in range(4)),),
    ],
)
DIGITS = Problem(
    "Given n, return how many of the numbers from 1 to n have the digit K among their digits.",
    "i",
    "i",
    (1, 5, 9),
    lambda k, n: len([i for i in range(1, n + 1) if str(k) in str(i)]),
    lambda draw, k: [(100,), (0,), (k,), (10 * k,), (11 * k,), (draw.randint(200, 3000),)],
)
JOSEPHUS = Problem(
    "n people stand in a circle, with numbers 1 to n. From 1 on they count, and every K-th who is still there leaves. "
    "Return the number of the last one.",
    "i",
    "i",
    (2, 3, 7),
    _last_of_circle,
    _integers(1, 2, 3, 7, 10, 41, high=200),
)
PROBLEMS: dict[str, Problem] = {
    "multiples": MULTIPLES,
    "letters shifted": CAESAR,
    "digit sum": DIGIT_SUM,
    "stairs": CLIMB,
    "brackets": BRACKETS,
    "runs": ENCODE,
    "primes": PRIMES,
    "palindromes": PALINDROME,
    "halving": COLLATZ,
    "prefix": PREFIX,
    "digits": DIGITS,
    "circle": JOSEPHUS,
    "sorting": SORT_IN_FRONT,
    "k-th largest": KTH_LARGEST,
    "rotation": ROTATE,
    "pairs": PAIRS,
    "longest rise": LONGEST_RISE,
    "windows": WINDOW,
    "common divisor": GCD,
    "inversions": INVERSIONS,
    "most common": COMMON,
    "thinning": THIN,
    "columns": TRANSPOSE,
}
