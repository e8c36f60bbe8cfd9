r"""Whether two answers in mathematical notation state the same: right, wrong, or ungradable with the reason.

What both are is read first (`structure.py`), then their parts are compared as formulas at points (`values.py`). A
reference with a sum, an integral or a limit is left to math-verify. Percent is a number (50 % = 1/2, not 50), units are
converted, a unit may be left out where the reference has one, and may be added where the question names it. A set is no
list, an interval no pair, x = 1 is not y = 1. This runs in a worker process (`workers.py`): nothing here imports JAX.
"""

from __future__ import annotations

import dataclasses
import functools
import re

from r1jax.rewards.mathematics.asked_units import accepts, asked_unit
from r1jax.rewards.mathematics.formula import Formula, symbols_of
from r1jax.rewards.mathematics.latex import NotUnderstood
from r1jax.rewards.mathematics.naming import in_order, named_tuple, named_values
from r1jax.rewards.mathematics.regions import same_region
from r1jax.rewards.mathematics.solutions import FLIPPED, plain_formula, region_of, region_or_none, variables
from r1jax.rewards.mathematics.structure import (
    Advanced,
    Combined,
    Items,
    Leaf,
    Matrix,
    Node,
    Options,
    Reals,
    Relation,
    Words,
    are_solutions,
    is_name,
    named,
    parse_answer,
    parse_bare_word,
    parse_words,
)
from r1jax.rewards.mathematics.values import Undecided, equal, proportional

RIGHT, WRONG, UNGRADABLE = "right", "wrong", "ungradable"

_IN_PERCENT = re.compile(
    r"\b(?:what|which|how many|as an?|in)\s+percent(?:age)?\b|百分之几|百分之多少|百分比", re.IGNORECASE
)
_POINT = re.compile(r"\b(?:ordered (?:pair|triple|tuple)|point|coordinates|vertex|vector)s?\b|有序|坐标", re.IGNORECASE)
_COUNTED = r"\b(?:how many|number of)\s+(?:[a-z]+\s+){{0,2}}?{}\b"


def prepare_worker() -> None:
    """Imports what takes a second, before the clock of the first answer runs."""
    import math_verify  # noqa: F401


def compare(gold: str, answer: str | None, question: str = "", any_order: bool = False) -> tuple[str, str]:
    """(RIGHT, WRONG or UNGRADABLE, the reason). An answer of None only asks whether the reference is understood."""
    try:
        reference = _parse_gold(gold)
    except NotUnderstood as error:
        return UNGRADABLE, f"reference answer {gold[-80:]!r} is not understood: {error}"
    if answer is None:
        return WRONG, "no single final answer"
    try:
        stated = _parse(answer) if not isinstance(reference, Words) else _parse_words(answer, reference.bare)
        if _has_unit(reference) and not _has_unit(stated):
            stated = parse_answer(answer, letters_are_units=True)
        elif _has_unit(stated) and not _has_unit(reference):
            reference = parse_answer(gold, letters_are_units=True)
        elif _has_letters(stated) and not _has_letters(reference) and asked_unit(question) is not None:
            stated = parse_answer(answer, letters_are_units=True)
    except NotUnderstood as error:
        return WRONG, f"the answer is not understood: {error}"
    comparison = _Comparison(question, any_order)
    try:
        right = comparison.same(reference, stated)
    except (NotUnderstood, Undecided) as error:
        return WRONG, f"the answer cannot be compared: {error}"
    return (RIGHT, "") if right else (WRONG, "another answer")


@functools.lru_cache(maxsize=256)
def _parse_gold(gold: str) -> Node:
    """The reference, if an answer that says the same would be found right."""
    reference = _parse(gold)
    if isinstance(reference, Leaf):
        reference = parse_bare_word(gold) or reference
    try:
        if not _Comparison("", False).same(reference, reference):
            raise NotUnderstood("it does not equal itself")
    except Undecided as error:
        raise NotUnderstood(str(error)) from error
    return reference


def _parse_words(text: str, bare: bool) -> Node:
    """An answer where the reference is words, or one bare word."""
    word = parse_bare_word(text) if bare else parse_words(text)
    if word is None:
        raise NotUnderstood("not one word of three letters")
    return word


def _parse(text: str) -> Node:
    """An answer; a single letter is a unit only where the text has no other meaning."""
    try:
        return parse_answer(text)
    except NotUnderstood:
        return parse_answer(text, letters_are_units=True)


def _has_unit(node: Node) -> bool:
    if isinstance(node, Relation):
        return any(_has_unit(side) for side in node.sides)
    return isinstance(node, Leaf) and node.unit is not None


def _has_letters(node: Node) -> bool:
    return isinstance(node, Leaf) and bool(symbols_of(node.formula))


class _Comparison:
    """Compares a reference and an answer to one question."""

    def __init__(self, question: str, any_order: bool) -> None:
        self.question = question
        self.any_order = any_order

    def same(self, gold: Node, stated: Node) -> bool:
        """Whether the answer states what the reference does."""
        if (by_name := self._same_by_name(gold, stated)) is not None:
            return by_name
        match gold, stated:
            case Options(), Options():
                return gold.letters == stated.letters
            case Words(), Words():
                return gold.text == stated.text
            case Advanced(), _:
                return _by_math_verify(gold, stated)
            case _, Advanced():  # where a value is asked, a sum that nobody worked out is none
                return False
            case Relation(), _:
                return self._same_relation(gold, stated)
            case Leaf(), Leaf():
                return self._same_leaf(gold, stated)
            case Leaf() | Matrix() | Combined() | Reals(), Relation():
                value = _value_of(stated, self)
                if value is not None:
                    return self.same(gold, value)
                return not isinstance(gold, Leaf | Matrix) and self._same_region(gold, stated)
            case Matrix(), Matrix():
                return [len(row) for row in gold.rows] == [len(row) for row in stated.rows] and all(
                    self.same(a, b)
                    for mine, theirs in zip(gold.rows, stated.rows, strict=True)
                    for a, b in zip(mine, theirs, strict=True)
                )
            case Items(), _:
                return self._same_items(gold, stated)
            case ((Combined() | Reals()), _):
                return self._same_region(gold, stated)
        return False

    def _same_by_name(self, gold: Node, stated: Node) -> bool | None:
        """Whether values with names are the same, in their order where only one side has names; None without names."""
        tuples = named_tuple(gold), named_tuple(stated)
        mine, theirs = tuples[0] or named_values(gold), tuples[1] or named_values(stated)
        if mine is not None and theirs is not None:
            if mine.keys() == theirs.keys():
                return all(self.same(value, theirs[name]) for name, value in mine.items())
            return None if tuples == (None, None) else False
        if mine is not None and isinstance(stated, Items) and stated.ordered and stated.brackets in ("", "()"):
            expected = Items("()", tuple(mine.values())) if tuples[0] else in_order(mine, self.question)
            return self.same(expected, dataclasses.replace(stated, brackets="()"))
        if tuples[1] is None and not _POINT.search(self.question):
            return None  # (1, 2) may be an interval
        if theirs is not None and isinstance(gold, Items) and gold.ordered and gold.brackets in ("", "()"):
            return self.same(gold, in_order(theirs, self.question))
        return None

    def _same_leaf(self, gold: Leaf, stated: Leaf) -> bool:
        if gold.words or stated.words:
            if gold.words and stated.words and gold.words.removesuffix("s") != stated.words.removesuffix("s"):
                return False
            if stated.words and not gold.words and not self._counts(stated.words):
                return False
            return stated.unit is None and gold.unit is None and equal(gold.formula, stated.formula)
        if gold.unit and stated.unit:
            if gold.unit.powers != stated.unit.powers:
                return False
            ratio = stated.unit.factor / gold.unit.factor
            return equal(gold.formula, ("*", ("number", ratio), stated.formula))
        if stated.unit and not accepts(self.question, stated.unit):
            return False
        if (gold.unit and stated.percent) or (stated.unit and gold.percent):
            return False
        if gold.percent != stated.percent and _IN_PERCENT.search(self.question):
            hundredth = gold.formula if gold.percent else stated.formula
            bare = stated.formula if gold.percent else gold.formula
            if equal(hundredth[1], bare):
                return True
            if not gold.percent:
                return False  # the reference is a number of percent already
        return equal(gold.formula, stated.formula)

    def _counts(self, words: str) -> bool:
        if words[0].isascii():
            return re.search(_COUNTED.format(re.escape(words)), self.question, re.IGNORECASE) is not None
        return re.search(rf"[几少]\s*{re.escape(words)}", self.question) is not None

    def _same_relation(self, gold: Relation, stated: Node) -> bool:
        value = _value_of(gold, self)
        if not isinstance(stated, Relation):
            if value is not None:
                return self.same(value, stated)
            return isinstance(stated, Combined | Reals | Items) and self._same_region(gold, stated)
        if value is not None and named(gold) == named(stated) and (other := _value_of(stated, self)) is not None:
            return self.same(value, other)
        regions = [region_or_none(relation) for relation in (gold, stated)]
        if None not in regions:
            return self._same_region(gold, stated)
        return _same_equation(gold, stated)

    def _same_items(self, gold: Items, stated: Node) -> bool:
        if isinstance(stated, Relation) and (value := _value_of(stated, self)) is not None:
            return not isinstance(value, Relation) and self._same_items(gold, value)
        if isinstance(stated, Relation | Combined | Reals):
            is_point = gold.brackets == "()" and _POINT.search(self.question)
            return not is_point and self._same_region(gold, stated)
        if not isinstance(stated, Items):
            return False
        if not gold.brackets and not gold.ordered:
            return self._same_unordered(gold, stated)
        if gold.brackets and not stated.brackets and variables(stated):
            return not _POINT.search(self.question) and self._same_region(gold, stated)
        if gold.brackets != stated.brackets and (gold.brackets or stated.brackets not in ("()", "[]", "{}")):
            return False
        if not gold.ordered:
            return self._same_set(gold.items, stated.items)
        if not stated.ordered and not stated.brackets:
            return False  # alternatives where the reference has a sequence
        if len(gold.items) != len(stated.items):
            return False
        if self.any_order and gold.brackets in ("", "()", "[]"):
            return self._same_multiset(gold.items, stated.items)
        return all(self.same_part(a, b) for a, b in zip(gold.items, stated.items, strict=True))

    def _same_unordered(self, gold: Items, stated: Items) -> bool:
        """Solutions of one unknown, else alternatives ("or"), else what holds together ("and", a comma)."""
        if are_solutions(gold.items):
            listed = stated.brackets in ("", "{}") and are_solutions(stated.items)
            return listed and self._same_set(gold.items, stated.items)
        if region_or_none(gold) is not None and region_or_none(stated) is not None:
            return self._same_region(gold, stated)
        if stated.brackets or stated.ordered or stated.alternatives != gold.alternatives:
            return False
        return not are_solutions(stated.items) and self._same_set(gold.items, stated.items)

    def same_part(self, gold: Node, stated: Node) -> bool:
        """Whether two things within others are the same; an end of an interval may be infinite."""
        if isinstance(gold, Leaf) and isinstance(stated, Leaf):
            ends = [leaf.formula for leaf in (gold, stated)]
            if any(_is_infinite(end) for end in ends):
                return ends[0] == ends[1]
        return self.same(gold, stated)

    def _same_set(self, gold: tuple[Node, ...], stated: tuple[Node, ...]) -> bool:
        if len(gold) != len(stated) and len(self._distinct(gold)) != len(self._distinct(stated)):
            return False
        return all(any(self.same_part(g, s) for s in stated) for g in gold) and all(
            any(self.same_part(g, s) for g in gold) for s in stated
        )

    def _distinct(self, nodes: tuple[Node, ...]) -> list[Node]:
        found: list[Node] = []
        for node in nodes:
            if not any(self.same_part(node, known) for known in found):
                found.append(node)
        return found

    def _same_multiset(self, gold: tuple[Node, ...], stated: tuple[Node, ...]) -> bool:
        left = list(stated)
        for node in gold:
            match = next((index for index, other in enumerate(left) if self.same_part(node, other)), None)
            if match is None:
                return False
            left.pop(match)
        return not left

    def _same_region(self, gold: Node, stated: Node) -> bool:
        first, second = region_of(gold), region_or_none(stated)
        unknowns = [names for node in (gold, stated) if (names := variables(node))]
        return second is not None and len(set(unknowns)) <= 1 and same_region(first, second)


def _is_infinite(formula: Formula) -> bool:
    return formula[0] == "infinity" or (formula[0] in ("-", "+") and len(formula) == 2 and formula[1][0] == "infinity")


def _value_of(relation: Relation, comparison: _Comparison) -> Node | None:
    """What `x = ...` gives to x; several equal signs must agree. None for any other relation."""
    if set(relation.signs) not in ({"="}, {"in"}):
        return None
    sides = list(relation.sides)
    if relation.signs[0] == "in":
        return sides[1] if len(sides) == 2 and is_name(sides[0]) else None
    if is_name(sides[0]):
        name, values = sides[0], sides[1:]
    elif len(sides) == 2 and is_name(sides[1]) and isinstance(sides[0], Leaf) and not symbols_of(sides[0].formula):
        name, values = sides[1], sides[:1]
    else:
        return None
    assert isinstance(name, Leaf)
    for value in values:
        if isinstance(value, Leaf) and name.formula[0] == "symbol" and name.formula[1] in symbols_of(value.formula):
            return None
    if not all(comparison.same(values[-1], value) for value in values[:-1]):
        raise NotUnderstood("sides that are not equal")
    return values[-1]


def _same_equation(gold: Relation, stated: Relation) -> bool:
    """Whether two relations are multiples of each other by a constant."""
    if len(gold.signs) != 1 or len(stated.signs) != 1 or "in" in (*gold.signs, *stated.signs):
        raise NotUnderstood("a chain of relations")
    sides = []
    for relation in (gold, stated):
        left, right = (plain_formula(side) for side in relation.sides)
        sign = relation.signs[0]
        if sign in (">", ">="):
            left, right, sign = right, left, FLIPPED[sign]
        sides.append((sign, ("-", left, right)))
    if sides[0][0] != sides[1][0]:
        return False
    if not symbols_of(sides[0][1]):
        raise NotUnderstood("a relation without variables")
    return proportional(sides[0][1], sides[1][1], positive=sides[0][0] not in ("=", "!="))


def _by_math_verify(gold: Node, stated: Node) -> bool:
    """The verdict of math-verify, without its timer, which needs SIGALRM: the worker is killed instead.

    Floats are compared to 15 digits instead of its 6.
    """
    from math_verify import LatexExtractionConfig, parse, verify

    both = []
    for node in (gold, stated):
        if isinstance(node, Leaf) and (node.unit or node.words or node.percent):
            return False
        if not isinstance(node, Leaf | Advanced):
            return False
        parsed = parse(f"${node.text}$", [LatexExtractionConfig()], "no_fallback", "first_match", None)
        if len(parsed) != 1 or isinstance(parsed[0], str):
            raise NotUnderstood("math-verify does not understand it")
        both.append(parsed[0])
    return bool(verify(both[0], both[1], float_rounding=15, numeric_precision=30, timeout_seconds=None))
