"""Audits the graders: `python -m tools.audit_rewards [--pairs N] [--no-code] [--readme README.md]`.

Every grader runs over cases whose truth is known by construction (`r1jax/rewards/audit/`), never from a grader. The
table has, for each, the rates of false positives (a wrong answer rewarded) and false negatives (a right one not
rewarded, though graded) with 95 % bounds (Clopper-Pearson), the share that got no grade, and the answers per second.
`--readme` puts the table between the lines `<!-- audit -->` and `<!-- /audit -->` of a file. Programs run in the
sandbox; where there is none, the audit says so and ends, unless `--no-code` leaves them out.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import pathlib
import tempfile
import time
from collections.abc import Iterator, Sequence

from scipy.stats import beta

from r1jax.rewards.audit.algebra import ALGEBRA
from r1jax.rewards.audit.attacks import formed, make_attacks, make_language_texts, make_ordinary
from r1jax.rewards.audit.cases import VALUES, Pair, found_pairs, make_pairs
from r1jax.rewards.audit.code import LIMITS, CodeCase, make_code_cases, make_tasks
from r1jax.rewards.code.code_accuracy import CodeGrader
from r1jax.rewards.format import format_reward
from r1jax.rewards.isolation.sandbox import Sandbox, SandboxUnavailableError
from r1jax.rewards.languages.language import language_reward
from r1jax.rewards.mathematics.math_accuracy import accuracy
from r1jax.rewards.mathematics.math_grader import MathGrader
from r1jax.rewards.mathematics.math_verify_alone import verify_alone
from r1jax.rewards.workers import Ending, WorkerPool
from r1jax.types import Example, Score, Status
from tools.command_line import run_tool

BEGIN, END = "<!-- audit -->", "<!-- /audit -->"


@dataclasses.dataclass(frozen=True)
class Case:
    """One case with its truth and the score it got."""

    kind: str
    shown: str
    right: bool
    score: Score


@dataclasses.dataclass(frozen=True)
class Row:
    """What a grader did with its cases."""

    name: str
    cases: Sequence[Case]
    seconds: float

    def of(self, right: bool) -> list[Case]:
        """The cases that are right, or those that are wrong."""
        return [case for case in self.cases if case.right is right]

    def errors(self, right: bool) -> list[Case]:
        """The cases that were graded, and graded wrongly."""
        return [c for c in self.of(right) if c.score.graded and (c.score.value >= 1) is not right]

    @property
    def ungradable(self) -> int:
        """How many got no grade, for whatever reason."""
        return sum(not case.score.graded for case in self.cases)


def bounds(errors: int, cases: int) -> tuple[float, float]:
    """The exact two-sided 95 % bounds of a rate (Clopper and Pearson, 1934)."""
    low = float(beta.ppf(0.025, errors, cases - errors + 1)) if errors else 0.0
    high = float(beta.ppf(0.975, errors + 1, cases - errors)) if errors < cases else 1.0
    return low, high


def _rate(errors: int, cases: int) -> str:
    if not cases:
        return ""
    low, high = bounds(errors, cases)
    return f"{errors} of {cases} ({100 * errors / cases:.2f} %; {100 * low:.2f} to {100 * high:.2f})"


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown."""
    lines = [
        "| grader, cases | false positives (95 % bounds) | false negatives (95 % bounds) | no grade | answers/s |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        wrong, right = (_rate(len(row.errors(side)), len(row.of(side))) for side in (False, True))
        share = f"{100 * row.ungradable / len(row.cases):.2f} %"
        lines.append(f"| {row.name} | {wrong} | {right} | {share} | {len(row.cases) / row.seconds:.0f} |")
    return "\n".join(lines)


def _example(pair: Pair) -> Example:
    return Example(id="", question=pair.question, answer=pair.gold, task="math")


def grade_all(grader: MathGrader, texts: Sequence[str], examples: Sequence[Example]) -> list[Score]:
    """The scores of many completions, graded side by side."""
    started = [grader.submit(text, example) for text, example in zip(texts, examples, strict=True)]
    return [score.result() for score in started]


def maths_rows(pairs: Sequence[Pair], grader: MathGrader) -> Iterator[Row]:
    """The comparison "expressions" and, for what numbers alone can do, "math"."""
    texts, examples = [formed(pair.answer) for pair in pairs], [_example(pair) for pair in pairs]
    shown = [f"{pair.gold!r} / {pair.answer!r} {pair.question}" for pair in pairs]

    def cases(scores: Sequence[Score]) -> list[Case]:
        return [Case(p.kind, text, p.same, score) for p, text, score in zip(pairs, shown, scores, strict=True)]

    began = time.monotonic()
    scores = grade_all(grader, texts, examples)
    yield Row("mathematics, `expressions`", cases(scores), time.monotonic() - began)
    began = time.monotonic()
    scores = [accuracy(text, example) for text, example in zip(texts, examples, strict=True)]
    yield Row("the same pairs, `math` (numbers only)", cases(scores), time.monotonic() - began)


def math_verify_row(pairs: Sequence[Pair], workers: int, seconds: float) -> Row:
    """math-verify as it comes, for comparison."""
    began = time.monotonic()
    with WorkerPool(verify_alone, workers, seconds) as pool:
        outcomes = pool.map([(pair.gold, pair.answer) for pair in pairs])
    cases = []
    for pair, outcome in zip(pairs, outcomes, strict=True):
        graded = outcome.ending is Ending.DONE and outcome.value is not None
        score = Score(float(bool(outcome.value))) if graded else Score(0.0, Status.UNGRADABLE, outcome.reason)
        cases.append(Case(pair.kind, f"{pair.gold!r} / {pair.answer!r}", pair.same, score))
    return Row("the same pairs, math-verify alone", cases, time.monotonic() - began)


def attack_rows(count: int, grader: MathGrader) -> Iterator[Row]:
    """Attacks and ordinary completions, for accuracy and for the format. RuntimeError if an answer was executed."""
    with tempfile.TemporaryDirectory() as folder:
        canary = pathlib.Path(folder) / "canary"
        completions = make_attacks(count, str(canary)) + make_ordinary(count)
        began = time.monotonic()
        scores = grade_all(grader, [c.text for c in completions], [c.example for c in completions])
        if canary.exists():
            raise RuntimeError("an answer was executed")
    cases = [Case(c.kind, f"{c.text[:200]!r}", c.right, s) for c, s in zip(completions, scores, strict=True)]
    yield Row("format attacks and ordinary answers, `expressions`", cases, time.monotonic() - began)
    began = time.monotonic()
    scores = [format_reward(c.text, c.example) for c in completions]
    cases = [Case(c.kind, f"{c.text[:200]!r}", c.well_formed, s) for c, s in zip(completions, scores, strict=True)]
    yield Row("the same, format reward", cases, time.monotonic() - began)


def language_row(count: int) -> Row:
    """Texts in one language or two: full reward for the first only, and the exact share for all."""
    texts = make_language_texts(count)
    began = time.monotonic()
    scores = [language_reward(text.text, text.example) for text in texts]
    seconds = time.monotonic() - began
    cases = []
    for text, score in zip(texts, scores, strict=True):
        exact = abs(score.value - text.share) < 1e-9
        # Another share than the true one is an error, whichever way: it is shown as the wrong verdict.
        judged = score if exact else dataclasses.replace(score, value=float(text.share < 1))
        cases.append(Case("language", f"{text.text!r} {text.share}", text.share == 1.0, judged))
    return Row("language reward", cases, seconds)


def code_row(cases: Sequence[CodeCase], sandbox: Sandbox) -> Row:
    """Programs against hidden tests. A program that is too slow is wrong, not without a grade."""
    grader = CodeGrader(sandbox)
    for example in {case.example.id: case.example for case in cases}.values():
        grader.check_problem(example)
    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(sandbox.parallel) as pool:
        scores = list(pool.map(lambda case: grader(case.text, case.example), cases))
    seconds = time.monotonic() - began
    shown = [f"{case.example.id}, {score.reason}: {case.text!r}" for case, score in zip(cases, scores, strict=True)]
    judged = [Case(c.kind, text, c.right, score) for c, text, score in zip(cases, shown, scores, strict=True)]
    return Row("code, tests in the sandbox", judged, seconds)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How many cases at least: `pairs` of each truth, the others in all."""

    pairs: int = 2000
    attacks: int = 200
    texts: int = 100
    tasks: int = 72  # each with some 60 programs; none without a sandbox


# The graders in the order of the table.
def audit(
    sizes: Sizes, workers: int, seconds: float, sandbox: Sandbox | None = None, seed: int = 0, alone: bool = True
) -> list[Row]:
    """Runs everything; code tasks where there is a sandbox. alone: also math-verify without us."""
    makers = VALUES | ALGEBRA
    maths = make_pairs(makers, -(-sizes.pairs // len(makers)), seed) + found_pairs()
    with MathGrader(workers, seconds) as grader:
        grader(formed("x"), Example(id="", question="", answer="y", task="math"))  # the processes have started
        rows = list(maths_rows(maths, grader))
        if alone:
            rows.append(math_verify_row(maths, workers, seconds))
        if sandbox is not None:
            rows.append(code_row(make_code_cases(make_tasks(sizes.tasks, seed)), sandbox))
        rows += attack_rows(sizes.attacks, grader)
        rows.append(language_row(sizes.texts))
    return rows


def open_sandbox(parallel: int) -> Sandbox:
    """A sandbox that was checked. ValueError, naming what to do, where there is none."""
    sandbox = Sandbox(LIMITS, parallel)
    try:
        sandbox.check()
    except SandboxUnavailableError as error:
        raise ValueError(f"code tasks need the sandbox, --no-code leaves them out: {error}") from error
    return sandbox


def put_into(readme: pathlib.Path, text: str) -> None:
    """Replaces what stands between the marks. ValueError if there are none."""
    before, begin, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{readme} has no lines {BEGIN} and {END}")
    readme.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


def main() -> None:
    """Prints the table and every error of the project's own graders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for field in dataclasses.fields(Sizes):
        parser.add_argument(f"--{field.name}", type=int, default=field.default)
    parser.add_argument("--no-code", action="store_true", help="no code tasks: there is no sandbox")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=5.0, help="time limit of one mathematics answer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--readme", type=pathlib.Path)
    arguments = parser.parse_args()
    sandbox = None if arguments.no_code else open_sandbox(arguments.workers)
    sizes = Sizes(arguments.pairs, arguments.attacks, arguments.texts, arguments.tasks)
    rows = audit(sizes, arguments.workers, arguments.seconds, sandbox, arguments.seed)
    for row in rows:
        if "alone" in row.name or "`math`" in row.name:
            continue
        for case in row.errors(False) + row.errors(True):
            print(f"{row.name}: {'false negative' if case.right else 'FALSE POSITIVE'}, {case.kind}: {case.shown}")
    print(table(rows))
    if arguments.readme is not None:
        put_into(arguments.readme, table(rows))


if __name__ == "__main__":
    run_tool(main)
