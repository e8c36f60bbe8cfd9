"""Programs in a completion, and the tests that a problem puts them to. Nothing here runs anything."""

from __future__ import annotations

import ast
import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

RELATIVE_TOLERANCE = 1e-6  # of floats among results, as the online judges that these problems come from allow
_FENCE = re.compile(r"^[ \t]*```[ \t]*([A-Za-z0-9+#_-]*)[^\n]*\n(.*?)^[ \t]*```[ \t]*$", re.DOTALL | re.MULTILINE)


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
    function: str = ""  # of CallTests


class ProblemError(ValueError):
    """A problem's tests cannot be used as they are: the message names the field."""


def parse_problem(metadata: Mapping[str, Any]) -> CodeProblem:
    """The tests of a problem, from an example's metadata.

    Known layouts: `stdio`, a list of {input, output}; `function` and `calls`, a list of {args, expected}; and
    LiveCodeBench's `test_cases`, a list (or its JSON text) of {input, output, testtype}, where the input of a
    functional test has one JSON value a line, with the function's name under `func_name`.

    Raises:
      ProblemError: there are no tests, or a field is missing or ill-formed.
    """
    language = str(metadata.get("language", "python"))
    if "stdio" in metadata:
        cases = _cases(metadata["stdio"], "stdio", ("input", "output"))
        return CodeProblem(tuple(StdioTest(str(c["input"]), str(c["output"])) for c in cases), language)
    if "calls" in metadata:
        cases = _cases(metadata["calls"], "calls", ("args", "expected"))
        calls = tuple(CallTest(tuple(c["args"]), c["expected"]) for c in cases)
        return CodeProblem(calls, language, _name(metadata.get("function"), "function"))
    if "test_cases" in metadata:
        return _live_code_bench(metadata, language)
    raise ProblemError(f"a code problem needs stdio, calls or test_cases, got {sorted(metadata)}")


def _live_code_bench(metadata: Mapping[str, Any], language: str) -> CodeProblem:
    cases = _cases(metadata["test_cases"], "test_cases", ("input", "output", "testtype"))
    kinds = {case["testtype"] for case in cases}
    if kinds == {"stdin"}:
        return CodeProblem(tuple(StdioTest(c["input"], c["output"]) for c in cases), language)
    if kinds != {"functional"}:
        raise ProblemError(
            f"test_cases: testtype must be stdin or functional throughout, got {sorted(map(str, kinds))}"
        )
    calls = []
    for i, case in enumerate(cases):
        try:
            args = tuple(json.loads(line) for line in case["input"].splitlines() if line.strip())
            calls.append(CallTest(args, json.loads(case["output"])))
        except ValueError as error:
            raise ProblemError(f"test_cases[{i}]: {error}") from error
    return CodeProblem(tuple(calls), language, _name(metadata.get("func_name"), "func_name"))


def _cases(value: Any, field: str, keys: Sequence[str]) -> list[Mapping[str, Any]]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise ProblemError(f"{field} is not JSON: {error}") from error
    if not isinstance(value, Sequence) or not value:
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

    A fence that does not close leaves no block: a cut answer is no program.
    """
    blocks = [match.group(2) for match in _FENCE.finditer(answer)]
    if not blocks and "```" in answer:
        return None
    program = blocks[-1] if blocks else answer
    return program if program.strip() else None


def is_python(program: str) -> bool:
    """Whether a program parses. Only parsed, never run."""
    try:
        ast.parse(program)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def same_output(printed: str, expected: str) -> bool:
    """Whether two texts have the same lines; blanks at the ends of lines and empty lines at the end do not count."""
    return _lines(printed) == _lines(expected)


def _lines(text: str) -> list[str]:
    lines = [line.rstrip() for line in text.replace("\r\n", "\n").split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def same_value(value: Any, expected: Any) -> bool:
    """Whether two values out of JSON are equal: floats within RELATIVE_TOLERANCE, true is not 1, NaN equals nothing."""
    if isinstance(value, bool) or isinstance(expected, bool):
        return value is expected
    if isinstance(value, int) and isinstance(expected, int):
        return value == expected
    if isinstance(value, (int, float)) and isinstance(expected, (int, float)):
        return math.isclose(value, expected, rel_tol=RELATIVE_TOLERANCE, abs_tol=RELATIVE_TOLERANCE * 1e-3)
    if type(value) is not type(expected):
        return False
    if isinstance(value, list):
        return len(value) == len(expected) and all(map(same_value, value, expected))
    if isinstance(value, dict):
        return value.keys() == expected.keys() and all(same_value(value[key], expected[key]) for key in value)
    return bool(value == expected)
