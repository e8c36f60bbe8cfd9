"""Language of a thought by Unicode script, and counts of reflection words.

A word is either a run of Latin letters (apostrophes inside belong to it), or one Han character, or a run of letters of
another script. Counting each Han character needs no segmentation, but Chinese words mostly have more than one of them,
so Chinese weighs more than English in a mixed text. Single Latin letters are left out (variables, option letters), and
so are numbers, punctuation, tags, and the Latin letters of code and LaTeX; words of another script hide nowhere. Latin
script stands for English and Han for Chinese: French passes for English here, and Japanese kanji for Chinese.

Other targets (`other_languages.SCRIPTS`) need the extra `lingua`. The unit is then a passage: a sentence, or short
sentences together (`MIN_PASSAGE`), since a word or two are in no language for certain. Where lingua takes the passage's
words in the target's script for the target language, all of them count; words of other scripts never do. So a few
English words in a French sentence pass for French, and half a sentence of each is wholly one or the other.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from r1jax.rewards.answer import TAGS, Parsed, parse_response
from r1jax.rewards.languages import other_languages
from r1jax.types import Example, Score, Status

LANGUAGES = ("en", "zh")  # told by script alone
# Words. Of the runs of so many words in the texts of tests/test_other_languages.py (16 languages), lingua takes 99 %
# for the language that they are in; of single words 78 %.
MIN_PASSAGE = 4

_HAN = "\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
_LATIN = "A-Za-z\u00aa\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u02b8\u1e00-\u1eff\uff21-\uff3a\uff41-\uff5a"
_WORD = re.compile(
    f"(?P<zh>[{_HAN}])|(?P<en>[{_LATIN}]+(?:['\u2019][{_LATIN}]+)*)|(?P<other>(?:(?![{_HAN}{_LATIN}])[^\\W\\d_])+)"
)
_LATIN_LETTERS = re.compile(f"[{_LATIN}]+")
NO_LANGUAGE = re.compile(
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

_SENTENCE_END = re.compile(r"(?<=[.!?\u2026])\s+|(?<=[\u3002\uff01\uff1f])|\n+")

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


def script_of(character: str) -> str:
    """'en' for a Latin letter, 'zh' for a Han character, 'other' for what else can be in a word, '' for the rest."""
    word = _WORD.fullmatch(character)
    return str(word.lastgroup) if word else ""


def word_counts(text: str) -> dict[str, int]:
    """How many words of each kind `text` has: keys 'en' (Latin), 'zh' (Han), 'other'."""
    return _count_words(_without_code(text))


def _without_code(text: str) -> str:
    return NO_LANGUAGE.sub(_other_scripts, text)


def _count_words(text: str) -> dict[str, int]:
    counts = {"en": 0, "zh": 0, "other": 0}
    for word in _WORD.finditer(text):
        kind, run = str(word.lastgroup), word.group()
        single_letter = kind == "en" and len(run) == 1
        no_letter = kind == "other" and not any(character.isalpha() for character in run)  # e.g. a fraction sign
        if not single_letter and not no_letter:
            counts[kind] += 1
    return counts


def check_language(target: str) -> None:
    """ValueError unless `target`, an ISO 639-1 code, is a language that thoughts can be held against."""
    if target in LANGUAGES:
        return
    allowed = sorted({*LANGUAGES, *other_languages.SCRIPTS})
    if target not in allowed:
        raise ValueError(
            f"target language must be one of {allowed}, got {target!r} (all but {' and '.join(LANGUAGES)} need the "
            f"extra {other_languages.EXTRA})"
        )
    if not other_languages.is_installed():
        raise ValueError(
            f"target language {target!r} needs the extra {other_languages.EXTRA}, which is not installed "
            f"(pip install 'r1jax[{other_languages.EXTRA}]'); without it: {list(LANGUAGES)}"
        )


def detect_language(text: str) -> str:
    """'zh' if `text` has more Han characters than Latin words, else 'en'; for prompts whose language nobody states.

    A text without words, such as a formula, is 'en', the language of the templates. ValueError where words of other
    scripts are most: no target can be made up for them.
    """
    counts = word_counts(text)
    if counts["other"] > max(counts["en"], counts["zh"]):
        raise ValueError(f"the text is neither English nor Chinese by script, state its language: {text[:80]!r}")
    return "zh" if counts["zh"] > counts["en"] else "en"


def language_share(text: str, target: str) -> float | None:
    """Words of the target language among all words of `text`, 0..1; None if `text` has no word.

    R1 paper (Nature version), eq. 7: R_language = Num(target-language words) / Num(words); how words are counted
    is ours (see the head of this file). ValueError for a target that `check_language` refuses.
    """
    check_language(target)
    counts = word_counts(text)
    total = sum(counts.values())
    if not total:
        return None
    return (counts[target] if target in LANGUAGES else _words_by_passage(text, target)) / total


def _words_by_passage(text: str, target: str) -> int:
    """Words in passages that lingua takes for the target language."""
    kinds = other_languages.SCRIPTS[target]

    def of_target_script(word: re.Match[str]) -> str:
        return word.group() if word.lastgroup in kinds else " "

    words = 0
    for passage in _passages(_without_code(text)):
        counts = _count_words(passage)
        own = sum(counts[kind] for kind in kinds)
        if own and other_languages.detect(_WORD.sub(of_target_script, passage)) == target:
            words += own
    return words


def _passages(text: str) -> list[str]:
    """Sentences, short ones together with the next."""
    passages, passage = [], ""
    for sentence in _SENTENCE_END.split(text):
        passage += f"{sentence} "
        if sum(_count_words(passage).values()) >= MIN_PASSAGE:
            passages.append(passage)
            passage = ""
    if passages:  # what is left at the end is too short
        passages[-1] += passage
        return passages
    return [passage]


def thought_of(completion: str, parse: Callable[[str], Parsed] = parse_response) -> str:
    """The thought of a well-formed completion; the whole completion if it is not well-formed, so that nothing hides."""
    parsed = parse(completion)
    return parsed.thought if parsed.well_formed and parsed.thought is not None else completion


def language_reward(completion: str, example: Example, parse: Callable[[str], Parsed] = parse_response) -> Score:
    """Share of words of the thought in the prompt's language, `example.language`.

    A thought without words earns 0: it is in no language. UNGRADABLE for a language that `check_language` refuses.
    """
    try:
        check_language(example.language)
    except ValueError as error:
        return Score(0.0, Status.UNGRADABLE, str(error))
    share = language_share(thought_of(completion, parse), example.language)
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
