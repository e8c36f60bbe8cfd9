"""Tests for code problems that come without: written by a generator program or by a model, and sifted by running.

The paper's cold-start code problems have hidden tests from generators that a model wrote, filtered in two phases
(DeepSeek-R1 v2, B.3). Here the first phase keeps inputs on which correct programs agree (`generate_tests`), the second
tests that incorrect ones fail (`telling_tests`); `write_tests` puts a model's own unit tests through both, with a
reference solution in place of agreement. Every program runs in the sandbox.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from r1jax.rewards.code.code_accuracy import LANGUAGES, Runner, build_program, run_job, run_tests
from r1jax.rewards.code.programs import (
    CallTest,
    CodeProblem,
    ProblemError,
    StdioTest,
    extract_program,
    parse_problem,
    same_output,
)

Test = StdioTest | CallTest
Tests = tuple[StdioTest, ...] | tuple[CallTest, ...]

PROMPT = """Write {count} tests for the problem below. They are to tell right programs from wrong ones: cover small and
large inputs, empty ones where they are allowed, limits, ties and signs, and work out each expected result with care.

Problem:
{question}

{how}
Answer with one JSON list of {count} such objects in a ```json block, and nothing after it."""
_CALLS = """Each test calls the function `{function}`, as {{"args": [...], "expected": ...}}: args is the list of its
arguments, expected what it returns, all of them plain JSON values."""
_STDIO = """Each test is {"input": "...", "output": "..."}: the text on the program's standard input, and what it must
print."""


@dataclasses.dataclass(frozen=True)
class Solution:
    """A program whose worth is known."""

    program: str
    language: str = "python"


@dataclasses.dataclass(frozen=True)
class MadeTests:
    """Tests on whose outputs all good solutions agree, and what became of the other inputs.

    `asked` inputs = tests + failed + repeated + broken + disagreed.
    """

    tests: tuple[StdioTest, ...]
    asked: int
    failed: int  # the generator ended with an error, printed nothing, or no UTF-8
    repeated: int
    broken: int  # a good solution crashed, was too slow, or printed no UTF-8
    disagreed: int


@dataclasses.dataclass(frozen=True)
class TellingTests:
    """Tests that at least one wrong solution fails, and how good they are together."""

    tests: Tests
    dropped: int  # tests that every wrong solution passes
    undetected: tuple[int, ...]  # which wrong solutions pass all tests: the problem needs others


@dataclasses.dataclass(frozen=True)
class WrittenTests:
    """A model's tests that the reference passes and a wrong program fails, and why the others were dropped."""

    tests: Tests
    dropped: Mapping[str, int]  # "ill-formed", "too many", "repeated", "the reference fails", "no wrong program fails"
    undetected: tuple[int, ...] = ()  # as in TellingTests
    unreadable: str = ""  # why the answer holds no list of tests; empty: it does


def _built(solution: Solution, runner: Runner, what: str) -> Mapping[str, bytes]:
    built = build_program(solution.program, runner, solution.language, LANGUAGES)
    if isinstance(built, str):
        raise ValueError(f"{what}: {built}")
    return built


def _printed(solution: Solution, built: Mapping[str, bytes], stdin: str, runner: Runner) -> str | None:
    """What a program prints, or None where it fails."""
    outcome = run_job(runner, LANGUAGES[solution.language].command, built, stdin.encode())
    try:
        return outcome.stdout.decode() if outcome.ok else None
    except UnicodeDecodeError:
        return None


def generate_tests(
    generator: Solution, good: Sequence[Solution], seeds: Sequence[int], runner: Runner, workers: int = 2
) -> MadeTests:
    """One test for each seed: `generator` gets it on standard input and prints the input of a test, whose expected
    output is what all `good` solutions print. Inputs that they do not agree on are dropped, as repeated ones are.

    Raises:
      ValueError: there are not two good solutions, or one of them or the generator cannot be built.
      SandboxUnavailableError: programs cannot be run.
    """
    if len(good) < 2:
        raise ValueError(f"agreement takes at least two good solutions, got {len(good)}")
    made = _built(generator, runner, "generator")
    built = [_built(solution, runner, f"good[{i}]") for i, solution in enumerate(good)]

    def outputs(stdin: str) -> list[str | None]:
        return [_printed(solution, files, stdin, runner) for solution, files in zip(good, built, strict=True)]

    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        given = list(pool.map(lambda seed: _printed(generator, made, f"{seed}\n", runner), seeds))
        usable = [text for text in given if text and text.strip()]
        inputs = list(dict.fromkeys(usable))
        answers = list(pool.map(outputs, inputs))
    tests, broken, disagreed = [], 0, 0
    for stdin, printed in zip(inputs, answers, strict=True):
        told = [text for text in printed if text is not None]
        if len(told) < len(good):
            broken += 1
        elif not all(same_output(text, told[0]) for text in told):
            disagreed += 1
        else:
            tests.append(StdioTest(stdin, told[0]))
    failed, repeated = len(given) - len(usable), len(usable) - len(inputs)
    return MadeTests(tuple(tests), len(given), failed, repeated, broken, disagreed)


def passed_tests(solution: Solution, tests: Tests, runner: Runner, function: str = "") -> list[bool]:
    """Whether a program passes each test, all of them tried; `function` as in CodeProblem.

    Raises:
      ValueError: the program cannot be built.
      SandboxUnavailableError: programs cannot be run.
    """
    built = _built(solution, runner, "a program")
    passed = []
    for test in tests:
        if isinstance(test, StdioTest):
            printed = _printed(solution, built, test.stdin, runner)
            passed.append(printed is not None and same_output(printed, test.expected))
        else:
            problem = CodeProblem((test,), solution.language, function)
            passed.append(run_tests(solution.program, problem, runner).right)
    return passed


def telling_tests(
    tests: Tests, wrong: Sequence[Solution], runner: Runner, function: str = "", workers: int = 2
) -> TellingTests:
    """Keeps the tests that at least one of `wrong` fails. Near misses make good ones: any test tells a program that
    does nothing.

    Raises:
      ValueError: there are no wrong solutions, or one cannot be built.
      SandboxUnavailableError: programs cannot be run.
    """
    if not wrong:
        raise ValueError("tests are sifted by at least one wrong solution, got none")
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        passed = list(pool.map(lambda solution: passed_tests(solution, tests, runner, function), wrong))
    telling = [not all(row[i] for row in passed) for i in range(len(tests))]
    kept: Any = tuple(test for test, tells in zip(tests, telling, strict=True) if tells)
    undetected = tuple(i for i, row in enumerate(passed) if all(row))
    return TellingTests(kept, len(tests) - len(kept), undetected)


def prompt_for_tests(question: str, function: str = "", count: int = 10) -> str:
    """Asks for `count` tests of a problem: calls of `function`, or standard input and output where it is empty."""
    how = _CALLS.format(function=function) if function else _STDIO
    return PROMPT.format(count=count, question=question.strip(), how=how)


def write_tests(
    question: str,
    ask: Callable[[str], str],
    reference: Solution,
    wrong: Sequence[Solution],
    runner: Runner,
    function: str = "",
    count: int = 10,
    workers: int = 2,
) -> WrittenTests:
    """Asks a model for at most `count` tests; keeps those that the reference passes and one of `wrong` fails.

    `ask` takes the prompt and returns the model's answer, an own thought before `</think>` included or not. Whatever it
    raises is the caller's to see.

    Raises:
      ValueError: there are no wrong solutions, or a program cannot be built.
      SandboxUnavailableError: programs cannot be run.
    """
    for what, solution in [("reference", reference), *((f"wrong[{i}]", each) for i, each in enumerate(wrong))]:
        _built(solution, runner, what)  # before the model is asked
    listed = _read_list(ask(prompt_for_tests(question, function, count)))
    if isinstance(listed, str):
        return WrittenTests((), {}, unreadable=listed)
    dropped: Counter[str] = Counter()
    dropped["too many"] = max(0, len(listed) - count)
    parsed: dict[str, Test] = {}
    for case in listed[:count]:
        test = _parse_test(case, function)
        if test is None:
            dropped["ill-formed"] += 1
        elif parsed.setdefault(json.dumps(case, sort_keys=True), test) is not test:
            dropped["repeated"] += 1
    tests: Any = tuple(parsed.values())
    right: Any = tuple(
        t for t, passed in zip(tests, passed_tests(reference, tests, runner, function), strict=True) if passed
    )
    telling = telling_tests(right, wrong, runner, function, workers)
    dropped["the reference fails"] = len(tests) - len(right)
    dropped["no wrong program fails"] = telling.dropped
    return WrittenTests(telling.tests, {why: n for why, n in dropped.items() if n}, telling.undetected)


def _read_list(answer: str) -> list[Any] | str:
    """The JSON list in an answer, or why there is none."""
    block = extract_program(answer.rpartition("</think>")[2])
    if block is None:
        return "the answer is blank or cut inside a block"
    start = block.find("[")
    if start < 0:
        return "the answer holds no list"
    try:
        return list(json.JSONDecoder().raw_decode(block, start)[0])
    except (ValueError, RecursionError) as error:
        return f"the answer holds no JSON list: {error}"


def _parse_test(case: Any, function: str) -> Test | None:
    try:
        fields = {"function": function, "calls": [case]} if function else {"stdio": [case]}
        return parse_problem(fields).tests[0]
    except ProblemError:
        return None
