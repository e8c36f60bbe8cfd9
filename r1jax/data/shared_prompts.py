"""Responses to one prompt in one row that holds the prompt once.

With worked examples in the prompt, or many samples of it, most of the tokens of `pack_policy`'s rows are the same
prompt again and again. Here a row is a prompt followed by several branches:

    slots      p0 p1 .. p(n-2) | p(n-1) a0 a1 .. | p(n-1) b0 b1 ..
    segment    1               | 2               | 3
    parent     0               | 1               | 1

A branch begins with the prompt's last token, since that is where its first response token is predicted, and sees the
prompt's segment and itself; positions go on from the prompt's. What the model computes for a response is what it would
compute in a row of its own.
"""

from __future__ import annotations

import numpy as np

from r1jax.data.errors import DataError
from r1jax.data.packing import PackedPolicy, plan_rows


def pack_shared_prompts(
    prompt_tokens: np.ndarray,
    prompt_lengths: np.ndarray,
    response_tokens: np.ndarray,
    response_lengths: np.ndarray,
    row_length: int,
    rows: int = 1,
) -> PackedPolicy:
    """As `packing.pack_policy`, with equal prompts stored once for all responses that fit a row with them.

    A response is never split; one of length 0 trains nothing and is left out.

    Raises:
      DataError: a prompt and one response do not fit a row (the sequence is named).
    """
    prompt_tokens, response_tokens = np.asarray(prompt_tokens), np.asarray(response_tokens)
    prompt, response = np.asarray(prompt_lengths, np.int64), np.asarray(response_lengths, np.int64)
    families = _families(prompt_tokens, prompt, response, row_length)
    slots = np.array([prompt[members[0]] - 1 + response[members].sum() for members in families], np.int64)
    plan = plan_rows(slots, row_length, rows, "prompt with its responses")
    shape = (plan.num_rows, row_length)
    packed = PackedPolicy(
        tokens=np.zeros(shape, np.int32),
        targets=np.zeros(shape, np.int32),
        segment_ids=np.zeros(shape, np.int32),
        positions=np.zeros(shape, np.int32),
        loss_mask=np.zeros(shape, np.float32),
        sequence_ids=np.full(shape, -1, np.int32),
        to_rows=np.full(shape, -1, np.int64),
        to_responses=np.full(response_tokens.shape, -1, np.int64),
        parent_ids=np.zeros(shape, np.int32),
    )
    next_segment = np.ones(plan.num_rows, np.int64)
    width = prompt_tokens.shape[1]
    for members, row, offset in zip(families, plan.row, plan.offset, strict=True):
        length = int(prompt[members[0]])
        tokens = prompt_tokens[members[0], width - length :]
        segment = int(next_segment[row])
        next_segment[row] += 1 + len(members)
        _write_prompt(packed, int(row), int(offset), tokens, segment)
        at = int(offset) + length - 1
        for branch, n in enumerate(members, start=1):
            _write_branch(packed, int(row), at, tokens, response_tokens[n, : response[n]], int(n))
            here = slice(at, at + int(response[n]))
            packed.segment_ids[row, here] = segment + branch
            packed.parent_ids[row, here] = segment  # type: ignore[index]
            at += int(response[n])
    return packed


def _families(prompt_tokens: np.ndarray, prompt: np.ndarray, response: np.ndarray, row_length: int) -> list[np.ndarray]:
    """Indices of the sequences that share a prompt and a row: as many of equal prompt as fit, in their order."""
    too_long = prompt - 1 + response > row_length
    if too_long.any():
        n = int(too_long.argmax())
        raise DataError(
            f"sequence {n} takes {prompt[n] - 1 + response[n]} slots, a row has {row_length}: it would have to be cut"
        )
    open_families: dict[bytes, tuple[list[int], int]] = {}
    families: list[np.ndarray] = []
    for n in np.flatnonzero(response > 0).tolist():
        key = prompt_tokens[n, prompt_tokens.shape[1] - prompt[n] :].tobytes()
        members, used = open_families.get(key, ([], int(prompt[n]) - 1))
        if used + response[n] > row_length:
            families.append(np.array(members))
            members, used = [], int(prompt[n]) - 1
        open_families[key] = ([*members, n], used + int(response[n]))
    return families + [np.array(members) for members, _ in open_families.values()]


def _write_prompt(packed: PackedPolicy, row: int, offset: int, tokens: np.ndarray, segment: int) -> None:
    """All but the prompt's last token, which the branches carry."""
    here = slice(offset, offset + len(tokens) - 1)
    packed.tokens[row, here] = tokens[:-1]
    packed.segment_ids[row, here] = segment
    packed.positions[row, here] = np.arange(len(tokens) - 1)


def _write_branch(packed: PackedPolicy, row: int, at: int, prompt: np.ndarray, response: np.ndarray, n: int) -> None:
    """The prompt's last token and response `n`, each slot predicting the next response token."""
    here = slice(at, at + len(response))
    packed.tokens[row, here] = np.concatenate([prompt[-1:], response[:-1]])
    packed.targets[row, here] = response
    packed.positions[row, here] = len(prompt) - 1 + np.arange(len(response))
    packed.loss_mask[row, here] = 1
    packed.sequence_ids[row, here] = n
    packed.to_rows[row, here] = n * packed.to_responses.shape[1] + np.arange(len(response))
    packed.to_responses[n, : len(response)] = row * packed.tokens.shape[1] + at + np.arange(len(response))
