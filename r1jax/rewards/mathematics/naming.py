r"""Values with names: (x, y) = (1, 2) and x = 1, y = 2 say which number is which; (1, 2) leaves it to the order.

Without names the order is that of the names in the question, "Find (m, b)"; else x before y before z; any other names
stand in the order in which they are written. No JAX.
"""

from __future__ import annotations

import re

from r1jax.rewards.mathematics.formula import Formula
from r1jax.rewards.mathematics.structure import Items, Leaf, Node, Relation, are_solutions, is_name, is_names, named

_COORDINATES = ("x", "y", "z")
_IN_BRACKETS = re.compile(r"\(([^()]*,[^()]*)\)")

Named = dict[Formula, Node]


def named_tuple(node: Node) -> Named | None:
    """The values of `(x, y) = (1, 2)` by name, in their order; None for all else."""
    if not isinstance(node, Relation) or node.signs != ("=",) or not is_names(node.sides[0]):
        return None
    names, values = node.sides
    assert isinstance(names, Items)
    if not isinstance(values, Items) or values.brackets != "()":
        return None
    return _joined(names.items, values.items)


def named_values(node: Node) -> Named | None:
    """The values of `x = 1, y = 2` by name, in their order; None for all else, x = 1, x = 2 among it."""
    if not isinstance(node, Items) or node.brackets or node.ordered or node.alternatives or are_solutions(node.items):
        return None
    names, values = [], []
    for item in node.items:
        if not isinstance(item, Relation) or item.signs != ("=",) or (name := named(item)) is None:
            return None
        names.append(name)
        values.append(item.sides[1] if item.sides[0] == name else item.sides[0])
    return _joined(tuple(names), tuple(values))


def _joined(names: tuple[Node, ...], values: tuple[Node, ...]) -> Named | None:
    formulas = [name.formula for name in names if isinstance(name, Leaf) and is_name(name)]
    if len(formulas) != len(values) or len(set(formulas)) != len(values):
        return None
    return dict(zip(formulas, values, strict=True))


def in_order(values: Named, question: str) -> Items:
    """The tuple that named values are without their names."""
    names = [str(name[1]) for name in values]
    order = names
    asked = [re.split(r"\s*,\s*", found.strip()) for found in _IN_BRACKETS.findall(question)]
    if same := [one for one in asked if sorted(one) == sorted(names)]:
        order = same[0]
    elif all(name in _COORDINATES for name in names):
        order = sorted(names)
    by_text = dict(zip(names, values.values(), strict=True))
    return Items("()", tuple(by_text[name] for name in order))
