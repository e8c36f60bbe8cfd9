r"""The accuracy reward for answers that are numbers, sequences of numbers, or option letters.

Numbers are compared exactly, as fractions: 1/2 = 0.5 = \frac{1}{2} = 50/100, 1,000 = 1000.0, and 0.333 is not 1/3.
What is read as a number: ASCII digits with an optional sign (+, -, U+2212), thousands separators in threes, a decimal
part, a period behind ("12."), a/b and LaTeX fractions of whole numbers, alone or behind one (2\frac{1}{2}, 2 1/2).
Delimiters of mathematics ($...$, \(...\)), a currency or percent sign, a degree sign, `x =`, \text{...} and \boxed{...}
are taken off first. Full-width and other look-alike digits, superscripts, spelled-out numbers, powers of ten and
expressions are not numbers here.

The answer must be the number and nothing else, so "9 or 10", "not 9" and "8, 9" are wrong where the reference is 9; but
one \boxed{...} stands for the whole answer, whatever is written around it.
When the reference states several numbers, the answer must state the same ones in the same order, unless they are a set.
"""

from __future__ import annotations

import dataclasses
import re
from fractions import Fraction

from r1jax.rewards.answer import extract_final_answer, normalize_space
from r1jax.types import Example, Score, Status

MAX_LENGTH = 1000  # characters of an answer that are looked at; longer ones are no numbers (and int() would be slow)

_MINUS = "\u2212"
_WHOLE = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)"
_NUMBER = re.compile(rf"([+-]?)\s*(?:({_WHOLE})(?:\.([0-9]*))?|\.([0-9]+))")
_SLASH_FRACTION = re.compile(rf"([+-]?)\s*({_WHOLE})/([+-]?)({_WHOLE})")
_LATEX_FRACTION = re.compile(
    rf"([+-]?)\s*\\[dt]?frac\s*(?:\{{\s*([+-]?{_WHOLE})\s*\}}|([0-9]))\s*(?:\{{\s*([+-]?{_WHOLE})\s*\}}|([0-9]))"
)
_MIXED_NUMBER = re.compile(rf"([+-]?)\s*({_WHOLE})(?:\s*(\\[dt]?frac.*)|\s+({_WHOLE}/{_WHOLE})\.?)", re.DOTALL)
_AROUND_SLASH = re.compile(r"\s*/\s*")
_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])")
_MATH_DELIMITERS = (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"))
_LATEX_THOUSANDS = re.compile(r"(?<=[0-9])(?:\{,\}|\\,)(?=[0-9]{3}(?![0-9]))")
_WRAPPER = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}")
_NAME = re.compile(r"^[A-Za-z]\s*=\s*")
_UNIT_BEFORE = re.compile(r"^(?:\\?[$€£]|¥)\s*")
_UNIT_BEHIND = re.compile(r"\s*(?:\\?[%$]|°|\^\s*\\circ|\^\s*\{\s*\\circ\s*\})\.?$")
_BRACKETED = re.compile(r"(?:\\left)?\s*(\(|\[|\\?\{)(.*?)(?:\\right)?\s*(\)|\]|\\?\})", re.DOTALL)
_SEPARATOR = re.compile(r"\s*(?:,(?![0-9]{3}(?![0-9]))|[;，、])\s*|\s+")  # not the comma of 3,800 ...
_SEPARATOR_IN_BRACKETS = re.compile(r"\s*[,;，、]\s*")  # ... but that of (3,800)
_OPTION = re.compile(r"\(([A-J])\)|([A-J])[.)]?")


@dataclasses.dataclass(frozen=True)
class Value:
    """An answer that was understood: one or several numbers with the brackets around them, or an option letter."""

    numbers: tuple[Fraction, ...] = ()
    brackets: str = ""  # "()", "[]", "[)", ...: an interval is not a point; empty for a bare number or sequence
    option: str = ""

    def __str__(self) -> str:
        inside = ", ".join(str(number) for number in self.numbers)
        return self.option or (self.brackets[0] + inside + self.brackets[1] if self.brackets else inside)


def _whole(text: str) -> int:
    return int(text.replace(",", ""))


def _sign(text: str | None) -> int:
    return -1 if text == "-" else 1


def parse_number(text: str) -> Fraction | None:
    """The number that `text` is, exactly; None if it is anything else, or a number and something else."""
    if len(text) > MAX_LENGTH:
        return None
    text = text.strip().replace(_MINUS, "-")
    if found := _NUMBER.fullmatch(text):
        sign, whole, decimals, bare_decimals = found.groups()
        digits = decimals or bare_decimals or ""
        scale = 10 ** len(digits)
        return Fraction(_sign(sign) * ((_whole(whole) if whole else 0) * scale + int(digits or 0)), scale)
    if found := _SLASH_FRACTION.fullmatch(text.removesuffix(".")):
        sign, top, bottom_sign, bottom = found.groups()
        if _whole(bottom) == 0:
            return None
        return Fraction(_sign(sign) * _sign(bottom_sign) * _whole(top), _whole(bottom))
    if found := _LATEX_FRACTION.fullmatch(text.removesuffix(".")):
        sign, top, short_top, bottom, short_bottom = found.groups()
        numerator, denominator = _whole(top or short_top), _whole(bottom or short_bottom)
        return Fraction(_sign(sign) * numerator, denominator) if denominator else None
    if found := _MIXED_NUMBER.fullmatch(text):
        sign, whole, latex, plain = found.groups()
        part = parse_number(latex or plain)
        return None if part is None or not 0 <= part < 1 else _sign(sign) * (_whole(whole) + part)
    return None


def box_contents(text: str) -> list[str | None]:
    r"""The content of each \boxed{...} in order, None for one whose braces do not close."""
    contents: list[str | None] = []
    position = 0
    while found := _BOX.search(text, position):
        start = found.end()
        while start < len(text) and text[start].isspace():
            start += 1
        depth, end = 0, start
        while end < len(text):
            escaped = text[end - 1] == "\\"
            depth += {"{": 1, "}": -1}.get(text[end], 0) if not escaped else 0
            end += 1
            if depth <= 0:
                break
        closed = depth == 0 and end > start + 1
        contents.append(text[start + 1 : end - 1] if closed else None)
        position = end if closed else found.end()  # boxes within a box are its content
    return contents


def _bare(text: str) -> str:
    """`text` without the marks around an answer that do not change its value."""
    text = _LATEX_THOUSANDS.sub(",", text).replace("\\!", "").replace("\\,", " ")
    text = _WRAPPER.sub(r"\1", text).strip()
    inner = text.removesuffix(".")
    for opening, closing in _MATH_DELIMITERS:
        if len(inner) > len(opening) + len(closing) and inner.startswith(opening) and inner.endswith(closing):
            text = inner[len(opening) : -len(closing)].strip()
            break
    return _NAME.sub("", text, count=1).strip()


def _without_units(text: str) -> str:
    """`text` without a currency sign before it or a percent, currency or degree sign behind it."""
    text = text.strip()
    sign = text[:1] if text[:1] in ("-", "+", _MINUS) else ""
    return sign + _UNIT_BEHIND.sub("", _UNIT_BEFORE.sub("", text[len(sign) :].lstrip(), count=1), count=1)


def _parse_sequence(text: str) -> Value | None:
    """Two or more numbers between white space, commas or semicolons, in brackets or not."""
    brackets, separator = "", _SEPARATOR
    if found := _BRACKETED.fullmatch(text.removesuffix(".")):
        brackets, separator = found[1][-1] + found[3][-1], _SEPARATOR_IN_BRACKETS
        text = found[2].strip()
    numbers = []
    for part in separator.split(_AROUND_SLASH.sub("/", text)):
        number = parse_number(_without_units(part))
        if number is None:
            return None
        numbers.append(number)
    return Value(tuple(numbers), brackets) if len(numbers) > 1 else None


def stated_text(text: str) -> str | None:
    r"""The part of an answer that counts: the content of its one \boxed{...}, else all of it.

    None for several boxes or one that does not close, so that an earlier box is never credited when the last one is
    broken, and for a text that is too long.
    """
    if len(text) > MAX_LENGTH:
        return None
    boxes = box_contents(text)
    if not boxes:
        return text
    return boxes[0] if len(boxes) == 1 else None


def parse_value(text: str) -> Value | None:
    """What an answer states (`stated_text`): a number, a sequence of numbers or an option letter; None for all else."""
    stated = stated_text(text)
    if stated is None:
        return None
    text = _bare(stated)
    if found := _OPTION.fullmatch(text):
        return Value(option=found[1] or found[2])
    number = parse_number(_AROUND_SLASH.sub("/", _without_units(text)))
    if number is not None:
        return Value((number,))
    return _parse_sequence(text) if text else None


def gold_text(answer: str) -> str:
    r"""The final answer within a reference solution.

    What stands behind the last `####` (GSM8K), else the last \boxed{...} (MATH), else the whole text. Empty if there is
    such a mark but nothing in it, or if the last box does not close.
    """
    if "####" in answer:
        return answer.rsplit("####", 1)[1].strip()
    if boxes := box_contents(answer):
        return (boxes[-1] or "").strip()
    return answer.strip()


def answer_key(answer: str, any_order: bool = False) -> str:
    """The same string for answers that state the same value, for majority votes; not understood: the text itself.

    any_order: a sequence states the same value in any order.
    """
    value = parse_value(answer)
    if value is None:
        return "text:" + normalize_space(answer)
    return str(dataclasses.replace(value, numbers=tuple(sorted(value.numbers))) if any_order else value)


def same_value(value: Value, gold: Value, any_order: bool) -> bool:
    """Whether an answer states the value of the reference, in any order if `any_order`."""
    if gold.option or value.option:
        return value.option == gold.option
    # A bare reference "3 8" may be answered as a pair (3, 8); a bracketed one only in its own brackets.
    if value.brackets != gold.brackets and not (not gold.brackets and value.brackets in ("()", "[]", "{}")):
        return False
    if gold.brackets == "{}":
        return set(value.numbers) == set(gold.numbers)
    if any_order:
        return sorted(value.numbers) == sorted(gold.numbers)
    return value.numbers == gold.numbers


def accuracy(completion: str, example: Example) -> Score:
    """1 where the completion's one final answer equals the reference, else 0 (R_acc of the R1 paper).

    `example.metadata["any_order"]`, if true, lets a sequence be stated in any order. A reference that is not a number,
    a sequence of numbers or an option letter is UNGRADABLE, whatever the completion says.
    """
    gold = parse_value(gold_text(example.answer))
    if gold is None:
        return Score(0.0, Status.UNGRADABLE, f"reference answer {example.answer[-80:]!r} is not understood")
    answer = extract_final_answer(completion)
    if answer is None:
        return Score(0.0, reason="no single final answer")
    value = parse_value(answer)
    if value is None:
        return Score(0.0, reason="the answer is not one value")
    if not same_value(value, gold, bool(example.metadata.get("any_order", False))):
        return Score(0.0, reason="another answer")
    return Score(1.0)
