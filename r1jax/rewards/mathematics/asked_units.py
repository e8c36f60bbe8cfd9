r"""Which unit a question asks for, where its reference is a bare number: "How many square feet ...?", "... in km/h?".

Of several the last one counts. Where none is asked for by name, a unit is accepted that the question names and whose
kind it asks for ("How far ...?"), unless it names two of that kind. No JAX.
"""

from __future__ import annotations

import re

from r1jax.rewards.mathematics.units import Unit, parse_unit

_WRITTEN = re.compile(r"\\(?:text|textrm|mathrm|mbox)\s*\{([^{}]*)\}")
_ASKED = re.compile(r"\b(how many|number of|in)\s+([^?,;:!()\n]*)", re.IGNORECASE)
_ASKED_IN_CHINESE = re.compile(r"(?:多少|几|单位\s*[:：为是]?)\s*([\u4e00-\u9fff]+)")
_MOST_WORDS = 6
_KINDS = {
    "length": r"how (?:far|tall|high|wide|deep|long)|distance|length|height|width|depth|perimeter|radius|diameter",
    "time": r"how (?:long|old|much time)|\btime\b|\bage\b",
    "mass": r"weigh|heavy|\bmass\b",
    "angle": r"angle|degree",
    "money": r"how much|cost|price|money|pay|paid|earn|spen|profit|\bworth\b|\bamount\b|\btotal\b",
}
_OTHER_KINDS = re.compile(r"\b(?:area|volume|surface|square|cubic|speed|rate|fast|how many|number of)\b", re.IGNORECASE)


def _plain(question: str) -> str:
    """A question without LaTeX around its units."""
    text = _WRITTEN.sub(r"\1", question).replace("²", "^2").replace("³", "^3")
    return re.sub(r"\^?\s*(?:\{\s*\\circ\s*\}|\\circ)", "°", text)


def _unit_in_front(text: str) -> Unit | None:
    """The unit with which a text begins, of as many words as possible; a single letter only where it ends there."""
    sentence = re.split(r"\.(?:\s|$)", text.replace("$", " "))[0]
    words = [word.strip("\\") for word in sentence.split()[:_MOST_WORDS]]
    if not words or words[0] == "in" or (len(words[0]) == 1 < len(words) and words[1] not in ("/", "*")):
        return None
    for count in range(len(words), 0, -1):
        if (unit := parse_unit(" ".join(words[:count]))) is not None:
            return unit
    return None


def asked_unit(question: str) -> Unit | None:
    """The unit that a question asks for by name."""
    text, found = _plain(question), None
    while match := _ASKED.search(text):
        found = _unit_in_front(match[2]) or found
        text = text[match.start(2) :]
    for match in _ASKED_IN_CHINESE.finditer(question):
        units = (parse_unit(match[1][:count]) for count in range(len(match[1]), 0, -1))
        found = next((unit for unit in units if unit is not None), found)
    return found


def accepts(question: str, unit: Unit) -> bool:
    """Whether a bare reference may be answered with this unit."""
    asked = asked_unit(question)
    if asked is not None:
        return _same(asked, unit)
    text = _plain(question)
    sentences = re.split(r"(?<=[.?!。？])\s+", text.strip())
    asking = next((sentence for sentence in reversed(sentences) if sentence.endswith(("?", "？"))), sentences[-1])
    if len(unit.powers) != 1 or unit.powers[0][1] != 1 or _OTHER_KINDS.search(asking):
        return False
    kind = unit.powers[0][0].split()[0]
    if kind not in _KINDS or not re.search(_KINDS[kind], asking, re.IGNORECASE):
        return False
    words = re.findall(r"(?!in\b)[A-Za-z]{2,}|[$€£¥°]", text)  # "in" and single letters are mostly no units
    named = [known for word in words if (known := parse_unit(word)) is not None and known.powers == unit.powers]
    return bool(named) and all(_same(known, unit) for known in named)


def _same(left: Unit, right: Unit) -> bool:
    return (left.factor, left.powers) == (right.factor, right.powers)
