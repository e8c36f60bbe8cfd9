"""The accuracy reward for programs: does it parse and lint, does it run, does it pass the tests, how fast is it.

Programs run in the sandbox. Only inputs go in; what comes out is compared here, so that a program can earn nothing but
by printing or returning what is right. A program that fails in any way is wrong, and so is one that is too slow; if the
sandbox fails, that is said (UNGRADABLE), and never counts against the program.

A program is too slow by its CPU time (`Limits.cpu_seconds`), which hardly depends on the machine's load. The limit of
wall-clock time is for programs that sleep: set it to several times the CPU seconds, or a right program on a busy
machine is taken for one of those.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import json
import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from r1jax.rewards.answer import extract_final_answer
from r1jax.rewards.code.harness import HARNESS, LIVE_CODE_BENCH_PRELUDE, PRELUDE
from r1jax.rewards.code.lint import check_lint, lint_reward
from r1jax.rewards.code.programs import (
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
from r1jax.rewards.isolation.sandbox import Limits, Outcome, SandboxUnavailableError, python_command
from r1jax.types import Example, Score, Status

MEASURES = frozenset({"lint", "runs", "speed"})  # beside accuracy
REFERENCES = 64  # are run before a run starts
REFERENCES_TOGETHER = 4
RUNS_TOGETHER = 8  # the tests of a problem may together take the time of so many runs at their limit


class Runner(Protocol):
    """A sandbox here or behind the grade service."""

    limits: Limits

    def run(self, command: Sequence[str], files: Any, stdin: bytes = b"", limits: Limits | None = None) -> Outcome:
        """One run of a command beside its files."""


@dataclasses.dataclass(frozen=True)
class Language:
    """How programs of a language are kept, made and run."""

    source: str  # the file's name
    hello: str  # a program that prints 42, to see whether the language is there
    build: str = ""  # a shell command that leaves ./program; empty: the source itself is run
    command: tuple[str, ...] = ("./program",)


# Another language is another line here, or in a mapping of the caller's own.
LANGUAGES: Mapping[str, Language] = {
    "python": Language("solution.py", "print(42)", command=python_command("solution.py")),
    "cpp": Language(
        "solution.cpp",
        '#include <cstdio>\nint main() { std::puts("42"); }',
        "g++ -O2 -std=c++17 -o program solution.cpp",
    ),
}
BUILD_LIMITS = Limits(wall_seconds=60.0, cpu_seconds=20, output_bytes=16 * 2**20)
_SHOWN = 60  # characters of an error's or a type's name
_NOT_FOUND = 127  # a shell's exit code for a command that is not there


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


def check_language(name: str, runner: Runner, languages: Mapping[str, Language] = LANGUAGES) -> None:
    """SandboxUnavailableError where a language's own trivial program does not work: its compiler is missing, say."""
    built = build_program(languages[name].hello, runner, name, languages)
    outcome = built if isinstance(built, str) else run_job(runner, languages[name].command, built)
    if isinstance(outcome, str) or outcome.stdout.strip() != b"42":
        how = outcome if isinstance(outcome, str) else _failure(outcome)
        raise SandboxUnavailableError(f"programs in {name} cannot be run: a trivial one failed ({how})")


def runs(
    program: str,
    runner: Runner,
    language: str = "python",
    stdin: bytes = b"",
    languages: Mapping[str, Language] = LANGUAGES,
) -> tuple[bool, str]:
    """Whether a program ends by itself with 0 on this input, whatever it prints, and if not why."""
    built = build_program(program, runner, language, languages)
    if isinstance(built, str):
        return False, built
    outcome = run_job(runner, languages[language].command, built, stdin)
    return outcome.ok, "" if outcome.ok else _failure(outcome)


def run_tests(
    program: str, problem: CodeProblem, runner: Runner, languages: Mapping[str, Language] = LANGUAGES
) -> Verdict:
    """Puts a program to all tests of a problem; it stops at the first that fails.

    Each test of standard input is a run with all of the runner's limits, up to `RUNS_TOGETHER` times their seconds for
    all tests; calls of a function share one run.

    Raises:
      SandboxUnavailableError: nothing can be said about the program.
    """
    total = len(problem.tests)
    if problem.function:
        return _run_calls(program, problem, runner)
    built = build_program(program, runner, problem.language, languages)
    if isinstance(built, str):
        return Verdict(0, total, built)
    limits = runner.limits
    seconds = wall = 0.0
    for i, test in enumerate(problem.tests):
        assert isinstance(test, StdioTest)
        outcome = run_job(runner, languages[problem.language].command, built, test.stdin.encode())
        seconds, wall = seconds + outcome.cpu_seconds, wall + outcome.wall_seconds
        if not outcome.ok:
            return Verdict(i, total, f"test {i + 1}: {_failure(outcome)}", seconds)
        if seconds > RUNS_TOGETHER * limits.cpu_seconds or wall > RUNS_TOGETHER * limits.wall_seconds:
            return Verdict(i, total, f"test {i + 1}: too slow, all tests together", seconds)
        if not same_output(outcome.stdout.decode("utf-8", errors="replace"), test.expected):
            return Verdict(i, total, f"test {i + 1}: another output", seconds)
    return Verdict(total, total, seconds=seconds)


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


def run_job(
    runner: Runner,
    command: Sequence[str],
    files: Mapping[str, bytes],
    stdin: bytes = b"",
    limits: Limits | None = None,
) -> Outcome:
    """One run. A runner that refuses a job (too large for the grade service) says nothing about the program either."""
    try:
        return runner.run(command, files, stdin, limits)
    except ValueError as error:
        raise SandboxUnavailableError(f"the run was refused: {error}") from error


def build_program(
    program: str, runner: Runner, language: str, languages: Mapping[str, Language]
) -> dict[str, bytes] | str:
    """The files of a program ready to run, or why there are none."""
    how = languages[language]
    source = {how.source: program.encode("utf-8", errors="replace")}
    if language == "python" and not is_python(program):
        return "it does not parse"
    if not how.build:
        return source
    made = run_job(runner, ("sh", "-c", f"{how.build} >&2 && cat program"), source, limits=BUILD_LIMITS)
    if made.exit_code == _NOT_FOUND:
        said = made.stderr.decode(errors="replace").strip()[-200:]
        raise SandboxUnavailableError(f"programs in {language} cannot be made here: {said}")
    return {"program": made.stdout} if made.ok else "it does not compile"


def _run_calls(program: str, problem: CodeProblem, runner: Runner) -> Verdict:
    total = len(problem.tests)
    if not is_python(program):
        return Verdict(0, total, "it does not parse")
    tests = [test for test in problem.tests if isinstance(test, CallTest)]
    calls = {
        "function": problem.function,
        "method": problem.live_code_bench,
        "prelude": LIVE_CODE_BENCH_PRELUDE if problem.live_code_bench else PRELUDE,
        "args": [list(test.args) for test in tests],
    }
    files = {"solution.py": program.encode("utf-8", errors="replace"), "harness.py": HARNESS.encode()}
    outcome = run_job(runner, python_command("harness.py"), files, json.dumps(calls).encode())
    results = _results(outcome, total)
    if results is None:
        return Verdict(0, total, _failure(outcome), outcome.cpu_seconds)
    for i, ((kind, value), test) in enumerate(zip(results, tests, strict=True)):
        if kind != "value" or not same_value(value, test.expected):
            what = {"error": "raised {}", "no JSON": "a result that JSON cannot hold: {}"}.get(kind, "another result")
            return Verdict(i, total, f"test {i + 1}: {what.format(str(value)[:_SHOWN])}", outcome.cpu_seconds)
    return Verdict(total, total, seconds=outcome.cpu_seconds)


def _results(outcome: Outcome, total: int) -> list[tuple[str, Any]] | None:
    """What the harness printed, if it is what a harness prints; the program may have printed anything."""
    if not outcome.ok:
        return None
    try:
        found = json.loads(outcome.stdout, object_pairs_hook=_object)
    except (ValueError, RecursionError):
        return None
    pairs = isinstance(found, list) and len(found) == total and all(isinstance(r, list) and len(r) == 2 for r in found)
    return [(str(kind), value) for kind, value in found] if pairs else None


def _object(pairs: list[tuple[str, Any]]) -> Any:
    """A JSON object; one with a key twice ({1: 3, "1": 2} becomes that) equals nothing."""
    found = dict(pairs)
    return found if len(found) == len(pairs) else math.nan


def _failure(outcome: Outcome) -> str:
    if outcome.status == "timed_out":
        return "too slow"
    if outcome.status == "output_limit":
        return "too much output"
    if outcome.status == "signalled":
        return f"killed by signal {outcome.signal}"
    return "no result" if outcome.ok else f"ended with {outcome.exit_code}"


def _or_ungradable(measure: Callable[[], Score]) -> Score:
    try:
        return measure()
    except SandboxUnavailableError as error:
        return Score(0.0, Status.UNGRADABLE, str(error))


class CodeGrader:
    """Grades completions of code problems: `grader(completion, example) -> Score`. Safe to share among threads."""

    def __init__(
        self,
        runner: Runner,
        partial_credit: bool = False,
        measures: frozenset[str] = frozenset(),
        languages: Mapping[str, Language] = LANGUAGES,
    ) -> None:
        """partial_credit: the share of tests passed before the first failure, in place of 0 for a wrong program.

        measures: what `parts` has beside the accuracy, of `MEASURES`. ValueError for others.
        """
        if not measures <= MEASURES:
            raise ValueError(f"measures must be of {sorted(MEASURES)}, got {sorted(measures)}")
        self.measures = measures
        self._runner = runner
        self._partial_credit = partial_credit
        self._languages = languages
        self._references: dict[tuple[str, str, str], Verdict] = {}
        self._measuring = threading.Lock()  # of references

    def __call__(self, completion: str, example: Example) -> Score:
        """1 where the final answer's program passes every test, else 0 with the reason.

        UNGRADABLE if the problem's tests cannot be used, or the sandbox is not to be had.
        """
        return self._parts(completion, example, ["accuracy"])["accuracy"]

    def parts(self, completion: str, example: Example) -> dict[str, Score]:
        """The accuracy and each of `measures`, 0 for all where there is no program in a single final answer.

        - lint: see `lint.lint_reward`; Python only, UNGRADABLE for other languages;
        - runs: 1 where the program ends by itself with 0, on the first test's input or, if a function is asked for, on
          none (it is only defined then);
        - speed: `speed_reward` beside the reference solution in `metadata["reference"]`, a program's text, which is
          measured once for each problem in this grader's life. 0 for a wrong program; UNGRADABLE where there is no
          reference or it fails the tests. Not deterministic: it measures time.
        """
        return self._parts(completion, example, ["accuracy", *sorted(self.measures)])

    def check_problem(self, example: Example) -> None:
        """ProblemError, naming the example and the field, where no completion of it could be graded."""
        try:
            problem = self._problem(example)
            room = self._runner.limits.output_bytes
            if problem.function:
                longest = len(json.dumps([["value", test.expected] for test in problem.tests]))
            else:
                longest = max(len(str(test.expected).encode()) for test in problem.tests)
            if longest > room:
                raise ProblemError(f"a right program prints {longest} bytes, the sandbox's output_bytes is {room}")
            if "lint" in self.measures and problem.language != "python":
                raise ProblemError(f"language: the measure lint is for python, got {problem.language!r}")
            if "speed" in self.measures or example.metadata.get("reference") is not None:
                _reference(example)
        except ProblemError as error:
            raise _about(example, str(error)) from error

    def check(self, examples: Iterable[Example]) -> None:
        """What a run should know before it starts: every problem is usable, its languages and ruff are there, and
        reference programs pass.

        Of the examples with a `reference` in their metadata at most 64, spread evenly, have it run against all of their
        tests, under the runner's limits.

        Raises:
          ProblemError: an example cannot be graded, or its reference fails a test.
          SandboxUnavailableError: programs of a language cannot be run.
          LintUnavailableError: lint is asked for, without ruff.
        """
        if "lint" in self.measures:
            check_lint()
        seen: set[str] = set()
        referred = []
        for example in examples:
            self.check_problem(example)
            seen.add(self._problem(example).language)
            if example.metadata.get("reference") is not None:
                referred.append(example)
        for name in sorted(seen):
            check_language(name, self._runner, self._languages)
        count = min(len(referred), REFERENCES)
        spread = [referred[i * len(referred) // count] for i in range(count)]
        with concurrent.futures.ThreadPoolExecutor(REFERENCES_TOGETHER) as pool:
            try:
                for _ in pool.map(self._check_reference, spread):
                    pass
            except (ProblemError, SandboxUnavailableError):
                pool.shutdown(cancel_futures=True)
                raise

    def _check_reference(self, example: Example) -> None:
        verdict = run_tests(_reference(example), self._problem(example), self._runner, self._languages)
        if not verdict.right:
            raise _about(example, f"reference fails its own tests: {verdict.reason}")

    def _problem(self, example: Example) -> CodeProblem:
        problem = parse_problem(example.metadata)
        if problem.language not in self._languages:
            raise ProblemError(f"language {problem.language!r} is not one of {sorted(self._languages)}")
        return problem

    def _parts(self, completion: str, example: Example, names: Sequence[str]) -> dict[str, Score]:
        try:
            problem = self._problem(example)
        except ProblemError as error:
            return dict.fromkeys(names, Score(0.0, Status.UNGRADABLE, str(error)))
        answer = extract_final_answer(completion)
        program = None if answer is None else extract_program(answer)
        if program is None:
            return dict.fromkeys(names, Score(0.0, reason="no program in a single final answer"))
        tested = functools.cache(lambda: run_tests(program, problem, self._runner, self._languages))
        measures: dict[str, Callable[[], Score]] = {
            "accuracy": lambda: self._accuracy(tested()),
            "lint": lambda: _lint(program, problem),
            "runs": lambda: self._runs(program, problem),
            "speed": lambda: self._speed(tested(), problem, example),
        }
        return {name: _or_ungradable(measures[name]) for name in names}

    def _accuracy(self, verdict: Verdict) -> Score:
        if verdict.right:
            return Score(1.0)
        return Score(verdict.passed / verdict.total if self._partial_credit else 0.0, reason=verdict.reason)

    def _runs(self, program: str, problem: CodeProblem) -> Score:
        first = problem.tests[0]
        stdin = first.stdin.encode() if isinstance(first, StdioTest) else b""
        ended, reason = runs(program, self._runner, problem.language, stdin, self._languages)
        return Score(float(ended), reason=reason)

    def _speed(self, verdict: Verdict, problem: CodeProblem, example: Example) -> Score:
        if not verdict.right:
            return Score(0.0, reason=verdict.reason)
        try:
            reference = _reference(example)
        except ProblemError as error:
            return Score(0.0, Status.UNGRADABLE, str(error))
        key = (example.task, example.id, reference)
        with self._measuring:
            if key not in self._references:
                self._references[key] = run_tests(reference, problem, self._runner, self._languages)
            measured = self._references[key]
        if not measured.right:
            return Score(0.0, Status.UNGRADABLE, f"the reference fails its own tests: {measured.reason}")
        return Score(speed_reward(verdict, measured.seconds))


def _reference(example: Example) -> str:
    reference = example.metadata.get("reference")
    if not isinstance(reference, str) or not reference.strip():
        raise ProblemError(f"reference must be a program's text, got {reference!r:.60}; the measure speed needs one")
    return reference


def _about(example: Example, problem: str) -> ProblemError:
    return ProblemError(f"example {example.id!r} of {example.task!r}: metadata: {problem}")


def _lint(program: str, problem: CodeProblem) -> Score:
    if problem.language != "python":
        return Score(0.0, Status.UNGRADABLE, f"lint is for python, not {problem.language}")
    return lint_reward(program)
