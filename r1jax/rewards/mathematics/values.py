r"""Values of formulas at points, and whether two formulas are equal.

Two formulas are equal when they have the same value at every one of a fixed set of points where both are defined and
real: exactly, as fractions, where nothing else occurs, otherwise to 60 and then 400 digits. Two that differ differ at
nearly every point, so that no rounding and no rewriting has to be trusted. Two that are made of pieces (|x - 100|) may
agree on a long stretch: these are compared beside every number that occurs in them, and far beyond, too. No JAX here.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from typing import Any

import mpmath

from r1jax.rewards.mathematics.formula import Formula, contains, symbols_of
from r1jax.rewards.mathematics.latex import NotUnderstood

Number = Any  # Fraction, or an mpmath number

MAX_EXPONENT = 100_000
_MAX_BITS = 400_000
_MAX_FRACTION_BITS = 200_000  # of two fractions to be added or multiplied: what they have in common takes time to find
_DIGITS = (60, 400)
_POINTS = 48
_ENOUGH = 5  # points at which two formulas must have been compared
_NUMBERS = 8  # of the formulas, beside which they are compared
_FARTHEST = 10**30


class Undefined(ArithmeticError):
    """A formula has no value at a point."""


class TooLarge(NotUnderstood):
    """A power, factorial or exponential beyond all reason."""


class Undecided(ValueError):
    """Two formulas are hardly anywhere defined and real."""


def _mp(value: Number) -> Number:
    return mpmath.mpf(value.numerator) / value.denominator if isinstance(value, Fraction) else value


def _power(base: Number, exponent: Number) -> Number:
    if base == 0:
        if mpmath.re(_mp(exponent)) <= 0:
            raise Undefined("0 to a power that is not positive")
        return base
    if abs(_mp(exponent)) > MAX_EXPONENT:
        raise TooLarge("an exponent too large")
    if isinstance(base, Fraction) and isinstance(exponent, Fraction) and exponent.denominator == 1:
        size = max(base.numerator.bit_length(), base.denominator.bit_length()) * abs(exponent.numerator)
        if size <= _MAX_BITS:
            return base**exponent.numerator
    return mpmath.power(_mp(base), _mp(exponent))


def _exact_root(value: int, n: int) -> int | None:
    if value.bit_length() > 4000:
        return None
    low, high = 0, 1 << (value.bit_length() // n + 1)
    while low < high:
        middle = (low + high) // 2
        if middle**n < value:
            low = middle + 1
        else:
            high = middle
    return low if low**n == value else None


def _root(degree: Number, value: Number) -> Number:
    if not isinstance(degree, Fraction) or degree.denominator != 1 or not 2 <= degree <= 1000:
        raise Undefined("a root of a degree that is not a whole number from 2")
    n = int(degree)
    if isinstance(value, Fraction) and (value >= 0 or n % 2):
        top, bottom = _exact_root(abs(value.numerator), n), _exact_root(value.denominator, n)
        if top is not None and bottom is not None:
            return Fraction(top, bottom) * (-1 if value < 0 else 1)
    number = _mp(value)
    if mpmath.im(number) == 0 and mpmath.re(number) < 0 and n % 2:
        return -mpmath.root(-mpmath.re(number), n)
    return mpmath.root(number, n)


def _factorial(value: Number) -> Number:
    if abs(_mp(value)) > 5000:
        raise TooLarge("a factorial too large")
    if isinstance(value, Fraction) and value.denominator == 1:
        if value < 0:
            raise Undefined("the factorial of a negative number")
        return Fraction(int(mpmath.libmp.ifac(int(value))))
    return mpmath.factorial(_mp(value))


def _double_factorial(value: Number) -> Number:
    """n (n - 2) (n - 4) ...: defined here for whole numbers only."""
    if not isinstance(value, Fraction) or value.denominator != 1 or value < 0:
        raise Undefined("the double factorial of what is no whole number")
    if value > 5000:
        raise TooLarge("a factorial too large")
    return Fraction(math.prod(range(int(value), 0, -2)))


def _binomial(n: Number, k: Number) -> Number:
    if abs(_mp(n)) > 5000 or abs(_mp(k)) > 5000:
        raise TooLarge("a binomial coefficient too large")
    return mpmath.binomial(_mp(n), _mp(k))


def _logarithm(value: Number) -> Number:
    if value == 0:
        raise Undefined("the logarithm of 0")
    return mpmath.log(_mp(value))


def _exponential(value: Number) -> Number:
    if abs(_mp(value)) > MAX_EXPONENT:
        raise TooLarge("an exponential too large")
    return mpmath.exp(_mp(value))


def _called(name: str, argument: Number) -> Number:
    """The value of a function nobody defined: any number that depends on name and argument only."""
    digest = hashlib.sha256(f"{name} {mpmath.nstr(_mp(argument), 30)}".encode()).digest()
    return Fraction(int.from_bytes(digest[:4], "big"), 2**31)


_FUNCTIONS: dict[str, Callable[[Number], Number]] = {
    **{name: getattr(mpmath, name) for name in ("sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh")},
    "arcsin": mpmath.asin,
    "arccos": mpmath.acos,
    "arctan": mpmath.atan,
}


def _check_fractions(left: Number, right: Number) -> None:
    """Refuses long fractions, before anything is computed with both. Whole numbers and mpmath's have no such limit."""
    if isinstance(left, Fraction) and isinstance(right, Fraction) and (left.denominator, right.denominator) != (1, 1):
        parts = (left.numerator, left.denominator, right.numerator, right.denominator)
        if sum(part.bit_length() for part in parts) > _MAX_FRACTION_BITS:
            raise TooLarge("arithmetic with fractions too long")


def _divide(top: Number, bottom: Number) -> Number:
    if bottom == 0:
        raise Undefined("division by 0")
    _check_fractions(top, bottom)
    return top / bottom if isinstance(top, Fraction) == isinstance(bottom, Fraction) else _mp(top) / _mp(bottom)


def _check_sizes(left: Number, right: Number) -> None:
    """Refuses a sum whose smaller part is lost in rounding, so that no difference can hide there."""
    if mpmath.mp.dps == _DIGITS[-1] and left != 0 and right != 0:
        apart = abs(mpmath.log(abs(left), 10) - mpmath.log(abs(right), 10))
        if apart > _DIGITS[-1] - 60:
            raise TooLarge("a sum of numbers of too different size")


def _arithmetic(operation: str, left: Number, right: Number) -> Number:
    if isinstance(left, Fraction) != isinstance(right, Fraction):
        left, right = _mp(left), _mp(right)
    _check_fractions(left, right)
    if operation != "*" and not isinstance(left, Fraction):
        _check_sizes(left, right)
    if operation == "*":
        product = left * right
        if isinstance(product, Fraction) and product.numerator.bit_length() > 4 * _MAX_BITS:
            raise TooLarge("a product too large")
        return product
    return left + right if operation == "+" else left - right


def _constant(name: str) -> Number:
    return {"pi": mpmath.pi, "e": mpmath.e}[name] * 1 if name != "i" else mpmath.mpc(0, 1)


def evaluate(formula: Formula, point: Mapping[str, Fraction]) -> Number:
    """The value of a formula; a Fraction where it is rational by nothing but arithmetic.

    Raises:
      Undefined: it has none at this point.
      TooLarge: numbers in it are beyond all reason.
    """
    operation, *operands = formula
    match operation:
        case "number":
            return operands[0]
        case "symbol":
            return point[operands[0]]
        case "constant":
            return _constant(operands[0])
        case "infinity":
            raise Undefined("infinity")
        case "call":
            return _called(operands[0], evaluate(operands[1], point))
        case "function":
            argument = evaluate(operands[1], point)
            return _apply(operands[0], argument)
    values = [evaluate(operand, point) for operand in operands]
    match operation:
        case "+" | "*":
            return _arithmetic(operation, *values)
        case "-":
            return -values[0] if len(values) == 1 else _arithmetic("-", *values)
        case "/":
            return _divide(*values)
        case "^":
            return _power(*values)
        case "root":
            return _root(*values)
        case "!":
            return _factorial(values[0])
        case "!!":
            return _double_factorial(values[0])
        case "binomial":
            return _binomial(*values)
        case "abs":
            return abs(values[0])
        case "log":
            return _divide(_logarithm(values[1]), _logarithm(values[0]))
    raise NotUnderstood(f"{operation} has no single value")


def _apply(name: str, argument: Number) -> Number:
    if name == "ln":
        return _logarithm(argument)
    if name == "exp":
        return _exponential(argument)
    if argument == 0 and name in ("cot", "csc"):
        raise Undefined(f"{name} of 0")
    tiny = isinstance(argument, Fraction) and 0 < abs(argument) < Fraction(1, 10**30)  # sin x and x are nearly the same
    if tiny or abs(_mp(argument)) > MAX_EXPONENT:
        raise TooLarge(f"{name} of a number too large or too small")
    return _FUNCTIONS[name](_mp(argument))


def points(symbols: frozenset[str]) -> Iterator[dict[str, Fraction]]:
    """Fixed points to compare formulas at: small, middle and large numbers of both signs, and whole numbers."""
    draw = random.Random(0)
    for index in range(_POINTS):
        point = {}
        for name in sorted(symbols):
            value = Fraction(draw.randint(1, 997), (991, 331, 97, 11)[index % 4])
            sign = -1 if index % 3 == 1 and draw.random() < 0.6 else 1
            whole = Fraction(draw.randint(1, 12))
            point[name] = whole if index % 6 == 5 else sign * value
        yield point if symbols else {}
        if not symbols:
            return


def _numbers(formula: Formula) -> list[Fraction]:
    """The values of all parts of a formula without variables, to 20 digits; without those that are not real."""
    found = [number for part in formula[1:] if isinstance(part, tuple) for number in _numbers(part)]
    if symbols_of(formula):
        return found
    try:
        value = _nearly_real(evaluate(formula, {}), _DIGITS[0])
    except (ArithmeticError, ValueError):
        return found
    if value is None or abs(_mp(value)) > _FARTHEST or abs(_mp(value)) < mpmath.mpf(1) / _FARTHEST:
        return found
    scale = 10**20 if abs(_mp(value)) > 1 else 10**50
    return [*found, value if isinstance(value, Fraction) else Fraction(int(mpmath.nint(value * scale)), scale)]


def _points_beside(left: Formula, right: Formula) -> Iterator[dict[str, Fraction]]:
    """Points on both sides of every number of two formulas, and beyond all of them, for one variable after another."""
    symbols = sorted(symbols_of(left) | symbols_of(right))
    numbers = [*_numbers(left), *_numbers(right)]
    if not symbols or not numbers:
        return
    sizes = [max(abs(number), 1 / abs(number)) for number in numbers]
    product = Fraction(1)
    for size in sizes:
        product = min(product * size, Fraction(_FARTHEST))
    different = sorted({abs(number) for number in numbers}, reverse=True)
    beside = [number + change for number in different[:_NUMBERS] for change in (Fraction(1, 7), Fraction(-1, 7))]
    draw = random.Random(1)
    for value in (*beside, 10 * max(sizes), 10 * product):
        for sign in (1, -1):
            for name in symbols:
                others = {other: Fraction(draw.randint(1, 97), 31) for other in symbols}
                yield others | {name: sign * value}


def _is_in_pieces(formula: Formula) -> bool:
    """Whether a formula may be one function here and another there: |x|, roots, logarithms, inverse functions."""
    operation = formula[0]
    inverse = operation == "function" and formula[1] in ("ln", "arcsin", "arccos", "arctan")
    power = operation == "^" and symbols_of(formula[1]) and not _is_whole(formula[2])
    if symbols_of(formula) and (operation in ("abs", "root", "log") or inverse or power):
        return True
    return any(_is_in_pieces(part) for part in formula[1:] if isinstance(part, tuple))


def _is_whole(exponent: Formula) -> bool:
    if exponent[0] == "-" and len(exponent) == 2:
        return _is_whole(exponent[1])
    return exponent[0] == "number" and exponent[1].denominator == 1


def _is_real(value: Number) -> bool:
    return isinstance(value, Fraction) or bool(mpmath.isfinite(value) and mpmath.im(value) == 0)


def _nearly_real(value: Number, digits: int) -> Number | None:
    """The value without an imaginary part that is only rounding; None if it has another."""
    if isinstance(value, Fraction):
        return value
    if not mpmath.isfinite(value):
        return None
    size = max(abs(value), mpmath.mpf(1))
    return mpmath.re(value) if abs(mpmath.im(value)) <= size * mpmath.mpf(10) ** (20 - digits) else None


def same(left: Number, right: Number, digits: int) -> bool:
    """Whether two values agree, exactly or to nearly all of the `digits` digits with which they were computed."""
    if isinstance(left, Fraction) and isinstance(right, Fraction):
        return left == right
    left, right = _mp(left), _mp(right)
    return bool(abs(left - right) <= max(abs(left), abs(right)) * mpmath.mpf(10) ** (20 - digits))


def _both(
    left: Formula, right: Formula, point: Mapping[str, Fraction], is_complex: bool, digits: int
) -> tuple[Number, Number] | None:
    """Both values at a point; None where one is not defined, or not real where it should be."""
    try:
        values = evaluate(left, point), evaluate(right, point)
    except (Undefined, ZeroDivisionError, ValueError, OverflowError) as error:
        if isinstance(error, NotUnderstood):
            raise
        return None
    if is_complex:
        return values if all(isinstance(v, Fraction) or mpmath.isfinite(v) for v in values) else None
    real = [_nearly_real(value, digits) for value in values]
    return None if None in real else (real[0], real[1])


def _settled(formula: Formula, point: Mapping[str, Fraction]) -> Number:
    """A value near 0: 0 if it shrinks with every digit that is added, so that it was only rounding."""
    values = []
    for digits in (_DIGITS[-1], 2 * _DIGITS[-1]):
        with mpmath.workdps(digits):
            values.append(_mp(evaluate(formula, point)))
    return mpmath.mpf(0) if abs(values[1]) <= abs(values[0]) * mpmath.mpf(10) ** -100 else values[1]


def _agree(
    left: Formula, right: Formula, point: Mapping[str, Fraction], first: Number, second: Number, digits: int
) -> bool:
    """Whether two formulas agree at a point, where they have the values `first` and `second`."""
    if same(first, second, digits):
        return True
    if max(abs(_mp(first)), abs(_mp(second))) > mpmath.mpf(10) ** -20:
        return False
    return same(_settled(left, point), _settled(right, point), digits)


def _pairs(left: Formula, right: Formula, digits: int) -> Iterator[tuple[dict[str, Fraction], Number, Number]]:
    """Points and the values of a reference and an answer there."""
    is_complex = contains(left, "constant", "i") or contains(right, "constant", "i")
    symbols = symbols_of(left) | symbols_of(right)
    for point in points(symbols):
        values = _both(left, right, point, is_complex or not symbols, digits)
        if values is not None:
            yield point, *values
    if not _is_in_pieces(left) and not _is_in_pieces(right):
        return
    for point in _points_beside(left, right):
        with mpmath.workdps(_DIGITS[-1]):  # numbers so large leave less of the digits behind a difference
            values = _both_in_reach(left, right, point, is_complex)
        if values is not None:
            yield point, *values


def _both_in_reach(
    left: Formula, right: Formula, point: Mapping[str, Fraction], is_complex: bool
) -> tuple[Number, Number] | None:
    """As `_both`, to all digits; None where the reference is too large. Where only the answer is: TooLarge."""
    try:
        evaluate(left, point)
    except (ArithmeticError, ValueError):
        return None
    return _both(left, right, point, is_complex, _DIGITS[-1])


def equal(left: Formula, right: Formula) -> bool:
    """Whether two formulas are the same function of their variables.

    Raises:
      Undecided: there are too few points where both are defined.
      TooLarge: numbers in them are beyond all reason.
    """
    enough = _ENOUGH if symbols_of(left) | symbols_of(right) else 1
    for digits in _DIGITS:
        with mpmath.workdps(digits):
            count = 0
            for point, first, second in _pairs(left, right, digits):
                if not _agree(left, right, point, first, second, digits):
                    return False
                count += 1
                if digits > _DIGITS[0] and count >= 3:
                    break  # a second look at a few points: a tiny difference is no difference of rounding
            if count < min(enough, 3 if digits > _DIGITS[0] else enough):
                raise Undecided("hardly anywhere defined")
    return True


def proportional(left: Formula, right: Formula, positive: bool) -> bool:
    """Whether `left` is a constant multiple of `right`, not 0, and above 0 if `positive`: the same equation.

    Raises as `equal` does, and Undecided where both are 0 everywhere.
    """
    return all(_proportional(left, right, positive, digits) for digits in _DIGITS)


def _proportional(left: Formula, right: Formula, positive: bool, digits: int) -> bool:
    with mpmath.workdps(digits):
        ratios: list[Number] = []
        for _, first, second in _pairs(left, right, digits):
            if first == 0 or second == 0:
                if first != second:
                    return False
                continue
            ratios.append(_divide(first, second))
            if digits > _DIGITS[0] and len(ratios) == _ENOUGH:
                break
        if len(ratios) < _ENOUGH:
            raise Undecided("hardly anywhere defined")
        if not all(same(ratio, ratios[0], digits) for ratio in ratios):
            return False
        return not positive or (_is_real(ratios[0]) and ratios[0] > 0)


def real_value(formula: Formula) -> Number | None:
    """The value of a formula without variables, to 400 digits; None if it is not real."""
    with mpmath.workdps(_DIGITS[-1]):
        try:
            return _nearly_real(evaluate(formula, {}), _DIGITS[-1])
        except (Undefined, ZeroDivisionError, OverflowError):
            return None
