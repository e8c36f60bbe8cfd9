r"""Words by script as an automaton over characters, so that a table can say what any token does to the counts.

It follows `language.word_counts` from left to right. What only a later character can tell (whether an opened `$` or
``` is ever closed) is kept in a second register: Latin words inside of a region are counted as open, and are dropped
where it closes and added where it turns out to be none. So every character, and with it every string, is for each state
one affine map of the two registers (`Effect`), and strings that do the same from every state share one row (`Rows`).

Differences from the text version: code and mathematics have no longest length (there 4,000 characters); where an
opening turns out never to be closed, all Latin words behind it count, those too that stand in code or mathematics of
their own. Words of other scripts count everywhere in both.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from r1jax.rewards.answer import TAGS, THINK_CLOSE
from r1jax.rewards.languages.language import script_of

_FRAGMENTS = frozenset(tag[:size] for tag in TAGS for size in range(1, len(tag)))
_TAG_CHARACTERS = frozenset("".join(TAGS))
_ENDED = "ended"
_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")

# One character stands for each kind: a Han character, a Latin letter beyond ASCII and in it, a letter of another
# script, a sign that counts only beside such letters, an apostrophe, white space, a digit, and anything else.
HAN, ACCENTED, LETTER, OTHER, SIGN, APOSTROPHE, BLANK, DIGIT, BREAK = "中éxя½' 0."
KINDS = (
    HAN, ACCENTED, LETTER, OTHER, SIGN, APOSTROPHE, BLANK, DIGIT, BREAK, *sorted(_TAG_CHARACTERS), *"`$\\()[]\n",
)  # fmt: skip


class State(NamedTuple):
    r"""Where the reader is.

    region: the opening of the code or mathematics it is in ("`", "```", "$", "$$", r"\(", r"\["), "" outside, "ended".
    inside: what it has just read: "x" and "xx" one and more Latin letters (with "'": an apostrophe behind them), "½"
      and "я" a run of another script, "\\x" a command, part of a delimiter or a tag, " " white space within $ $.
    """

    thought_only: bool  # the count ends with </think>; otherwise tags are passed over
    region: str = ""
    inside: str = ""


class Effect(NamedTuple):
    """New counts: latin + commit * open + latin_words, and keep * open + open_words; the others are only added to."""

    commit: int = 0
    keep: int = 1
    latin_words: int = 0
    open_words: int = 0
    han_words: int = 0
    other_words: int = 0


_NOTHING = Effect()
_COMMIT, _DROP = Effect(commit=1, keep=0), Effect(commit=0, keep=0)
_COLUMNS = len(Effect._fields)

# (region, what has been read, next character) -> region: delimiters of more than one character, and closings.
_OPENS = {("`", "`"): "``", ("$", "$"): "$$", ("\\", "("): "\\(", ("\\", "["): "\\["}
_CLOSES = {("```", "``", "`"), ("$$", "$", "$"), ("\\(", "\\", ")"), ("\\[", "\\", "]"), ("`", "", "`")}


def kind_of(character: str) -> str:
    """The member of `KINDS` that stands for a character."""
    if character in KINDS and not character.isdecimal():
        return character
    if character in _LETTERS:
        return LETTER
    script = script_of(character)
    if script:
        return {"zh": HAN, "en": ACCENTED, "other": OTHER if character.isalpha() else SIGN}[script]
    if character == "\u2019":
        return APOSTROPHE
    return BLANK if character.isspace() else DIGIT if character.isdecimal() else BREAK


def _latin(state: State, count: int) -> Effect:
    """So many Latin words more, or fewer."""
    return Effect(open_words=count) if state.region else Effect(latin_words=count)


def _then(first: Effect, second: Effect) -> Effect:
    return Effect(
        first.commit + first.keep * second.commit,
        first.keep * second.keep,
        first.latin_words + second.latin_words + second.commit * first.open_words,
        second.keep * first.open_words + second.open_words,
        first.han_words + second.han_words,
        first.other_words + second.other_words,
    )


def _step(state: State, kind: str) -> tuple[State, Effect]:
    """What one character does."""
    if state.region == _ENDED:
        return state, _NOTHING
    if state.inside in _FRAGMENTS:
        fragment = state.inside + kind
        if fragment in TAGS:
            uncounted = _latin(state, -1)  # the tag's own name was a word until now
            if fragment == THINK_CLOSE and state.thought_only:
                return State(True, _ENDED), _then(uncounted, _COMMIT)
            return state._replace(inside=""), uncounted
        if fragment in _FRAGMENTS:
            return state._replace(inside=fragment), _latin(state, int(_letters(fragment) == 2))
        state = state._replace(inside="x" * min(_letters(state.inside), 2))
    if state.inside == "\\x" and kind in _LETTERS:
        return state, _NOTHING
    if state.region == "$":
        return _in_dollars(state, kind)
    return _outside(state, kind) if not state.region else _in_region(state, kind)


def _letters(fragment: str) -> int:
    return len(fragment.strip("</>"))


def _outside(state: State, kind: str) -> tuple[State, Effect]:
    """No region is open, though one may be about to be."""
    inside = state.inside
    if inside == "``" and kind == "`":
        return state._replace(region="```", inside=""), _NOTHING
    opened = _OPENS.get((inside, kind))
    if opened == "``":
        return state._replace(inside="``"), _NOTHING
    if opened:
        return state._replace(region=opened, inside=""), _NOTHING
    if inside in ("`", "``") and kind != "\n":
        return _content(state._replace(region="`", inside=""), kind)
    if inside == "$" and kind not in (BLANK, "\n"):
        return _content(state._replace(region="$", inside=""), kind)
    return _content(state, kind)


def _in_dollars(state: State, kind: str) -> tuple[State, Effect]:
    """In $ $, which is one if it closes on the same line, not behind white space and not before a digit."""
    outside = state._replace(region="", inside="")
    if state.inside == "$" and kind == DIGIT:  # the closing one was the opening of another
        return state._replace(inside=""), _COMMIT
    if state.inside == "$":
        following, effect = _outside(outside, kind)
        return following, _then(_DROP, effect)
    if kind == "\n":
        return outside, _COMMIT
    if kind == "$" and state.inside == BLANK:
        return outside._replace(inside="$"), _COMMIT
    if kind == "$":
        return state._replace(inside="$"), _NOTHING
    return _content(state, kind)


def _in_region(state: State, kind: str) -> tuple[State, Effect]:
    """In any other region."""
    outside = state._replace(region="", inside="")
    if state.region == "`":
        if kind in "`\n":
            return outside, _DROP if kind == "`" else _COMMIT
        return _content(state, kind)
    if (state.region, state.inside, kind) in _CLOSES:
        return outside, _DROP
    if state.region == "```" and kind == "`":
        return state._replace(inside="``" if state.inside == "`" else "`"), _NOTHING
    return _content(state, kind)


def _content(state: State, kind: str) -> tuple[State, Effect]:
    """A character that is part of a word, ends one, or begins something."""
    inside = state.inside
    if kind == HAN:
        return state._replace(inside=""), Effect(han_words=1)
    if kind in _LETTERS or kind == ACCENTED:
        if inside == "\\" and kind != ACCENTED:
            return state._replace(inside="\\x"), _NOTHING
        run = inside.rstrip("'")
        if run == "xx":
            return state._replace(inside="xx"), _NOTHING
        return state._replace(inside="xx" if run == "x" else "x"), _latin(state, int(run == "x"))
    if kind in (OTHER, SIGN):
        known = inside == OTHER
        script = OTHER if known or kind == OTHER else SIGN
        return state._replace(inside=script), Effect(other_words=int(script == OTHER and not known))
    if kind == APOSTROPHE and inside in ("x", "xx"):
        return state._replace(inside=inside + "'"), _NOTHING
    begins = kind in "\\<" or (kind in "`$" and not state.region) or (kind == "$" and state.region == "$$")
    blank = kind == BLANK and state.region == "$"
    return state._replace(inside=kind if begins or blank else ""), _NOTHING


class Row(NamedTuple):
    """What a string does from every state."""

    following: np.ndarray  # [S] int32
    effects: np.ndarray  # [S, 6] int32, the fields of Effect


def _compose(first: Row, second: Row) -> Row:
    commit, keep, latin, opened, han, other = np.moveaxis(second.effects[first.following], 1, 0)
    before = first.effects.T
    effects = (
        before[0] + before[1] * commit,
        before[1] * keep,
        before[2] + latin + commit * before[3],
        keep * before[3] + opened,
        before[4] + han,
        before[5] + other,
    )
    return Row(second.following[first.following], np.stack(effects, 1))


@functools.cache
def _states() -> tuple[State, ...]:
    """All states that can be reached; the first two are the starts, without and with `thought_only`."""
    found = [State(False), State(True)]
    for state in found:  # grows meanwhile
        found += dict.fromkeys(s for s, _ in (_step(state, kind) for kind in KINDS) if s not in found)
    return tuple(found)


@functools.cache
def _kind_rows() -> dict[str, Row]:
    number = {state: index for index, state in enumerate(_states())}
    rows = {}
    for kind in KINDS:
        steps = [_step(state, kind) for state in _states()]
        following = np.array([number[state] for state, _ in steps], np.int32)
        rows[kind] = Row(following, np.array([effect for _, effect in steps], np.int32))
    return rows


def open_words_count() -> np.ndarray:
    """[S] int32: 1 where Latin words that are still open when the text ends are words after all."""
    # "$x$" at the very end is closed: it only waited for the digit that did not come.
    return np.array([int((state.region, state.inside) != ("$", "$")) for state in _states()], np.int32)


class Rows:
    """Distinct rows of strings, numbered as they turn up; 0 is the empty string."""

    def __init__(self) -> None:
        size = len(_states())
        nothing = np.tile(np.array(_NOTHING, np.int32), (size, 1))
        self._rows: list[Row] = []
        self._numbers: dict[bytes, int] = {}
        self._longer: dict[tuple[int, str], int] = {}
        self._number(Row(np.arange(size, dtype=np.int32), nothing))

    def find(self, kinds: str, after: int = 0) -> int:
        """The row of a string of `KINDS`, itself behind the string of the row `after`."""
        row = after
        for kind in kinds:
            if (row, kind) not in self._longer:
                self._longer[row, kind] = self._number(_compose(self._rows[row], _kind_rows()[kind]))
            row = self._longer[row, kind]
        return row

    def table(self) -> np.ndarray:
        """[U, S, 7] int32: the state that follows, then the fields of Effect."""
        return np.stack([np.concatenate([row.following[:, None], row.effects], 1) for row in self._rows])

    def _number(self, row: Row) -> int:
        key = row.following.tobytes() + row.effects.tobytes()
        if key not in self._numbers:
            self._numbers[key] = len(self._rows)
            self._rows.append(row)
        return self._numbers[key]
