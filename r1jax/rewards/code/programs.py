"""Programs in a completion, and the tests that a problem puts them to. Nothing here runs anything."""

from __future__ import annotations

import ast
import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from r1jax.rewards.answer import SPACE

RELATIVE_TOLERANCE = 1e-6  # of floats among results, as the online judges that these problems come from allow
ALMOST_ZERO = 1e-12  # floats up to this size are all taken for zero: what rounding leaves of a difference
_FENCE = re.compile(r"([ \t]*)(`{3,})([^`]*)")  # indentation, the fence itself, what stands behind it


@dataclasses.dataclass(frozen=True)
class StdioTest:
    """A program gets `stdin` and must print `expected`."""

    stdin: str
    expected: str


@dataclasses.dataclass(frozen=True)
class CallTest:
    """A function is called with `args` and must return `expected`; all of them are values that JSON holds."""

    args: Sequence[Any]
    expected: Any


@dataclasses.dataclass(frozen=True)
class CodeProblem:
    """How a program is checked: tests of one kind, and the name of the function where it is called."""

    tests: tuple[StdioTest, ...] | tuple[CallTest, ...]
    language: str = "python"
    function: str = ""  # of CallTests; a function of this name, or else the method of a class Solution
    live_code_bench: bool = False  # the method comes first, and names are there that its solutions do not import


class ProblemError(ValueError):
    """A problem's tests cannot be used as they are: the message names the field."""


def parse_problem(metadata: Mapping[str, Any]) -> CodeProblem:
    """The tests of a problem, from an example's metadata.

    Known layouts: `stdio`, a list of {input, output}, both texts; `function` and `calls`, a list of {args, expected},
    args a list; and LiveCodeBench's `test_cases`, a list of {input, output, testtype}, where the input of a functional
    test has one JSON value a line, with the name of the function or of Solution's method under `func_name`. Each list
    may be its JSON text. `language` is the programs' language; functions are called in Python only.

    Raises:
      ProblemError: there are no tests, or a field is missing or ill-formed.
    """
    language = metadata.get("language", "python")
    if not isinstance(language, str):
        raise ProblemError(f"language must be a name, got {language!r}")
    if "stdio" in metadata:
        cases = _cases(metadata["stdio"], "stdio", ("input", "output"))
        return CodeProblem(_stdio_tests(cases, "stdio"), language)
    if "calls" in metadata:
        cases = _cases(metadata["calls"], "calls", ("args", "expected"))
        calls = tuple(_call_test(c["args"], c["expected"], f"calls[{i}]") for i, c in enumerate(cases))
        return _call_problem(calls, language, _name(metadata.get("function"), "function"))
    if "test_cases" in metadata:
        return _live_code_bench(metadata, language)
    raise ProblemError(f"a code problem needs stdio, calls or test_cases, got {sorted(metadata)}")


def _live_code_bench(metadata: Mapping[str, Any], language: str) -> CodeProblem:
    cases = _cases(metadata["test_cases"], "test_cases", ("input", "output", "testtype"))
    kinds = {str(case["testtype"]) for case in cases}
    if kinds == {"stdin"}:
        return CodeProblem(_stdio_tests(cases, "test_cases"), language)
    if kinds != {"functional"}:
        raise ProblemError(f"test_cases: testtype must be stdin or functional throughout, got {sorted(kinds)}")
    calls = []
    for i, case in enumerate(cases):
        where = f"test_cases[{i}]"
        given, expected = (_text(case[key], f"{where}.{key}") for key in ("input", "output"))
        try:
            args = [json.loads(line) for line in given.split("\n") if line.strip()]
            calls.append(_call_test(args, json.loads(expected), where))
        except json.JSONDecodeError as error:
            raise ProblemError(f"{where} is not JSON line by line: {error}") from error
    problem = _call_problem(tuple(calls), language, _name(metadata.get("func_name"), "func_name"))
    return dataclasses.replace(problem, live_code_bench=True)


def _stdio_tests(cases: Sequence[Mapping[str, Any]], field: str) -> tuple[StdioTest, ...]:
    return tuple(
        StdioTest(_text(case["input"], f"{field}[{i}].input"), _text(case["output"], f"{field}[{i}].output"))
        for i, case in enumerate(cases)
    )


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise ProblemError(f"{where} must be a text, got {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ProblemError(f"{where} is no text that UTF-8 can hold: {error}") from error
    return value


def _call_test(args: Any, expected: Any, where: str) -> CallTest:
    if not isinstance(args, Sequence) or isinstance(args, (str, bytes)):
        raise ProblemError(f"{where}: args must be a list of arguments, got {args!r:.100}")
    try:
        args, expected = json.loads(json.dumps(list(args))), json.loads(json.dumps(expected))
    except (TypeError, ValueError, RecursionError) as error:
        raise ProblemError(f"{where} holds what JSON cannot: {error}") from error
    if not same_value(expected, expected):
        raise ProblemError(f"{where}: expected holds NaN, which equals nothing")
    return CallTest(tuple(args), expected)


def _call_problem(tests: tuple[CallTest, ...], language: str, function: str) -> CodeProblem:
    if language != "python":
        raise ProblemError(f"language: functions are called in python only, got {language!r}; give stdin and stdout")
    return CodeProblem(tests, language, function)


def _cases(value: Any, field: str, keys: Sequence[str]) -> list[Mapping[str, Any]]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise ProblemError(f"{field} is not JSON: {error}") from error
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise ProblemError(f"{field} must be a list of at least one test")
    for i, case in enumerate(value):
        missing = [key for key in keys if not isinstance(case, Mapping) or key not in case]
        if missing:
            raise ProblemError(f"{field}[{i}] lacks {', '.join(missing)}")
    return list(value)


def _name(value: Any, field: str) -> str:
    if not isinstance(value, str) or not value.isidentifier():
        raise ProblemError(f"{field} must be the name of a function, got {value!r}")
    return value


def extract_program(answer: str) -> str | None:
    """The program in a final answer: its last fenced block, or all of an answer without one. None if it is blank.

    As in CommonMark, a fence is a line of three or more backticks, it closes with as many, and what it is indented by
    is no part of the program. Where a fence stays open there is no program at all: an earlier block is not what a cut
    answer commits itself to. A fence at the very beginning of an answer lost its indentation when the answer was
    stripped: it is taken to be that of the closing one, as far as every line of the program has it.
    """
    last: str | None = None
    opened: re.Match[str] | None = None
    lines: list[str] = []
    first = False  # the open fence is the answer's first line
    for i, line in enumerate(answer.split("\n")):
        fence = _FENCE.fullmatch(line)
        if opened is None and fence:
            opened, lines, first = fence, [], i == 0
        elif opened and fence and len(fence[2]) >= len(opened[2]) and not fence[3].strip():
            indent = min([len(fence[1]), *map(_indent, filter(str.strip, lines))]) if first else len(opened[1])
            last, opened = "".join(line[min(indent, _indent(line)) :] + "\n" for line in lines), None
        elif opened:
            lines.append(line)
    if opened or (last is None and "```" in answer):
        return None
    program = answer if last is None else last
    return program if program.strip() else None


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" \t"))


def is_python(program: str) -> bool:
    """Whether a program parses. Only parsed, never run."""
    try:
        ast.parse(program)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def same_output(printed: str, expected: str) -> bool:
    """Whether two texts have the same lines; ASCII white space at the ends of lines and empty lines at the end do not
    count. They are compared as texts: there is no tolerance for numbers, 0.50 is not 0.5."""
    return _lines(printed) == _lines(expected)


def _lines(text: str) -> list[str]:
    lines = [line.rstrip(SPACE) for line in text.replace("\r\n", "\n").split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def same_value(value: Any, expected: Any) -> bool:
    """Whether two values out of JSON are equal: numbers within RELATIVE_TOLERANCE, or both ALMOST_ZERO, where a float
    is expected, else exactly (2.0 is 2); true is not 1, NaN equals nothing."""
    if isinstance(value, bool) or isinstance(expected, bool):
        return value is expected
    if isinstance(value, (int, float)) and isinstance(expected, int):
        return value == expected
    if isinstance(value, (int, float)) and isinstance(expected, float):
        try:
            both_zero = max(abs(value), abs(expected)) <= ALMOST_ZERO
            return both_zero or math.isclose(value, expected, rel_tol=RELATIVE_TOLERANCE)
        except OverflowError:  # an integer beyond every float
            return False
    if type(value) is not type(expected):
        return False
    if isinstance(value, list):
        return len(value) == len(expected) and all(map(same_value, value, expected))
    if isinstance(value, dict):
        return value.keys() == expected.keys() and all(same_value(value[key], expected[key]) for key in value)
    return bool(value == expected)
