"""Rewards on tokens equal those on text for hundreds of completions; `tools.compare_rewards` does it for thousands."""

from __future__ import annotations

import numpy as np
import pytest

from tools import compare_rewards
from tools.compare_rewards import KINDS, Comparison, Rewards, compare, make_completions, table, train_byte_level

COMPLETIONS = make_completions(600)


@pytest.fixture(scope="module", params=["tiny", "byte-level"])
def comparison(request: pytest.FixtureRequest) -> Comparison:
    if request.param == "tiny":
        return compare("tiny", compare_rewards.tiny_tokenizer(documents=500), COMPLETIONS)
    texts = [completion.text for completion in COMPLETIONS if completion.text is not None]
    return compare("byte-level", train_byte_level(texts), COMPLETIONS)


def test_completions_are_of_three_kinds() -> None:
    assert make_completions(600) == COMPLETIONS
    for kind in KINDS:
        assert sum(completion.kind == kind for completion in COMPLETIONS) == 200
    assert {completion.example.language for completion in COMPLETIONS} == {"en", "zh"}
    assert any(completion.text is None for completion in COMPLETIONS)


def test_format_and_match_are_equal(comparison: Comparison) -> None:
    assert [indices.tolist() for indices in comparison.unequal] == [[], []]
    passing = comparison.kinds == "passing"
    assert comparison.host.format[passing].all()
    assert comparison.host.match[passing].all()
    # Near misses are what the name says: some of them are still right.
    assert 0.1 < comparison.host.match[comparison.kinds == "near miss"].mean() < 0.5


def test_language_is_equal_where_nothing_is_left_open(comparison: Comparison) -> None:
    gaps = comparison.language_gaps
    assert not gaps[~comparison.open].any()
    assert (~comparison.open).sum() > 400
    assert (gaps > 0).mean() < 0.05
    assert gaps.mean() < 0.005


def test_a_difference_is_counted_and_ends_with_status_1(monkeypatch: pytest.MonkeyPatch) -> None:
    zero, one = np.zeros(3, np.float32), np.ones(3, np.float32)
    host = Rewards(format=zero, match=one, language=zero)
    device = Rewards(format=np.array([0, 0, 1], np.float32), match=one, language=np.array([0, 0.25, 1e-8], np.float32))
    found = Comparison("name", np.array(KINDS), zero > 0, device, host, {"format": 2.0}, {"format": 0.5})
    assert [indices.tolist() for indices in found.unequal] == [[2], []]
    assert "| name, all | 3 | 0 | 3 | 1 | 0 | 2 | 0.08333 | 0.245 | 0.250 |" in table([found])
    assert "| name | host | 6 | - | - | - |" in table([found])
    monkeypatch.setattr(compare_rewards, "compare", lambda *_: found)
    for name in ("tiny_tokenizer", "byte_level_tokenizer"):
        monkeypatch.setattr(compare_rewards, name, lambda *_: ("name", None))
    monkeypatch.setattr("sys.argv", ["compare_rewards", "--completions", "3"])
    with pytest.raises(SystemExit, match="1"):
        compare_rewards.main()
