r"""Exact comparison of stated answers; what is not one value is wrong, what cannot be a reference is ungradable."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1jax.rewards.mathematics.math_accuracy import (
    MAX_LENGTH,
    accuracy,
    answer_key,
    gold_text,
    parse_number,
    parse_value,
)
from r1jax.types import Example, Score, Status


def grade(stated: str, gold: str, **metadata: object) -> Score:
    example = Example(id="1", question="q", answer=gold, task="math", metadata=metadata)
    return accuracy(f" <think> a </think> <answer> {stated} </answer>", example)


@pytest.mark.parametrize(
    ("stated", "gold"),
    [
        ("9", "9"),
        ("9", "09"),
        ("+9", "9"),
        ("- 9", "-9"),
        ("\u22129", "-9"),  # the minus sign of print
        ("-0", "0"),
        ("12.", "12"),
        ("12.0", "12"),
        ("12.50", "12.5"),
        (".5", "0.5"),
        ("0.5", "1/2"),
        ("1/2", "0.5"),
        ("2/4", "1/2"),
        ("1 / 2", "1/2"),
        ("-1/2", "1/-2"),
        ("1/2.", "1/2"),
        (r"\frac{1}{2}", "1/2"),
        (r"\dfrac12", "0.5"),
        (r"-\tfrac{1}{2}", r"\frac{-1}{2}"),
        (r"\frac 3 4", "0.75"),
        ("1,000", "1000"),
        ("1000", "1,000"),
        ("1,234,567.5", "1234567.5"),
        (r"1{,}000", "1000"),
        (r"1\,000", "1000"),
        (r"1,\!000", "1000"),
        ("$18", "18"),
        (r"\$18.00", "18"),
        ("-$18", "-18"),
        ("€ 5", "5"),
        ("50%", "50"),
        (r"50\%", r"50\%"),
        (r"90^\circ", "90"),
        ("90°", "90"),
        ("$18$", "18"),
        (r"\(18\)", "18"),
        ("$$18$$.", "18"),
        ("x = 18", "18"),
        (r"\text{18}", "18"),
        (r"\boxed{18}", "18"),
        (r"$\boxed{\frac{1}{2}}$", "0.5"),
        (r"hence \boxed{18}.", "18"),
        ("3 8", "3 8"),
        ("3, 8", "3 8"),
        ("3,8", "3 8"),
        ("3\n8", "3 8"),
        ("3、8", "3 8"),
        ("(3, 8)", "3 8"),
        ("(3,800)", "(3, 800)"),
        (r"\left(3, \frac12\right)", "(3, 0.5)"),
        (r"\{1, 2\}", "{1,2}"),
        ("3 -8", "3 -8"),
        ("1 000", "1, 0"),
        ("1/2 3/4", "0.5 0.75"),
        ("3 1/2", "7/2"),
        ("7/2", "3 1/2"),
        ("3.5", "3 1/2"),
        ("3 3/4", "15/4"),
        ("-3 3 / 4", "-15/4"),
        ("1,000 1/2.", "1000.5"),
        ("(3 1/2, 4)", "(3.5, 4)"),
        ("3 4/2", "3 2"),
        ("B", "B"),
        ("(B)", "B"),
        ("B.", "(B)"),
        (r"\text{B}", "B"),
        ("18", "6 * 3 = <<6*3=18>>18 eggs\n#### 18"),
        ("1450", "so 1,450\n#### 1,450"),
        ("-3", "#### 5 no\n#### -3"),
        ("1/2", r"We get \boxed{7}, so the chance is $\boxed{\dfrac{1}{2}}$."),
    ],
)
def test_equal_answers_are_right(stated: str, gold: str) -> None:
    assert grade(stated, gold) == Score(1.0)


@pytest.mark.parametrize(
    ("stated", "gold"),
    [
        ("8", "9"),
        ("-9", "9"),
        ("19", "9"),
        ("9", "19"),
        ("9 9", "9"),
        ("3, 1/2", "3 1/2"),
        ("3 1/2", "3, 1/2"),
        ("3 1/2", "5/2"),
        ("31/2", "3 1/2"),
        ("3 1/-2", "5/2"),
        ("3 0/0", "3"),
        ("9, 9", "9"),
        ("8 9", "9"),
        ("9 or 10", "9"),
        ("9 and 10", "9"),
        ("not 9", "9"),
        ("9?", "9"),
        ("9!", "9"),
        (">= 9", "9"),
        ("8 < 9", "9"),
        ("8 + 1", "9"),
        ("3*3", "9"),
        ("9 apples", "9"),
        ("nine", "9"),
        ("九", "9"),
        ("\uff19", "9"),  # full-width nine
        ("\u0669", "9"),  # Arabic-Indic nine
        ("\u2468", "9"),  # circled nine
        ("\u2079", "9"),  # superscript nine
        ("3\u00b2", "9"),
        ("3^2", "9"),
        ("3**2", "9"),
        ("9\u200b", "9"),  # zero-width space
        ("5\u00b2", "52"),
        ("\u00bd", "1/2"),
        ("l0", "10"),
        ("1O", "10"),
        ("0x9", "9"),
        ("9e0", "9"),
        ("1e1", "10"),
        ("9_0", "90"),
        ("inf", "9"),
        ("nan", "9"),
        ("--9", "9"),
        ("+-9", "-9"),
        ("12..", "12"),
        (".", "0"),
        ("-", "0"),
        ("1.2.3", "1.2"),
        ("1,00", "100"),
        ("10,00", "1000"),
        ("1,0000", "10000"),
        ("1.000.000", "1000000"),
        ("0.333", "1/3"),
        ("0.3333333333333333", "1/3"),
        ("1/0", "1"),
        ("0/0", "0"),
        (r"\frac{1}{0}", "1"),
        ("1/2/3", "1/6"),
        ("1 7", "17"),
        ("17", "1 7"),
        ("(9)", "9"),
        ("[9]", "9"),
        (r"\boxed{8} \boxed{9}", "9"),
        (r"\boxed{9} \boxed{9}", "9"),
        (r"\boxed{9} \boxed{", "9"),  # the earlier box is not credited
        (r"\boxed{9", "9"),
        (r"\boxed 9", "9"),
        (r"\boxed{}", "0"),
        (r"9 \boxed{}", "9"),
        (r"\boxed{8, 9}", "9"),
        (r"\boxed{\boxed{9}", "9"),
        ("8 3", "3 8"),
        ("3", "3 8"),
        ("3 8 8", "3 8"),
        ("3 8 1", "3 8"),
        ("38", "3 8"),
        ("3 , , 8", "3 8"),
        ("3 and 8", "3 8"),
        ("3, 8", "(3, 8)"),
        ("[3, 8]", "(3, 8)"),
        ("(3, 8]", "3 8"),
        ("(3, 8", "(3, 8)"),
        ("A B", "B"),
        ("A or B", "B"),
        ("b", "B"),
        ("2", "B"),
        ("AB", "B"),
        ("not B", "B"),
        ("B", "9"),
    ],
)
def test_other_answers_are_wrong_and_graded(stated: str, gold: str) -> None:
    score = grade(stated, gold)
    assert (score.value, score.status) == (0.0, Status.GRADED)
    assert score.reason


@pytest.mark.parametrize(
    "text",
    [
        "",
        "9",
        "#### 9",
        r"\boxed{9}",
        "<answer> 9",
        "<answer></answer>",
        "<answer> </answer>",
        "<answer> 8 </answer> <answer> 9 </answer>",
        "<answer> 9 </answer> <answer> 8 </answer>",
        "<think> <answer> 9 </answer> </think> <answer> 8 </answer>",
        "<think> <answer> 9 </answer> </think>",
        "<think> a <answer> 9 </answer>",
        "<answer> 8 <answer> 9 </answer> </answer>",
        "<answer> 9 <think> or 8 </think> </answer>",
        "<answer> 9 </answer> <think> no </think>",
    ],
)
def test_without_a_single_final_answer_nothing_is_right(text: str) -> None:
    example = Example(id="1", question="q", answer="9", task="math")
    assert accuracy(text, example) == Score(0.0, reason="no single final answer")


@pytest.mark.parametrize(
    "gold",
    [
        "",
        " ",
        "no idea",
        "x^2 + 1",
        r"\sqrt{2}",
        "#### ",
        "#### none",
        r"\boxed{",
        r"\boxed{}",
        r"\boxed{9} \boxed{x}",
        "9 or 10",
        "1/0",
    ],
)
@pytest.mark.parametrize("stated", ["9", "0", "", "no idea", "x^2 + 1", r"\sqrt{2}", r"\boxed{}"])
def test_a_reference_that_is_not_understood_is_ungradable_and_never_right(stated: str, gold: str) -> None:
    score = grade(stated, gold)
    assert (score.value, score.status) == (0.0, Status.UNGRADABLE)
    assert "is not understood" in score.reason


def test_huge_numbers_are_compared_exactly_and_absurd_ones_are_refused() -> None:
    digits = "123456789" * 100
    assert grade(digits, digits).value == 1.0
    assert grade(digits[:-1] + "8", digits).value == 0.0
    assert grade("9" * 100_000, "9").value == 0.0  # int() of that would raise
    assert grade("9", "9" * (MAX_LENGTH + 1)).status is Status.UNGRADABLE
    assert grade(r"\boxed{" * 5000, "9").value == 0.0


def test_a_sequence_may_come_in_any_order_if_the_example_says_so() -> None:
    assert grade("8 3", "3 8", any_order=True).value == 1.0
    assert grade("8 3 3", "3 8", any_order=True).value == 0.0
    assert grade("3 3", "3 8", any_order=True).value == 0.0
    assert grade("8 3", "3 8", any_order=False).value == 0.0


def test_gold_text_follows_the_layouts_of_gsm8k_and_math() -> None:
    assert gold_text("She has 3 + 4 = <<3+4=7>>7.\n#### 7") == "7"
    assert gold_text(r"Thus $x=\boxed{\frac{3}{4}}$.") == r"\frac{3}{4}"
    assert gold_text(r"\boxed{1} then \boxed {2 \text{ or } \{3\}}") == r"2 \text{ or } \{3\}"
    assert gold_text(r"\boxedlike{4} 5") == r"\boxedlike{4} 5"
    assert gold_text(" 9 ") == "9"


def test_a_whole_number_before_a_latex_fraction_is_a_mixed_number() -> None:
    assert parse_number(r"2 \frac{1}{2}") == parse_number(r"2\dfrac12") == parse_number("2.5")
    assert parse_number(r"-2\frac{1}{2}") == parse_number("-2.5")
    assert parse_number(r"2\frac{3}{2}") is None
    assert parse_number(r"2\frac{-1}{2}") is None
    assert accuracy(r"<think> a </think> <answer> $2\frac{1}{2}$ </answer>", Example("", "", "5/2", "")).value == 1.0
    assert (
        accuracy(r"<think> a </think> <answer> 5/2 </answer>", Example("", "", r"\boxed{2\frac{1}{2}}", "")).value
        == 1.0
    )


def test_answer_keys_join_equal_answers_and_only_those() -> None:
    assert {answer_key(text) for text in ("0.5", "1/2", r"\boxed{\frac{1}{2}}", ".50", "$0.5$")} == {"1/2"}
    assert answer_key("3 8") == answer_key("3, 8") != answer_key("8 3")
    assert answer_key("3 8", any_order=True) == answer_key("8, 3", any_order=True) != answer_key("8 8", any_order=True)
    assert answer_key("no idea") == answer_key(" no  idea ") != answer_key("No idea")
    assert len({answer_key(text) for text in ("B", "2", "two", "(2, 3)", "2 3", "[2, 3)")}) == 6


@given(st.fractions())
def test_every_fraction_is_read_back(value: Fraction) -> None:
    assert parse_number(str(value)) == value
    assert parse_number(f"\\frac{{{value.numerator}}}{{{value.denominator}}}") == value
    assert grade(str(value), f"#### {value}").value == 1.0


@given(st.integers(), st.integers(0, 10**6))
def test_thousands_separators_and_decimals_are_read_back(whole: int, millionths: int) -> None:
    text = f"{whole:,}.{millionths:06d}"
    assert parse_number(text) == Fraction(text.replace(",", ""))
    assert grade(f"{whole:,}", str(whole)).value == 1.0


@given(st.lists(st.integers(-9999, 9999), min_size=2, max_size=5), st.sampled_from([" ", ", ", " , ", "; ", "\n"]))
def test_sequences_are_read_back_and_a_changed_one_is_wrong(numbers: list[int], separator: str) -> None:
    gold = " ".join(map(str, numbers))
    assert grade(separator.join(map(str, numbers)), gold).value == 1.0
    assert grade(separator.join(map(str, [*numbers[:-1], numbers[-1] + 1])), gold).value == 0.0
    assert grade(str(numbers[0]), gold).value == 0.0
    assert grade(gold, str(numbers[-1])).value == 0.0


@given(st.text(max_size=40) | st.text(alphabet=r"0129.,/-+ ()[]{}$%\boxedfrac=", max_size=30))
def test_any_text_is_parsed_without_an_error(text: str) -> None:
    value = parse_value(text)
    if value is not None:
        assert bool(value.numbers) != bool(value.option)
        assert any(character in text for character in "0123456789ABCDEFGHIJ")
    assert answer_key(text) == answer_key(f" {text} ") or not text.strip()
