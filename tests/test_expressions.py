r"""Answers in mathematical notation: what is the same, what is not, and what cannot be a reference."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1jax.rewards.mathematics.expressions import RIGHT, UNGRADABLE, WRONG, compare
from r1jax.rewards.mathematics.formula import parse_formula
from r1jax.rewards.mathematics.latex import NotUnderstood, tokens_of
from r1jax.rewards.mathematics.units import parse_unit
from r1jax.rewards.mathematics.values import TooLarge, equal, evaluate


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        (r"\frac{\sqrt{2}}{2}", r"1/\sqrt2"),
        ("x^2-1", "(x-1)(x+1)"),
        (r"\sin 2x", r"2\sin x\cos x"),
        ("5x^{-2}", r"\frac{5}{x^2}"),
        (r"n!/n", "(n-1)!"),
        (r"e^{i\pi}", "-1"),
        ("0", r"e^{i\pi} + 1"),
        ("0", r"\sqrt{8} - 2\sqrt{2}"),
        ("0", r"\sin^2 x + \cos^2 x - 1"),
        ("e^{-1000}", r"\frac{1}{e^{1000}}"),
        (r"\log_2 8", "3"),
        (r"\ln 6", r"\ln 2 + \ln 3"),
        (r"|x - 1|", "|1 - x|"),
        ("|x-100|", r"\sqrt{x^2-200x+10000}"),
        (r"\frac{1}{\sqrt{x^2+1000}+x}", r"\frac{\sqrt{x^2+1000}-x}{1000}"),
        (r"\ln(e^{100} x)", r"100+\ln x"),
        (r"\sqrt{x} + 5000e^{-x}", r"5000e^{-x} + x^{1/2}"),
        (r"0.\overline{3}", "1/3"),
        (r"2\frac12", "5/2"),
        (r"\frac{7\pi}{2\pi}", "3 1/2"),
        ("x=-3 1/2", "x=-7/2"),
        ("3.5 cm", "3 1/2 cm"),
        (r"\frac{1}{6}", r"\frac12/3"),
        ("√13", r"\sqrt{13}"),
        (r"3 \times 10^4", "30,000"),
        ("1/2", "50%"),
        (r"50\%", "0.5"),
        (r"5\text{ m}", r"500\text{ cm}"),
        (r"5\text{ m}", "5 m"),
        (r"5\text{ m}", "5"),
        ("36 km/h", r"10\,\mathrm{m/s}"),
        ("2 m^2", r"20000\text{ cm}^2"),
        ("3 厘米", "30 mm"),
        (r"\$5", "5 dollars"),
        (r"90^\circ", "90"),
        (r"20^\circ C", "20 degrees Celsius"),
        (r"20^\circ C", "20"),
        (r"5\%", "5 percent"),
        (r"2\text{ ft}^2", "2 square feet"),
        ("9 apples", "9"),
        (r"\{1,2\}", r"\{2,1\}"),
        (r"\{1\}", r"\{1,1\}"),
        (r"\emptyset", r"\{\}"),
        ("(1,2]", r"1<x\le 2"),
        ("(1,2]", r"x \in (1, 2]"),
        (r"(-\infty,2)\cup(2,\infty)", r"\mathbb{R}\setminus\{2\}"),
        (r"(-\infty,2)\cup(2,\infty)", r"x\ne 2"),
        (r"(-\infty, 1) \cup (3, \infty)", r"x > 3 \text{ or } x < 1"),
        (r"[0,1)\cup[1,2]", "[0, 2]"),
        (r"(1,\sqrt4)", "(1,2)"),
        ("(1, 2)", "（1，2）"),
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\left[\begin{array}{cc}1&2\\3&\frac{8}{2}\end{array}\right]"),
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", "[[1,2],[3,4]]"),
        ("x=5", "5"),
        ("5", "x=5"),
        ("x=5", "2x=10"),
        ("y=2x+1", "2x-y+1=0"),
        ("y=2x+1", "2x+1"),
        ("3x+2", "f(x)=3x+2"),
        ("x+y<3", "3>y+x"),
        ("x=1 \\text{ or } x=2", "x=2 or x=1"),
        (r"x=\pm 2", "x=-2, x=2"),
        (r"\pm 2", "2, -2"),
        ("x=1,y=2", "y=2,x=1"),
        ("(x,y)=(1,2)", "(1,2)"),
        ("(1,2)", "(y,x)=(2,1)"),
        ("(x,y)=(1,2)", "(y,x)=(2,1)"),
        ("(x,y)=(1,2)", "y=2, x=1"),
        ("y=2, x=1", "(1,2)"),
        ("(2,3)", "(m,b)=(2,3)"),
        ("(x,y)=(1,2) or (x,y)=(3,4)", "(3,4), (1,2)"),
        ("3!!", "3"),
        ("8!!", "384"),
        ("(3!)!", "720"),
        ("Sun", r"\text{sun}"),
        ("cat", "cat."),
        ("abc", "cab"),
        ("mgh", "m g h"),
        ("ABD", "A, D, B"),
        ("B", "选B"),
        ("B", r"\text{(B)}"),
        (r"\text{yes}", "Yes."),
        ("x=2, x=3", "x=3 or x=2"),
        ("x=2, 3", "x=3 or x=2"),
        ("x=2 or x=3", "3, 2"),
        ("x=2, x=3", r"\{2, 3\}"),
        ("0<x<1", "x>0 and x<1"),
        ("x>0, x<1", "(0, 1)"),
        ("(0,1)", "x>0 and x<1"),
        ("x=1,y=2 or x=3,y=4", "y=4,x=3 or x=1,y=2"),
        ("x+y=2, x-y=0", "x-y=0, 2x+2y=4"),
        (r"\int_0^1 x dx", r"\frac12"),  # by math-verify
        (r"\sum_{n=1}^{10} n", "55"),
    ],
)
def test_the_same_in_another_notation_is_right(gold: str, answer: str) -> None:
    assert compare(gold, answer) == (RIGHT, "")


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("50%", "50"),  # math-verify: equal
        ("50", "50%"),
        ("3", "1 2"),  # its parser adds the two
        ("5", "2(3)"),
        ("x", "X"),
        (r"\{1,2\}", "(1,2)"),
        (r"\{1,2\}", r"\{1,2,3\}"),
        (r"\{1,2,3\}", r"\{1,2\}"),
        ("(1,2)", "(2,1)"),
        ("(1,2)", "[1,2]"),
        ("(1,2)", "1, 2"),
        ("1, x", "x, 1"),
        ("x=5", "y=5"),
        ("x=5", "x=5 or x=6"),
        ("6", "5=6"),
        ("6", "x=5=6"),
        ("x=1,y=2", "x=2,y=1"),
        ("2", r"\pm 2"),
        ("5 m", "5 cm"),
        (r"5\text{ m}", "5 m^2"),
        ("5", "5 kg"),
        ("9", "9 apples"),
        ("9 apples", "9 pears"),
        (r"20^\circ C", r"20^\circ F"),
        (r"5\%", "6 percent"),
        ("5", "5 percent"),
        ("x^2", "x"),
        ("|x|", "x"),
        (r"\sqrt{x^2}", "x"),
        ("|x-100|", "100-x"),
        ("|x+200|", "x+200"),
        ("|x+91|", "x+91"),
        (r"\sqrt{(x-95)^2}", "95-x"),
        ("|x-10^3|", "10^3-x"),
        ("|2x-300|", "300-2x"),
        (r"\frac{1}{500}|x-1000|", r"2-\frac{x}{500}"),
        ("|x-200y|", "200y-x"),
        ("((x-100)^2)^{1/2}", "100-x"),
        (r"|x-100|", r"100-x+0\cdot e^{1000x}"),
        ("100-x", "|x-100|"),
        ("y=|x-100|", "y=100-x"),
        (r"\pi", "3.14159265358979"),
        (r"\sqrt2", "1.41421356"),
        ("1/3 + x", "0.333333333333333333 + x"),
        ("x", "x+10^{-200}"),
        ("58", r"58 + e^{-1000}"),
        (r"\sqrt{2}\cdot 10^{-500}", "0"),
        ("e^{-1000}", "e^{-1001}"),
        ("1 + \\frac{1}{10^{99}}", "1"),
        (r"x<\sqrt2", r"x<\sqrt2+10^{-50}"),
        ("x<3", r"x\le 3"),
        ("x+y<3", "-x-y<-3"),
        ("(x-1)(x+1)=0", "x-1=0"),
        ("7/2", "2 3 1/2"),
        ("5x/2", "2 1/2 x"),
        ("x^{2}/3", r"x^2 1/3"),
        (r"\frac{1}{6}", r"\frac12 1/3"),
        (r"\mathbb{R}", "x>1, x<3"),
        ("(1,3)", "x>1 or x<3"),
        ("x<1 or x>2", r"x<1 \text{ and } x>2"),
        ("x>0 and x<1", "x>0 or x<1"),
        (r"x\ge 2, x\ne 3", r"x\ge 2 or x\ne 3"),
        ("0<x<1", "y>0 and y<1"),
        ("a=1,b=2", "a=1 or b=2"),
        (r"x \in \{1, 2\}", r"y \in \{1, 2\}"),
        ("x+y=2, x-y=0", "x+y=2 or x-y=0"),
        ("x=1,y=2 or x=3,y=4", "x=1,y=4 or x=3,y=2"),
        ("(1,2)", "(y,x)=(1,2)"),
        ("(x,y)=(1,2)", "(y,x)=(1,2)"),
        ("(x,y)=(1,2)", "(a,b)=(1,2)"),
        ("(x,y)=(1,2)", "y=1, x=2"),
        ("a=1, b=2", "2, 1"),
        ("(1,2)", "x=1, y=2"),
        ("x=2 or x=3", "(2,3)"),
        ("3!!", "720"),
        ("720", "3!!"),
        ("cat", "act"),
        ("cat", "c a t"),
        ("Sun", "nuS"),
        ("Sun", "SUN"),
        (r"\pm 2", "[2,-2]"),
        (r"2\frac12", r"2\cdot\frac12"),
        ("B", "b"),
        ("B", "A or B"),
        (r"\text{yes}", "no"),
        ("1/2x", "x"),
        ("55", r"\sum_{n=1}^{10} n"),  # nobody worked it out
        ("5", "9^{9^{9^{9}}}"),
        ("5", "((((9!)!)!)!)!"),
        ("x", "x" + "'" * 3),
        ("x", ""),
        ("x", "(" * 500),
        ("x", "-" * 900 + "x"),
        ("x", "not x"),
    ],
)
def test_everything_else_is_wrong_or_ungradable(gold: str, answer: str) -> None:
    verdict, reason = compare(gold, answer)
    assert verdict == (UNGRADABLE if gold == "1/2x" else WRONG)
    assert reason


@pytest.mark.parametrize(
    "gold",
    [
        "",
        " ",
        "no idea",
        r"\boxed{3}",
        "9^{9^{9^9}}",
        "1=1",
        r"\frac{1}{0}",
        "5 or",
        "()",
        "x'",
        "1/2x",
        "(3, 1, 2]",
        "a^b^c",
    ],
)
@pytest.mark.parametrize("same", [True, False])
def test_a_reference_that_is_not_understood_is_never_matched(gold: str, same: bool) -> None:
    verdict, reason = compare(gold, gold if same else "5")
    assert verdict == UNGRADABLE
    assert "is not understood" in reason
    assert compare(gold, None)[0] == UNGRADABLE


def test_without_an_answer_a_good_reference_is_not_matched() -> None:
    assert compare("x^2", None) == (WRONG, "no single final answer")


def test_a_unit_may_be_added_where_the_question_names_it() -> None:
    assert compare("5", r"5\text{ cm}", "How many centimeters?")[0] == RIGHT
    assert compare("5", r"5\text{ m}", "How many centimeters?")[0] == WRONG
    assert compare("9", "9 apples", "How many red apples are left?")[0] == RIGHT
    assert compare("9", "9 pears", "How many red apples are left? The pears are gone.")[0] == WRONG
    assert compare("18", r"\$18", "How many dollars?")[0] == RIGHT


AREA = "A rectangle is 3 cm by 4 cm. What is its area in square cm?"
SPEED = r"A train goes 60 km in an hour. What is its speed in $\text{km/h}$?"
EGGS = "An egg costs $2. She sells 9 of them within 3 hours. "


@pytest.mark.parametrize(
    ("gold", "answer", "question", "right"),
    [
        ("12", "12 cm^2", AREA, True),
        ("12", r"12\text{ square centimeters}", AREA, True),
        ("12", "12 square centimeters", AREA, True),
        ("12", "12 cm", AREA, False),
        ("12", "12 m^2", AREA, False),
        ("12", "12 cm", "A rectangle is 3 cm by 4 cm. What is its area?", False),
        ("5", "5 cm", "A rectangle is 3 cm by 4 cm. What is the length of its diagonal?", True),
        ("60", "60 km/h", SPEED, True),
        ("60", "60 kilometers per hour", SPEED, True),
        ("60", "60 km", SPEED, False),
        ("60", "60 h", SPEED, False),
        ("5", "5 m", "How many meters?", True),
        ("5", "5 m", "How many minutes?", False),
        ("5", "5 m", "Find the length of the rod in $m$.", True),
        ("5", "5 m", "Give the length in m. It is a whole number.", True),
        ("45", r"45^\circ", "The vertices in C are far apart. Find the angle, which is less than 90 degrees.", True),
        ("20", r"20^\circ C", "Give the temperature in degrees Celsius.", True),
        ("20", r"20^\circ F", "Give the temperature in degrees Celsius.", False),
        ("18", r"\$18", EGGS + "How much does she make?", True),
        ("9", r"\$9", EGGS + "How many eggs did she sell?", False),
        ("3", "3 hours", EGGS + "How much does she make?", False),
        ("3", "3 平方厘米", "面积是多少平方厘米?", True),
        ("3", "3 厘米", "面积是多少平方厘米?", False),
    ],
)
def test_only_the_unit_that_a_question_asks_for_may_be_added(
    gold: str, answer: str, question: str, right: bool
) -> None:
    assert compare(gold, answer, question)[0] == (RIGHT if right else WRONG)


@given(st.text(alphabet="in howmanycm/$^2?. 多少厘米", max_size=40))
def test_any_question_may_be_asked(question: str) -> None:
    assert compare("5", "6 cm", question)[0] == WRONG
    for before in ("How many", "in", "In $", "how many in"):
        assert compare("5", "6 cm", f"{before} {question}")[0] == WRONG


def test_the_question_says_in_which_order_names_stand() -> None:
    assert compare("(2,3)", "(b,m)=(3,2)", "Find $(m, b)$.")[0] == RIGHT
    assert compare("(2,3)", "(b,m)=(2,3)", "Find $(m, b)$.")[0] == WRONG
    assert compare("(1,2)", "y=2, x=1", "Which ordered pair solves it?")[0] == RIGHT
    assert compare("(1,2)", "y=1, x=2", "Which ordered pair solves it?")[0] == WRONG


def test_a_point_is_no_interval_where_the_question_asks_for_one() -> None:
    for answer in ("1 < x < 2", "x > 1 and x < 2", r"x \in (1, 2)"):
        assert compare("(1,2)", answer, "Where is f positive?")[0] == RIGHT
    for answer in ("1 < x < 2", "x > 1 and x < 2"):
        assert compare("(1,2)", answer, "Which point is nearest? Give an ordered pair.")[0] == WRONG


def test_percent_may_be_left_out_where_the_question_asks_for_it() -> None:
    question = "What percentage of the students passed?"
    assert compare(r"50\%", "50", question)[0] == compare("50", "50%", question)[0] == RIGHT
    assert compare("50", "0.5%", question)[0] == WRONG
    assert compare("12", "12%", "What is 20 percent of 60?")[0] == WRONG


def test_a_tuple_may_come_in_any_order_if_the_example_says_so() -> None:
    assert compare("1, x", "x, 1", any_order=True)[0] == RIGHT
    assert compare("1, x", "x, x", any_order=True)[0] == WRONG


@given(st.text(max_size=40) | st.text(alphabet=r"0129.,/-+ ()[]{}$%\fracsqtpixe^_=<>|!&", max_size=30))
def test_any_text_gets_a_verdict_and_no_error(text: str) -> None:
    assert compare("x^2 + 1", text)[0] == WRONG
    assert compare(text, "x^2 + 7y")[0] in (WRONG, UNGRADABLE)


def value(text: str, **point: Fraction) -> object:
    formula, rest = parse_formula(tokens_of(text))
    assert not rest
    return evaluate(formula, point)


def test_rational_formulas_are_evaluated_exactly() -> None:
    assert value(r"\frac{x^2 - 1}{x + 1}", x=Fraction(1, 3)) == Fraction(-2, 3)
    assert value(r"\sqrt[3]{-8} + 2^{-2}") == Fraction(-7, 4)
    assert value("-2^2") == -4
    assert value("2x^2y", x=Fraction(3), y=Fraction(5)) == 90


@pytest.mark.parametrize(
    "text", ["1/2x", "a^b^c", "1 2", "2\\frac{3}{2}", "sin a/b", "x +", "f", "abcd", "is", r"\foo", "x;y"]
)
def test_what_may_mean_two_things_is_refused(text: str) -> None:
    if text == "f":
        assert value("f", f=Fraction(1)) == 1
        return

    def read() -> None:
        _, rest = parse_formula(tokens_of(text))
        if rest:
            raise NotUnderstood("something behind it")

    with pytest.raises(NotUnderstood):
        read()


def test_absurd_numbers_are_refused_before_they_are_computed() -> None:
    for text in ("10^{10^{10}}", "99999999!", r"\binom{10^9}{10^8}", "e^{10^9}"):
        with pytest.raises(TooLarge):
            value(text)


@given(st.lists(st.integers(-9, 9), min_size=1, max_size=5), st.integers(0, 4), st.sampled_from([1, -1]))
def test_polynomials_are_equal_exactly_if_their_coefficients_are(numbers: list[int], at: int, change: int) -> None:
    def polynomial(coefficients: list[int]) -> str:
        return " + ".join(f"({c})x^{{{n}}}" if n else f"({c})" for n, c in enumerate(coefficients))

    other = list(numbers)
    other[at % len(other)] += change
    (left, _), (same, _), (right, _) = (
        parse_formula(tokens_of(text)) for text in (polynomial(numbers), polynomial(numbers[::1]), polynomial(other))
    )
    assert equal(left, same)
    assert not equal(left, right)


def test_units_are_products_of_powers() -> None:
    for left, right, ratio in (
        ("km/h", "m/s", Fraction(5, 18)),
        ("mL", "cm^3", Fraction(1)),
        ("square feet", "ft^2", Fraction(1)),
        ("kg*m/s^2", "N", Fraction(1)),
    ):
        first, second = parse_unit(left), parse_unit(right)
        assert first is not None
        assert second is not None
        assert first.powers == second.powers
        assert first.factor / second.factor == ratio
    for text in ("", "/s", "apples", "x", "cm cm2", "5"):
        assert parse_unit(text) is None
