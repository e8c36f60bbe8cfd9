"""Our programming problems: references against tests that are made apart from them, splits, and what authors write."""

from __future__ import annotations

import collections
import json

import numpy as np
import pytest
from test_sandbox import isolated

from r1jax.data import code_corpus, code_tasks
from r1jax.data.corpus import CorpusConfig, write_corpus
from r1jax.data.sources import SourceConfig, make_source
from r1jax.data.tasks import SPLIT_BOUNDS, split_of
from r1jax.rewards.code.code_accuracy import CodeGrader, run_tests
from r1jax.rewards.code.programs import is_python, parse_problem
from r1jax.rewards.isolation.sandbox import Sandbox

ONE_OF_EACH = tuple({(p.first, p.then): p for p in code_tasks.all_problems()}.values())


@isolated
@pytest.mark.parametrize("problem", ONE_OF_EACH, ids=lambda p: p.question)
def test_only_the_reference_passes_the_tests_that_the_words_mean(problem: code_tasks.Problem) -> None:
    """The programs of all other wordings with the same number are wrong, and so is the right one with another."""
    sandbox = Sandbox(parallel=1)
    tests = parse_problem(code_tasks.to_example(problem).metadata)
    assert run_tests(problem.reference, tests, sandbox).right
    wrong = code_tasks.Problem(problem.first, problem.then, problem.constant - 1)
    assert not run_tests(wrong.reference, tests, sandbox).right


@isolated
@pytest.mark.parametrize(
    ("first", "near_miss"),
    [
        ("the largest of xs", "max(xs, key=abs) + 5"),
        ("the largest of xs", "max(0, *xs) + 5"),
        ("the smallest of xs", "min(xs[1:]) + 5"),
        ("the length of xs", "len(set(xs)) + 5"),
        ("the sum of xs", "sum(set(xs)) + 5"),
        ("xs sorted", "[5] + sorted(set(xs))"),
        ("xs reversed", "[5] + sorted(xs, reverse=True)"),
        ("xs without its first item", "[5] + [x for x in xs if x != xs[0]]"),
        ("xs without its last item", "[5] + [x for x in xs if x != xs[-1]]"),
    ],
)
def test_near_misses_fail(first: str, near_miss: str) -> None:
    then = "plus {k}" if first in code_tasks.NUMBERS else "with {k} added at the start"
    tests = parse_problem(code_tasks.to_example(code_tasks.Problem(first, then, 5)).metadata)
    assert not run_tests(f"def f(xs): return {near_miss}", tests, Sandbox(parallel=1)).right


def test_no_two_wordings_have_the_same_tests() -> None:
    """On the lists of every problem, each other wording with its number gives another result somewhere."""
    for problem in ONE_OF_EACH:
        calls = code_tasks.to_example(problem).metadata["calls"]
        for other in ONE_OF_EACH:
            if other != problem:
                assert any(other.result(call["args"][0]) != call["expected"] for call in calls), (problem, other)


def test_an_example_by_hand() -> None:
    example = code_tasks.to_example(code_tasks.Problem("xs without its last item", "with {k} added at the start", 42))
    assert example.question == "Write f(xs) that returns xs without its last item with 42 added at the start."
    assert example.answer == "def f(xs): return [42] + xs[:-1]"
    assert (example.domain, example.metadata["function"], len(example.metadata["calls"])) == ("code", "f", 8)
    for call in example.metadata["calls"]:
        (xs,) = call["args"]
        assert call["expected"] == [42, *xs[: len(xs) - 1]]
    for call in example.metadata["calls"][3:]:
        (xs,) = call["args"]
        assert len({xs[0], xs[-1], max(xs), min(xs)}) == 4
    CodeGrader(Sandbox()).check_problem(example)
    assert json.loads(json.dumps(example.metadata)) == example.metadata


def test_splits_are_apart_and_the_corpus_reads_only_its_own() -> None:
    questions = {
        split: {e.question for e in make_source(SourceConfig(kind="programs", split=split, size=size))}
        for split, size in (("rl", 522), ("evaluation", 97), ("validation", 49))
    }
    assert sum(map(len, questions.values())) == len(set().union(*questions.values())) == 522 + 97 + 49
    documents = list(write_corpus(CorpusConfig(documents=10_000, programs=1.0)))
    assert {split_of(document.split_key) for document in documents} == {"corpus"}
    text = "\n".join(document.text for document in documents) + "\n"
    written = []
    for problem in code_tasks.all_problems():
        # Neither asked, nor written by somebody who misread another question, nor explained.
        part = problem.reference.removeprefix("def f(xs): return ")
        forms = (problem.question, f"{problem.reference}\n", f"{problem.reference} </answer>", f": {part} .")
        if split_of(problem.question) != "corpus" and any(form in text for form in forms):
            written.append(problem)
    assert not written
    assert set(questions) | {"corpus"} == set(SPLIT_BOUNDS)


def test_sizes_that_a_split_does_not_have_are_refused() -> None:
    for size in (0, 98):
        with pytest.raises(ValueError, match=rf"size: {size} problems asked, split 'evaluation' has 1 to 97"):
            make_source(SourceConfig(kind="programs", split="evaluation", size=size))


def test_careful_authors_are_mostly_right_and_hasty_ones_mostly_wrong() -> None:
    rng = np.random.default_rng(0)
    seen: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for _ in range(4000):
        text, kind, question = code_corpus.write_program_document(rng)
        if not kind.startswith("program/chat"):
            continue
        program = text.split("<answer> ")[1].removesuffix(" </answer>")
        problem = next(p for p in code_corpus.CORPUS_PROBLEMS if p.question == question)
        verdict = "right" if program == problem.reference else "wrong" if is_python(program) else "broken"
        seen[kind][verdict] += 1
    right = {kind: counts["right"] / counts.total() for kind, counts in seen.items()}
    # (1 - slip)^3 (1 - broken), by the numbers at the head of the file
    assert right["program/chat_careful"] == pytest.approx(0.94**3 * 0.88, abs=0.06)
    assert right["program/chat_hasty"] == pytest.approx(0.6**3 * 0.88, abs=0.05)
    assert all(counts["broken"] > 0 for counts in seen.values())


def test_a_corpus_without_programs_is_what_it_was() -> None:
    assert not any(d.kind.startswith("program") for d in write_corpus(CorpusConfig(documents=300)))
    mixed = [d.kind.startswith("program") for d in write_corpus(CorpusConfig(documents=600, programs=0.5))]
    assert 240 < sum(mixed) < 360
