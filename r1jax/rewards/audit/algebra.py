r"""Pairs of equations and expressions for the audit: equal by an identity written here, others by a changed number."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from fractions import Fraction

from r1jax.rewards.audit.cases import Draft, Maker


def _int(draw: random.Random, low: int = -9, high: int = 9) -> int:
    while True:
        if value := draw.randint(low, high):
            return value


def term(coefficient: int, letters: str) -> str:
    """A signed term: "+ 3x", "- x"."""
    size = abs(coefficient)
    return ("-" if coefficient < 0 else "+") + (str(size) if size != 1 or not letters else "") + letters


def total(terms: Sequence[tuple[int, str]]) -> str:
    """A sum of terms with whole coefficients, none 0."""
    text = " ".join(term(c, letters) for c, letters in terms if c)
    return text.removeprefix("+") or "0"


def _powers(coefficients: Sequence[int], letter: str) -> list[tuple[int, str]]:
    """Terms of a polynomial; coefficients from the lowest power."""
    names = ["", letter, *(f"{letter}^{{{n}}}" if n > 9 else f"{letter}^{n}" for n in range(2, len(coefficients)))]
    return list(zip(coefficients, names, strict=False))[::-1]


def _times(left: Sequence[int], right: Sequence[int]) -> list[int]:
    product = [0] * (len(left) + len(right) - 1)
    for i, a in enumerate(left):
        for j, b in enumerate(right):
            product[i + j] += a * b
    return product


def _spoiled(draw: random.Random, coefficients: Sequence[int]) -> list[int]:
    """Another polynomial."""
    changed = list(coefficients)
    at = draw.randrange(len(changed))
    changed[at] += draw.choice([change for change in (1, -1, -2 * changed[at]) if change])
    return changed


def _factors(letter: str, roots: Sequence[tuple[int, int]]) -> str:
    return "".join(f"({total([(a, letter), (b, '')])})" for a, b in roots)


def equations(draw: random.Random, same: bool) -> Draft:
    """Lines in two variables and values of one: a multiple is the same equation."""
    a, b, c, k = _int(draw), _int(draw), _int(draw, -20, 20), draw.choice((1, -1, 2, 3, -4))
    if draw.random() < 0.4:
        value = Fraction(_int(draw, -30, 30), draw.randint(1, 5))
        letter, other = draw.sample("xynt", 2)
        written = f"\\frac{{{value.numerator}}}{{{value.denominator}}}" if value.denominator > 1 else str(value)
        gold = f"{letter} = {written}"
        if same:
            p, q = value.numerator, value.denominator
            return gold, draw.choice((written, f"{letter}={p}/{q}", f"{total([(q, letter)])} = {p}", f"${gold}$"))
        wrong = (
            f"{other} = {written}",
            f"{letter} = {written} + 1",
            f"{letter} = -({written})",
            f"{letter} > {written}",
        )
        return gold, draw.choice((*wrong, f"{letter} = {written} or {letter} = {abs(value.numerator) + 99}"))
    gold = f"{total([(a, 'x'), (b, 'y')])} = {c}"
    ka, kb, kc = k * a, k * b, k * c
    if not same:
        ka, kb, kc = [(ka + k, kb, kc), (ka, -kb, kc), (ka, kb, kc + 1)][draw.randrange(3)]
        if draw.random() < 0.2:
            return gold, f"{total([(a, 'x'), (b, 'y')])} \\le {c}"
        if ka == 0:
            ka = 5 * k * a
    forms = (
        f"{total([(ka, 'x'), (kb, 'y'), (-kc, '')])} = 0",
        f"{total([(ka, 'x')])} = {total([(-kb, 'y'), (kc, '')])}",
        f"y = \\frac{{{total([(-ka, 'x'), (kc, '')])}}}{{{kb}}}",
    )
    return gold, draw.choice(forms)


def inequalities(draw: random.Random, same: bool) -> Draft:
    """Half planes: turned around with the sign, or not."""
    a, b, c = _int(draw), _int(draw), _int(draw, -20, 20)
    sign, turned = draw.choice((("<", ">"), (">", "<"), ("\\le", "\\ge"), ("\\geq", "\\leq")))
    gold = f"{total([(a, 'x'), (b, 'y')])} {sign} {c}"
    opposite = total([(-a, "x"), (-b, "y")])
    double = total([(2 * a, "x"), (2 * b, "y")])
    if same:
        return gold, draw.choice(
            (f"{opposite} {turned} {-c}", f"{double} {sign} {2 * c}", f"{c} {turned} {gold.split(sign)[0]}")
        )
    return gold, draw.choice(
        (f"{opposite} {sign} {-c}", f"{double} {turned} {2 * c}", f"{double} {sign} {2 * c + 1}", f"{double} = {2 * c}")
    )


def joined_statements(draw: random.Random, same: bool) -> Draft:
    """Inequalities and equations joined by "and" or by "or"; solutions of one unknown are a list with either."""
    a, b = sorted(draw.sample(range(-30, 31), 2))
    both = draw.choice((", ", " and ", " \\text{ and } "))
    either = draw.choice((" or ", " \\text{ or } "))
    x, y = draw.sample("xyt", 2)
    # (one notation, another, something else)
    statements = (
        (f"{a} < {x} < {b}", f"{x} > {a}{both}{x} < {b}", f"{x} > {a}{either}{x} < {b}"),
        (f"({a}, {b}]", f"{x} \\le {b}{both}{x} > {a}", f"{x} \\le {b}{either}{x} > {a}"),
        (f"{x} < {a} or {x} > {b}", f"{x} > {b}{either}{x} < {a}", f"{x} < {a}{both}{x} > {b}"),
        (f"{x} \\ge {a}, {x} \\ne {b}", f"{x} \\ne {b}{both}{a} \\le {x}", f"{x} \\ge {a}{either}{x} \\ne {b}"),
        (f"{x} = {a}, {y} = {b}", f"{y} = {b}{both}{x} = {a}", f"{x} = {a}{either}{y} = {b}"),
        (f"{x} = {a}{both}{x} = {b}", f"{x} = {b}{either}{x} = {a}", f"({a}, {b})"),
        (f"{x} = {a}{either}{x} = {b}", f"{b}, {a}", f"[{a}, {b}]"),
    )
    left, right, wrong = draw.choice(statements)
    return left, (right if same else wrong)


def named_tuples(draw: random.Random, same: bool) -> Draft:
    """Pairs with the names of their numbers, which may stand in any order, and without."""
    a, b = draw.sample(range(-30, 31), 2)
    gold = draw.choice((f"({a}, {b})", f"(x, y) = ({a}, {b})", f"x = {a}, y = {b}"))
    if not same:
        return gold, draw.choice((f"(y, x) = ({a}, {b})", f"(x, y) = ({b}, {a})", f"x = {b}, y = {a}", f"({b}, {a})"))
    answers = [f"(y, x) = ({b}, {a})", f"(x, y) = ({a}, {b})", f"({a}, {b})"]
    if gold.startswith(("(x", "x")):
        answers.append(f"y = {b}, x = {a}")
    return gold, draw.choice(answers)


def polynomials(draw: random.Random, same: bool) -> Draft:
    """Products of linear factors, multiplied out."""
    letter = draw.choice("xtna")
    roots = [(draw.choice((1, 1, 2, 3)), _int(draw)) for _ in range(draw.randint(2, 4))]
    product = [1]
    for a, b in roots:
        product = _times(product, [b, a])
    written = _factors(letter, roots)
    if draw.random() < 0.3:  # a square
        roots = [roots[0]] * 2
        product = _times([roots[0][1], roots[0][0]], [roots[0][1], roots[0][0]])
        written = f"({total([(roots[0][0], letter), (roots[0][1], '')])})^2"
    expanded = total(_powers(product if same else _spoiled(draw, product), letter))
    return (written, expanded) if draw.random() < 0.5 else (expanded, written)


def rational_functions(draw: random.Random, same: bool) -> Draft:
    """Partial fractions and their sum over the common denominator."""
    p, q = draw.sample([n for n in range(-6, 7) if n], 2)
    a, b = _int(draw), _int(draw)
    first, second = total([(1, "x"), (p, "")]), total([(1, "x"), (q, "")])
    parts = f"\\frac{{{a}}}{{{first}}} + \\frac{{{b}}}{{{second}}}"
    top = [a * q + b * p, a + b]
    if not same:
        top = _spoiled(draw, top)
    if not any(top):
        top = [1, 0] if not same else top
    written = f"\\frac{{{total(_powers(top, 'x'))}}}{{({first})({second})}}"
    return (parts, written) if draw.random() < 0.5 else (written, parts)


def trigonometry(draw: random.Random, same: bool) -> Draft:
    """Identities of sine, cosine and tangent; a wrong sign or factor is no identity."""
    k, c = draw.randint(1, 5), draw.randint(2, 9)
    x = draw.choice(("x", "\\theta", "t", "\\alpha"))
    kx = x if k == 1 else f"{k}{x}"
    twice = f"{2 * k}{x}"
    sign, wrong_sign = draw.choice((("+", "-"), ("-", "+")))
    # (one side, the other, something else)
    identities = (
        (f"{c}\\sin({twice})", f"{2 * c}\\sin({kx})\\cos({kx})", f"{c}\\sin({kx})\\cos({kx})"),
        (f"\\cos({twice})", f"1 - 2\\sin^2({kx})", f"1 - \\sin^2({kx})"),
        (f"\\cos {twice}", f"2\\cos^2 {kx} - 1", f"2\\cos^2 {kx} + 1"),
        (f"{c}\\tan({kx})", f"\\frac{{{c}\\sin({kx})}}{{\\cos({kx})}}", f"\\frac{{{c}\\cos({kx})}}{{\\sin({kx})}}"),
        (f"{c} - {c}\\sin^2 {kx}", f"{c}\\cos^2 {kx}", f"{c}\\cos {kx}"),
        (f"\\sin({kx} {sign} y)", f"\\sin({kx})\\cos(y) {sign} \\cos({kx})\\sin(y)", f"\\sin({kx}) {sign} \\sin(y)"),
        (
            f"\\cos({kx} {sign} y)",
            f"\\cos({kx})\\cos(y) {wrong_sign} \\sin({kx})\\sin(y)",
            f"\\cos({kx})\\cos(y) {sign} \\sin({kx})\\sin(y)",
        ),
        (f"\\sin({kx} + \\frac{{\\pi}}{{2}})", f"\\cos({kx})", f"-\\cos({kx})"),
        (f"{c}\\sec^2({kx})", f"{c} + {c}\\tan^2({kx})", f"{c} - {c}\\tan^2({kx})"),
    )
    left, right, wrong = draw.choice(identities)
    answer = right if same else wrong
    return (left, answer) if draw.random() < 0.5 else (answer, left)


def _squarefree(draw: random.Random) -> int:
    return draw.choice((2, 3, 5, 6, 7, 10, 11, 13, 14, 15))


def radicals(draw: random.Random, same: bool) -> Draft:
    """Roots taken out and rationalized; a decimal near a root is another number."""
    s, m, n = draw.randint(2, 9), _squarefree(draw), draw.randint(2, 9)
    root = f"\\sqrt{{{s * s * m}}}"
    near = f"{s * math.sqrt(m):.{draw.randint(2, 12)}f}"
    other = _squarefree(draw)
    identities = (
        (root, f"{s}\\sqrt{{{m}}}", (f"{s + 1}\\sqrt{{{m}}}", near, f"{m}\\sqrt{{{s}}}" if m != s else near)),
        (f"\\frac{{{n}}}{{\\sqrt{{{m}}}}}", f"\\frac{{{n}\\sqrt{{{m}}}}}{{{m}}}", (f"\\frac{{\\sqrt{{{m}}}}}{{{n}}}",)),
        (f"({n} + \\sqrt{{{m}}})({n} - \\sqrt{{{m}}})", f"{n * n - m}", (f"{n * n + m}", f"{n - m}" if n > 1 else "0")),
        (
            f"({n} + \\sqrt{m if m < 10 else '{' + str(m) + '}'})^2",
            f"{n * n + m} + {2 * n}\\sqrt{{{m}}}",
            (f"{n * n + m}",),
        ),
        (f"\\sqrt[3]{{{s**3 * m}}}", f"{s}\\sqrt[3]{{{m}}}", (f"{s}\\sqrt{{{m}}}", f"{s * s}\\sqrt[3]{{{m}}}")),
        (f"{m}^{{1/2}}", f"√{m}", (f"{m}/2", f"\\sqrt{{{m + 1}}}")),
        (f"{n}\\sqrt{{{m}}} + {s}\\sqrt{{{m}}}", f"{n + s}\\sqrt{{{m}}}", (f"{n + s}\\sqrt{{{2 * m}}}",)),
        (
            f"\\sqrt{{{m}}} \\cdot \\sqrt{{{other}}}",
            f"\\sqrt{{{m * other}}}",
            (f"\\sqrt{{{m + other + (m == other)}}}",),
        ),  # 2 + 2 = 2 * 2
    )
    left, right, wrong = draw.choice(identities)
    return left, (right if same else draw.choice(wrong))


def powers_and_logarithms(draw: random.Random, same: bool) -> Draft:
    """Laws of powers and logarithms, scientific notation, constants."""
    a, b, k = draw.randint(2, 9), draw.randint(2, 9), draw.randint(2, 6)
    scientific = a * 10**k
    identities = (
        (f"\\ln({a * b})", f"\\ln {a} + \\ln {b}", f"\\ln({a}) \\cdot \\ln({b})"),
        (f"\\log_{{{a}}} {a**k}", f"{k}", f"{k + 1}"),
        (f"\\ln({a}^{k})", f"{k}\\ln {a}", f"{a}\\ln {k}" if a != k and {a, k} != {2, 4} else f"{k + 1}\\ln {a}"),
        (f"e^{{{a}x}} \\cdot e^{{{b}}}", f"e^{{{a}x+{b}}}", f"e^{{{a}x}} + e^{{{b}}}"),
        (f"{a} \\times 10^{{{k}}}", f"{scientific:,}", f"{scientific * 10}"),
        (f"{a} \\times 10^{{-{k}}}", f"\\frac{{{a}}}{{{10**k}}}", f"{a} \\times 10^{{{k}}}"),
        (f"\\frac{{x^{{{a + b}}}}}{{x^{a}}}", f"x^{b}", f"x^{{{a + b}}} - x^{a}"),
        (f"(x^{a})^{b}", f"x^{{{a * b}}}", f"x^{{{a + b}}}" if a + b != a * b else f"x^{{{a * b + 1}}}"),
        (f"{a}x^{{-{k}}}", f"\\frac{{{a}}}{{x^{k}}}", f"-{a}x^{k}"),
        (f"{a}\\pi + {b}\\pi", f"{a + b}\\pi", f"{(a + b) * math.pi:.6f}"),
        (f"\\frac{{{a}\\pi}}{{{b}}}", f"\\frac{{{a}}}{{{b}}}\\pi", f"\\frac{{{a}}}{{{b}\\pi}}"),
        (f"\\frac{{{k + 1}!}}{{{k}!}}", f"{k + 1}", f"{k}"),
        (f"\\binom{{{a + b}}}{{{a}}}", f"{math.comb(a + b, a)}", f"{math.comb(a + b, a) + 1}"),
        (f"({a} + {b}i)({a} - {b}i)", f"{a * a + b * b}", f"{a * a - b * b}"),
    )
    left, right, wrong = draw.choice(identities)
    return left, (right if same else wrong)


def notations(draw: random.Random, same: bool) -> Draft:
    """One expression typed in plain text and in LaTeX; capital letters and indices are variables of their own."""
    a, b, n = draw.randint(2, 9), draw.randint(2, 9), draw.randint(2, 5)
    cases = (
        (f"\\frac{{x + {a}}}{{y}}", f"(x+{a})/y", f"x+{a}/y"),
        (f"{a} \\cdot {b} x", f"{a * b}x", f"{a}{b}x" if a * b != int(f"{a}{b}") else "x"),
        (f"x^{{{n}}} y", f"y x^{n}", f"x^{n} + y"),
        (f"\\sqrt{{x + {a}}}", f"sqrt(x+{a})", f"sqrt(x)+{a}"),
        (f"{a}\\pi r^2", f"{a}*pi*r^2".replace("pi", "\\pi"), f"{a}\\pi R^2"),
        (f"a_{{{a}}} + {b}", f"{b} + a_{a}", f"a_{{{a + 1}}} + {b}"),
        (f"|x - {a}|", f"|{a} - x|", f"x - {a}"),
        (f"|x - {a}{b}{n}|", f"|{a}{b}{n} - x|", f"{a}{b}{n} - x"),
        (f"\\sqrt{{(x + {a}{b}0)^2}}", f"|x + {a}{b}0|", f"x + {a}{b}0"),
        (f"|{a}x - {b}000y|", f"|{b}000y - {a}x|", f"{b}000y - {a}x"),
        (f"n(n+{a})", f"n^2 + {a}n", f"n^2 + {a}"),
        (f"{a}x", f"x*{a}", f"{a}X"),
        (f"f(x) = {a}x + {b}", f"{b} + {a}x", f"{a} + {b}x" if a != b else f"{a}x"),
        (f"\\frac{{1}}{{{a}}}x", f"\\frac{{x}}{{{a}}}", f"\\frac{{1}}{{{a}x}}"),
        (f"-\\frac{{x}}{{{a}}}", f"\\frac{{-x}}{{{a}}}", f"\\frac{{x}}{{{a}}}"),
    )
    left, right, wrong = draw.choice(cases)
    return left, (right if same else wrong)


ALGEBRA: dict[str, Maker] = {
    "equations": equations,
    "inequalities": inequalities,
    "joined statements": joined_statements,
    "named tuples": named_tuples,
    "polynomials": polynomials,
    "rational functions": rational_functions,
    "trigonometry": trigonometry,
    "radicals": radicals,
    "powers and logarithms": powers_and_logarithms,
    "notations": notations,
}
