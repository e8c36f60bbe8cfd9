"""Hidden tests for code problems that have none: from generator programs, or written by a model.

    python -m tools.make_tests --problems problems.jsonl --out with_tests.jsonl [--url URL --model NAME]

A row of --problems has `question`; `good`, the texts of right programs (the first is the reference); `wrong`, those of
near misses; and either `generator`, a program that gets a seed on standard input and prints one test's input, or
nothing, and then the model that --url or --checkpoint names writes the tests: calls of `function` if the row has one,
else input and output. `language` and `generator_language` are python where they are absent. Only tests that good
programs agree on and a wrong one fails are kept (`rewards/code/made_tests.py`). Rows go to --out with their tests as
`calls` or `stdio` and with `reference`, for a source of kind jsonl with the layout of that name. A row that is left
with fewer than --least tests is not written but named, and the status is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

from r1jax.rewards.code.code_accuracy import LANGUAGES, Runner
from r1jax.rewards.code.made_tests import Solution, Tests, generate_tests, telling_tests, write_tests
from r1jax.rewards.code.programs import StdioTest
from r1jax.rewards.isolation.sandbox import Sandbox, SandboxUnavailableError
from r1jax.rewards.judges.chat_models import ChatModel, JudgeUnavailableError
from r1jax.workdir import write_atomically
from tools.chat_model import add_model_options, judge_config, open_model
from tools.command_line import run_tool

Row = dict[str, Any]
Ask = Callable[[str], str]


def read_problems(path: pathlib.Path, has_model: bool) -> list[Row]:
    """The rows. ValueError naming the line and the field of one that cannot be used."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where}: not JSON ({error.msg})") from error
        if not isinstance(row, dict) or not isinstance(row.get("question"), str) or not row["question"].strip():
            raise ValueError(f"{where}: question must be a text")
        for field, least in (("good", 2 if "generator" in row else 1), ("wrong", 1)):
            programs = row.get(field)
            if not isinstance(programs, list) or len(programs) < least or not all(isinstance(p, str) for p in programs):
                raise ValueError(f"{where}: {field} must be a list of at least {least} programs")
        for field in ("language", "generator_language"):
            if row.get(field, "python") not in LANGUAGES:
                raise ValueError(f"{where}: {field}: {row[field]!r} is not one of {sorted(LANGUAGES)}")
        if not isinstance(row.get("generator", ""), str):
            raise ValueError(f"{where}: generator must be a program's text")
        if "generator" not in row and not has_model:
            raise ValueError(f"{where}: no generator, so a model must write the tests: give --url or --checkpoint")
        rows.append(row)
    return rows


def asking(model: ChatModel, seed: int) -> Ask:
    """A prompt to its answer. JudgeUnavailableError where there is none."""

    def ask(prompt: str) -> str:
        (reply,) = model.ask([[{"role": "user", "content": prompt}]], seed)
        if reply.text is None:
            raise JudgeUnavailableError(f"the model gave no answer: {reply.problem}")
        return reply.text

    return ask


def make(row: Row, runner: Runner, ask: Ask | None, seeds: int, count: int) -> tuple[Tests, Mapping[str, Any]]:
    """The tests of a problem, and what became of the others."""
    language = str(row.get("language", "python"))
    good, wrong = ([Solution(program, language) for program in row[field]] for field in ("good", "wrong"))
    if "generator" in row:
        generator = Solution(row["generator"], str(row.get("generator_language", "python")))
        made = generate_tests(generator, good, range(seeds), runner)
        told = telling_tests(made.tests, wrong, runner)
        counts = {name: getattr(made, name) for name in ("failed", "repeated", "broken", "disagreed")}
        counts["no wrong program fails"] = told.dropped
        return told.tests, counts | {"undetected": list(told.undetected)}
    assert ask is not None
    written = write_tests(row["question"], ask, good[0], wrong, runner, str(row.get("function", "")), count)
    counts = {**written.dropped, "undetected": list(written.undetected)}
    return written.tests, counts | ({"unreadable": written.unreadable} if written.unreadable else {})


def with_tests(row: Row, tests: Tests) -> Row:
    """The row as a source of code problems has it."""
    kept = {
        name: value for name, value in row.items() if name not in ("good", "wrong", "generator", "generator_language")
    }
    if isinstance(tests[0], StdioTest):
        cases = {"stdio": [{"input": t.stdin, "output": t.expected} for t in tests if isinstance(t, StdioTest)]}
    else:
        cases = {"calls": [{"args": t.args, "expected": t.expected} for t in tests if not isinstance(t, StdioTest)]}
    return kept | cases | {"reference": row["good"][0], "language": row.get("language", "python")}


def main() -> int:
    """Makes tests for all problems; 1 if one is left with too few."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--seeds", type=int, default=40, help="inputs asked of a generator")
    parser.add_argument("--count", type=int, default=10, help="tests asked of a model")
    parser.add_argument("--least", type=int, default=3, help="tests that a problem needs")
    parser.add_argument("--seed", type=int, default=0, help="of a model that draws at random")
    add_model_options(parser, required=False)
    options = parser.parse_args()
    has_model = bool(options.url or options.checkpoint)
    if not options.out.parent.is_dir():
        raise ValueError(f"--out: there is no folder {options.out.parent}")
    rows = read_problems(options.problems, has_model)
    sandbox = Sandbox()
    try:
        sandbox.check()
    except SandboxUnavailableError as error:
        raise ValueError(str(error)) from error
    written, short = [], 0
    tests: Tests
    counts: Mapping[str, Any]
    with contextlib.ExitStack() as stack:
        ask = asking(stack.enter_context(open_model(judge_config(options))), options.seed) if has_model else None
        for number, row in enumerate(rows, start=1):
            try:
                tests, counts = make(row, sandbox, ask, options.seeds, options.count)
            except ValueError as error:  # a program that cannot be built, a model that does not answer
                tests, counts = (), {"failed": str(error)}
            enough = len(tests) >= options.least
            short += not enough
            print(f"problem {number}: {len(tests)} tests{'' if enough else ', TOO FEW: not written'}; {dict(counts)}")
            if enough:
                written.append(json.dumps(with_tests(row, tests), ensure_ascii=False))
    write_atomically(options.out, "".join(f"{line}\n" for line in written))
    print(f"{len(written)} problems with tests in {options.out}, {short} left out")
    return 1 if short else 0


if __name__ == "__main__":
    run_tool(lambda: sys.exit(main()))
