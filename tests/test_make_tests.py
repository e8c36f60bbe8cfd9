"""Problems without tests become a source of code problems, or are named."""

from __future__ import annotations

import json
import pathlib
import sys

import pytest
from test_sandbox import isolated

from r1jax.data.sources import SourceConfig, make_source
from r1jax.rewards.code.code_accuracy import CodeGrader
from r1jax.rewards.isolation.sandbox import Sandbox
from r1jax.rewards.judges.chat_models import JudgeUnavailableError, Reply
from tools import make_tests

QUESTION = "f takes a list of numbers and returns them in a sorted order, but also adds 42 at the start."
GOOD = "def f(xs): return [42] + sorted(xs)"
WRONG = ["def f(xs): return [42] + xs", "def f(xs): return sorted(xs + [42])"]
SUM = {
    "question": "Print the sum of the numbers on the line.",
    "good": [
        "print(sum(map(int, input().split())))",
        "total = 0\nfor x in input().split(): total += int(x)\nprint(total)",
    ],
    "wrong": ["print(sum(map(int, input().split()[:-1])))", "print(max(map(int, input().split())))"],
    "generator": "import random\nrandom.seed(int(input()))\nprint(*[random.randint(-9, 9) for _ in range(4)])",
}


class Scripted:
    """A model with one answer."""

    def __init__(self, text: str | None) -> None:
        self.text = text

    def ask(self, conversations: list[list[dict[str, str]]], seed: int) -> list[Reply]:
        assert QUESTION in conversations[0][0]["content"]
        return [Reply(self.text, "" if self.text else "the server is gone")]


def run(tmp_path: pathlib.Path, rows: list[dict[str, object]], monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    problems = tmp_path / "problems.jsonl"
    problems.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["make_tests", "--problems", str(problems), "--out", str(tmp_path / "out.jsonl"), *options]
    monkeypatch.setattr(sys, "argv", arguments)
    return make_tests.main()


@isolated
def test_a_generators_tests_make_a_source_whose_reference_passes(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hopeless = {**SUM, "wrong": [SUM["good"][1]]}  # no test tells a right program apart
    broken = {**SUM, "wrong": ["print("]}
    assert run(tmp_path, [SUM, hopeless, broken], monkeypatch, "--seeds", "6") == 1
    assert (
        "problem 3: 0 tests, TOO FEW: not written; {'failed': 'a program: it does not parse'}"
        in capsys.readouterr().out
    )
    (example,) = make_source(SourceConfig(kind="jsonl", path=str(tmp_path / "out.jsonl"), layout="stdio"))
    grader = CodeGrader(Sandbox(parallel=1))
    grader.check_problem(example)
    assert len(example.metadata["stdio"]) >= 3
    assert grader(f"<answer>{example.answer}</answer>", example).value == 1.0
    assert grader(f"<answer>{SUM['wrong'][0]}</answer>", example).value == 0.0


@isolated
def test_a_model_writes_tests_and_only_telling_ones_stay() -> None:
    answer = json.dumps(
        [
            {"args": [[3, 1]], "expected": [42, 1, 3]},
            {"args": [[1, 2]], "expected": [42, 1, 2]},  # WRONG[1] fails it
            {"args": [[1]], "expected": [1]},  # the reference fails it
            {"args": [[]], "expected": [42]},  # every program passes it
        ]
    )
    row = {"question": QUESTION, "function": "f", "good": [GOOD], "wrong": WRONG}
    ask = make_tests.asking(Scripted(f"```json\n{answer}\n```"), 0)
    tests, counts = make_tests.make(row, Sandbox(parallel=1), ask, 0, 10)
    assert [test.args for test in tests] == [([3, 1],), ([1, 2],)]  # type: ignore[union-attr]
    assert counts == {"the reference fails": 1, "no wrong program fails": 1, "undetected": []}
    made = make_tests.with_tests(row, tests)
    assert set(made) == {"question", "function", "calls", "reference", "language"}
    with pytest.raises(JudgeUnavailableError, match="the model gave no answer: the server is gone"):
        make_tests.make(row, Sandbox(parallel=1), make_tests.asking(Scripted(None), 0), 0, 10)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**SUM, "good": ["x"]}, "line 1: good must be a list of at least 2 programs"),
        ({**SUM, "wrong": []}, "line 1: wrong must be a list of at least 1 programs"),
        ({**SUM, "question": " "}, "line 1: question must be a text"),
        ({"question": "?", "good": ["x"], "wrong": ["y"]}, "line 1: no generator, so a model must write the tests"),
    ],
)
def test_rows_that_cannot_be_used_are_named(
    tmp_path: pathlib.Path, row: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=message):
        run(tmp_path, [row], monkeypatch)
