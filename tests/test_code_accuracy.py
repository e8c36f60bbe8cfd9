"""Programs against tests: the worked example of the literature, cheats, formats of tests."""

from __future__ import annotations

from typing import Any

import pytest

from r1jax.rewards.code_accuracy import CodeGrader, Verdict, run_tests, runs, speed_reward
from r1jax.rewards.programs import ProblemError, extract_program, parse_problem, same_output, same_value
from r1jax.rewards.sandbox import Limits, Sandbox, SandboxUnavailableError
from r1jax.types import Example, Status

CALLS = [
    {"args": [[3, 1, 2]], "expected": [42, 1, 2, 3]},
    {"args": [[]], "expected": [42]},
    {"args": [[-1, -5]], "expected": [42, -5, -1]},
]
SORTED_42 = {"function": "sort_42", "calls": CALLS}
ADDS = "#include <iostream>\nint main() { int a, b; std::cin >> a >> b; std::cout << a + b; }"
FORGED = """
import os
for descriptor in range(3, 20):
    try:
        os.write(descriptor, b'[["value", 1], ["value", 1], ["value", 1]]')
    except OSError:
        pass
os._exit(0)
"""
RIGHT = "def sort_42(numbers):\n    return [42] + sorted(numbers)\n"


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    box = Sandbox(Limits(wall_seconds=5.0, cpu_seconds=3))
    try:
        box.check()
    except SandboxUnavailableError as error:
        pytest.skip(str(error))
    return box


def example(metadata: dict[str, Any]) -> Example:
    return Example("1", "q", "", "code", metadata=metadata)


def completion(program: str) -> str:
    return f" <think> so </think> <answer>\n```python\n{program}\n```\n</answer>"


@pytest.mark.parametrize(
    ("program", "value", "reason"),
    [
        (RIGHT, 1.0, ""),
        ("I would sort the list and put 42 in front.", 0.0, "it does not parse"),
        ("def sort_42(numbers) { return numbers.sort(); }", 0.0, "it does not parse"),
        ("def sort_42(numbers):\n    return sorted(numbers)", 0.0, "test 1: another result"),
        ("def sort_42(numbers):\n    return [42] + numbers", 0.0, "test 1: another result"),
        ("def sort_42(numbers):\n    return [42, *sorted(numbers)] if numbers else []", 0.0, "test 2: another result"),
        ("def sort_42(numbers):\n    raise ValueError", 0.0, "test 1: raised ValueError"),
        ("def other(numbers):\n    return numbers", 0.0, "test 1: raised KeyError"),
        ("import os\nos._exit(0)", 0.0, "no result"),
        ("import sys\nsys.exit(0)", 0.0, "no result"),
        ("while True: pass", 0.0, "too slow"),
        ("print('[[\"value\", true]]')\ndef sort_42(n): return True", 0.0, "test 1: another result"),
        # Equality that always holds is left behind at the border: only JSON comes out.
        (
            "class Any(list):\n    def __eq__(self, other): return True\ndef sort_42(n): return Any()",
            0.0,
            "test 1: another result",
        ),
        # It may forge what the harness prints, but does not know what to print.
        (
            FORGED,
            0.0,
            "test 1: another result",
        ),
        ("x = [0] * 10**10\ndef sort_42(n): return n", 0.0, "ended with 1"),
    ],
)
def test_sorted_with_42_in_front(sandbox: Sandbox, program: str, value: float, reason: str) -> None:
    score = CodeGrader(sandbox)(completion(program), example(SORTED_42))
    assert (score.value, score.status, score.reason) == (value, Status.GRADED, reason)


def test_standard_input_and_output(sandbox: Sandbox) -> None:
    problem = parse_problem({"stdio": [{"input": "2 3\n", "output": "5"}, {"input": "-1 1\n", "output": "0\n"}]})
    assert run_tests("a, b = map(int, input().split())\nprint(a + b)", problem, sandbox).right
    verdict = run_tests("a, b = map(int, input().split())\nprint(abs(a) + b)", problem, sandbox)
    assert (verdict.passed, verdict.total, verdict.reason) == (1, 2, "test 2: another output")
    assert run_tests("print(5)", problem, sandbox).passed == 1
    assert run_tests("1 / 0", problem, sandbox).reason == "test 1: ended with 1"


def test_cpp(sandbox: Sandbox) -> None:
    problem = parse_problem({"stdio": [{"input": "2 3", "output": "5"}], "language": "cpp"})
    try:
        verdict = run_tests(ADDS, problem, sandbox)
    except SandboxUnavailableError as error:
        pytest.skip(str(error))
    assert verdict.right, verdict
    assert run_tests("int main() { return x; }", problem, sandbox).reason == "it does not compile"


def test_running_is_a_signal_of_its_own(sandbox: Sandbox) -> None:
    assert runs("print(1)", sandbox) == (True, "")
    assert runs("print(", sandbox) == (False, "it does not parse")
    assert runs("raise SystemExit(3)", sandbox) == (False, "ended with 3")


def test_a_sandbox_that_is_not_there_is_never_a_wrong_answer() -> None:
    class Gone:
        def run(self, *args: Any, **kwargs: Any) -> Any:
            raise SandboxUnavailableError("no namespaces here")

    score = CodeGrader(Gone())(completion(RIGHT), example(SORTED_42))
    assert (score.status, score.reason) == (Status.UNGRADABLE, "no namespaces here")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, r"a code problem needs stdio, calls or test_cases, got \[\]"),
        ({"stdio": []}, "stdio must be a list of at least one test"),
        ({"stdio": [{"input": "1"}]}, r"stdio\[0\] lacks output"),
        ({"calls": CALLS}, "function must be the name of a function, got None"),
        ({"calls": CALLS, "function": "os.system('x')"}, "function must be the name of a function"),
        ({"test_cases": "[{"}, "test_cases is not JSON"),
        ({"test_cases": [{"input": "1", "output": "1", "testtype": "x"}]}, "testtype must be stdin or functional"),
        (
            {"test_cases": [{"input": "a b", "output": "1", "testtype": "functional"}], "func_name": "f"},
            r"test_cases\[0\]",
        ),
    ],
)
def test_tests_that_cannot_be_used_are_named(metadata: dict[str, Any], message: str) -> None:
    with pytest.raises(ProblemError, match=message):
        parse_problem(metadata)
    assert CodeGrader(None)(completion(RIGHT), example(metadata)).status is Status.UNGRADABLE  # type: ignore[arg-type]


def test_live_code_bench_layout(sandbox: Sandbox) -> None:
    cases = '[{"input": "[1, 2]\\n3", "output": "6", "testtype": "functional"}]'
    problem = parse_problem({"test_cases": cases, "func_name": "total"})
    assert run_tests("def total(xs, y):\n    return sum(xs) + y", problem, sandbox).right


def test_programs_are_the_last_closed_block() -> None:
    assert extract_program("```python\na\n```\nthen\n```\nb\n```") == "b\n"
    assert extract_program("```python\na = 1\n") is None
    assert extract_program("a = 1") == "a = 1"
    assert extract_program("```\n\n```") is None


def test_values_and_outputs_by_hand() -> None:
    assert same_value([1, 2.0000001], [1, 2.0])
    assert not same_value(2.001, 2.0)
    assert not same_value(True, 1)
    assert not same_value(float("nan"), float("nan"))
    assert not same_value({"a": 1}, {"a": 1, "b": 2})
    assert not same_value("1", 1)
    assert same_output("1 \n2\n\n", "1\n2")
    assert not same_output("1\n\n2", "1\n2")


def test_speed_by_hand() -> None:
    assert speed_reward(Verdict(2, 2, seconds=0.99), 0.49) == 0.5
    assert speed_reward(Verdict(2, 2, seconds=0.1), 0.4) == 1.0
    assert speed_reward(Verdict(1, 2, seconds=0.1), 0.4) == 0.0
    with pytest.raises(ValueError, match="reference_seconds must not be negative"):
        speed_reward(Verdict(2, 2), -1.0)
