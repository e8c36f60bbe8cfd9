"""Tests that a generator or a model wrote, against programs whose worth is known."""

from __future__ import annotations

import json
from typing import Any

import pytest

from r1jax.rewards.code.made_tests import (
    Solution,
    generate_tests,
    passed_tests,
    prompt_for_tests,
    telling_tests,
    write_tests,
)
from r1jax.rewards.code.programs import CallTest, StdioTest
from r1jax.rewards.isolation.sandbox import Limits, Sandbox, SandboxUnavailableError


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    box = Sandbox(Limits(wall_seconds=10.0, cpu_seconds=2))
    try:
        box.check()
    except SandboxUnavailableError as error:
        pytest.skip(str(error))
    return box


# The largest number of a list. Seeds 0, 1, 2, ... give lists of so many numbers from 5 downwards; seed 3 twice.
GENERATOR = Solution(
    """
seed = int(input())
if seed == 6:
    raise ValueError("this seed has no input")
if seed != 7:
    print(*[5 - i for i in range(min(seed, 3))] if seed != 8 else ["x"])
"""
)
GOOD = Solution("print(max(map(int, input().split()), default=0))")
SORTS = Solution("xs = sorted(map(int, input().split()))\nprint(xs[-1] if xs else 0)\n")
LAST = Solution("xs = input().split()\nprint(xs[-1])")  # wrong where the largest is not the last one
ABSOLUTE = Solution("print(max(abs(int(x)) for x in input().split()))")  # wrong with negative numbers only


def test_a_generators_tests_are_those_that_good_solutions_agree_on(sandbox: Sandbox) -> None:
    # Seeds 1, 2, 3 are good; 4 repeats 3's list; 0 and 7 print nothing, 6 fails; on 8 the good solutions crash.
    made = generate_tests(GENERATOR, [GOOD, SORTS], range(9), sandbox)
    assert made.tests == (StdioTest("5\n", "5\n"), StdioTest("5 4\n", "5\n"), StdioTest("5 4 3\n", "5\n"))
    assert (made.asked, made.failed, made.repeated, made.broken, made.disagreed) == (9, 3, 2, 1, 0)
    # A third one that takes the last number agrees on a list of one only.
    made = generate_tests(GENERATOR, [GOOD, SORTS, LAST], [1, 2, 3], sandbox)
    assert made.tests == (StdioTest("5\n", "5\n"),)
    assert (made.asked, made.broken, made.disagreed) == (3, 0, 2)


def test_tests_are_sifted_by_wrong_solutions(sandbox: Sandbox) -> None:
    tests = (StdioTest("5\n", "5"), StdioTest("5 4\n", "5"), StdioTest("-1 -2\n", "-1"))
    assert passed_tests(LAST, tests, sandbox) == [True, False, False]
    assert passed_tests(ABSOLUTE, tests, sandbox) == [True, True, False]
    told = telling_tests(tests, [LAST, ABSOLUTE], sandbox)
    assert (told.tests, told.dropped, told.undetected) == (tests[1:], 1, ())
    told = telling_tests(tests[:2], [ABSOLUTE, LAST], sandbox)
    assert (told.tests, told.dropped, told.undetected) == (tests[1:2], 1, (0,))


def test_programs_that_cannot_serve_are_named(sandbox: Sandbox) -> None:
    with pytest.raises(ValueError, match="at least two good solutions, got 1"):
        generate_tests(GENERATOR, [GOOD], [1], sandbox)
    with pytest.raises(ValueError, match=r"good\[1\]: it does not parse"):
        generate_tests(GENERATOR, [GOOD, Solution("print(")], [1], sandbox)
    with pytest.raises(ValueError, match="generator: it does not parse"):
        generate_tests(Solution("a list of numbers"), [GOOD, GOOD], [1], sandbox)
    with pytest.raises(ValueError, match="at least one wrong solution"):
        telling_tests((StdioTest("", ""),), [], sandbox)
    with pytest.raises(ValueError, match=r"wrong\[0\]: it does not parse"):
        write_tests("q", lambda _: pytest.fail("asked in vain"), GOOD, [Solution("print(")], sandbox)


REFERENCE = Solution("def sort_42(numbers):\n    return [42] + sorted(numbers)\n")
UNSORTED = Solution("def sort_42(numbers):\n    return [42] + numbers\n")
UNIQUE = Solution("def sort_42(numbers):\n    return [42] + sorted(set(numbers))\n")
WRITTEN: list[Any] = [
    {"args": [[2, 1]], "expected": [42, 1, 2]},  # kept: tells UNSORTED
    {"args": [[]], "expected": [42]},  # every wrong program passes
    {"args": [[3]], "expected": [3, 42]},  # the reference fails it: the model was wrong
    {"args": [[2, 1]], "expected": [42, 1, 2]},
    {"input": "1", "output": "1"},
    "[1, 2]",
    {"args": [[1, 1]], "expected": [42, 1, 1]},  # kept: tells UNIQUE
    {"args": [[9, 8]], "expected": [42, 8, 9]},  # the eighth of seven
]


@pytest.mark.parametrize("form", ["```json\n{}\n```", "<think>[1] or so</think>\nHere:\n```\n{}\n```\n", "{}"])
def test_a_models_tests_are_kept_where_they_tell_right_from_wrong(sandbox: Sandbox, form: str) -> None:
    asked: list[str] = []

    def ask(prompt: str) -> str:
        asked.append(prompt)
        return form.format(json.dumps(WRITTEN))

    made = write_tests("Sort, with 42 in front.", ask, REFERENCE, [UNSORTED, UNIQUE], sandbox, "sort_42", count=7)
    assert made.tests == (CallTest(([2, 1],), [42, 1, 2]), CallTest(([1, 1],), [42, 1, 1]))
    assert made.dropped == {
        "too many": 1,
        "ill-formed": 2,
        "repeated": 1,
        "the reference fails": 1,
        "no wrong program fails": 1,
    }
    assert (made.undetected, made.unreadable) == ((), "")
    assert len(asked) == 1
    assert "Sort, with 42 in front." in asked[0]
    assert "`sort_42`" in asked[0]


def test_a_models_tests_of_standard_input(sandbox: Sandbox) -> None:
    answer = json.dumps([{"input": "1 2\n", "output": "2"}, {"input": "2 1\n", "output": "2"}, {"input": 3}])
    made = write_tests("The largest.", lambda _: answer, GOOD, [LAST, ABSOLUTE], sandbox)
    assert made.tests == (StdioTest("2 1\n", "2"),)
    assert made.dropped == {"ill-formed": 1, "no wrong program fails": 1}
    assert made.undetected == (1,)
    assert '{"input": "...", "output": "..."}' in prompt_for_tests("The largest.")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("", "the answer is blank or cut inside a block"),
        ('```json\n[{"args": ', "the answer is blank or cut inside a block"),
        ("I cannot write tests.", "the answer holds no list"),
        ('[{"args": ', "the answer holds no JSON list"),
        ("[" * 100_000, "the answer holds no JSON list"),
    ],
)
def test_an_answer_without_tests_says_so(sandbox: Sandbox, answer: str, reason: str) -> None:
    made = write_tests("q", lambda _: answer, REFERENCE, [UNSORTED], sandbox, "sort_42")
    assert made.tests == ()
    assert reason in made.unreadable


def test_a_model_that_does_not_answer_is_an_error(sandbox: Sandbox) -> None:
    def dead(_: str) -> str:
        raise ConnectionError("no endpoint")

    with pytest.raises(ConnectionError, match="no endpoint"):
        write_tests("q", dead, REFERENCE, [UNSORTED], sandbox, "sort_42")
