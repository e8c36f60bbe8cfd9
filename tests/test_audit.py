"""The audit: its cases, its bounds, and what it finds in a sample (the whole of it is slow)."""

from __future__ import annotations

import pathlib
from collections import Counter

import pytest

from r1jax.rewards.audit_algebra import ALGEBRA
from r1jax.rewards.audit_attacks import make_attacks, make_language_texts, make_ordinary
from r1jax.rewards.audit_cases import VALUES, found_pairs, make_pairs
from r1jax.types import Score, Status
from tools.audit_rewards import Case, Row, audit, bounds, put_into, table

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


def check(rows: list[Row], most_missed: float) -> None:
    ours = [row for row in rows if "alone" not in row.name and "`math`" not in row.name]
    assert len(ours) == 4
    for row in ours:
        assert not row.errors(False), [case.shown for case in row.errors(False)]
        assert len(row.errors(True)) <= most_missed * len(row.of(True)), [case.shown for case in row.errors(True)]
        strange = [case.shown for case in row.cases if not case.score.graded and case.kind != "found"]
        assert len(strange) <= 0.01 * len(row.cases), strange


def test_a_sample_of_the_audit_has_no_false_positive() -> None:
    check(audit(pairs=105, attacks=200, texts=100, workers=2, seconds=30, seed=5, alone=False), 0.02)


@pytest.mark.slow
def test_the_whole_audit_keeps_its_promise() -> None:
    rows = audit(pairs=2000, attacks=200, texts=100, workers=2, seconds=30)
    check(rows, 0.01)
    assert len(rows[0].of(False)) >= 1500
    assert len(rows[0].of(True)) >= 1500
    assert bounds(len(rows[0].errors(False)), len(rows[0].of(False)))[1] <= 0.002


def test_cases_found_in_the_wild_have_their_truth() -> None:
    assert len(found_pairs()) >= 10
    assert {pair.kind for pair in found_pairs()} == {"found"}
