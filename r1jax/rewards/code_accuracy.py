"""The accuracy reward for programs: does it parse, does it run, does it pass the tests, how fast is it.

Programs run in the sandbox. Only inputs go in; what comes out is compared here, so that a program can earn nothing but
by printing or returning what is right. A program that fails in any way is wrong; if the sandbox fails, that is said
(UNGRADABLE), and never counts against the program.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any, Protocol

from r1jax.rewards.answer import extract_final_answer
from r1jax.rewards.programs import (
    CallTest,
    CodeProblem,
    ProblemError,
    StdioTest,
    extract_program,
    is_python,
    parse_problem,
    same_output,
    same_value,
)
from r1jax.rewards.sandbox import Limits, Outcome, SandboxUnavailableError, python_command
from r1jax.types import Example, Score, Status

# Calls the function with every list of arguments and prints the results as one JSON line on the real standard output,
# which the program's own prints do not reach. It runs beside the program and can be fooled by it in every way but one:
# it does not know what is expected.
HARNESS = """
import json, os, sys
calls = json.loads(sys.stdin.buffer.read())
out = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
with open("solution.py", encoding="utf-8") as file:
    source = file.read()
namespace = {"__name__": "solution"}
exec(compile(source, "solution.py", "exec"), namespace)
results = []
for args in calls["args"]:
    try:
        results.append(["value", namespace[calls["function"]](*args)])
    except Exception as error:
        results.append(["error", type(error).__name__])
json.dump(results, out)
out.close()
"""


class Runner(Protocol):
    """A sandbox here or behind the grade service."""

    def run(self, command: Sequence[str], files: Any, stdin: bytes = b"", limits: Limits | None = None) -> Outcome:
        """One run of a command beside its files."""


@dataclasses.dataclass(frozen=True)
class Language:
    """How programs of a language are kept, made and run."""

    source: str  # the file's name
    build: str = ""  # a shell command that leaves ./program; empty: the source itself is run
    command: tuple[str, ...] = ()


LANGUAGES: dict[str, Language] = {
    "python": Language("solution.py", command=python_command("solution.py")),
    "cpp": Language("solution.cpp", "g++ -O2 -std=c++17 -o program solution.cpp", ("./program",)),
}
BUILD_LIMITS = Limits(wall_seconds=30.0, cpu_seconds=30, output_bytes=16 * 2**20)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a program's tests came to."""

    passed: int
    total: int
    reason: str = ""  # of the first test that failed, or of a program that was never run
    seconds: float = 0.0  # CPU time of all tests

    @property
    def right(self) -> bool:
        """Whether it passed every test."""
        return self.passed == self.total > 0


def runs(program: str, runner: Runner, language: str = "python") -> tuple[bool, str]:
    """Whether a program ends by itself with 0 on empty input, and if not why."""
    built = _build(program, runner, language)
    if isinstance(built, str):
        return False, built
    outcome = runner.run(LANGUAGES[language].command, built)
    return outcome.ok, "" if outcome.ok else _failure(outcome)


def run_tests(program: str, problem: CodeProblem, runner: Runner) -> Verdict:
    """Puts a program to all tests of a problem; it stops at the first that fails.

    Raises:
      SandboxUnavailableError: nothing can be said about the program.
    """
    total = len(problem.tests)
    if problem.function:
        return _run_calls(program, problem, runner)
    built = _build(program, runner, problem.language)
    if isinstance(built, str):
        return Verdict(0, total, built)
    seconds = 0.0
    for i, test in enumerate(problem.tests):
        assert isinstance(test, StdioTest)
        outcome = runner.run(LANGUAGES[problem.language].command, built, test.stdin.encode())
        seconds += outcome.cpu_seconds
        if not outcome.ok:
            return Verdict(i, total, f"test {i + 1}: {_failure(outcome)}", seconds)
        if not same_output(outcome.stdout.decode("utf-8", errors="replace"), test.expected):
            return Verdict(i, total, f"test {i + 1}: another output", seconds)
    return Verdict(total, total, seconds=seconds)


def _build(program: str, runner: Runner, language: str) -> dict[str, bytes] | str:
    """The files of a program ready to run, or why there are none."""
    how = LANGUAGES[language]
    source = {how.source: program.encode("utf-8", errors="replace")}
    if not how.build:
        return source if is_python(program) else "it does not parse"
    made = runner.run(("sh", "-c", f"{how.build} >&2 && cat program"), source, limits=BUILD_LIMITS)
    return {"program": made.stdout} if made.ok else "it does not compile"


def _run_calls(program: str, problem: CodeProblem, runner: Runner) -> Verdict:
    total = len(problem.tests)
    if not is_python(program):
        return Verdict(0, total, "it does not parse")
    tests = [test for test in problem.tests if isinstance(test, CallTest)]
    calls = {"function": problem.function, "args": [list(test.args) for test in tests]}
    files = {"solution.py": program.encode("utf-8", errors="replace"), "harness.py": HARNESS.encode()}
    outcome = runner.run(python_command("harness.py"), files, json.dumps(calls).encode())
    results = _results(outcome, total)
    if results is None:
        return Verdict(0, total, _failure(outcome), outcome.cpu_seconds)
    for i, ((kind, value), test) in enumerate(zip(results, tests, strict=True)):
        if kind != "value" or not same_value(value, json.loads(json.dumps(test.expected))):
            what = f"raised {value}" if kind == "error" else "another result"
            return Verdict(i, total, f"test {i + 1}: {what}", outcome.cpu_seconds)
    return Verdict(total, total, seconds=outcome.cpu_seconds)


def _results(outcome: Outcome, total: int) -> list[tuple[str, Any]] | None:
    """What the harness printed, if it is what a harness prints; the program may have printed anything."""
    if not outcome.ok:
        return None
    try:
        found = json.loads(outcome.stdout)
    except (ValueError, RecursionError):
        return None
    pairs = isinstance(found, list) and len(found) == total and all(isinstance(r, list) and len(r) == 2 for r in found)
    return [(str(kind), value) for kind, value in found] if pairs else None


def _failure(outcome: Outcome) -> str:
    if outcome.status == "timed_out":
        return "too slow"
    if outcome.status == "output_limit":
        return "too much output"
    if outcome.status == "signalled":
        return f"killed by signal {outcome.signal}"
    return "no result" if outcome.ok else f"ended with {outcome.exit_code}"


class CodeGrader:
    """Grades completions of code problems: `grader(completion, example) -> Score`."""

    def __init__(self, runner: Runner, partial_credit: bool = False) -> None:
        """partial_credit: the share of tests passed before the first failure, in place of 0 for a wrong program."""
        self._runner = runner
        self._partial_credit = partial_credit

    def __call__(self, completion: str, example: Example) -> Score:
        """1 where the final answer's program passes every test, else 0 with the reason.

        UNGRADABLE if the problem's tests cannot be used, or the sandbox is not to be had.
        """
        try:
            problem = parse_problem(example.metadata)
        except ProblemError as error:
            return Score(0.0, Status.UNGRADABLE, str(error))
        if problem.language not in LANGUAGES:
            return Score(0.0, Status.UNGRADABLE, f"language {problem.language!r} is not one of {sorted(LANGUAGES)}")
        answer = extract_final_answer(completion)
        program = None if answer is None else extract_program(answer)
        if program is None:
            return Score(0.0, reason="no program in a single final answer")
        try:
            verdict = run_tests(program, problem, self._runner)
        except SandboxUnavailableError as error:
            return Score(0.0, Status.UNGRADABLE, str(error))
        if verdict.right:
            return Score(1.0)
        return Score(verdict.passed / verdict.total if self._partial_credit else 0.0, reason=verdict.reason)


def speed_reward(verdict: Verdict, reference_seconds: float, floor: float = 0.01) -> float:
    """How fast a right program is beside a reference, 0..1: 1 at the reference's CPU time or less, 1/2 at twice.

    0 for a wrong program. Not deterministic: it measures time. `floor` seconds are added to both, so that the start of
    an interpreter does not decide.

    Raises:
      ValueError: reference_seconds is negative.
    """
    if reference_seconds < 0:
        raise ValueError(f"reference_seconds must not be negative, got {reference_seconds}")
    return min(1.0, (reference_seconds + floor) / (verdict.seconds + floor)) if verdict.right else 0.0
