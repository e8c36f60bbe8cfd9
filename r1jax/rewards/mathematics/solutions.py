"""The sets of numbers that answers state: intervals, solved inequalities, and what is joined from them. No JAX."""

from __future__ import annotations

from r1jax.rewards.mathematics.formula import Formula, symbols_of
from r1jax.rewards.mathematics.latex import NotUnderstood
from r1jax.rewards.mathematics.regions import EVERYTHING, Region, combine, end_value, interval
from r1jax.rewards.mathematics.structure import Combined, Items, Leaf, Node, Reals, Relation, is_name

FLIPPED = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "=": "=", "!=": "!="}


def variables(node: Node) -> frozenset[str]:
    """The variables of a relation, or of several side by side; none for what only has values."""
    if isinstance(node, Items):
        return frozenset().union(*(variables(item) for item in node.items))
    if not isinstance(node, Relation):
        return frozenset()
    return frozenset().union(*(symbols_of(side.formula) for side in node.sides if isinstance(side, Leaf)))


def plain_formula(node: Node) -> Formula:
    """The formula that a node is. NotUnderstood for one with a unit and for all else."""
    if not isinstance(node, Leaf) or node.unit or node.words:
        raise NotUnderstood("no plain formula")
    return node.formula


def region_or_none(node: Node) -> Region | None:
    """The set of real numbers that a node states; None for what is none."""
    try:
        return region_of(node)
    except NotUnderstood:
        return None


def region_of(node: Node) -> Region:
    """The set of real numbers that a node states. NotUnderstood for what is none."""
    match node:
        case Reals():
            return EVERYTHING
        case Combined():
            region = region_of(node.first)
            for sign, other in node.rest:
                region = combine(region, region_of(other), sign)
            return region
        case Items(brackets="{}"):
            region = ()
            for item in node.items:
                value = end_value(plain_formula(item))
                region = combine(region, interval(value, True, value, True), "union")
            return region
        case Items(brackets="()" | "[]" | "(]" | "[)", items=(low, high)):
            ends = end_value(plain_formula(low)), end_value(plain_formula(high))
            return interval(ends[0], node.brackets[0] == "[", ends[1], node.brackets[1] == "]")
        case Items(brackets="", ordered=False):
            return _joined(node)
        case Relation():
            return _solved(node)
    raise NotUnderstood("no set of numbers")


def _joined(node: Items) -> Region:
    """What inequalities in one variable leave: any of them ("or") or all of them ("and", a comma)."""
    if len(variables(node)) != 1 or not all(isinstance(item, Relation | Items) for item in node.items):
        raise NotUnderstood("no inequalities in one variable")
    regions = [region_of(item) for item in node.items]
    region = regions[0]
    for other in regions[1:]:
        region = combine(region, other, "union" if node.alternatives else "intersection")
    if not region:
        raise NotUnderstood("inequalities that exclude each other")
    return region


def _solved(relation: Relation) -> Region:
    """The solutions of an inequality that is solved already: x < 1, 1 < x <= 2, x != 3."""
    if len(relation.signs) == 1 and relation.signs[0] == "in" and is_name(relation.sides[0]):
        return region_of(relation.sides[1])
    names = [index for index, side in enumerate(relation.sides) if is_name(side)]
    if len(names) != 1 or len(relation.signs) > 2 or (len(relation.signs) == 2 and names != [1]):
        raise NotUnderstood("an inequality that is not solved")
    region = EVERYTHING
    at = names[0]
    for index, side in enumerate(relation.sides):
        if index == at:
            continue
        sign = relation.signs[min(index, at)]
        sign = sign if index > at else FLIPPED.get(sign, sign)  # as if the variable stood on the left
        value = end_value(plain_formula(side))
        region = combine(region, _beside(sign, value), "intersection")
    return region


def _beside(sign: str, value: object) -> Region:
    low, high = EVERYTHING[0].low, EVERYTHING[0].high
    if sign in ("<", "<="):
        return interval(low, False, value, sign == "<=")
    if sign in (">", ">="):
        return interval(value, sign == ">=", high, False)
    if sign == "!=":
        return combine(EVERYTHING, interval(value, True, value, True), "minus")
    raise NotUnderstood("no inequality")
