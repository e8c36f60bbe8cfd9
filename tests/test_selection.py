"""Duplicates, n of each question, and proportions, worked out by hand; the rule that rewrites."""

from __future__ import annotations

import pytest

from r1jax.data.cold_start import PHRASES, rewrite_by_rule, translate_by_rule
from r1jax.data.selection import choose, find_duplicates, largest_mixture
from r1jax.rewards.languages.language import language_share
from r1jax.rewards.patterns import parse_summary, summary_of


def test_duplicates_differ_in_white_space_alone() -> None:
    texts = ["a b", " a  b\n", "a B", "ab", "a b", "a b ."]
    assert find_duplicates(texts) == {1: "duplicate", 4: "duplicate"}


def test_near_duplicates_share_three_grams_of_words() -> None:
    """one two three four | one two three five: 2 3-grams each, 1 of 3 in common. Of those that stay, not of those that
    go: the last has 1 of 3 in common with the second, which is gone, and none with the first."""
    texts = ["one two three four", "one two three five", "two three five six"]
    assert find_duplicates(texts, near=1 / 3) == {1: "near_duplicate"}
    assert find_duplicates(texts, near=0.34) == {}
    assert find_duplicates(["One, two!", "one two"], near=1.0) == {1: "near_duplicate"}
    assert find_duplicates(["one two", "two one"], near=0.5) == {}


def test_choose() -> None:
    lengths = [5, 3, 9, 3, 1]
    assert choose(lengths, 3, "shortest") == [1, 3, 4]
    assert choose(lengths, 2, "shortest") == [1, 4]
    assert choose(lengths, 9, "shortest") == choose(lengths, 9, "random", 0) == [0, 1, 2, 3, 4]
    draws = [tuple(choose(lengths, 2, "random", seed, "question")) for seed in range(200)]
    assert draws == [tuple(choose(lengths, 2, "random", seed, "question")) for seed in range(200)]
    assert len(set(draws)) == 10  # all pairs of five
    counts = [sum(i in draw for draw in draws) for i in range(5)]
    assert all(50 < count < 110 for count in counts)  # 80 expected, standard deviation 7


@pytest.mark.parametrize(
    ("available", "proportions", "taken"),
    [
        ({"reasoning": 600, "general": 200}, {"reasoning": 3.0, "general": 1.0}, {"reasoning": 600, "general": 200}),
        ({"reasoning": 900, "general": 200}, {"reasoning": 3.0, "general": 1.0}, {"reasoning": 600, "general": 200}),
        ({"reasoning": 600, "general": 999}, {"reasoning": 3.0, "general": 1.0}, {"reasoning": 600, "general": 200}),
        ({"a": 10, "b": 10, "c": 7}, {"a": 0.5, "b": 0.3, "c": 0.2}, {"a": 10, "b": 6, "c": 4}),
        ({"a": 7, "b": 3}, {"a": 0.7, "b": 0.3}, {"a": 7, "b": 3}),  # 0.3 * 10 is 3 but for rounding
    ],
)
def test_largest_mixture(available: dict[str, int], proportions: dict[str, float], taken: dict[str, int]) -> None:
    assert largest_mixture(available, proportions) == taken


def test_a_mixture_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match=r"there are no samples of 'b'"):
        largest_mixture({"a": 1, "b": 0}, {"a": 1, "b": 1})
    with pytest.raises(ValueError, match=r"\['a'\] are stated, and there are samples of \['a', 'b'\]"):
        largest_mixture({"a": 1, "b": 1}, {"a": 1})


@pytest.mark.parametrize("language", PHRASES)
def test_the_rule_keeps_thought_and_answer_and_writes_a_summary_in_the_language(language: str) -> None:
    texts = {rewrite_by_rule(" 七 plus five is 12 ", " 9 ", language, 0, str(i)) for i in range(30)}
    assert len(texts) == len(PHRASES[language])
    for text in texts:
        assert text.startswith(" <think> ")
        parsed = parse_summary(text)
        assert (parsed.well_formed, parsed.thought, parsed.answer) == (True, "七 plus five is 12", "9")
        assert language_share(summary_of(text) or "", language) == 1.0
    assert rewrite_by_rule("a", "9", language, 0, "x") == rewrite_by_rule("a", "9", language, 0, "x")


@pytest.mark.parametrize(
    ("thought", "language", "translated"),
    [
        ("seven plus five is twelve , wait no 十三", "zh", "七 加 五 得 十二 ， 等等 不对 十三"),
        ("七 加 五 得 十二 ， 等等 对 。", "en", "seven plus five is twelve , wait yes ."),
        ("carefully 七 plus two ? 检查", "en", "carefully seven plus two ? check"),
        ("7 + hats", "zh", "7 + hats"),
    ],
)
def test_the_translation_is_word_by_word(thought: str, language: str, translated: str) -> None:
    assert translate_by_rule(thought, language) == translated
    assert translate_by_rule(translated, language) == translated


@pytest.mark.parametrize(
    ("thought", "answer", "language", "message"),
    [
        ("a", "9", "fr", "language: 'fr'"),
        (" ", "9", "en", "thought is blank"),
        ("a", "9 </answer>", "en", "answer contains a tag"),
    ],
)
def test_the_rule_refuses_what_it_cannot_write(thought: str, answer: str, language: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rewrite_by_rule(thought, answer, language, 0)
