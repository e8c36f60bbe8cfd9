"""Programs against tests: the worked example of the literature, cheats, formats of tests."""

from __future__ import annotations

import dataclasses
import importlib.util
from typing import Any

import pytest

from r1jax.rewards.answer import extract_final_answer
from r1jax.rewards.code.code_accuracy import (
    LANGUAGES,
    CodeGrader,
    Language,
    Verdict,
    check_language,
    run_tests,
    runs,
    speed_reward,
)
from r1jax.rewards.code.programs import ProblemError, extract_program, parse_problem, same_output, same_value
from r1jax.rewards.isolation.sandbox import Limits, Outcome, Sandbox, SandboxUnavailableError
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
    box = Sandbox(Limits(wall_seconds=10.0, cpu_seconds=2))
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
    assert runs("print(int(input()))", sandbox) == (False, "ended with 1")
    assert runs("print(int(input()))", sandbox, stdin=b"1") == (True, "")


class Broken:
    """A runner that raises."""

    limits = Limits()

    def __init__(self, error: Exception) -> None:
        self.error = error

    def run(self, *args: Any, **kwargs: Any) -> Any:
        raise self.error


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (SandboxUnavailableError("no namespaces here"), "no namespaces here"),
        (ValueError("a body has at most 9 bytes"), "the run was refused: a body has at most 9 bytes"),
    ],
)
def test_a_sandbox_that_is_not_there_is_never_a_wrong_answer(error: Exception, reason: str) -> None:
    score = CodeGrader(Broken(error))(completion(RIGHT), example(SORTED_42))
    assert (score.status, score.reason) == (Status.UNGRADABLE, reason)
    parts = CodeGrader(Broken(error), measures=frozenset({"runs", "speed"})).parts(
        completion(RIGHT), example(SORTED_42 | {"reference": RIGHT})
    )
    assert {name: score.status for name, score in parts.items()} == dict.fromkeys(
        ["accuracy", "runs", "speed"], Status.UNGRADABLE
    )


SLOWER = RIGHT.replace("return", "sum(range(5 * 10**6))\n    return")


@pytest.mark.skipif(importlib.util.find_spec("ruff") is None, reason="ruff is the extra code")
def test_the_four_checks_of_a_program(sandbox: Sandbox) -> None:
    grader = CodeGrader(sandbox, measures=frozenset({"lint", "runs", "speed"}))
    problem = example(SORTED_42 | {"reference": RIGHT})

    def values(program: str) -> dict[str, float]:
        parts = grader.parts(completion(program), problem)
        assert all(score.graded for score in parts.values()), parts
        return {name: round(score.value, 2) for name, score in parts.items() if name != "speed"}

    assert values(RIGHT) == {"accuracy": 1, "lint": 1, "runs": 1}
    # One finding (an unused import) in three lines of code: 1 / (1 + 10 / 3).
    assert values("import os\n" + RIGHT) == {"accuracy": 1, "lint": 0.23, "runs": 1}
    assert values("def sort_42(numbers):\n    return sorted(numbers)") == {"accuracy": 0, "lint": 1, "runs": 1}
    assert values("def sort_42(numbers):\n    return [42] + sorted(numbers)\n1 / 0") == {
        "accuracy": 0,
        "lint": 0.23,  # B018, a useless expression
        "runs": 0,
    }
    assert values("I would sort it.") == {"accuracy": 0, "lint": 0, "runs": 0}
    nothing = grader.parts("<answer> </answer>", problem)
    assert {score.value for score in nothing.values()} == {0.0}
    assert {score.reason for score in nothing.values()} == {"no program in a single final answer"}


def test_speed_is_beside_the_reference_solution(sandbox: Sandbox) -> None:
    grader = CodeGrader(sandbox, measures=frozenset({"speed"}))

    def speed(program: str, **metadata: Any) -> Any:
        return grader.parts(completion(program), example(SORTED_42 | metadata))["speed"]

    # Three calls of 5 million additions each beside a few milliseconds: far below a half on any machine.
    assert 0 < speed(SLOWER, reference=RIGHT).value < 0.5
    assert speed(RIGHT, reference=SLOWER).value == 1.0
    assert speed("def sort_42(n): return n", reference=RIGHT).value == 0.0
    assert speed(RIGHT).status is Status.UNGRADABLE
    wrong = speed(RIGHT, reference="def sort_42(n): return n")
    assert wrong.status is Status.UNGRADABLE
    assert wrong.reason == "the reference fails its own tests: test 1: another result"


def test_references_are_run_before_the_run(sandbox: Sandbox) -> None:
    grader = CodeGrader(sandbox)
    one, none = example(SORTED_42 | {"reference": RIGHT}), example(SORTED_42)
    grader.check([none, one, none])
    wrong = example(SORTED_42 | {"reference": "def sort_42(n): return [42] + n"})
    wrong = dataclasses.replace(wrong, id="9", metadata={**wrong.metadata, "calls": CALLS[1:] + CALLS[:1]})
    with pytest.raises(
        ProblemError, match=r"example '9' of 'code': metadata: reference fails .* test 2: another resul"
    ):
        grader.check([one, none, wrong])


def test_references_that_are_run_are_spread_evenly() -> None:
    ran = []

    class Notes:
        limits = Limits()

        def run(self, command: Any, files: Any, stdin: bytes = b"", limits: Any = None) -> Outcome:
            ran.append(files["solution.py"].decode())
            return Outcome("exited", 0, None, b"42", b"", 0.0, 0.0)

    stdio = [{"input": "", "output": "42"}]
    CodeGrader(Notes()).check(example({"stdio": stdio, "reference": f"{i} + 1"}) for i in range(128))
    assert sorted(ran[1:]) == sorted(f"{i} + 1" for i in range(0, 128, 2))  # the first is the language's own


@pytest.mark.parametrize(("cpu", "wall", "passed"), [(1.0, 1.0, 8), (0.1, 9.0, 7), (0.7, 6.0, 10)])
def test_many_tests_share_a_bound(cpu: float, wall: float, passed: int) -> None:
    class Slow:
        limits = Limits(wall_seconds=8.0, cpu_seconds=1)

        def run(self, *args: Any, **kwargs: Any) -> Outcome:
            return Outcome("exited", 0, None, b"1", b"", wall, cpu)

    problem = parse_problem({"stdio": [{"input": "", "output": "1"}] * 10})
    verdict = run_tests("print(1)", problem, Slow())
    # 8 s of CPU time (the ninth run is too much) or 64 s of wall-clock time (the eighth takes it to 72).
    assert verdict.passed == passed
    assert verdict.reason == ("" if verdict.right else f"test {verdict.passed + 1}: too slow, all tests together")


def test_a_missing_compiler_is_never_a_wrong_program(sandbox: Sandbox) -> None:
    languages = {"none": Language("a.none", "42", "no-such-compiler a.none")}
    grader = CodeGrader(sandbox, languages=languages)
    problem = example({"stdio": [{"input": "", "output": ""}], "language": "none"})
    score = grader(completion("x"), problem)
    assert score.status is Status.UNGRADABLE
    assert "programs in none cannot be made here" in score.reason
    with pytest.raises(SandboxUnavailableError, match="no-such-compiler"):
        grader.check([problem])
    wrong = {"python": Language("a.py", "print(41)", command=LANGUAGES["python"].command)}
    with pytest.raises(SandboxUnavailableError, match="programs in python cannot be run: a trivial one failed"):
        check_language("python", sandbox, wrong)
    check_language("python", sandbox)


def test_another_language_is_one_line(sandbox: Sandbox) -> None:
    languages = {"shell": Language("solution.sh", "echo 42", command=("sh", "solution.sh"))}
    grader = CodeGrader(sandbox, languages=languages)
    problem = example({"stdio": [{"input": "3 4", "output": "7"}], "language": "shell"})
    grader.check([problem])
    assert grader(completion("read a b; echo $((a + b))"), problem).value == 1.0
    assert grader(completion("read a b; echo $((a - b))"), problem).value == 0.0


def test_unknown_measures_are_refused() -> None:
    with pytest.raises(ValueError, match=r"measures must be of \['lint', 'runs', 'speed'\], got \['beauty'\]"):
        CodeGrader(Broken(RuntimeError()), measures=frozenset({"beauty"}))


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
            r"test_cases\[0\] is not JSON line by line",
        ),
        ({"test_cases": [{"input": 1, "output": "1", "testtype": "stdin"}]}, r"test_cases\[0\].input must be a text"),
        ({"test_cases": [{"input": "1", "output": 1, "testtype": "functional"}]}, r"test_cases\[0\].output must be a"),
        ({"stdio": [{"input": ["1", "2"], "output": "1"}]}, r"stdio\[0\].input must be a text, got list"),
        ({"stdio": [{"input": "1", "output": "\ud800"}]}, r"stdio\[0\].output is no text that UTF-8 can hold"),
        ({"calls": [{"args": "ab", "expected": 1}], "function": "f"}, r"calls\[0\]: args must be a list of arguments"),
        ({"calls": [{"args": [1], "expected": {1}}], "function": "f"}, r"calls\[0\] holds what JSON cannot"),
        ({"calls": [{"args": [1], "expected": float("nan")}], "function": "f"}, r"calls\[0\]: expected holds NaN"),
        ({"calls": CALLS, "function": "f", "language": "cpp"}, "functions are called in python only, got 'cpp'"),
        ({"stdio": [{"input": "1", "output": "1"}], "language": 3}, "language must be a name, got 3"),
    ],
)
def test_tests_that_cannot_be_used_are_named(metadata: dict[str, Any], message: str) -> None:
    with pytest.raises(ProblemError, match=message):
        parse_problem(metadata)
    grader = CodeGrader(Broken(RuntimeError("nothing is run")))
    assert grader(completion(RIGHT), example(metadata)).status is Status.UNGRADABLE
    with pytest.raises(ProblemError, match=rf"example '1' of 'code': metadata: .*{message}"):
        grader.check_problem(example(metadata))


@pytest.mark.parametrize(
    ("metadata", "measures", "message"),
    [
        ({"stdio": [{"input": "", "output": "1"}], "language": "cobol"}, [], "language 'cobol' is not one of"),
        ({"stdio": [{"input": "", "output": "1"}], "language": "cpp"}, ["lint"], "the measure lint is for python"),
        (SORTED_42 | {"reference": ["def"]}, [], "reference must be a program's text, got \\['def'\\]"),
        (SORTED_42, ["speed"], "reference must be a program's text, got None; the measure"),
        ({"stdio": [{"input": "", "output": "é" * 200_000}]}, [], "prints 400000 bytes, the sandbox's output_bytes is"),
        ({"calls": [{"args": [], "expected": "a" * 300_000}], "function": "f"}, [], "prints 300015 bytes, the sandbox"),
    ],
)
def test_problems_that_no_completion_could_solve_are_named(
    metadata: dict[str, Any], measures: list[str], message: str
) -> None:
    grader = CodeGrader(Broken(RuntimeError("nothing is run")), measures=frozenset(measures))
    with pytest.raises(ProblemError, match=f"example '1' of 'code': metadata: .*{message}"):
        grader.check_problem(example(metadata))
    CodeGrader(Broken(RuntimeError("nothing is run"))).check_problem(example(SORTED_42))


def test_live_code_bench_layout(sandbox: Sandbox) -> None:
    cases = '[{"input": "[1, 2]\\n3", "output": "6", "testtype": "functional"}]'
    problem = parse_problem({"test_cases": cases, "func_name": "total"})
    assert run_tests("def total(xs, y):\n    return sum(xs) + y", problem, sandbox).right
    # As that site's starting code has it: a method, annotated with names that nothing imports.
    method = "class Solution:\n    def total(self, xs: List[int], y: int) -> int:\n        return sum(xs) + y"
    assert run_tests(method, problem, sandbox).right
    assert run_tests(method.replace("+ y", "- y"), problem, sandbox).reason == "test 1: another result"
    # Names that its own runner imports, of which some are a module and a function or class at once.
    imported = "        d = deque(xs)\n        heapq.heappush(xs, y)\n        assert bisect.bisect(xs, 0) == 0\n"
    imported += "        assert datetime.date and pow(2, 3, 5) == gcd(3, 6) and Counter(d)\n        return sum(xs)"
    assert run_tests(method.replace("        return sum(xs) + y", imported), problem, sandbox).right
    # A helper of the same name is not what is asked for, and neither is it in the way.
    helper = "def total(xs):\n    return sum(xs)\n" + method.replace("sum(xs)", "total(xs)")
    assert run_tests(helper, problem, sandbox).right
    assert run_tests(helper + "\nSolution.total = None", problem, sandbox).reason == "test 1: raised TypeError"
    deep = "def total(xs, y, depth=20000):\n    return total(xs, y, depth - 1) if depth else sum(xs) + y"
    assert run_tests(deep, problem, sandbox).right
    # "merge" is one of heapq's names, but nobody's solution.
    merge = parse_problem({"test_cases": cases.replace("[1, 2]", "[[1]]"), "func_name": "merge"})
    assert run_tests("x = 1", merge, sandbox).reason == "test 1: raised KeyError"
    # A name of typing is no solution that nobody wrote: typing.cast(1, 2) is 2.
    problem = parse_problem({"calls": [{"args": [1, 2], "expected": 2}], "function": "cast"})
    assert run_tests("x = 1", problem, sandbox).reason == "test 1: raised KeyError"


def solved(program: str, sandbox: Sandbox, *calls: tuple[list[Any], Any]) -> Verdict:
    tests = [{"args": args, "expected": expected} for args, expected in calls]
    return run_tests(program, parse_problem({"function": "f", "calls": tests}), sandbox)


def test_a_result_is_what_it_was_when_the_call_returned(sandbox: Sandbox) -> None:
    # The list grows from call to call: the first one returned [0], not what it holds in the end.
    grows = "o = []\ndef f(x):\n    o.append(x)\n    return o"
    assert solved(grows, sandbox, *(([i], [0, 1, 2]) for i in range(3))).reason == "test 1: another result"
    # A right program that keeps a table of its results and returns it each time.
    table = "t = [0]\ndef f(n):\n    while len(t) <= n:\n        t.append(t[-1] + len(t))\n    return t"
    assert solved(table, sandbox, ([1], [0, 1]), ([3], [0, 1, 3, 6])).right


def test_a_result_that_json_cannot_hold_fails_its_own_test(sandbox: Sandbox) -> None:
    verdict = solved("def f(x): return x if x else {1}", sandbox, ([1], 1), ([0], [1]))
    assert (verdict.passed, verdict.reason) == (1, "test 2: a result that JSON cannot hold: set")


def test_a_result_with_a_key_twice_equals_nothing(sandbox: Sandbox) -> None:
    expected = {"1": 2}
    assert solved("def f(x): return {1: x}", sandbox, ([2], expected)).right
    assert solved("def f(x): return {1: 3, '1': x}", sandbox, ([2], expected)).reason == "test 1: another result"


@pytest.mark.parametrize(
    "program",
    [
        # All of them look up the module that their class says it is from.
        "from __future__ import annotations\nimport dataclasses\n"
        "@dataclasses.dataclass\nclass P:\n    x: int\ndef f(x):\n    return P(x).x",
        "import pickle\nclass P:\n    x = 1\ndef f(x):\n    p = P()\n    p.x = x\n"
        "    return pickle.loads(pickle.dumps(p)).x",
        "import sys\ny = 0\ndef f(x):\n    sys.modules[__name__].y = x\n    return y",
    ],
)
def test_a_program_is_a_module(sandbox: Sandbox, program: str) -> None:
    assert solved(program, sandbox, ([3], 3)).right


def test_programs_are_the_last_closed_block() -> None:
    assert extract_program("```python\na\n```\nthen\n```\nb\n```") == "b\n"
    assert extract_program("```python\na = 1\n") is None
    assert extract_program("a = 1") == "a = 1"
    assert extract_program("```\n\n```") is None
    assert extract_program("```\na\n```\nbetter:\n```\nb\n") is None  # what was cut is no block, nor is the one before
    assert extract_program("1. so:\n   ```python\n   if a:\n       b\n   ```") == "if a:\n    b\n"
    # Between tags such a block has lost the indentation of its first line.
    indented = extract_final_answer("<answer>\n  ```python\n  if a:\n\n      b\n  ```\n</answer>")
    assert extract_program(indented or "") == "if a:\n\n    b\n"
    assert extract_program("```\n# a\nif a:\n  b\n  ```") == "# a\nif a:\n  b\n"  # only the last fence is indented
    assert extract_program("```\n  # a\nif a:\n  b\n  ```") == "  # a\nif a:\n  b\n"
    assert extract_program("````\nx\n```\ny\n````\r\n") == "x\n```\ny\n"
    assert extract_program("```a = 1```") is None  # on one line: no block


def test_programs_are_found_in_linear_time() -> None:
    # 200,000 fences that open and never close; a search from each to the end would take hours.
    assert extract_program("```a\n" * 200_000) is None


def test_values_and_outputs_by_hand() -> None:
    assert same_value([1, 2.0000001], [1, 2.0])
    assert not same_value(2.001, 2.0)
    assert not same_value(True, 1)
    assert not same_value(float("nan"), float("nan"))
    assert not same_value({"a": 1}, {"a": 1, "b": 2})
    assert not same_value("1", 1)
    assert not same_value(0, 1e-10)
    assert not same_value(1e-10, 0.0)
    assert same_value(1.0000005e-10, 1e-10)
    assert same_value(6.1e-17, 0.0)  # the cosine of a right angle
    assert same_value(2.0, 2)
    assert not same_value(1e17, 10**17 + 1)  # a large integer by way of floats
    assert not same_value(10**400, 1.5)
    assert not same_value(1.5, 10**400)
    assert same_output("1 \n2\n\n", "1\n2")
    assert not same_output("1\n\n2", "1\n2")
    assert same_output("1\v\f\t\r\n", "1")
    assert not any(same_output("1" + blank, "1") for blank in "\u3000\x1c\x85\xa0\u2028")
    assert not same_output("0.50", "0.5")


def test_speed_by_hand() -> None:
    assert speed_reward(Verdict(2, 2, seconds=0.99), 0.49) == 0.5
    assert speed_reward(Verdict(2, 2, seconds=0.1), 0.4) == 1.0
    assert speed_reward(Verdict(1, 2, seconds=0.1), 0.4) == 0.0
    with pytest.raises(ValueError, match="reference_seconds must not be negative"):
        speed_reward(Verdict(2, 2), -1.0)
