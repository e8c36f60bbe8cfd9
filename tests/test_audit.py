"""The audit: its cases, its bounds, and what it finds in a sample (the whole of it is slow)."""

from __future__ import annotations

import copy
import pathlib
import random
import re
import sys
from collections import Counter
from typing import Any

import pytest

from r1jax.rewards.audit.algebra import ALGEBRA
from r1jax.rewards.audit.attacks import make_attacks, make_language_texts, make_ordinary
from r1jax.rewards.audit.cases import VALUES, found_pairs, make_pairs
from r1jax.rewards.audit.code import CHEATS, LAYOUTS, LIMITS, make_code_cases, make_tasks
from r1jax.rewards.audit.problems import PROBLEMS, put_number, read_programs
from r1jax.rewards.isolation.sandbox import Sandbox, SandboxUnavailableError
from r1jax.types import Score, Status
from tools import audit_rewards
from tools.audit_rewards import Case, Row, Sizes, audit, bounds, code_row, put_into, table

MAKERS = VALUES | ALGEBRA


def test_the_bounds_are_those_of_clopper_and_pearson() -> None:
    # 0 of n: 1 - 0.025^(1/n). The others from tables of the method.
    assert bounds(0, 2000) == pytest.approx((0.0, 0.0018428), abs=1e-6)
    assert bounds(10, 10) == pytest.approx((0.6915, 1.0), abs=1e-4)
    assert bounds(5, 10) == pytest.approx((0.1871, 0.8129), abs=1e-4)
    assert bounds(1, 100) == pytest.approx((0.000253, 0.054459), abs=1e-5)


def test_pairs_are_seeded_and_of_every_kind_and_truth() -> None:
    pairs = make_pairs(MAKERS, 5, seed=3)
    assert pairs == make_pairs(MAKERS, 5, seed=3) != make_pairs(MAKERS, 5, seed=4)
    assert Counter((pair.kind, pair.same) for pair in pairs) == {(k, same): 5 for k in MAKERS for same in (True, False)}
    assert all(pair.gold != pair.answer for pair in pairs if not pair.same)
    assert len({(pair.gold, pair.answer) for pair in make_pairs(MAKERS, 100)}) > 0.9 * 200 * len(MAKERS)


def test_there_are_as_many_attacks_and_texts_as_asked_for() -> None:
    attacks = make_attacks(200, "/canary")
    assert len(attacks) >= 200
    assert not any(attack.right for attack in attacks)
    assert len({attack.kind for attack in attacks}) >= 12
    assert all(case.right for case in make_ordinary(10))
    texts = make_language_texts(100)
    assert sum(text.share == 1 for text in texts) == 50


def test_the_table_counts_what_was_graded_wrongly() -> None:
    scores = [Score(1.0), Score(1.0), Score(0.0), Score(0.0, Status.TIMED_OUT)]
    cases = [Case("k", "", right, score) for right, score in zip((True, False, True, False), scores, strict=True)]
    row = Row("name", cases, 2.0)
    assert [case.right for case in row.errors(False) + row.errors(True)] == [False, True]
    last = table([row]).splitlines()[-1]
    assert last == "| name | 1 of 2 (50.00 %; 1.26 to 98.74) | 1 of 2 (50.00 %; 1.26 to 98.74) | 25.00 % | 2 |"


def test_the_table_goes_between_its_marks(tmp_path: pathlib.Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- audit -->\nold\n<!-- /audit -->\nafter\n")
    put_into(readme, "new")
    assert readme.read_text() == "before\n<!-- audit -->\nnew\n<!-- /audit -->\nafter\n"
    readme.write_text("nothing")
    with pytest.raises(ValueError, match="has no lines"):
        put_into(readme, "new")


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    box = Sandbox(LIMITS, parallel=2)
    try:
        box.check()
    except SandboxUnavailableError as error:
        pytest.skip(str(error))
    return box


def check(rows: list[Row], most_missed: float) -> None:
    for row in rows:
        if "alone" in row.name or "`math`" in row.name:
            continue
        assert not row.errors(False), [case.shown for case in row.errors(False)]
        assert len(row.errors(True)) <= most_missed * len(row.of(True)), [case.shown for case in row.errors(True)]
        strange = [case.shown for case in row.cases if not case.score.graded and case.kind != "found"]
        assert len(strange) <= 0.01 * len(row.cases), strange


def test_a_sample_of_the_audit_has_no_false_positive() -> None:
    rows = audit(Sizes(pairs=105, attacks=200, texts=100), workers=2, seconds=30, seed=5, alone=False)
    assert len(rows) == 5
    check(rows, 0.02)


@pytest.mark.slow
def test_the_whole_audit_keeps_its_promise(sandbox: Sandbox) -> None:
    rows = audit(Sizes(), workers=2, seconds=30, sandbox=sandbox)
    assert len(rows) == 7
    check(rows, 0.01)
    assert len(rows[0].of(False)) >= 1500
    assert len(rows[0].of(True)) >= 1500
    assert bounds(len(rows[0].errors(False)), len(rows[0].of(False)))[1] <= 0.002


def test_cases_found_in_the_wild_have_their_truth() -> None:
    assert len(found_pairs()) >= 10
    assert {pair.kind for pair in found_pairs()} == {"found"}


def solved(source: str, arguments: tuple[Any, ...]) -> Any:
    """What solve(...) of a program of the project's own returns; it is run here, not by what is audited."""
    namespace: dict[str, Any] = {}
    exec(source, namespace)
    try:
        return namespace["solve"](*copy.deepcopy(arguments))
    except (ZeroDivisionError, IndexError) as error:
        return error


@pytest.mark.parametrize("name", PROBLEMS)
def test_programs_of_the_audit_are_what_they_are_said_to_be(name: str) -> None:
    problem = PROBLEMS[name]
    written = [program for program in read_programs()[name] if program.language == "python"]
    assert Counter(program.right for program in written) >= Counter({True: 1, False: 2})
    for number in problem.numbers:
        inputs = problem.inputs(random.Random(number), number)
        expected = [problem.answer(number, *arguments) for arguments in inputs]
        for program in written:
            source = put_number(program.source, number)
            found = [solved(source, arguments) for arguments in inputs]
            passed = [(type(a), a) == (type(b), b) for a, b in zip(found, expected, strict=True)]
            assert all(passed) is (program.kind in ("right", "slow")), (program.kind, source, number, found, expected)


def test_answers_of_the_audit_by_hand() -> None:
    by_hand = {
        "sorting": (42, [3, 1, 2], [42, 1, 2, 3]),
        "multiples": (3, 10, 18),
        "letters shifted": (1, "az Z!", "ba A!"),
        "pairs": (10, [5, 5, 5, 1, 9], 4),
        "longest rise": (2, [1, 3, 4, 6, 9], 3),
        "stairs": (2, 5, 8),
        "primes": (4, 30, 4),  # 5, 13, 17, 29
        "inversions": (1, [5, 4, 1], 2),
        "circle": (2, 5, 3),
        "digits": (1, 21, 12),  # 1, 10 to 19, 21
        "runs": (2, "abbb", "ab3"),
        "halving": (20, 6, 8),
    }
    for name, (number, argument, answer) in by_hand.items():
        assert PROBLEMS[name].answer(number, argument) == answer, name


def test_code_tasks_are_seeded_and_of_every_layout() -> None:
    tasks = make_tasks(Sizes().tasks)
    assert tasks == make_tasks(Sizes().tasks) != make_tasks(Sizes().tasks, seed=1)
    assert len(tasks) >= 60
    assert {task.layout for task in tasks} == set(LAYOUTS)
    assert len({(task.name, task.number, task.language) for task in tasks}) == len(tasks)
    assert sum(task.language == "cpp" for task in tasks) >= 5
    cases = make_code_cases(tasks)
    assert min(Counter(case.right for case in cases).values()) > 300
    cheats = {program.kind for programs in read_programs(CHEATS).values() for program in programs}
    assert len(cheats) >= 40
    assert cheats <= {case.kind.split(": ", 1)[1] for case in cases}
    assert not any(re.search("VISIBLE|SHOWN|RIGHT", case.text) for case in cases)


def test_a_sample_of_the_code_tasks_has_no_error(sandbox: Sandbox) -> None:
    # Every kind of completion once, in one layout or another, but for those that take their time.
    cases = make_code_cases(make_tasks(4, seed=3))
    random.Random(0).shuffle(cases)
    kinds = {(case.kind.split(": ", 1)[1], case.right): case for case in cases}
    chosen = {kind: case for kind, case in kinds.items() if "slow" not in kind[0] and "too much" not in kind[0]}
    assert len(chosen) >= 60
    row = code_row(list(chosen.values()), sandbox)
    check([row], 0.0)
    assert row.ungradable == 0


def test_without_a_sandbox_the_audit_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Gone(Sandbox):
        def check(self) -> None:
            raise SandboxUnavailableError("no namespaces here")

    monkeypatch.setattr(audit_rewards, "Sandbox", Gone)
    monkeypatch.setattr(sys, "argv", ["audit_rewards"])
    with pytest.raises(ValueError, match="--no-code leaves them out: no namespaces here"):
        audit_rewards.main()
    given: list[Any] = []
    monkeypatch.setattr(audit_rewards, "audit", lambda *arguments: given.append(arguments) or [])
    monkeypatch.setattr(sys, "argv", ["audit_rewards", "--no-code", "--tasks=3"])
    audit_rewards.main()
    (sizes, _, _, sandbox, _) = given[0]
    assert (sizes.tasks, sandbox) == (3, None)
    assert "grader, cases" in capsys.readouterr().out
