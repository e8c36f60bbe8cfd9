r"""An answer's text as tokens: LaTeX, plain notation, Chinese punctuation and Unicode signs become the same ones.

Only what is listed here is let through: a character, command or word not listed makes an answer "not understood"
(`NotUnderstood`), never something to guess at. Nothing is evaluated. No JAX: grading processes import this.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

from r1jax.rewards.mathematics.units import is_unit

MAX_LENGTH = 1000  # characters


class NotUnderstood(ValueError):
    """The text is not an answer of a kind that is known here; the message says why."""


@dataclasses.dataclass(frozen=True)
class Token:
    r"""One piece of an answer.

    kind: "number", "name" (a run of letters), "text" (words of \text{...}, units), "command" (`\frac`), "sign".
    """

    kind: str
    value: str

    def __str__(self) -> str:
        return self.value


def words(text: str) -> frozenset[str]:
    """The words of a list written as one text."""
    return frozenset(text.split())


FUNCTIONS = words("sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh ln log lg exp sqrt")
GREEK = words(
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau phi "
    "varphi chi psi omega Gamma Delta Theta Lambda Sigma Phi Psi Omega"
)
_ADVANCED = frozenset(("int", "sum", "prod", "lim", "to", "partial", "det"))  # left to math-verify
_COMMANDS = FUNCTIONS | GREEK | _ADVANCED | {"surd", "frac", "binom", "pi", "infty", "emptyset", "overline"}
# What several notations have in common. Keys are commands without the backslash.
_SAME = {
    "dfrac": "\\frac",
    "tfrac": "\\frac",
    "cfrac": "\\frac",
    "dbinom": "\\binom",
    "tbinom": "\\binom",
    "times": "*",
    "cdot": "*",
    "div": "/",
    "le": "<=",
    "leq": "<=",
    "leqslant": "<=",
    "ge": ">=",
    "geq": ">=",
    "geqslant": ">=",
    "lt": "<",
    "gt": ">",
    "ne": "!=",
    "neq": "!=",
    "in": "in",
    "cup": "union",
    "cap": "intersection",
    "setminus": "minus",
    "backslash": "minus",
    "varnothing": "\\emptyset",
    "lvert": "|",
    "rvert": "|",
    "vert": "|",
    "mid": "|",
    "lbrace": "\\{",
    "rbrace": "\\}",
    "lbrack": "[",
    "rbrack": "]",
    "pm": "+-",
    "mp": "-+",
    "degree": "°",
    "circ": "°",
    "lor": "or",
    "vee": "or",
    "R": "reals",
    "bar": "\\overline",
    "rightarrow": "\\to",
    "arcctg": "\\arccot",
    "tg": "\\tan",
    "ctg": "\\cot",
}
_NOTHING = words(
    "left right big Big bigg Bigg bigl bigr Bigl Bigr biggl biggr displaystyle textstyle limits nolimits quad qquad "
    "enspace thinspace"
)
_UNICODE = {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)} | str.maketrans(  # full-width ASCII
    {
        "\u3000": " ",
        "\u00a0": " ",
        "。": ".",
        "、": ",",
        "【": "[",
        "】": "]",
        "−": "-",
        "–": "-",
        "—": "-",
        "×": "*",
        "·": "*",
        "⋅": "*",
        "÷": "/",
        "≤": "\\le ",
        "≥": "\\ge ",
        "⩽": "\\le ",
        "⩾": "\\ge ",
        "≠": "\\ne ",
        "∞": "\\infty ",
        "π": "\\pi ",
        "√": "\\surd ",
        "∪": "\\cup ",
        "∩": "\\cap ",
        "∖": "\\setminus ",
        "∈": "\\in ",
        "∅": "\\emptyset ",
        "ℝ": "\\R ",
        "±": "\\pm ",
        "∓": "\\mp ",
        "θ": "\\theta ",
        "α": "\\alpha ",
        "β": "\\beta ",
        "λ": "\\lambda ",
        "φ": "\\phi ",
        "ω": "\\omega ",
        "⁰": "^{0}",
        "¹": "^{1}",
        "²": "^{2}",
        "³": "^{3}",
        "⁴": "^{4}",
        "½": "\\frac{1}{2}",
        "¼": "\\frac{1}{4}",
        "¾": "\\frac{3}{4}",
        "⅓": "\\frac{1}{3}",
        "⅔": "\\frac{2}{3}",
    }
)
_HAN = "\u4e00-\u9fff"
_THOUSANDS = r"[0-9]{1,3}(?:(?:,|\{,\}|,\\!|\\,)[0-9]{3})+(?![0-9])"
_PIECE = re.compile(
    r"(?P<space>\s+|~(?!\s*[0-9.])|\\[,;:! ])"
    r"|(?P<newline>\\\\)"
    r"|\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mathsf|operatorname|mbox)\s*\{(?P<text>[^{}\\]*)\}"
    r"|\\mathbb\s*(?:\{(?P<set>[A-Z])\}|(?P<bare_set>[A-Z]))"
    r"|\\(?P<side>begin|end)\s*\{(?P<environment>[A-Za-z]+)\}(?P<columns>\{[lcr| ]*\})?"
    r"|\\(?P<command>[A-Za-z]+)"
    r"|\\(?P<escaped>[{}%$|])"
    rf"|(?P<thousands>{_THOUSANDS})(?P<behind>\.[0-9]+)?"
    r"|(?P<number>[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
    rf"|(?P<word>[A-Za-z]+|[{_HAN}]+)"
    r"|(?P<sign>\*\*|<=|>=|!=|[-+*/^_!|()\[\]{},;:=<>&%°$€£¥])"
)
_DELIMITERS = (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"))
_INLINE = re.compile(r"\\[()]|(?<!\\)\$")
_AND = frozenset(("or", "and", "或", "和"))
ENVIRONMENTS = frozenset(("pmatrix", "bmatrix", "Bmatrix", "matrix", "smallmatrix", "array"))


def _undelimited(text: str) -> str:
    """`text` without the marks of mathematics; a single dollar sign before a number is money."""
    text = text.strip()
    for end in ("", "."):
        inner = text.removesuffix(end).strip()
        for opening, closing in _DELIMITERS:
            if len(inner) > len(opening) + len(closing) and inner.startswith(opening) and inner.endswith(closing):
                between = inner[len(opening) : -len(closing)]
                if opening not in between:
                    return between.strip().removesuffix(".")
    if len(re.findall(r"(?<!\\)\$", text)) % 2 == 0:
        text = _INLINE.sub(" ", text)
    return text.strip().removesuffix(".").strip()


def _word(word: str) -> Iterator[Token]:
    if word in _AND:
        yield Token("sign", "or" if word in ("or", "或") else ",")
    elif word == "sqrt":
        yield Token("command", "\\surd")
    elif word in FUNCTIONS or word == "pi":
        yield Token("command", "\\" + word)
    elif word in ("inf", "infty", "infinity", "oo"):
        yield Token("command", "\\infty")
    elif word == "U":
        yield Token("sign", "union")
    elif (glued := re.fullmatch(r"(sin|cos|tan|ln|log)([a-z])", word)) is not None:
        yield Token("command", "\\" + glued[1])
        yield Token("name", glued[2])
    elif is_unit(word) and len(word) > 1:
        yield Token("text", word)
    else:
        yield Token("name", word)


def _text(text: str) -> Iterator[Token]:
    text = text.strip()
    if text in _AND or text in FUNCTIONS or (len(text) == 1 and text.isalpha() and not is_unit(text)):
        yield from _word(text)
    elif text:
        yield Token("text", text)


def _command(name: str) -> Iterator[Token]:
    if name in _NOTHING:
        return
    same = _SAME.get(name)
    if same is not None:
        yield Token("command" if same.startswith("\\") and same[1:].isalpha() else "sign", same)
    elif name in _COMMANDS:
        yield Token("command", "\\" + name)
    else:
        raise NotUnderstood(f"\\{name} is not known")


def _sign(sign: str) -> Token:
    return Token("sign", {"**": "^", ";": ",", "escaped%": "%"}.get(sign, sign))


def _depth_change(value: str) -> int:
    return {"(": 1, "[": 1, "\\{": 1, ")": -1, "]": -1, "\\}": -1}.get(value, 0)


def tokens_of(text: str) -> list[Token]:
    """The tokens of an answer. Raises NotUnderstood for what is not known here."""
    if len(text) > MAX_LENGTH:
        raise NotUnderstood(f"longer than {MAX_LENGTH} characters")
    text = _undelimited(text.translate(_UNICODE))
    found: list[Token] = []
    position, depth = 0, 0
    while position < len(text):
        piece = _PIECE.match(text, position)
        if piece is None:
            raise NotUnderstood(f"{text[position]!r} is not known")
        position = piece.end()
        groups = piece.groupdict()
        if groups["thousands"] and depth and not re.search(r"[{\\]", groups["thousands"]):
            whole = groups["thousands"].split(",")[0]  # (1,200) is a pair
            position = piece.start() + len(whole)
            found.append(Token("number", whole))
            continue
        new = list(_tokens_of_piece(groups))
        depth += sum(_depth_change(token.value) for token in new if token.kind == "sign")
        found += new
    return found


def _tokens_of_piece(groups: dict[str, str | None]) -> Iterator[Token]:
    if groups["newline"]:
        yield Token("sign", "\\\\")
    elif groups["text"] is not None:
        yield from _text(groups["text"])
    elif (letter := groups["set"] or groups["bare_set"]) is not None:
        if letter != "R":
            raise NotUnderstood(f"the set {letter} is not known")
        yield Token("sign", "reals")
    elif groups["side"]:
        if groups["environment"] not in ENVIRONMENTS:
            raise NotUnderstood(f"the environment {groups['environment']} is not known")
        yield Token("sign", groups["side"])
    elif groups["command"]:
        yield from _command(groups["command"])
    elif groups["escaped"]:
        yield Token("sign", {"{": "\\{", "}": "\\}", "|": "|"}.get(groups["escaped"], groups["escaped"]))
    elif groups["thousands"]:
        yield Token("number", re.sub(r"[^0-9]", "", groups["thousands"]) + (groups["behind"] or ""))
    elif groups["number"]:
        yield Token("number", groups["number"])
    elif groups["word"]:
        yield from _word(groups["word"])
    elif groups["sign"]:
        yield _sign(groups["sign"])
