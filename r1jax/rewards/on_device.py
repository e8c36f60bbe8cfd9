"""Format and exact-match rewards on token ids, compiled: no text, no host.

A completion is read byte by byte: every row has a cursor (token, byte of the token) and an automaton's state, and one
`while_loop` moves all rows at once until the longest has ended. So a tag is found wherever tokens are cut, and the cost
grows with the longest completion in bytes, not with the vocabulary. Results equal `format.format_reward` and
`answer.exact_match` on the decoded text.

Axes: N completions, L tokens, V vocabulary, Z bytes of the reference answer, Q automaton states.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from r1jax.rewards.answer import ANSWER_CLOSE, ANSWER_OPEN, SPACE, TAGS, THINK_CLOSE, THINK_OPEN, normalize_space
from r1jax.types import Array

_SPACE_BYTES = tuple(SPACE.encode())
_CLOSE_BYTES = tuple(ANSWER_CLOSE.encode())
_BLANK = ord(" ")


@struct.dataclass
class ByteTable:
    """The bytes of every token, end to end."""

    pool: Array  # [total] uint8
    starts: Array  # [V] int32, where a token's bytes begin in the pool
    sizes: Array  # [V] int32


@struct.dataclass
class Gold:
    """Reference answers as bytes: normalized answer, then `</answer>`."""

    target: Array  # [N, Z] uint8, zero-padded
    answer_size: Array  # [N] int32, bytes of the answer alone


def make_byte_table(token_bytes: Callable[[int], bytes], vocab_size: int) -> ByteTable:
    """The byte table of a tokenizer, for ids 0..vocab_size-1 (the width of the logits, padding ids included).

    `token_bytes` gives the bytes a token adds to the decoded text, none for control tokens.
    """
    pieces = [token_bytes(token) for token in range(vocab_size)]
    sizes = np.array([len(piece) for piece in pieces], np.int32)
    pool = np.frombuffer(b"".join(pieces) + b"\0", np.uint8)  # never empty, so that every gather has something to read
    starts = np.cumsum(sizes, dtype=np.int32) - sizes
    return ByteTable(pool=jnp.asarray(pool), starts=jnp.asarray(starts), sizes=jnp.asarray(sizes))


def make_gold(answers: Sequence[str], width: int | None = None) -> Gold:
    """Reference answers for `exact_match_reward`; `width` pads Z to a fixed size, so that shapes do not change.

    Raises:
      ValueError: an answer that no completion can state (blank, or with a tag in it), or one longer than `width`.
    """
    rows = []
    for index, answer in enumerate(answers):
        text = normalize_space(answer)
        if not text or any(tag in text for tag in TAGS):
            raise ValueError(f"answer {index}: {answer!r} is blank or contains a tag")
        rows.append(text.encode("utf-8") + ANSWER_CLOSE.encode())
    longest = max((len(row) for row in rows), default=len(_CLOSE_BYTES))
    size = longest if width is None else width + len(_CLOSE_BYTES)
    if longest > size:
        raise ValueError(f"an answer of {longest - len(_CLOSE_BYTES)} bytes is longer than the width {width}")
    target = np.zeros((len(rows), size), np.uint8)
    for index, row in enumerate(rows):
        target[index, : len(row)] = np.frombuffer(row, np.uint8)
    sizes = np.array([len(row) - len(_CLOSE_BYTES) for row in rows], np.int32)
    return Gold(target=jnp.asarray(target), answer_size=jnp.asarray(sizes))


@dataclasses.dataclass(frozen=True)
class _Phase:
    """A stretch of a completion between tags: the phase after each tag allowed here, and after text that is not blank.

    A tag that is not listed, or text where `on_text` is None, is a fault for good.
    """

    on_tag: Mapping[str, str]
    on_text: str | None


_FORMAT_PHASES = {
    "start": _Phase({THINK_OPEN: "blank thought"}, None),
    "blank thought": _Phase({}, "thought"),
    "thought": _Phase({THINK_CLOSE: "between"}, "thought"),
    "between": _Phase({ANSWER_OPEN: "blank answer"}, None),
    "blank answer": _Phase({}, "answer"),
    "answer": _Phase({ANSWER_CLOSE: "end"}, "answer"),
    "end": _Phase({}, None),
}
_ANSWER_PHASES = {
    "start": _Phase({THINK_OPEN: "thought", THINK_CLOSE: "before", ANSWER_OPEN: "answer"}, "start"),
    "thought": _Phase({THINK_CLOSE: "before"}, "thought"),
    "before": _Phase({ANSWER_OPEN: "answer"}, "before"),
    "answer": _Phase({ANSWER_CLOSE: "end"}, "answer"),
    "end": _Phase({}, "end"),
}


@dataclasses.dataclass(frozen=True)
class _Automaton:
    """States are pairs (phase, how much of a tag has been read); state 0 is the start."""

    transitions: np.ndarray  # [Q, 256] int32
    accepting: np.ndarray  # [Q] bool
    in_answer: np.ndarray  # [Q] bool, the phase called "answer"


def _compile(phases: Mapping[str, _Phase]) -> _Automaton:
    """The byte automaton of a table of phases; its first phase starts, the phase called "end" accepts."""
    fragments = ("", *sorted({tag[:size] for tag in TAGS for size in range(1, len(tag))}))
    states = [(phase, fragment) for phase in phases for fragment in fragments]
    fault = len(states)
    number = {state: index for index, state in enumerate(states)}

    def step(phase: str, fragment: str, byte: int) -> int:
        character = chr(byte)
        if fragment + character in TAGS:
            following = phases[phase].on_tag.get(fragment + character)
            return fault if following is None else number[following, ""]
        if fragment + character in fragments:
            return number[phase, fragment + character]
        # The fragment was no tag after all, so it was text; `<` can only begin a tag, never continue one.
        is_text = fragment != "" or (byte not in _SPACE_BYTES and character != "<")
        following = phases[phase].on_text if is_text else phase
        if following is None:
            return fault
        return number[following, "<" if character == "<" else ""]

    transitions = np.full((fault + 1, 256), fault, np.int32)
    for phase, fragment in states:
        transitions[number[phase, fragment]] = [step(phase, fragment, byte) for byte in range(256)]
    # An unfinished tag at the very end is text, which must be allowed there.
    accepting = [phase == "end" and (not fragment or phases[phase].on_text is not None) for phase, fragment in states]
    in_answer = [phase == "answer" for phase, _ in states]
    return _Automaton(transitions, np.array([*accepting, False]), np.array([*in_answer, False]))


_FORMAT = _compile(_FORMAT_PHASES)
_ANSWER = _compile(_ANSWER_PHASES)

_Carry = tuple[Array, Array, Array, Array]  # token, byte of the token, automaton state, bytes of the target matched


def _scan_bytes(
    tokens: Array, lengths: Array, table: ByteTable, automaton: _Automaton, gold: Gold | None
) -> tuple[Array, Array]:
    """Reads every completion; final states [N] and matched target bytes [N] (-1 after a mismatch)."""
    chex.assert_rank([tokens, lengths], [2, 1])
    chex.assert_equal_shape_prefix([tokens, lengths], 1)
    count, width = tokens.shape
    transitions, in_answer = jnp.asarray(automaton.transitions), jnp.asarray(automaton.in_answer)
    starts, sizes = table.starts[tokens], table.sizes[tokens]
    rows = jnp.arange(count)
    zeros = jnp.zeros((count,), jnp.int32)

    def unfinished(carry: _Carry) -> Array:
        return jnp.any(carry[0] < lengths)

    def advance(carry: _Carry) -> _Carry:
        token, offset, state, matched = carry
        slot = jnp.minimum(token, width - 1)
        size = sizes[rows, slot]
        live = (token < lengths) & (offset < size)
        byte = table.pool[starts[rows, slot] + jnp.where(live, offset, 0)].astype(jnp.int32)
        if gold is not None:
            matched = jnp.where(live & in_answer[state], _match_byte(matched, byte, gold), matched)
        state = jnp.where(live, transitions[state, byte], state)
        token_ends = offset + 1 >= size
        return jnp.where(token_ends, token + 1, token), jnp.where(token_ends, 0, offset + 1), state, matched

    if width == 0:
        return zeros, zeros
    _, _, state, matched = jax.lax.while_loop(unfinished, advance, (zeros, zeros, zeros, zeros))
    return state, matched


def _match_byte(matched: Array, byte: Array, gold: Gold) -> Array:
    """Bytes of the target matched after one more byte of the answer, -1 for good once they differ.

    The target has single blanks between words; the completion may have more white space there and around the answer.
    """
    rows = jnp.arange(byte.shape[0])
    last = gold.target.shape[1] - 1
    expected = gold.target[rows, jnp.clip(matched, 0, last)].astype(jnp.int32)
    previous = gold.target[rows, jnp.clip(matched - 1, 0, last)].astype(jnp.int32)
    is_space = jnp.isin(byte, jnp.array(_SPACE_BYTES))
    inside = (matched > 0) & (matched < gold.answer_size)
    starts_gap = is_space & inside & (expected == _BLANK)
    skipped = is_space & ((matched == 0) | (matched == gold.answer_size) | (inside & (previous == _BLANK)))
    same = ~is_space & (byte == expected)
    following = jnp.where(starts_gap | same, matched + 1, jnp.where(skipped, matched, -1))
    return jnp.where(matched < 0, -1, following)


@jax.jit
def format_reward(tokens: Array, lengths: Array, table: ByteTable) -> Array:
    """`format.format_reward` of completions [N, L] int32 of `lengths` [N] tokens: [N] float32, 1 or 0."""
    state, _ = _scan_bytes(tokens, lengths, table, _FORMAT, None)
    return jnp.asarray(_FORMAT.accepting)[state].astype(jnp.float32)


@jax.jit
def exact_match_reward(tokens: Array, lengths: Array, table: ByteTable, gold: Gold) -> Array:
    """`answer.exact_match` of completions [N, L] int32 of `lengths` [N] tokens: [N] float32, 1 or 0."""
    chex.assert_equal_shape_prefix([tokens, gold.target], 1)
    state, matched = _scan_bytes(tokens, lengths, table, _ANSWER, gold)
    right = jnp.asarray(_ANSWER.accepting)[state] & (matched == gold.answer_size + len(_CLOSE_BYTES))
    return right.astype(jnp.float32)
