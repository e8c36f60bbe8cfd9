"""Benchmark files in their published layouts, as a few rows of our own each."""

from __future__ import annotations

import base64
import csv
import json
import pathlib
import pickle
import zlib
from collections import Counter
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from r1jax.data.benchmark_rows import unpacked_text
from r1jax.data.errors import DataError
from r1jax.data.sources import SourceConfig, make_source
from r1jax.evaluation.benchmarks import BENCHMARKS, BenchmarkConfig
from r1jax.rewards.code.programs import CallTest, StdioTest, parse_problem
from r1jax.rewards.combine import RewardConfig
from r1jax.rewards.mathematics.math_accuracy import accuracy
from r1jax.settings import ConfigError, from_config
from r1jax.stages import evaluate
from r1jax.types import Example

Row = dict[str, Any]


def write(path: pathlib.Path, rows: list[Row]) -> str:
    """The rows as the kind of file that the name says."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            table.writerows(rows)
    return str(path)


def read(name: str, path: str, **fields: Any) -> list[Example]:
    config = BenchmarkConfig(name, path, **fields)
    return config.chosen([e for source in config.sources() for e in make_source(source)])


@pytest.mark.parametrize(
    "row",
    [
        {"id": 60, "problem": "Find n.", "solution": "n is 33.", "answer": "033", "year": "2024"},
        {"ID": "2024-I-1", "Problem": "Find n.", "Solution": "n is 33.", "Answer": 33},
        {"question": "Find n.", "answer": "33"},
    ],
)
@pytest.mark.parametrize("ending", ["jsonl", "parquet", "csv"])
def test_aime_in_each_published_layout(row: Row, ending: str, tmp_path: pathlib.Path) -> None:
    (example,) = read("aime", write(tmp_path / f"aime.{ending}", [row]))
    assert (example.question, example.task, example.language) == ("Find n.", "aime", "auto")
    assert accuracy("<answer> 33 </answer>", example).value == 1.0


def test_math_500_and_gsm8k(tmp_path: pathlib.Path) -> None:
    row = {"problem": "p", "solution": "s", "answer": "\\frac{1}{2}", "subject": "Algebra", "level": 5}
    (example,) = read("math_500", write(tmp_path / "m.jsonl", [{**row, "unique_id": "test/algebra/1.json"}]))
    assert (example.id, example.answer) == ("test/algebra/1.json", "\\frac{1}{2}")
    assert example.metadata == {"level": 5, "subject": "Algebra"}
    (example,) = read("gsm8k", write(tmp_path / "g.jsonl", [{"question": "q", "answer": "3 + 4 = 7\n#### 7"}]))
    assert example.answer == "7"


def gpqa_row(number: int) -> Row:
    wrong = {f"Incorrect Answer {i}": f"wrong {i}" for i in (1, 2, 3)}
    return {"Record ID": f"rec{number}", "Question": f"Question {number}, why?\n", "Correct Answer": "right\n", **wrong}


def test_gpqa_asks_for_the_letter_of_the_right_option(tmp_path: pathlib.Path) -> None:
    rows = [gpqa_row(number) for number in range(200)]
    path = write(tmp_path / "gpqa_diamond.csv", rows)
    examples = read("gpqa", path)
    for example in examples:
        told = dict(line[1:].split(") ") for line in example.question.splitlines() if line.startswith("("))
        assert sorted(told) == ["A", "B", "C", "D"]
        assert sorted(told.values()) == ["right", "wrong 1", "wrong 2", "wrong 3"]
        assert told[example.answer] == "right"
    letters = Counter(example.answer for example in examples)
    assert all(30 <= letters[letter] <= 70 for letter in "ABCD"), letters  # 50 each, standard deviation 6.1
    # An order belongs to a record and a seed, not to the file around it.
    assert read("gpqa", write(tmp_path / "few.csv", rows[7:9])) == examples[7:9]
    others = read("gpqa", path, seed=1)
    assert 100 < sum(a.question != b.question for a, b in zip(examples, others, strict=True)) < 200
    assert [e.id for e in others] == [e.id for e in examples]


def test_gpqa_rows_that_cannot_be_asked_are_named(tmp_path: pathlib.Path) -> None:
    twice = gpqa_row(1) | {"Incorrect Answer 2": "right"}
    with pytest.raises(DataError, match=r"row 1: the right answer 'right' is also one of the wrong ones"):
        read("gpqa", write(tmp_path / "twice.csv", [twice]))
    with pytest.raises(DataError, match=r"row 1: column 'Incorrect Answer 3' must hold text, got ''"):
        read("gpqa", write(tmp_path / "blank.csv", [gpqa_row(1) | {"Incorrect Answer 3": ""}]))


def packed(value: Any) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(value))).decode()


STDIN = [{"input": "1 2\n", "output": "3\n", "testtype": "stdin"}]
CALLS = [{"input": "[1, 2]\n7", "output": "10", "testtype": "functional"}]


def problem(date: str, public: list[Row], private: str, **fields: Any) -> Row:
    return {
        "question_content": "Add them.",
        "question_id": f"p{date}",
        "contest_date": f"{date}T00:00:00",
        "difficulty": "easy",
        "starter_code": "",
        "public_test_cases": json.dumps(public),
        "private_test_cases": private,
        "metadata": "{}",
        **fields,
    }


def test_live_code_bench_problems_keep_all_their_tests(tmp_path: pathlib.Path) -> None:
    method = {"starter_code": "class Solution:\n    def add(self, xs, k):", "metadata": '{"func_name": "add"}'}
    rows = [
        problem("2024-08-01", STDIN, packed(json.dumps(STDIN * 2))),
        problem("2025-01-31", CALLS, json.dumps(CALLS), **method),
    ]
    plain, calls = read("live_code_bench", write(tmp_path / "test6.jsonl", rows))
    assert parse_problem(plain.metadata).tests == (StdioTest("1 2\n", "3\n"),) * 3
    assert (plain.domain, plain.metadata["difficulty"], plain.answer) == ("code", "easy", "")
    parsed = parse_problem(calls.metadata)
    assert (parsed.function, parsed.live_code_bench) == ("add", True)
    assert parsed.tests == (CallTest(([1, 2], 7), 10),) * 2
    assert "def add(self, xs, k):" in calls.question
    assert "standard input" in plain.question


def test_live_code_bench_is_of_the_papers_months(tmp_path: pathlib.Path) -> None:
    dates = ["2024-07-31", "2024-08-01", "2025-01-31", "2025-02-01"]
    path = write(tmp_path / "all.jsonl", [problem(date, STDIN, "") for date in dates])
    assert [e.id for e in read("live_code_bench", path)] == ["p2024-08-01", "p2025-01-31"]
    assert [e.id for e in read("live_code_bench", path, size=1)] == ["p2024-08-01"]
    assert [e.id for e in read("live_code_bench", path, since="2025-02-01", until="2025-12-31")] == ["p2025-02-01"]
    with pytest.raises(DataError, match="none of 4 problems is from 2026-01-01 to 2026-02-01"):
        read("live_code_bench", path, since="2026-01-01", until="2026-02-01")


class Bomb:
    """Unpickled, it would make a file."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return pathlib.Path.touch, (self.path,)


def test_a_pickle_is_read_only_if_it_is_a_text(tmp_path: pathlib.Path) -> None:
    assert unpacked_text(packed("tests, 测试"), "here") == "tests, 测试"
    trap = tmp_path / "made"
    with pytest.raises(DataError, match=r"here: not the pickle of a text \(it asks for .*only text is read\)"):
        unpacked_text(packed(Bomb(trap)), "here")
    assert not trap.exists()
    with pytest.raises(DataError, match="here: the pickle holds list, expected text"):
        unpacked_text(packed(["a"]), "here")
    for damaged in ("no base 64", base64.b64encode(b"no zlib").decode(), packed("long text " * 9)[:24]):
        with pytest.raises(DataError, match="here: "):
            unpacked_text(damaged, "here")


def test_an_empty_file_is_named(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path / "empty.jsonl", [])
    with pytest.raises(DataError, match=r"empty\.jsonl: no rows$"):
        BenchmarkConfig(name="gsm8k", path=str(path)).sources()


def test_a_file_of_another_layout_is_named_with_its_columns(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path / "other.jsonl", [{"prompt": "p", "answer": "1"}])
    with pytest.raises(DataError, match=r"line 1: a file of 'gsm8k' has the columns .*; this row has \['answer', 'pr"):
        read("gsm8k", path)
    with pytest.raises(DataError, match=r"gone\.jsonl: there is no such file"):
        read("gsm8k", str(tmp_path / "gone.jsonl"))
    (tmp_path / "short.csv").write_text("question,answer\nq,1\nq\n", encoding="utf-8")
    with pytest.raises(DataError, match="row 2: more or fewer values than the first line names columns"):
        make_source(SourceConfig(kind="csv", path=str(tmp_path / "short.csv")))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "amc"}, r"name: 'amc' is not one of \['aime', "),
        ({"path": "a.jsonl"}, "path: is given without the benchmark's name"),
        ({"name": "aime"}, "path: 'aime' needs a file, and no tasks"),
        ({"name": "aime", "path": "a.txt"}, r"path: 'a.txt' must end in one of \.jsonl, \.parquet, \.csv"),
        ({"name": "aime", "path": "a.jsonl", "since": "2024-01-01"}, "since: the problems of 'aime' have no dates"),
        ({"name": "live_code_bench", "path": "a.jsonl", "until": "May"}, "until: 'May' is not a date as YYYY-MM-DD"),
        ({"name": "reasoning_gym", "tasks": {"chain_sum": {}}}, "tasks, size: 'reasoning_gym' needs both, and no path"),
        ({"name": "aime", "path": "a.jsonl", "size": -1}, "size: -1 is negative"),
    ],
)
def test_what_a_benchmark_needs_is_said(fields: Row, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_config(BenchmarkConfig, fields)


def test_every_protocol_can_be_evaluated() -> None:
    """Its comparison and pattern exist, and k is the paper's."""
    for name, protocol in BENCHMARKS.items():
        tasks = {"tasks": {"chain_sum": {}}, "size": 1} if name == "reasoning_gym" else {"path": "file.jsonl"}
        asked = evaluate.EvaluateConfig(benchmark=BenchmarkConfig(name, **tasks)).asked()
        assert asked.samples == protocol.samples
        assert (asked.rewards.comparison, asked.rewards.pattern) == (protocol.comparison, protocol.pattern)
        assert asked.prompt.suffix == protocol.suffix
    assert {name: BENCHMARKS[name].samples for name in ("aime", "gpqa", "math_500", "live_code_bench")} == {
        "aime": 64,
        "gpqa": 64,
        "math_500": 16,
        "live_code_bench": 8,
    }


def test_an_evaluation_may_differ_from_the_protocol_only_by_saying_so() -> None:
    own = BenchmarkConfig("aime", "a.jsonl", suffix="", pattern="answer", comparison="expressions")
    asked = evaluate.EvaluateConfig(benchmark=own, samples=4).asked()
    assert (asked.samples, asked.prompt.suffix) == (4, "")
    assert (asked.rewards.pattern, asked.rewards.comparison) == ("answer", "expressions")
    beside: list[tuple[Row, str]] = [
        ({"source": SourceConfig(split="rl", size=3)}, "source: is given beside benchmark"),
        (
            {"prompt": evaluate.PromptConfig(suffix="!")},
            "prompt.suffix: '!'; beside a benchmark it is benchmark.suffix",
        ),
        ({"rewards": RewardConfig(comparison="exact")}, "rewards.comparison: 'exact'; beside a benchmark it is"),
        ({"rewards": RewardConfig(on_device=True)}, "on_device: reads completions of the pattern 'answer'"),
    ]
    for fields, message in beside:
        with pytest.raises(ValueError, match=message):
            evaluate.EvaluateConfig(benchmark=BenchmarkConfig("aime", "a.jsonl"), **fields)


def test_a_suite_is_all_of_its_tasks() -> None:
    pytest.importorskip("reasoning_gym")
    suite = BenchmarkConfig("reasoning_gym", tasks={"chain_sum": {"max_terms": 2}, "leg_counting": {}}, size=3)
    examples = evaluate.examples_of(evaluate.EvaluateConfig(benchmark=suite))
    assert Counter(e.task for e in examples) == {"reasoning_gym/chain_sum": 3, "reasoning_gym/leg_counting": 3}
    assert all(e.metadata["params"] == {"max_terms": 2} for e in examples[:3])
