"""Stop tokens and stop strings as one automaton over tokens, stepped on the device inside the decode loop.

A stop string may begin in the middle of one token and end in the middle of another, so the strings are matched byte by
byte by an Aho-Corasick automaton, and each token's bytes are run through it ahead of time: one table look-up per token
decides, exactly, whether the text so far contains a stop string.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np


def byte_automaton(patterns: Sequence[bytes]) -> np.ndarray:
    """Aho-Corasick: [S + 1, 256] int32 transitions over bytes. State 0 is the start, S means "matched" and stays.

    Raises:
      ValueError: a pattern is empty.
    """
    children: list[dict[int, int]] = [{}]
    matched = [False]
    for pattern in patterns:
        if not pattern:
            raise ValueError("a stop string is empty")
        node = 0
        for byte in pattern:
            if byte not in children[node]:
                children[node][byte] = len(children)
                children.append({})
                matched.append(False)
            node = children[node][byte]
        matched[node] = True
    step = np.zeros((len(children), 256), np.int32)
    fail = [0] * len(children)
    queue = deque([0])
    while queue:  # breadth first: the longest proper suffix of a node is nearer to the root and already complete
        node = queue.popleft()
        matched[node] = matched[node] or matched[fail[node]]
        if node:
            step[node] = step[fail[node]]
        for byte, child in children[node].items():
            fail[child] = int(step[fail[node], byte]) if node else 0
            queue.append(child)
        for byte, child in children[node].items():
            step[node, byte] = child
    live = [node for node, hit in enumerate(matched) if not hit]
    number = np.full(len(children), len(live), np.int32)
    number[live] = np.arange(len(live))
    return np.concatenate([number[step[live]], np.full((1, 256), len(live), np.int32)])


def token_automaton(automaton: np.ndarray, token_bytes: Sequence[bytes]) -> np.ndarray:
    """automaton [S + 1, 256] -> [S + 1, V] int32: the state after all bytes of each token, given the state before."""
    lengths = np.array([len(data) for data in token_bytes], np.int64)
    padded = np.zeros((len(token_bytes), max(1, lengths.max(initial=1))), np.uint8)
    for row, data in enumerate(token_bytes):
        padded[row, : len(data)] = np.frombuffer(data, np.uint8)
    table = np.repeat(np.arange(len(automaton), dtype=np.int32)[:, None], len(token_bytes), axis=1)
    for place in range(padded.shape[1]):
        longer = np.flatnonzero(lengths > place)
        table[:, longer] = automaton[table[:, longer], padded[longer, place][None, :]]
    return table


def stop_table(
    vocab_size: int,
    stop_tokens: Sequence[int],
    stop_strings: Sequence[str] = (),
    token_bytes: Sequence[bytes] | None = None,
) -> np.ndarray:
    """The automaton of a sampler: [S, V] int32, next state from a live state 0..S-1 and a token; S means "stop".

    A response starts in state 0 and ends with the first token that is a stop token, or after which the text contains a
    stop string. The text is the concatenation of `token_bytes`, the prompt not included; a special token may have no
    bytes and then neither adds to a match nor breaks it.

    Args:
      vocab_size: V; ids from len(token_bytes) on (padding of the embedding) count as having no bytes.
      stop_tokens: token ids.
      stop_strings: matched as UTF-8 bytes.
      token_bytes: the bytes of each token; needed for stop strings only.

    Raises:
      ValueError: a stop token outside the vocabulary; stop strings without `token_bytes`; an empty stop string, or one
        with U+FFFD, which decoders write for invalid bytes and which the bytes themselves do not contain; more
        `token_bytes` than the vocabulary has ids.
    """
    for token in stop_tokens:
        if not 0 <= token < vocab_size:
            raise ValueError(f"stop token {token} is outside the vocabulary 0..{vocab_size - 1}")
    table = np.zeros((1, vocab_size), np.int32)
    if stop_strings:
        if token_bytes is None:
            raise ValueError(f"stop_strings {tuple(stop_strings)} need token_bytes, the bytes of every token")
        if len(token_bytes) > vocab_size:
            raise ValueError(f"{len(token_bytes)} token_bytes for a vocabulary of {vocab_size}")
        for string in stop_strings:
            if "\ufffd" in string:
                raise ValueError(f"stop string {string!r} contains U+FFFD, which stands for bytes that are not text")
        padded = [*token_bytes, *[b""] * (vocab_size - len(token_bytes))]
        automaton = byte_automaton([string.encode() for string in stop_strings])
        table = token_automaton(automaton, padded)[:-1].copy()
    table[:, list(stop_tokens)] = len(table)
    return table
