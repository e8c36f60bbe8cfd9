r"""Formulas, read from tokens. Nothing is run as a program; what may mean two things is refused.

A formula is a nested tuple (operation, operand, ...); numbers are ("number", Fraction), variables ("symbol", name).
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from r1jax.rewards.mathematics.latex import FUNCTIONS, GREEK, NotUnderstood, Token, words

Formula = tuple[Any, ...]

INFINITY: Formula = ("infinity",)
MINUS_INFINITY: Formula = ("-", INFINITY)
MAX_DEPTH = 150  # operations within operations; a sum of so many terms has it too
_CALLED = frozenset("fgh")  # letters before a bracket that mean a function; any other is a factor
_ENGLISH = words(
    "no not is if to of an be by at it we so us up do go my the are can any all one two six ten yes but nor has non "
    "nan its was see err for you var max min abs gcd lcm mod rad def let"
)
_SIMPLE_ARGUMENT = frozenset(("number", "name", "command"))


class FormulaParser:
    """Reads one formula from the front of `tokens`; `position` is where it stopped."""

    def __init__(self, tokens: Sequence[Token]) -> None:
        self.tokens = list(tokens)
        self.position = 0
        self.bars = 0

    def value(self, ahead: int = 0) -> str:
        """The token `ahead` of the current one; empty behind the end."""
        at = self.position + ahead
        return self.tokens[at].value if at < len(self.tokens) else ""

    def kind(self) -> str:
        """What kind of token comes next."""
        return self.tokens[self.position].kind if self.position < len(self.tokens) else ""

    def expect(self, *values: str) -> str:
        """Takes one of `values`."""
        found = self.value()
        if found not in values:
            raise NotUnderstood(f"{found!r} where {values[0]!r} should stand")
        self.position += 1
        return found

    def sum(self) -> Formula:
        """A sum of products."""
        left = self.product()
        while self.value() in ("+", "-", "+-", "-+"):
            sign = self.expect("+", "-", "+-", "-+")
            left = (sign, left, self.product())
        return left

    def product(self) -> Formula:
        """Factors side by side or with a sign between them. `1/2x` may mean two things and is refused."""
        if self.value() in ("+", "-", "+-", "-+"):
            sign = self.expect("+", "-", "+-", "-+")
            inner = self.product()
            return inner if sign == "+" else (sign, inner)
        left = self.power()
        divided = False
        while True:
            if self.value() in ("*", "/"):
                divided = self.expect("*", "/") == "/"
                sign = "/" if divided else "*"
                if self.value() in ("+", "-"):
                    negative = self.expect("+", "-") == "-"
                    right = self.power()
                    right = ("-", right) if negative else right
                else:
                    right = self.power()
                left = (sign, left, right)
            elif self.starts_factor():
                if divided:
                    raise NotUnderstood("a/bc may mean two things")
                left = ("*", left, self.power())
            else:
                return left

    def starts_factor(self) -> bool:
        """Whether the next token can be multiplied to what stands before it."""
        if self.kind() == "number":
            before = self.tokens[self.position - 1]
            if before.kind == "number":
                raise NotUnderstood("two numbers side by side")
            return True
        if self.value() == "|":
            return self.bars == 0
        return self.kind() == "name" or self.value() in ("(", "[", "{") or self.starts_command()

    def starts_command(self) -> bool:
        """Whether the next token is a command that has a value."""
        return self.kind() == "command" and self.value() != "\\emptyset"

    def power(self) -> Formula:
        """A factor with its exponent, factorial and degree of repetition."""
        base = self.atom()
        while True:
            if self.value() == "!":
                base = self.factorial(base)
            elif self.value() == "^" and self.value(1) != "°" and self.tokens_ahead_are_no_degree():
                self.position += 1
                base = ("^", base, self.exponent())
                if self.value() == "^":
                    raise NotUnderstood("a^b^c may mean two things")
            else:
                return base

    def factorial(self, base: Formula) -> Formula:
        """n! or n!!, which is the product of every other number and not (n!)!."""
        signs = 0
        while self.value() == "!":
            self.position += 1
            signs += 1
        if signs > 2:
            raise NotUnderstood("more than two factorial signs")
        return ("!" * signs, base)

    def tokens_ahead_are_no_degree(self) -> bool:
        """Whether `^` is followed by an exponent, not by a degree sign."""
        return not (self.value(1) == "{" and self.value(2) == "°")

    def exponent(self) -> Formula:
        """What stands behind `^`: a group, a sign and a number, or one token."""
        if self.value() in ("-", "+"):
            negative = self.expect("-", "+") == "-"
            inner = self.exponent()
            return ("-", inner) if negative else inner
        return self.group() if self.value() == "{" else self.atom()

    def group(self) -> Formula:
        """A formula in braces, or what LaTeX takes without them: one digit, letter or command."""
        if self.value() == "{":
            return self.between("{", "}")
        if self.kind() == "number":
            token = self.tokens[self.position]
            if not token.value.isdigit():
                raise NotUnderstood(f"{token.value!r} without braces")
            self.tokens[self.position : self.position + 1] = [Token("number", digit) for digit in token.value]
            self.position += 1
            return ("number", Fraction(token.value[0]))
        return self.atom()

    def between(self, opening: str, closing: str) -> Formula:
        """A formula in brackets."""
        self.expect(opening)
        bars, self.bars = self.bars, 0
        inner = self.sum()
        self.bars = bars
        self.expect(closing)
        return inner

    def atom(self) -> Formula:
        """A number, a letter, a function or something in brackets."""
        kind, value = self.kind(), self.value()
        if kind == "number":
            return self.number()
        if kind == "name":
            return self.letter()
        if kind == "command":
            return self.command()
        for opening, closing in (("(", ")"), ("[", "]"), ("{", "}")):
            if value == opening:
                return self.between(opening, closing)
        if value == "|" and not self.bars:
            self.position += 1
            self.bars += 1
            inner = self.sum()
            self.bars -= 1
            self.expect("|")
            return ("abs", inner)
        raise NotUnderstood(f"{value!r} where a value should stand" if value else "the formula ends too early")

    def number(self) -> Formula:
        r"""A number: decimal, repeating, or a whole number before a LaTeX fraction."""
        text = self.tokens[self.position].value
        self.position += 1
        value = Fraction(text.rstrip(".") if text != "." else "0")
        if self.value() == "\\overline" and "." in text:
            self.position += 1
            self.expect("{")
            repeated = self.value()
            if not repeated.isdigit():
                raise NotUnderstood("a bar over something that is not digits")
            self.position += 1
            self.expect("}")
            places = len(text.split(".")[1])
            return ("number", value + Fraction(int(repeated), (10 ** len(repeated) - 1) * 10**places))
        before = self.tokens[self.position - 2] if self.position > 1 else None
        if (behind := self.plain_fraction()) is not None and text.isdigit():
            if self.position > 1 and (self.position > 2 or before not in (Token("sign", "-"), Token("sign", "+"))):
                raise NotUnderstood("a mixed number within a formula")
            self.position += 3
            return ("number", value + behind)
        if self.value() == "\\frac" and text.isdigit() and (before is None or before.value != "^"):
            start = self.position
            part = self.command()
            if part[0] == "/" and part[1][0] == part[2][0] == "number":
                if not part[1][1] < part[2][1]:
                    raise NotUnderstood("a mixed number with an improper fraction")
                return ("number", value + part[1][1] / part[2][1])
            self.position = start
        return ("number", value)

    def plain_fraction(self) -> Fraction | None:
        """The proper fraction that comes next, as in 3 1/2, if nothing else does; it is not taken."""
        top, sign, bottom = (self.tokens[self.position + n : self.position + n + 1] for n in range(3))
        if not top or not bottom or sign != [Token("sign", "/")] or {top[0].kind, bottom[0].kind} != {"number"}:
            return None
        if not (top[0].value.isdigit() and bottom[0].value.isdigit() and int(top[0].value) < int(bottom[0].value)):
            return None
        behind = self.tokens[self.position + 3 : self.position + 4]
        if behind and behind[0].kind != "text" and behind[0].value not in ("%", "°"):
            return None
        return Fraction(int(top[0].value), int(bottom[0].value))

    def letter(self) -> Formula:
        """Letters: each one a variable, e and i the constants; words of four and more letters are no product."""
        name = self.tokens[self.position].value
        if len(name) > 3 or not name.isascii() or name.lower() in _ENGLISH:
            raise NotUnderstood(f"{name!r} is not known")
        if len(name) > 1:
            self.tokens[self.position : self.position + 1] = [Token("name", letter) for letter in name]
            name = name[0]
        self.position += 1
        if name in _CALLED and self.value() == "(":
            return ("call", name, self.between("(", ")"))
        return self.indexed(name)

    def indexed(self, name: str) -> Formula:
        """A variable with its index, if it has one."""
        if self.value() != "_":
            return ("constant", name) if name in ("e", "i") else ("symbol", name)
        self.position += 1
        if self.value() == "{":
            depth, start = 0, self.position
            while True:
                depth += {"{": 1, "}": -1}.get(self.value(), 0)
                if not self.value():
                    raise NotUnderstood("an index without an end")
                self.position += 1
                if depth == 0:
                    break
            index = "".join(token.value for token in self.tokens[start + 1 : self.position - 1])
        else:
            index = self.value()
            if self.kind() not in ("number", "name"):
                raise NotUnderstood("an index that is neither number nor letter")
            self.position += 1
        return ("symbol", f"{name}_{index}")

    def command(self) -> Formula:
        """A LaTeX command and its arguments."""
        name = self.value()[1:]
        self.position += 1
        if name in ("frac", "binom"):
            top, bottom = self.group(), self.group()
            return ("/" if name == "frac" else "binomial", top, bottom)
        if name == "sqrt":
            if self.value() == "[":
                degree = self.between("[", "]")
                return ("root", degree, self.group())
            return ("root", ("number", Fraction(2)), self.group())
        if name == "surd":  # of plain text: the whole number behind it, not its first digit
            return ("root", ("number", Fraction(2)), self.between("{", "}") if self.value() == "{" else self.atom())
        if name == "pi":
            return ("constant", "pi")
        if name == "infty":
            return INFINITY
        if name in GREEK:
            return self.indexed("\\" + name)
        if name in FUNCTIONS:
            return self.function(name)
        raise NotUnderstood(f"\\{name} is not known here")

    def function(self, name: str) -> Formula:
        r"""A named function: `\sin^2 x`, `\sin 2x`, `\log_2(8)`; without brackets it takes the product behind it."""
        base: Formula | None = None
        exponent: Formula | None = None
        if name == "log" and self.value() == "_":
            self.position += 1
            base = self.group()
        if self.value() == "^":
            self.position += 1
            exponent = self.exponent()
        if name == "exp" and self.value() not in ("(", "{", "["):
            raise NotUnderstood("exp without brackets")
        argument = self.argument()
        if exponent == ("-", ("number", Fraction(1))):
            if name not in ("sin", "cos", "tan"):
                raise NotUnderstood(f"the inverse of {name}")
            return ("function", "arc" + name, argument)
        if name == "log":
            called: Formula = ("log", base or ("number", Fraction(10)), argument)
        elif name == "lg":
            called = ("log", ("number", Fraction(10)), argument)
        else:
            called = ("function", name, argument)
        return called if exponent is None else ("^", called, exponent)

    def argument(self) -> Formula:
        """The argument of a function."""
        for opening, closing in (("(", ")"), ("[", "]"), ("{", "}")):
            if self.value() == opening:
                return self.between(opening, closing)
        argument = self.power()
        while self.kind() in _SIMPLE_ARGUMENT and self.value()[1:] not in FUNCTIONS - {"sqrt"} and self.starts_factor():
            argument = ("*", argument, self.power())
        if self.value() in ("/", "(", "["):
            raise NotUnderstood("sin a/b and sin a(b) may mean two things")
        return argument


def parse_formula(tokens: Sequence[Token]) -> tuple[Formula, list[Token]]:
    """The formula at the front of `tokens`, and the tokens behind it."""
    parser = FormulaParser(tokens)
    try:
        formula = parser.sum()
    except RecursionError as error:
        raise NotUnderstood("nested too deeply") from error
    level: list[Formula] = [formula]
    for _ in range(MAX_DEPTH):
        level = [part for node in level for part in node[1:] if isinstance(part, tuple)]
        if not level:
            break
    else:
        raise NotUnderstood("nested too deeply")
    return formula, parser.tokens[parser.position :]


def symbols_of(formula: Formula) -> frozenset[str]:
    """The variables of a formula."""
    if formula[0] == "symbol":
        return frozenset((formula[1],))
    return frozenset().union(*(symbols_of(part) for part in formula[1:] if isinstance(part, tuple)))


def contains(formula: Formula, operation: str, name: str | None = None) -> bool:
    """Whether an operation occurs in a formula, with `name` as its first operand if given."""
    if formula[0] == operation and (name is None or formula[1] == name):
        return True
    return any(contains(part, operation, name) for part in formula[1:] if isinstance(part, tuple))
