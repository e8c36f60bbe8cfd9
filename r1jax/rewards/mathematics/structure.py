"""What kind of thing an answer states: a value with its unit, tuple, set, interval, matrix, relation, list.

The structure is read here from tokens, so that a set is never compared as a list, nor a pair as an interval. No JAX.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from fractions import Fraction

from r1jax.rewards.mathematics.formula import Formula, parse_formula, symbols_of
from r1jax.rewards.mathematics.latex import FUNCTIONS, NotUnderstood, Token, tokens_of
from r1jax.rewards.mathematics.units import Unit, is_unit, parse_unit

_OPENING = {"(": 1, "[": 1, "{": 1, "\\{": 1, "begin": 1}
_CLOSING = {")": 1, "]": 1, "}": 1, "\\}": 1, "end": 1}
RELATIONS = ("=", "<", ">", "<=", ">=", "!=", "in")
_OPTION = re.compile(
    r"(?:(?i:option|choice|answer)\s*:?|选项?|答案[是为]?[:：]?)?\s*(?:[(（]([A-J])[)）]|([A-J])[.)。]?)"
)
_OPTIONS = re.compile(r"\(?([A-J])\)?(?:\s*(?:,|and|&|、|和)\s*\(?([A-J])\)?)+")
_TOGETHER = re.compile(r"[A-J]{2,8}")
_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}\\]*)\}")
_POWERS = ("square", "cubic", "sq")  # of the unit behind
_COUNTED = re.compile(r"[A-Za-z ]{3,}|[\u4e00-\u9fff]+")
_YES = re.compile(r"[A-Za-z]+(?: [A-Za-z]+)*")


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A formula, with the unit behind it. `words`: a unit that is no measure, such as apples."""

    formula: Formula
    unit: Unit | None = None
    percent: bool = False
    words: str = ""
    text: str = ""  # the value's tokens again, for math-verify


@dataclasses.dataclass(frozen=True)
class Items:
    """Several things: brackets "()", "[)", ... for tuples and intervals, "{}" for sets, "" for a bare list."""

    brackets: str
    items: tuple[Node, ...]
    ordered: bool = True
    alternatives: bool = False  # one or another of them


@dataclasses.dataclass(frozen=True)
class Matrix:
    """Rows of a matrix, all as long as the first."""

    rows: tuple[tuple[Node, ...], ...]


@dataclasses.dataclass(frozen=True)
class Relation:
    """Sides with a sign between each two."""

    signs: tuple[str, ...]
    sides: tuple[Node, ...]


@dataclasses.dataclass(frozen=True)
class Combined:
    """Sets of numbers joined by "union", "intersection" or "minus", from the left."""

    first: Node
    rest: tuple[tuple[str, Node], ...]


@dataclasses.dataclass(frozen=True)
class Reals:
    """All real numbers."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Letters of a multiple-choice question."""

    letters: frozenset[str]


@dataclasses.dataclass(frozen=True)
class Words:
    r"""An answer in words: marked as such by \text, in lower case; or one bare word, in its own letters (`bare`)."""

    text: str
    bare: bool = False


@dataclasses.dataclass(frozen=True)
class Advanced:
    """A sum, an integral or a limit: left to math-verify."""

    text: str


Node = Leaf | Items | Matrix | Relation | Combined | Reals | Options | Words | Advanced


def is_name(node: Node) -> bool:
    """A variable, or a function of one, to which a value can be given."""
    return isinstance(node, Leaf) and node.unit is None and node.formula[0] in ("symbol", "call")


def is_names(node: Node) -> bool:
    """A tuple of variables, as in (x, y) = (1, 2)."""
    return isinstance(node, Items) and node.brackets == "()" and all(is_name(item) for item in node.items)


def named(relation: Relation) -> Node | None:
    r"""What `x = 2`, `2 = x` or `x \in ...` says something of; None for any other relation."""
    if set(relation.signs) not in ({"="}, {"in"}):
        return None
    return next((side for side in (relation.sides[0], relation.sides[-1]) if is_name(side) or is_names(side)), None)


def are_solutions(items: Sequence[Node]) -> bool:
    """Whether things side by side are values of one unknown, so that a comma between them means "or"."""
    names = [named(item) if "in" not in item.signs else None for item in items if isinstance(item, Relation)]
    plain = all(not isinstance(item, Items) or item.brackets for item in items)
    return plain and None not in names and len(set(names)) <= 1


def _depths(tokens: Sequence[Token]) -> Iterator[int]:
    """The depth of brackets at each token, an opening one counted inside, a closing one outside."""
    depth = 0
    for token in tokens:
        sign = token.kind == "sign"
        depth += (_OPENING.get(token.value, 0) if sign else 0) - (_CLOSING.get(token.value, 0) if sign else 0)
        if depth < 0:
            raise NotUnderstood(f"{token.value!r} closes nothing")
        yield depth
    if depth:
        raise NotUnderstood("a bracket is not closed")


def _split(tokens: Sequence[Token], *signs: str) -> tuple[list[list[Token]], list[str]]:
    """`tokens` cut at `signs` outside of brackets, and the signs found."""
    parts: list[list[Token]] = [[]]
    found = []
    for token, depth in zip(tokens, _depths(tokens), strict=True):
        if depth == 0 and token.kind == "sign" and token.value in signs:
            parts.append([])
            found.append(token.value)
        else:
            parts[-1].append(token)
    return parts, found


def _is_enclosed(tokens: Sequence[Token]) -> bool:
    """Whether the first bracket closes at the end."""
    if len(tokens) < 2 or tokens[0].kind != "sign" or tokens[0].value not in ("(", "[", "\\{"):
        return False
    depths = list(_depths(tokens))
    return depths[-1] == 0 and all(depths[:-1]) and tokens[-1].value in (")", "]", "\\}")


def parse_answer(text: str, letters_are_units: bool = False) -> Node:
    """What an answer states. Raises NotUnderstood.

    letters_are_units: a single letter behind a number may be a unit ("5 m"), since the other answer has one.
    """
    text = text.strip()
    if not text:
        raise NotUnderstood("empty")
    plain = _TEXT.sub(r"\1", text).strip().strip("$").strip()
    if found := _OPTION.fullmatch(plain):
        return Options(frozenset(found[1] or found[2]))
    if _OPTIONS.fullmatch(plain):
        return Options(frozenset(re.findall(r"[A-J]", plain)))
    if _TOGETHER.fullmatch(plain) and sorted(set(plain)) == list(plain):
        return Options(frozenset(plain))
    if (
        (words := _TEXT.fullmatch(text.strip("$").strip()))
        and len(words[1].strip()) > 1
        and not is_unit(words[1].strip())
    ):
        return parse_words(text)
    tokens = tokens_of(text)
    if not tokens:
        raise NotUnderstood("empty")
    try:
        return _parse(tokens, letters_are_units)
    except RecursionError as error:
        raise NotUnderstood("nested too deeply") from error


def parse_words(text: str) -> Node:
    r"""An answer in words, with or without \text. Raises NotUnderstood."""
    plain = _TEXT.sub(r"\1", text).strip().strip("$").strip().removesuffix(".")
    if not _YES.fullmatch(plain):
        raise NotUnderstood("no words")
    return Words(" ".join(plain.lower().split()))


def parse_bare_word(text: str) -> Words | None:
    """An answer that is one word of three letters and no product, as far as one can see; None for all else.

    A word has vowels and consonants, and its letters do not follow each other in the alphabet: cat, Sun, but not abc,
    xyz, mgh, nRT. Its first letter may be large or small. Longer words have to be marked by \text.
    """
    plain = _TEXT.sub(r"\1", text).strip().strip("$").strip().removesuffix(".")
    if not re.fullmatch("[A-Za-z]{3}", plain) or parse_unit(plain) is not None or plain in FUNCTIONS:
        return None
    codes = [ord(letter) for letter in plain.lower()]
    vowels = sum(letter in "aeiouy" for letter in plain.lower())
    if vowels in (0, 3) or codes == list(range(codes[0], codes[0] + 3)):
        return None
    return Words(plain[0].lower() + plain[1:], bare=True)


def _parse(tokens: list[Token], units: bool) -> Node:
    parts, _ = _split(tokens, "or")
    if len(parts) > 1:
        return Items("", tuple(node for part in parts for node in _alternatives(_parse(part, units))), False, True)
    parts, _ = _split(tokens, ",")
    if len(parts) > 1:
        nodes = tuple(_parse(part, units) for part in parts)
        if any(isinstance(node, Items) and not node.brackets for node in nodes):
            nodes = tuple(inner for node in nodes for inner in _alternatives(node))
            return Items("", nodes, ordered=False)
        solutions = isinstance(nodes[0], Relation) and are_solutions(nodes)  # x = 2, 3
        return Items("", nodes, ordered=not solutions and not all(isinstance(node, Relation) for node in nodes))
    if any(token.value in ("+-", "-+") for token in tokens):
        return _plus_minus(tokens, units)
    parts, signs = _split(tokens, *RELATIONS)
    if signs:
        return Relation(tuple(signs), tuple(_parse(part, units) for part in parts))
    return _parse_part(tokens, units)


def _alternatives(node: Node) -> tuple[Node, ...]:
    """What a part of a list adds to it: `x = 1, y = 2` within alternatives is one of them."""
    if not isinstance(node, Items) or node.brackets:
        return (node,)
    return node.items if node.alternatives or node.ordered or are_solutions(node.items) else (node,)


def _plus_minus(tokens: list[Token], units: bool) -> Node:
    """Both readings of a formula with plus-or-minus signs, which all go together."""
    readings = []
    for swap in ({"+-": "+", "-+": "-"}, {"+-": "-", "-+": "+"}):
        readings.append(_parse([Token(t.kind, swap.get(t.value, t.value)) for t in tokens], units))
    return Items("", tuple(readings), ordered=False, alternatives=True)


def _parse_part(tokens: list[Token], units: bool) -> Node:
    """What has no comma, no "or" and no relation outside of its brackets."""
    parts, signs = _split(tokens, "union", "intersection", "minus")
    if signs:
        nodes = [_parse_part(part, units) for part in parts]
        return Combined(nodes[0], tuple(zip(signs, nodes[1:], strict=True)))
    if not tokens:
        raise NotUnderstood("nothing between two signs")
    if [token.value for token in tokens] == ["reals"]:
        return Reals()
    if [token.value for token in tokens] == ["\\emptyset"]:
        return Items("{}", ())
    if tokens[0].value == "begin" and tokens[0].kind == "sign":
        return _matrix(tokens, units)
    if _is_enclosed(tokens):
        inside = tokens[1:-1]
        brackets = tokens[0].value[-1] + tokens[-1].value[-1]
        parts, signs = _split(inside, ",") if inside else ([], [])
        if brackets == "{}":
            return _set(parts, units)
        if inside and inside[0].value == "begin" and inside[-1].value == "end":
            return _matrix(inside, units)
        if signs:
            return _tuple(brackets, tuple(_parse(part, units) for part in parts))
        if brackets not in ("()", "[]"):
            raise NotUnderstood("brackets that do not match")
        if brackets == "[]" or _has(inside, *RELATIONS, "union", "or"):
            raise NotUnderstood("brackets around one thing")
    return _leaf(tokens, units)


def _has(tokens: Sequence[Token], *values: str) -> bool:
    return any(token.kind == "sign" and token.value in values for token in tokens)


def _set(parts: list[list[Token]], units: bool) -> Node:
    if any(_has(part, "|", ":") for part in parts):
        raise NotUnderstood("a set given by a condition")
    items: list[Node] = []
    for part in parts:
        items += _alternatives(_parse(part, units))
    return Items("{}", tuple(items), ordered=False)


def _tuple(brackets: str, items: tuple[Node, ...]) -> Node:
    if any(isinstance(item, Items) and not item.brackets for item in items):
        raise NotUnderstood("a tuple with alternatives in it")
    if len(items) != 2 and brackets not in ("()", "[]"):
        raise NotUnderstood("brackets that do not match")
    if brackets == "[]" and all(isinstance(item, Items) and item.brackets == "[]" for item in items):
        rows = tuple(item.items for item in items if isinstance(item, Items))
        if len({len(row) for row in rows}) == 1:
            return Matrix(rows)
    return Items(brackets, items)


def _matrix(tokens: list[Token], units: bool) -> Node:
    if tokens[-1].value != "end" or not all(list(_depths(tokens))[:-1]):
        raise NotUnderstood("something beside a matrix")
    rows = []
    lines, _ = _split(tokens[1:-1], "\\\\")
    for line in lines if lines[-1] else lines[:-1]:
        cells, _ = _split(line, "&")
        rows.append(tuple(_parse(cell, units) for cell in cells))
    if not rows or len({len(row) for row in rows}) > 1:
        raise NotUnderstood("a matrix whose rows differ in length")
    return Matrix(tuple(rows))


def _leaf(tokens: list[Token], units: bool) -> Node:
    if any(t.kind == "command" and t.value in ("\\int", "\\sum", "\\prod", "\\lim", "\\det") for t in tokens):
        return Advanced(" ".join(token.value for token in tokens))
    before: Unit | None = None
    sign: list[Token] = []
    if tokens[0].value in ("-", "+") and len(tokens) > 1 and tokens[1].value in "$€£¥":
        sign, tokens = tokens[:1], tokens[1:]
    if tokens[0].value in ("$", "€", "£", "¥"):
        before = parse_unit(tokens[0].value)
        tokens = tokens[1:]
    value_tokens, behind = _cut_unit(sign + tokens, units)
    formula, rest = parse_formula(value_tokens)
    behind = rest + behind
    if not behind:
        return Leaf(formula, before, text=" ".join(token.value for token in value_tokens))
    if before is not None:
        raise NotUnderstood("two units")
    return _with_unit(formula, behind)


def _cut_unit(tokens: list[Token], units: bool) -> tuple[list[Token], list[Token]]:
    """The tokens of the value and those of a unit in plain letters, or of a word, behind it."""
    power = next((index for index, token in enumerate(tokens) if token.value in _POWERS), 0)
    if power:
        return tokens[:power], tokens[power:]
    if len(tokens) > 1 and tokens[-1].kind == "name" and (len(tokens[-1].value) > 3 or not tokens[-1].value.isascii()):
        return tokens[:-1], tokens[-1:]
    if not units:
        return tokens, []
    for index in range(1, len(tokens)):
        before, token = tokens[index - 1], tokens[index]
        if token.kind == "name" and is_unit(token.value) and (before.kind == "number" or before.value in (")", "}")):
            behind = tokens[index:]
            text = "".join(t.value for t in behind)
            if parse_unit(text) is not None and not any(t.kind == "name" for t in tokens[:index]):
                return tokens[:index], behind
    return tokens, []


def _with_unit(formula: Formula, behind: list[Token]) -> Leaf:
    texts = [token.value for token in behind]
    if texts in (["%"], ["percent"]):
        return Leaf(("*", formula, ("number", Fraction(1, 100))), percent=True)
    text = "".join(f" {token.value} " if token.kind == "text" else token.value for token in behind)
    unit = parse_unit(re.sub(r"^\^(?:°|\{°\})", "°", text))
    if unit is not None:
        return Leaf(formula, unit)
    counted = len(behind) == 1 and behind[0].kind in ("text", "name") and _COUNTED.fullmatch(texts[0])
    if counted and not symbols_of(formula):
        return Leaf(formula, words=texts[0].lower().strip())
    raise NotUnderstood(f"{' '.join(texts)!r} behind a value")
