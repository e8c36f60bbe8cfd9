"""Language of a thought by Unicode script, and counts of reflection words.

A word is either a run of Latin letters (apostrophes inside belong to it), or one Han character, or a run of letters of
another script. Counting each Han character needs no segmentation, but Chinese words mostly have more than one of them,
so Chinese weighs more than English in a mixed text. Single Latin letters are left out (variables, option letters), and
so are numbers, punctuation, tags, and the Latin letters of code and LaTeX; words of another script hide nowhere. Latin
script stands for English and Han for Chinese: French passes for English here, and Japanese kanji for Chinese.
"""

from __future__ import annotations

import re

from r1jax.rewards.answer import TAGS, parse_response
from r1jax.types import Example, Score, Status

LANGUAGES = ("en", "zh")

_HAN = "\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
_LATIN = "A-Za-z\u00aa\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u02b8\u1e00-\u1eff\uff21-\uff3a\uff41-\uff5a"
_WORD = re.compile(
    f"(?P<zh>[{_HAN}])|(?P<en>[{_LATIN}]+(?:['\u2019][{_LATIN}]+)*)|(?P<other>(?:(?![{_HAN}{_LATIN}])[^\\W\\d_])+)"
)
_LATIN_LETTERS = re.compile(f"[{_LATIN}]+")
_NO_LANGUAGE = re.compile(
    "|".join(
        (
            *(re.escape(tag) for tag in TAGS),
            # Code, displayed and inline LaTeX; bounded, since each opening without an end is searched to the bound.
            r"```.{0,4000}?```|`[^`\n]+`",
            r"\$\$.{0,4000}?\$\$|\\\(.{0,4000}?\\\)|\\\[.{0,4000}?\\\]",
            r"\$(?!\s)[^$\n]*(?<!\s)\$(?!\d)",  # $x$, but not the words in "from $5 to $6"
            r"\\[A-Za-z]+",  # commands outside of mathematics
        )
    ),
    re.DOTALL,
)

# The words that the paper counts (R1 v2, "reflective words"), each with Chinese words for the same.
REFLECTION_WORDS: dict[str, tuple[str, ...]] = {
    "wait": ("等等", "等一下", "等一等", "慢着"),
    "mistake": ("失误", "弄错", "搞错"),
    "however": ("然而",),
    "but": ("但是", "可是", "不过", "但"),
    "retry": ("重试", "再试", "重来"),
    "error": ("错误", "误差"),
    "verify": ("验证", "核实"),
    "wrong": ("不对", "错了"),
    "evaluate": ("评估", "评价"),
    "check": ("检查", "核对", "检验"),
}
_CHINESE_REFLECTION = {chinese: word for word, group in REFLECTION_WORDS.items() for chinese in group}
_REFLECTION = re.compile(
    "|".join(
        (
            rf"(?<![{_LATIN}])(?:{'|'.join(REFLECTION_WORDS)})(?![{_LATIN}])",
            *sorted(_CHINESE_REFLECTION, key=len, reverse=True),
        )
    ),
    re.IGNORECASE,
)


def _other_scripts(span: re.Match[str]) -> str:
    """What is not Latin in a span of code or mathematics: whoever reasons in there is heard all the same."""
    return f" {_LATIN_LETTERS.sub(' ', span.group())} "


def word_counts(text: str) -> dict[str, int]:
    """How many words of each kind `text` has: keys 'en' (Latin), 'zh' (Han), 'other'."""
    counts = {"en": 0, "zh": 0, "other": 0}
    for word in _WORD.finditer(_NO_LANGUAGE.sub(_other_scripts, text)):
        kind, run = str(word.lastgroup), word.group()
        single_letter = kind == "en" and len(run) == 1
        no_letter = kind == "other" and not any(character.isalpha() for character in run)  # e.g. a fraction sign
        if not single_letter and not no_letter:
            counts[kind] += 1
    return counts


def language_share(text: str, target: str) -> float | None:
    """Words of the target language among all words of `text`, 0..1; None if `text` has no word.

    R1 paper (Nature version), eq. 7: R_language = Num(target-language words) / Num(words); how words are counted
    is ours (see the head of this file). ValueError for a target other than 'en' and 'zh'.
    """
    if target not in LANGUAGES:
        raise ValueError(f"target language must be one of {list(LANGUAGES)}, got {target!r}")
    counts = word_counts(text)
    total = sum(counts.values())
    return counts[target] / total if total else None


def thought_of(completion: str) -> str:
    """The thought of a well-formed completion; the whole completion if it is not well-formed, so that nothing hides."""
    parsed = parse_response(completion)
    return parsed.thought if parsed.well_formed and parsed.thought is not None else completion


def language_reward(completion: str, example: Example) -> Score:
    """Share of words of the thought in the prompt's language, `example.language`.

    A thought without words earns 0: it is in no language. UNGRADABLE if the prompt's language cannot be told by script.
    """
    if example.language not in LANGUAGES:
        return Score(0.0, Status.UNGRADABLE, f"language {example.language!r} is not one of {list(LANGUAGES)}")
    share = language_share(thought_of(completion), example.language)
    return Score(0.0, reason="no words") if share is None else Score(share)


def reflection_counts(text: str) -> dict[str, int]:
    """Occurrences of each word of `REFLECTION_WORDS` (whole words, any case), Chinese ones under their English key."""
    counts = dict.fromkeys(REFLECTION_WORDS, 0)
    for found in _REFLECTION.finditer(text):
        word = found.group().lower()
        counts[_CHINESE_REFLECTION.get(word, word)] += 1
    return counts


def reflection_count(text: str) -> int:
    """All reflection words of `text` together."""
    return sum(reflection_counts(text).values())
