"""Language shares worked out by hand, and the reflection words of the paper in both languages."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1jax.data.templates import render_completion
from r1jax.rewards.languages import other_languages
from r1jax.rewards.languages.language import (
    REFLECTION_WORDS,
    check_language,
    detect_language,
    language_reward,
    language_share,
    reflection_count,
    reflection_counts,
    thought_of,
    word_counts,
)
from r1jax.types import Example, Score, Status


def example(language: str) -> Example:
    return Example(id="1", question="q", answer="9", task="chain_sum", language=language)


@pytest.mark.parametrize(
    ("text", "english", "chinese", "other"),
    [
        ("seven plus five is twelve", 5, 0, 0),
        ("七 加 五 得 十二", 0, 6, 0),  # 十二 is two characters
        ("七加五得十二", 0, 6, 0),  # without blanks the same
        ("seven 加 five 得 twelve", 3, 2, 0),
        ("don't can’t twenty-one", 4, 0, 0),
        ("naïve Ångström café", 3, 0, 0),
        ("二〇〇八年 人々", 0, 7, 0),
        ("Да нет один", 0, 0, 3),
        ("たす ハロー 안녕", 0, 0, 3),
        ("x + y = 7, so a is B", 2, 0, 0),  # single letters are variables or options
        ("12 345 6,7 ½ ٣ ²", 0, 0, 0),
        (", . ， 。 ！ … → € 😀", 0, 0, 0),
        ("<think> two </think> <answer> 二 </answer>", 1, 1, 0),
        (r"so $\frac{one}{two}$ and \(three\) and \[four\] and $$five$$ end", 5, 0, 0),
        (r"\boxed{9} \text", 0, 0, 0),
        ("from $5 to $6 dollars", 3, 0, 0),  # no formula between two prices
        ("use `print(value)` here", 2, 0, 0),
        ("before ```python\nprint(value)\n``` after", 2, 0, 0),
        ("``` not closed, so it counts", 5, 0, 0),
        ("ＡＢＣ ｄｅｆ", 2, 0, 0),  # full-width letters are Latin script
        ("snake_case", 2, 0, 0),
        ("", 0, 0, 0),
    ],
)
def test_words_are_counted_by_script(text: str, english: int, chinese: int, other: int) -> None:
    assert word_counts(text) == {"en": english, "zh": chinese, "other": other}


def test_share_is_target_words_over_all_words() -> None:
    assert language_share("seven 加 five 得 十二", "en") == 2 / 6
    assert language_share("seven 加 five 得 十二", "zh") == 4 / 6
    assert language_share("seven нет", "en") == 0.5
    assert language_share("7 + 5 = 12", "en") is None


def test_unknown_target_language_is_an_error() -> None:
    for check in (check_language, lambda target: language_share("sept", target)):
        with pytest.raises(ValueError, match=r"must be one of \['ar', 'de', 'en', .*\], got 'xx' .* the extra lingua"):
            check("xx")


@given(st.text())
def test_shares_lie_between_0_and_1_and_sum_to_at_most_1(text: str) -> None:
    english, chinese = language_share(text, "en"), language_share(text, "zh")
    assert (english is None) == (chinese is None)
    if english is not None and chinese is not None:
        assert 0 <= english <= 1
        assert 0 <= chinese <= 1
        assert english + chinese <= 1 + 1e-9


def test_reward_looks_at_the_thought_alone() -> None:
    text = render_completion("七 加 五 得 十二", "twelve of course")
    assert language_reward(text, example("zh")) == Score(1.0)
    assert language_reward(text, example("en")) == Score(0.0)


def test_words_outside_of_a_malformed_thought_are_not_hidden() -> None:
    text = "<think> 七 加 五 </think> and now for a long English text <answer> 12 </answer>"
    assert thought_of(text) == text
    assert language_reward(text, example("zh")).value == 3 / (3 + 6)


@pytest.mark.parametrize(
    "hidden", ["$我们先算$", r"\(我们先算\)", r"\[我们先算\]", "`我们先算`", "```\n我们先算\n```", "$$我们先算$$"]
)
def test_another_script_does_not_hide_in_mathematics_or_code(hidden: str) -> None:
    assert language_share(f"so it {hidden} is", "en") == 3 / 7
    assert language_share(f"so it {hidden} is", "zh") == 4 / 7
    assert language_share("七 $x + abc$ 加 `print`", "zh") == 1.0  # but Latin letters in there are no English


def test_openings_without_an_end_take_no_time() -> None:
    began = time.monotonic()
    language_share(r"\( " * 20_000, "en")
    assert time.monotonic() - began < 10


def test_a_thought_without_words_earns_nothing() -> None:
    assert language_reward(render_completion("7 + 5 = 12", "12"), example("en")) == Score(0.0, reason="no words")


@pytest.mark.parametrize("language", ["fr", "xx"])
def test_a_prompt_language_that_cannot_be_told_is_ungradable(language: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(other_languages, "is_installed", lambda: False)
    score = language_reward(render_completion("sept et cinq", "12"), example(language))
    assert (score.value, score.status) == (0.0, Status.UNGRADABLE)
    assert repr(language) in score.reason
    assert "extra lingua" in score.reason
    check_language("en")
    check_language("zh")


@pytest.mark.parametrize(
    ("prompt", "language"),
    [
        ("How many apples are left?", "en"),
        ("小明有几个苹果？", "zh"),
        ("用 Python 写一个函数 `def sort_numbers(list_of_numbers)`", "zh"),  # code is in no language
        (r"求 $\text{max} \sin x$ 的值", "zh"),
        ("What does 你好 mean?", "en"),
        (r"$\frac{1}{2} + x = 7$", "en"),
        ("", "en"),
    ],
)
def test_the_script_of_a_prompt_is_its_language(prompt: str, language: str) -> None:
    assert detect_language(prompt) == language


def test_a_prompt_in_another_script_must_state_its_language() -> None:
    with pytest.raises(ValueError, match="neither English nor Chinese by script, state its language: 'Сколько"):
        detect_language("Сколько яблок осталось у Tom?")


def test_reflection_words_are_the_papers() -> None:
    paper = "wait, mistake, however, but, retry, error, verify, wrong, evaluate, check"
    assert list(REFLECTION_WORDS) == paper.split(", ")


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("Wait, wait! WAIT", {"wait": 3}),
        ("waiting waited button attributed checks", {}),  # whole words only
        ("wait_no wait等", {"wait": 2}),
        ("等等 不对 ， 等一下", {"wait": 2, "wrong": 1}),
        ("但是，但", {"but": 2}),  # 但是 once, not also 但
        ("错误 错了 弄错", {"error": 1, "wrong": 1, "mistake": 1}),
        ("三 等于 三", {}),  # 等于 is "equals"
        ("However, let me verify: 检查 and check", {"however": 1, "verify": 1, "check": 2}),
    ],
)
def test_reflection_words_are_counted(text: str, counts: dict[str, int]) -> None:
    assert reflection_counts(text) == dict.fromkeys(REFLECTION_WORDS, 0) | counts
    assert reflection_count(text) == sum(counts.values())
