"""Sets of real numbers as intervals with exact ends: unions, what is left out, and solved inequalities."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

import mpmath

from r1jax.rewards.mathematics.formula import INFINITY, MINUS_INFINITY, Formula, symbols_of
from r1jax.rewards.mathematics.latex import NotUnderstood
from r1jax.rewards.mathematics.values import real_value, same

_DIGITS = 400
_LOWEST, _HIGHEST = mpmath.mpf("-inf"), mpmath.mpf("inf")


@dataclasses.dataclass(frozen=True)
class Piece:
    """An interval; a point is one with both ends closed and equal."""

    low: Any  # Fraction or mpf
    low_closed: bool
    high: Any
    high_closed: bool


Region = tuple[Piece, ...]  # ascending, apart from each other

EVERYTHING: Region = (Piece(_LOWEST, False, _HIGHEST, False),)


def end_value(formula: Formula) -> Any:
    """The value of an interval's end."""
    if formula == INFINITY or formula == ("+", INFINITY):
        return _HIGHEST
    if formula == MINUS_INFINITY:
        return _LOWEST
    if symbols_of(formula):
        raise NotUnderstood("an end with variables in it")
    value = real_value(formula)
    if value is None:
        raise NotUnderstood("an end that is no real number")
    return value


def _equal(left: Any, right: Any) -> bool:
    if not isinstance(left, Fraction) and not mpmath.isfinite(left):
        return bool(left == right)
    if not isinstance(right, Fraction) and not mpmath.isfinite(right):
        return False
    with mpmath.workdps(_DIGITS):
        return same(left, right, _DIGITS)


def _less(left: Any, right: Any) -> bool:
    if _equal(left, right):
        return False
    with mpmath.workdps(_DIGITS):
        return bool(_mp(left) < _mp(right))


def _mp(value: Any) -> Any:
    return mpmath.mpf(value.numerator) / value.denominator if isinstance(value, Fraction) else value


def _between(low: Any, high: Any) -> Any:
    """Some number between two ends."""
    with mpmath.workdps(_DIGITS):
        low, high = _mp(low), _mp(high)
        if not mpmath.isfinite(low) and not mpmath.isfinite(high):
            return mpmath.mpf(0)
        if not mpmath.isfinite(low):
            return high - 1
        return low + 1 if not mpmath.isfinite(high) else (low + high) / 2


def interval(low: Any, low_closed: bool, high: Any, high_closed: bool) -> Region:
    """One interval. NotUnderstood if its ends are the wrong way round."""
    finite = (isinstance(low, Fraction) or mpmath.isfinite(low), isinstance(high, Fraction) or mpmath.isfinite(high))
    if (low_closed and not finite[0]) or (high_closed and not finite[1]):
        raise NotUnderstood("an interval that includes infinity")
    if not (_less(low, high) or (_equal(low, high) and low_closed and high_closed)):
        raise NotUnderstood("an empty interval")
    return (Piece(low, low_closed, high, high_closed),)


def _inside(region: Iterable[Piece], value: Any) -> bool:
    for piece in region:
        above = _less(piece.low, value) or (piece.low_closed and _equal(piece.low, value))
        below = _less(value, piece.high) or (piece.high_closed and _equal(piece.high, value))
        if above and below:
            return True
    return False


def combine(left: Region, right: Region, operation: str) -> Region:
    """The union, intersection or difference ("minus") of two regions, merged."""
    ends: list[Any] = []
    for piece in (*left, *right):
        for end in (piece.low, piece.high):
            if not any(_equal(end, known) for known in ends):
                position = sum(_less(known, end) for known in ends)
                ends.insert(position, end)

    def holds(value: Any) -> bool:
        first, second = _inside(left, value), _inside(right, value)
        if operation == "union":
            return first or second
        return first and (second if operation == "intersection" else not second)

    # Alternately the ends themselves and the stretches between them.
    finite = [e for e in ends if isinstance(e, Fraction) or mpmath.isfinite(e)]
    stretches: list[tuple[Any, bool, Any, bool]] = []
    borders = [_LOWEST, *finite, _HIGHEST]
    for index, border in enumerate(borders):
        if 0 < index < len(borders) - 1:
            stretches.append((border, True, border, True))
        if index < len(borders) - 1:
            stretches.append((border, False, borders[index + 1], False))
    pieces: list[Piece] = []
    for low, low_closed, high, high_closed in stretches:
        inner = low if low_closed else _between(low, high)
        if not holds(inner):
            continue
        if pieces and _equal(pieces[-1].high, low) and pieces[-1].high_closed != low_closed:
            pieces[-1] = dataclasses.replace(pieces[-1], high=high, high_closed=high_closed)
        else:
            pieces.append(Piece(low, low_closed, high, high_closed))
    return tuple(pieces)


def same_region(left: Region, right: Region) -> bool:
    """Whether two merged regions are equal."""
    return len(left) == len(right) and all(
        _equal(a.low, b.low)
        and _equal(a.high, b.high)
        and (a.low_closed, a.high_closed) == (b.low_closed, b.high_closed)
        for a, b in zip(left, right, strict=True)
    )
