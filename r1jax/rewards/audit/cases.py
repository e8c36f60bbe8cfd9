r"""Pairs of answers whose truth is known by construction, for the audit of the mathematics grader.

Values are chosen first; then two notations are written of the same value, or of two values that differ. No grader and
no computer algebra takes part: what is equal is equal by an identity written down here, what differs by a number that
was changed. `found.jsonl` holds cases found in the wild, one a line, with the truth given by a person.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import random
from collections.abc import Callable, Sequence
from fractions import Fraction

FOUND = pathlib.Path(__file__).with_name("found.jsonl")


@dataclasses.dataclass(frozen=True)
class Pair:
    """A reference, an answer, and whether they state the same."""

    kind: str
    gold: str
    answer: str
    same: bool
    question: str = ""


Draft = tuple[str, str] | tuple[str, str, str]  # reference, answer[, question]
Maker = Callable[[random.Random, bool], Draft]


def _int(draw: random.Random, low: int = -99, high: int = 99) -> int:
    """A whole number that is not 0."""
    while True:
        if value := draw.randint(low, high):
            return value


def _other(draw: random.Random, value: Fraction) -> Fraction:
    """Another number, often a near one."""
    changes = (value + 1, value - 1, -value, value * 10, value / 10, value + Fraction(1, 100), value * 2)
    return draw.choice([change for change in changes if change != value])


def _is_decimal(value: Fraction) -> bool:
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    return rest == 1


def decimal(value: Fraction, zeros: int = 0) -> str:
    """The decimal notation of a value that has one."""
    places = 0
    while (value * 10**places).denominator > 1:
        places += 1
    digits = str(abs(value.numerator) * 10**places // value.denominator).rjust(places + 1, "0")
    text = digits[: len(digits) - places] + ("." + digits[len(digits) - places :] if places else "")
    text += "." * (zeros > 0 and not places) + "0" * zeros
    return "-" + text if value < 0 else text


def fraction(draw: random.Random, value: Fraction) -> str:
    """A notation as a fraction, reduced or not."""
    by = draw.choice((1, 1, 2, 3, 7))
    top, bottom = abs(value.numerator) * by, value.denominator * by
    sign = "-" if value < 0 else ""
    form = draw.randrange(4)
    if form == 0:
        return f"{sign}{top}/{bottom}"
    if form == 1:
        return f"\\frac{{{sign}{top}}}{{{bottom}}}"
    return f"{sign}\\{draw.choice(('frac', 'dfrac', 'tfrac'))}{{{top}}}{{{bottom}}}"


def number(draw: random.Random, value: Fraction) -> str:
    """Any notation of a rational number."""
    forms = [fraction(draw, value)]
    if _is_decimal(value):
        forms += [decimal(value), decimal(value, 1), decimal(value).replace("-", "\u2212")]
    if value.denominator == 1:
        forms += [str(value), str(value), f"{value.numerator:,}"]
    return draw.choice(forms)


def entry(draw: random.Random, value: Fraction) -> str:
    """A notation for within brackets, where a comma would separate."""
    return number(draw, value).replace(",", "")


def dressed(draw: random.Random, text: str) -> str:
    """The same answer in other clothes."""
    return draw.choice(("{}", "{}", "${}$", "\\({}\\)", "\\boxed{{{}}}", "$\\boxed{{{}}}$", "{}.")).format(text)


def _rational(draw: random.Random) -> Fraction:
    return Fraction(_int(draw), draw.randint(1, 20))


def _pair_of(
    draw: random.Random, same: bool, value: Fraction, write: Callable[[random.Random, Fraction], str]
) -> Draft:
    other = value if same else _other(draw, value)
    return write(draw, value), dressed(draw, write(draw, other))


def integers(draw: random.Random, same: bool) -> Draft:
    """Whole numbers, with thousands separators and needless zeros."""
    value = Fraction(_int(draw, -(10 ** draw.randint(1, 8)), 10 ** draw.randint(1, 8)))
    if not same and draw.random() < 0.3:
        n = value.numerator
        wrong = draw.choice((f"{n} or {n + 1}", f"{n}, {n + 1}", f"not {n}", f"{n}{n % 10}", f"{n} {n}", f"\\pm {n}"))
        return str(n), wrong
    return _pair_of(draw, same, value, lambda d, v: number(d, v) if v.denominator > 1 else f"{v.numerator:,}")


def decimals(draw: random.Random, same: bool) -> Draft:
    """Finite and repeating decimals; a rounded one is another number."""
    value = Fraction(_int(draw, -99999, 99999), 10 ** draw.randint(1, 4))
    if draw.random() < 0.3:
        digits = draw.randint(1, 8)
        third = Fraction(digits, 9)
        if same:
            return f"\\frac{{{digits}}}{{9}}", f"0.\\overline{{{digits}}}"
        return str(third), "0." + str(digits) * draw.randint(3, 30)
    if not same and draw.random() < 0.5:
        return decimal(value), decimal(value + Fraction(draw.choice((1, -1)), 10 ** draw.randint(4, 12)))
    return _pair_of(draw, same, value, number)


def fractions(draw: random.Random, same: bool) -> Draft:
    """Fractions, reduced or not; upside down is another."""
    value = _rational(draw)
    if not same and abs(value.numerator) != value.denominator and draw.random() < 0.3:
        return fraction(draw, value), fraction(draw, 1 / value)
    return _pair_of(draw, same, value, fraction)


def mixed_numbers(draw: random.Random, same: bool) -> Draft:
    """A whole number with a fraction: their sum, not their product."""
    whole, bottom = draw.randint(2, 30), draw.randint(2, 12)
    part = Fraction(draw.randint(1, bottom - 1), bottom)
    sign = draw.choice(("", "-"))
    latex = f"{sign}{whole}\\frac{{{part.numerator}}}{{{part.denominator}}}"
    mixed = draw.choice((latex, f"{sign}{whole} {part}"))
    value = (whole + part) * (-1 if sign else 1)
    if same:
        other = number(draw, value)
    else:
        product = whole * part * (-1 if sign else 1)
        wrong = [product, part, Fraction(whole), value + 1, -value]
        other = number(draw, draw.choice([v for v in wrong if v != value]))
    return (mixed, other) if draw.random() < 0.5 else (other, mixed)


def percentages(draw: random.Random, same: bool) -> Draft:
    """Percent as a number: 50 % is one half, and not 50."""
    value = Fraction(_int(draw, -400, 400), draw.choice((1, 2, 4, 10)))
    sign = draw.choice(("%", "\\%", " \\%"))
    text = decimal(value) + sign
    if same:
        other = draw.choice((number(draw, value / 100), decimal(value, 1) + "\\%", f"${decimal(value)}\\%$"))
    else:
        wrong = draw.choice((value, value / 10, value + 100, value / 10_000))
        other = draw.choice((number(draw, wrong), decimal(_other(draw, value)) + "%"))
    return (text, other) if draw.random() < 0.5 else (other, text)


_UNITS = (
    (("mm", 1), ("cm", 10), ("m", 1000), ("km", 1_000_000)),
    (("mg", 1), ("g", 1000), ("kg", 1_000_000)),
    (("seconds", 1), ("minutes", 60), ("hours", 3600), ("days", 86_400)),
    (("cm^2", 1), ("m^2", 10_000)),
    (("m/s", 5), ("km/h", Fraction(25, 18))),
    (("mL", 1), ("L", 1000), ("cm^3", 1), ("m^3", 1_000_000)),
    (("cents", 1), ("dollars", 100)),
)


def _with_unit(draw: random.Random, value: Fraction, unit: str) -> str:
    name, power = unit.split("^") if "^" in unit else (unit, "")
    latex = f"\\text{{ {name}}}" + (f"^{power}" if power else "")
    plain = unit if not power else draw.choice((unit, f"{name}{'²' if power == '2' else '³'}"))
    forms = [latex, "\\," + latex.replace("text", "mathrm")]
    if len(name) > 1 or power:  # "5 m" may be a product
        forms.append(" " + plain)
    return number(draw, value) + draw.choice(forms)


def units(draw: random.Random, same: bool) -> Draft:
    """Quantities in other units of the same kind; another unit with the same number is another quantity."""
    family = draw.choice(_UNITS)
    (name, factor), (other_name, other_factor) = draw.choice(family), draw.choice(family)
    value = Fraction(draw.randint(1, 400), draw.choice((1, 1, 2, 4)))
    converted = value * factor / other_factor
    question = f"How many {name} is it?" if draw.random() < 0.3 else ""
    if same:
        bare = number(draw, value)
        answer = draw.choice((_with_unit(draw, converted, other_name), _with_unit(draw, converted, other_name), bare))
        return _with_unit(draw, value, name), answer, question
    strange = draw.choice([f for f in _UNITS if f is not family])
    form = draw.randrange(4)
    if form == 0:  # of another kind
        return _with_unit(draw, value, name), _with_unit(draw, value, draw.choice(strange)[0]), question
    if form == 1 and factor != other_factor:  # the number of one unit with the name of another
        return _with_unit(draw, value, name), _with_unit(draw, value, other_name), question
    if form == 2 and factor != other_factor:  # without its name: the number of another unit
        return _with_unit(draw, value, name), number(draw, converted), question
    return _with_unit(draw, value, name), _with_unit(draw, _other(draw, converted), other_name), question


_ASKED = (
    # unit, its other names, units that the question names besides or that are of its kind
    ("square centimeters", ("cm^2", "square cm"), ("cm", "m^2", "seconds")),
    ("km/h", ("kilometers per hour", "km/h"), ("km", "hours", "miles per hour")),
    ("meters", ("m", "meters"), ("cm", "m^2", "minutes")),
    ("degrees Celsius", ("°C", "degrees Celsius"), ("°F", "degrees", "kg")),
    ("dollars", ("dollars",), ("cents", "hours", "percent")),
)


def asked_units(draw: random.Random, same: bool) -> Draft:
    """A bare number answered with the unit that the question asks for, or with another."""
    name, names, others = draw.choice(_ASKED)
    value = Fraction(draw.randint(2, 400))
    asking = draw.choice(("How many {} is it?", "What is it in {}?", "It takes 3 hours and 5 cm. Give it in {}."))
    unit = draw.choice(names if same else others)
    form = draw.choice(("{} {}", "{}\\text{{ {}}}")) if "^" not in unit else "{} {}"
    return str(value), form.format(value, unit), asking.format(name)


def _ascending(draw: random.Random, count: int) -> list[Fraction]:
    values: set[Fraction] = set()
    while len(values) < count:
        values.add(Fraction(draw.randint(-40, 40), draw.choice((1, 1, 2, 3))))
    return sorted(values)


def _interval(draw: random.Random, low: Fraction | None, high: Fraction | None, left: str, right: str) -> str:
    """An interval; None is infinite."""
    ends = ["-\\infty" if low is None else entry(draw, low), "\\infty" if high is None else entry(draw, high)]
    open_, close = draw.choice(((left, right), ("\\left" + left, "\\right" + right)))
    return f"{open_}{ends[0]}{draw.choice((',', ', '))}{ends[1]}{close}"


def intervals(draw: random.Random, same: bool) -> Draft:
    """Intervals, unions and solved inequalities; an end more or less makes another set."""
    form = draw.randrange(4)
    a, b, c = _ascending(draw, 3)
    left, right = draw.choice("(["), draw.choice(")]")
    less, less_too = ("<" if left == "(" else "\\le"), ("<" if right == ")" else "\\leq")
    if form == 0:  # one interval
        gold = _interval(draw, a, b, left, right)
        inequality = f"{entry(draw, a)} {less} x {less_too} {entry(draw, b)}"
        if same:
            again = _interval(draw, a, b, left, right)
            return gold, draw.choice((again, inequality, f"x \\in {again}"))
        flipped = _interval(draw, a, b, "[" if left == "(" else "(", right)
        wrong = (flipped, _interval(draw, a, c, left, right), f"{entry(draw, a)}, {entry(draw, b)}")
        return gold, draw.choice(
            (*wrong, f"\\{{{entry(draw, a)}, {entry(draw, b)}\\}}", _interval(draw, b, c, "(", "]"))
        )
    if form == 1:  # a ray
        gold = _interval(draw, None, b, "(", right)
        if same:
            return gold, draw.choice((f"x {less_too} {entry(draw, b)}", f"(-∞, {entry(draw, b)}{right}"))
        other_end = _interval(draw, None, b, "(", "]" if right == ")" else ")")
        return gold, draw.choice((f"x > {entry(draw, b)}", other_end, _interval(draw, None, c, "(", right)))
    if form == 2:  # two rays
        gold = f"(-\\infty, {entry(draw, a)}) \\cup ({entry(draw, b)}, \\infty)"
        if same:
            swapped = f"({entry(draw, b)}, +\\infty) \\cup (-\\infty, {entry(draw, a)})"
            return gold, draw.choice((swapped, f"x < {entry(draw, a)} \\text{{ or }} x > {entry(draw, b)}"))
        half = f"(-\\infty, {entry(draw, a)})"
        between = f"({entry(draw, a)}, {entry(draw, b)})"
        return gold, draw.choice((half, between, f"{half} \\cup [{entry(draw, b)}, \\infty)", "\\mathbb{R}"))
    gold = f"(-\\infty, {entry(draw, a)}) \\cup ({entry(draw, a)}, \\infty)"
    if same:
        return gold, draw.choice((f"\\mathbb{{R}} \\setminus \\{{{entry(draw, a)}\\}}", f"x \\neq {entry(draw, a)}"))
    return gold, draw.choice(("(-\\infty, \\infty)", f"x \\neq {entry(draw, b)}", f"x = {entry(draw, a)}"))


def _several(draw: random.Random, values: Sequence[Fraction]) -> str:
    return draw.choice((", ", ",", " , ")).join(entry(draw, value) for value in values)


def _braces(draw: random.Random, values: Sequence[Fraction]) -> str:
    opening, closing = draw.choice((("\\{", "\\}"), ("\\left\\{", "\\right\\}")))
    return f"{opening}{_several(draw, values)}{closing}"


def sets(draw: random.Random, same: bool) -> Draft:
    """Sets in any order; a subset, a superset and a tuple are others."""
    values = _ascending(draw, draw.randint(2, 5))
    shuffled = draw.sample(values, len(values))
    if same:
        return _braces(draw, values), _braces(draw, shuffled + shuffled[: draw.choice((0, 0, 1))])
    changed = [*values[:-1], values[-1] + 1]
    wrong = [
        _braces(draw, values[1:]),
        _braces(draw, [*values, values[-1] + 1]),
        _braces(draw, changed),
        f"({_several(draw, values)})",
        f"[{_several(draw, values)}]",
        entry(draw, values[0]),
    ]
    return _braces(draw, values), draw.choice(wrong)


def tuples(draw: random.Random, same: bool) -> Draft:
    """Tuples in their order and their brackets."""
    values = _ascending(draw, draw.randint(2, 4))
    draw.shuffle(values)
    if same:
        return f"({_several(draw, values)})", f"\\left({_several(draw, values)}\\right)"
    turned = [*values[1:], values[0]]
    wrong = [
        f"({_several(draw, turned)})",
        f"({_several(draw, [*values[:-1], values[-1] + 1])})",
        f"({_several(draw, [*values, values[0]])})",
        _braces(draw, values),
        f"[{_several(draw, values)}]",
        _several(draw, values),
    ]
    return f"({_several(draw, values)})", draw.choice(wrong)


def _matrix(draw: random.Random, rows: Sequence[Sequence[Fraction]]) -> str:
    body = " \\\\ ".join(" & ".join(entry(draw, value) for value in row) for row in rows)
    kind = draw.choice(("pmatrix", "bmatrix", "array", "list"))
    if kind == "list":
        return "[" + ", ".join("[" + ", ".join(entry(draw, value) for value in row) + "]" for row in rows) + "]"
    if kind == "array":
        return f"\\left[\\begin{{array}}{{{'c' * len(rows[0])}}} {body} \\end{{array}}\\right]"
    return f"\\begin{{{kind}}} {body} \\end{{{kind}}}"


def matrices(draw: random.Random, same: bool) -> Draft:
    """Matrices; the transpose and a changed entry are others."""
    height, width = draw.randint(2, 3), draw.randint(2, 3)
    values = _ascending(draw, height * width)
    draw.shuffle(values)
    rows = [values[i * width : (i + 1) * width] for i in range(height)]
    if same:
        return _matrix(draw, rows), _matrix(draw, rows)
    changed = [[*rows[0][:-1], rows[0][-1] + 1], *rows[1:]]
    transposed = [list(column) for column in zip(*rows, strict=True)]
    wrong = [_matrix(draw, m) for m in (changed, transposed, rows[::-1], rows[:-1] + [rows[0]])]
    return _matrix(draw, rows), draw.choice((*wrong, f"({_several(draw, values)})"))


def options(draw: random.Random, same: bool) -> Draft:
    """Letters of a multiple-choice question."""
    letters = sorted(draw.sample("ABCDEFGH", draw.choice((1, 1, 1, 2, 3))))
    if len(letters) == 1:
        letter = letters[0] if same else draw.choice([x for x in "ABCDEFGH" if x != letters[0]])
        forms = ["{}", "({})", "{}.", "\\text{{{}}}", "\\boxed{{{}}}", "\\text{{({})}}", "选{}", "Option {}"]
        if not same and draw.random() < 0.4:
            return letters[0], draw.choice((f"{letters[0]} or {letter}", f"{letters[0]}{letter}", letters[0].lower()))
        return letters[0], draw.choice(forms).format(letter)
    gold = "".join(letters)
    if same:
        return gold, draw.choice((", ".join(letters), ", ".join(letters[::-1]), gold))
    more = sorted({*letters, draw.choice([x for x in "ABCDEFGH" if x not in letters])})
    return gold, ", ".join(draw.choice((letters[1:], more)))


def lists(draw: random.Random, same: bool) -> Draft:
    """Several solutions: all of them, and no others."""
    a, b = (Fraction(n) for n in draw.sample(range(1, 40), 2))
    if draw.random() < 0.5:
        if same:
            return f"x = \\pm {a}", draw.choice((f"x = {a} or x = -{a}", f"\\pm {a}", f"x = -{a}, x = {a}"))
        return f"x = \\pm {a}", draw.choice((f"x = {a}", f"\\pm {b}", f"x = {a} or x = {b}", f"-{a}"))
    gold = f"x = {a} \\text{{ or }} x = {b}"
    if same:
        return gold, draw.choice((f"x = {b} or x = {a}", f"{a} \\text{{ or }} {b}", f"x={b}, x={a}"))
    return gold, draw.choice((f"x = {a}", f"x = {b} or x = {a + b}", f"x = {a} or x = {b} or x = {a + b}", f"y = {a}"))


_FULL_WIDTH = str.maketrans({character: chr(ord(character) + 0xFEE0) for character in "0123456789(),%="})


def chinese_punctuation(draw: random.Random, same: bool) -> Draft:
    """Full-width digits and signs, Chinese commas and units."""
    form = draw.randrange(4)
    values = [Fraction(_int(draw)) for _ in range(draw.randint(2, 3))]
    others = list(values)
    if not same:
        others[draw.randrange(len(others))] += 1
    if form == 0:
        return str(values[0]), f"{values[0] if same else values[0] + 1}。".translate(_FULL_WIDTH)
    if form == 1:
        answer = "（" + draw.choice(("，", "、", ",")).join(map(str, others)) + "）"
        return f"({', '.join(map(str, values))})", answer
    if form == 2:
        value = draw.randint(1, 500)
        unit, scale = draw.choice((("厘米", 1), ("米", 100), ("公里", 100_000)))
        return f"{value * scale} cm", f"{value if same else value + 1}{draw.choice(('', ' '))}{unit}"
    value = draw.randint(1, 99)
    return f"{value}\\%", f"{value if same else value + 1}％".translate(_FULL_WIDTH)


VALUES: dict[str, Maker] = {
    "integers": integers,
    "decimals": decimals,
    "fractions": fractions,
    "mixed numbers": mixed_numbers,
    "percentages": percentages,
    "units": units,
    "asked units": asked_units,
    "intervals": intervals,
    "sets": sets,
    "tuples": tuples,
    "matrices": matrices,
    "options": options,
    "lists": lists,
    "Chinese punctuation": chinese_punctuation,
}


def found_pairs(path: pathlib.Path = FOUND) -> list[Pair]:
    """The cases found in the wild."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [Pair(**{"kind": "found", **json.loads(line)}) for line in lines if line.strip()]


def make_pairs(makers: dict[str, Maker], count: int, seed: int = 0) -> list[Pair]:
    """`count` pairs that are the same and `count` that are not, of every kind."""
    pairs = []
    for kind, maker in makers.items():
        for same in (True, False):
            draw = random.Random(f"{seed} {kind} {same}")
            for _ in range(count):
                gold, answer, *question = maker(draw, same)
                pairs.append(Pair(kind, gold, answer, same, question[0] if question else ""))
    return pairs
