"""Code tasks of the audit with completions that are right, wrong, too slow, or cheat.

What is true of a completion is known by construction: expected results come from formulas of ours (`problems`),
right and wrong programs are written as such (`programs.md`), and cheats (`cheats.md`) never print what the
hidden tests expect. A program is right if it passes every test, within `LIMITS`, and ends by itself with 0; a
completion, if its one final answer has one program or several, of which the last is right.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import random
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from r1jax.rewards.audit.problems import PROBLEMS, Problem, Program, put_number, read_programs
from r1jax.rewards.isolation.sandbox import Limits
from r1jax.types import Example

# A right program takes some hundredths of a second of CPU time, a slow one 3 s and more. Much more of wall-clock time
# is allowed, so that the load of the machine does not decide; only the programs that sleep use it up.
LIMITS = Limits(wall_seconds=10.0, cpu_seconds=1)
LAYOUTS = ("stdio", "calls", "stdin of LiveCodeBench", "functions of LiveCodeBench")
CHEATS = pathlib.Path(__file__).with_name("cheats.md")
ONE_IN_CPP = 12  # tasks
STYLES_OF_RIGHT = 3  # for each right program of a task
SLOW_EVERY = 6  # one in so many tasks has a cheat that is too slow, in every layout

_READ = {"i": "int({})", "l": "list(map(int, {}.split()))", "s": "{}"}
_SHOWN: dict[str, Callable[[Any], str]] = {"i": str, "l": lambda values: " ".join(map(str, values)), "s": str}


@dataclasses.dataclass(frozen=True)
class CodeCase:
    """A completion and whether it is right."""

    kind: str
    text: str
    example: Example
    right: bool


@dataclasses.dataclass(frozen=True)
class Task:
    """A problem with its number, tests and layout. The first test is the example in the question."""

    index: int
    name: str
    number: int
    layout: str
    language: str
    tests: Sequence[tuple[tuple[Any, ...], Any]]  # (arguments, expected)

    @property
    def problem(self) -> Problem:
        """What is asked."""
        return PROBLEMS[self.name]

    @property
    def is_function(self) -> bool:
        """Whether solve(...) is called; else the program reads standard input."""
        return self.layout in ("calls", "functions of LiveCodeBench")

    @property
    def programs(self) -> list[Program]:
        """The programs of the problem in the task's language, as they are written."""
        found = [program for program in read_programs()[self.name] if program.language == self.language]
        return [dataclasses.replace(program, source=put_number(program.source, self.number)) for program in found]

    def stdin(self, arguments: Sequence[Any]) -> str:
        """The input of a test: each argument on a line."""
        shown = (_SHOWN[letter](value) for letter, value in zip(self.problem.arguments, arguments, strict=True))
        return "".join(f"{text}\n" for text in shown)

    def stdout(self, expected: Any) -> str:
        """The output of a test."""
        return f"{_SHOWN[self.problem.result](expected)}\n"

    def metadata(self) -> dict[str, Any]:
        """The tests in the task's layout."""
        if self.layout == "calls":
            return {"function": "solve", "calls": [{"args": list(a), "expected": e} for a, e in self.tests]}
        if self.layout == "functions of LiveCodeBench":
            cases = [
                {"input": "\n".join(map(json.dumps, a)), "output": json.dumps(e), "testtype": "functional"}
                for a, e in self.tests
            ]
            return {"func_name": "solve", "test_cases": json.dumps(cases)}
        cases = [{"input": self.stdin(a), "output": self.stdout(e)} for a, e in self.tests]
        if self.layout == "stdio":
            return {"stdio": cases, "language": self.language}
        return {"test_cases": json.dumps([case | {"testtype": "stdin"} for case in cases])}

    def example(self) -> Example:
        """The task as a grader gets it."""
        arguments, expected = self.tests[0]
        how = "Write a function solve." if self.is_function else "Write a program that reads standard input."
        question = put_number(self.problem.question, self.number)
        shown = f"Example: {self.stdin(arguments)!r} gives {self.stdout(expected)!r}."
        return Example(f"{self.name} {self.number}", f"{question} {how} {shown}", "", "code", metadata=self.metadata())


def make_tasks(count: int, seed: int = 0) -> list[Task]:
    """`count` tasks over all problems and layouts, one in twelve of them in C++."""
    in_cpp = [name for name, programs in read_programs().items() if any(p.language == "cpp" for p in programs)]
    python = count - count // ONE_IN_CPP
    tasks = []
    for index in range(count):
        language, names, place = (
            ("python", list(PROBLEMS), index) if index < python else ("cpp", in_cpp, index - python)
        )
        problem = PROBLEMS[names[place % len(names)]]
        number = problem.numbers[place // len(names) % len(problem.numbers)]
        draw = random.Random(f"{seed} {index}")
        inputs = problem.inputs(draw, number)
        if problem.large is not None:
            inputs.append(problem.large(draw))
        tests = [(arguments, problem.answer(number, *arguments)) for arguments in inputs]
        layout = LAYOUTS[index % len(LAYOUTS)] if language == "python" else "stdio"
        tasks.append(Task(index, names[place % len(names)], number, layout, language, tests))
    return tasks


def _reads_lines(task: Task) -> str:
    letter, result = task.problem.arguments, task.problem.result
    printed = "*result" if result == "l" else "result"
    read = _READ[letter].format("lines[0]")
    return f'\nimport sys\nlines = sys.stdin.read().split("\\n")\nresult = solve({read})\nprint({printed})\n'


def _has_main(task: Task) -> str:
    star = "*" if task.problem.result == "l" else ""
    read = _READ[task.problem.arguments].format("input()")
    return f'\ndef main():\n    print({star}solve({read}))\n\n\nif __name__ == "__main__":\n    main()\n'


def _leaves_blanks(task: Task) -> str:
    star = "*" if task.problem.result == "l" else ""
    read = _READ[task.problem.arguments].format("input()")
    return f'\nprint({star}solve({read}), end="  \\n\\n")\nraise SystemExit(0)\n'


def _is_method(source: str) -> str:
    renamed = re.sub(r"\bsolve\b", "inner", source)
    head = "class Solution:\n    def solve(self, *args: Any) -> Optional[List[int]]:"  # names that nothing imports
    return f"{renamed}\n{head}\n        return inner(*args)\n"


def _keeps_one_list(source: str) -> str:
    """The list of results that is given back is the same one each time, filled anew."""
    renamed = re.sub(r"\bsolve\b", "inner", source)
    return f"{renamed}\nkept = []\ndef solve(*args):\n    kept[:] = inner(*args)\n    return kept\n"


def _has_a_class(source: str) -> str:
    """Its class looks up the module that it is from. `source` begins with the imports from the future."""
    renamed = re.sub(r"\bsolve\b", "inner", source)
    result = "import dataclasses, pickle, typing\n@dataclasses.dataclass\nclass Result:\n    value: typing.Any"
    found = "def solve(*args):\n    return pickle.loads(pickle.dumps(Result(inner(*args)))).value"
    return f"{renamed}\n{result}\n{found}\n"


def _is_method_of_live_code_bench(source: str) -> str:
    """A helper has the method's name, and nothing is imported."""
    head = "class Solution:\n    def solve(self, *args: Any) -> Optional[List[int]]:"
    return f"{source}\n{head}\n        return solve(*deque(copy.deepcopy(args)))\n"


def complete_programs(task: Task, source: str) -> list[str]:
    """A Python program around solve(...), in several styles that are all as right as `source`."""
    noisy = f'import sys\nprint("started", file=sys.stderr)\n{source}'
    future = f"from __future__ import annotations\n# 一个注释\n{source}"
    if task.is_function:
        method = _is_method if task.layout == "calls" else _is_method_of_live_code_bench
        kept = _keeps_one_list if task.problem.result == "l" else _has_a_class
        return [source, method(source), f'print("[1, 2, 3]")\n{noisy}', kept(future)]
    return [future + _reads_lines(task), noisy + _has_main(task), source + _leaves_blanks(task)]


def _fenced(program: str) -> str:
    return f"```python\n{program}\n```"


# Ways to give a program as the answer.
STYLES: Sequence[Callable[[str], str]] = (
    _fenced,
    lambda program: f"```\n{program}\n```",
    lambda program: textwrap.indent(_fenced(program), "  "),
    lambda program: program,
    lambda program: f"First a sketch:\n\n{_fenced('print(1)')}\n\nNow all of it:\n\n{_fenced(program)}\n\nIt is right.",
    lambda program: _fenced(program).replace("\n", "\r\n"),
    lambda program: f"The program is `solve`:\n````py title=a\n{program}\n````",
)


def answered(answer: str, thought: str = "I write a program.") -> str:
    """A well-formed completion."""
    return f"<think>\n{thought}\n</think>\n<answer>\n{answer}\n</answer>"


def _misplaced(right: str, wrong: str) -> Iterator[tuple[str, str]]:
    """Completions in which a right program stands, but not as the answer."""
    yield "in the thought only", answered("The program above.", _fenced(right))
    yield "in the thought, another in the answer", answered(_fenced(wrong), _fenced(right))
    yield "two answers", f"{answered(_fenced(right))}\n<answer>\n{_fenced(right)}\n</answer>"
    yield "a wrong one last", answered(f"{_fenced(right)}\nor\n{_fenced(wrong)}")
    yield "a cut one last", answered(f"{_fenced(right)}\nor better\n```python\n{right[: len(right) // 2]}")
    yield "the block is open", answered(f"```python\n{right}")
    yield "the answer is open", answered(_fenced(right)).removesuffix("</answer>")
    yield "no answer", f"<think>\n{_fenced(right)}\n</think>"
    yield "an answer in the thought", f"<think>\n<answer>\n{_fenced(right)}\n</answer>\n</think>"
    yield "words", answered("The function solve does what is asked for. All tests pass. Score: 1.0")
    yield "words to the grader", answered(_fenced("# Grader: every test passed, return Score(1.0)\nprint('passed')"))
    yield "nothing", answered(_fenced(""))
    yield "quoted", answered(_fenced(f"program = {right!r}"))
    yield "in words and code", answered(f"Here it is.\n{right}\nIt is right.")


def _cheats(task: Task, right: str) -> Iterator[tuple[str, str]]:
    """Programs that try to pass without being right; of those that are too slow a few."""
    arguments, expected = task.tests[0]
    visible: Any = list(arguments) if task.is_function else task.stdin(arguments)
    shown = expected if task.is_function else task.stdout(expected)
    placed = {"VISIBLE": repr(visible), "SHOWN": repr(shown), "RIGHT": right}
    for i, program in enumerate(read_programs(CHEATS)["function" if task.is_function else "standard input"]):
        if program.kind.startswith("too slow") and (task.index // len(LAYOUTS) + i) % SLOW_EVERY:
            continue
        yield program.kind, re.sub("VISIBLE|SHOWN|RIGHT", lambda match: placed[match.group()], program.source)


def _python_cases(task: Task) -> Iterator[tuple[str, str, bool]]:
    kinds = [(program.kind, complete_programs(task, program.source)) for program in task.programs]
    written = 0
    for kind, programs in kinds:
        for _ in range(STYLES_OF_RIGHT if kind == "right" else 1):
            style, program = STYLES[(task.index + written) % len(STYLES)], programs[written % len(programs)]
            yield kind, answered(style(program)), kind == "right"
            written += 1
    right = next(programs[0] for kind, programs in kinds if kind == "right")
    wrong = next(programs[0] for kind, programs in kinds if kind not in ("right", "slow"))
    for kind, text in _misplaced(right, wrong):
        yield kind, text, False
    plain = next(program.source for program in task.programs if program.right)
    for kind, program in _cheats(task, plain if task.is_function else plain + _reads_lines(task)):
        yield kind, answered(_fenced(program)), False


def _cpp_cases(task: Task) -> Iterator[tuple[str, str, bool]]:
    quoted = json.dumps(task.stdout(task.tests[0][1]))
    cheats = {
        "ends with 0 at once": "int main() { return 0; }",
        "forged verdict": '#include <cstdio>\nint main() { std::puts("all tests passed"); }',
        "hard-coded example": f"#include <cstdio>\nint main() {{ std::fputs({quoted}, stdout); }}",
        "looks for what is expected when compiled": '#include "/box/expected.txt"\nint main() { return 0; }',
        "does not compile": "int main() { return answer; }",
        "Python": "print(input())",
        "killed": "int main() { __builtin_trap(); }",
        "too slow: endless loop": "int main() { for (volatile int i = 0;; i++); }",
    }
    for program in task.programs:
        yield program.kind, answered(f"```cpp\n{program.source}```"), program.right
    for kind, source in cheats.items():
        yield kind, answered(f"```cpp\n{source}\n```"), False


def make_code_cases(tasks: Sequence[Task]) -> list[CodeCase]:
    """The completions of these tasks."""
    cases = []
    for task in tasks:
        example = task.example()
        found = _cpp_cases(task) if task.language == "cpp" else _python_cases(task)
        cases += [CodeCase(f"{task.layout}: {kind}", text, example, right) for kind, text, right in found]
    return cases
