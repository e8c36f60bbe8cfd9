"""Several documents in one row: less padding, the same loss.

A document of n tokens takes n - 1 slots: slot t holds token t and predicts token t + 1, and the last token has nothing
to predict. Documents are never split and never cut; one that does not fit a row is an error. All of it is numpy, exact
and deterministic. R rows, T row length, N documents or responses, P prompt width, L response width.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from r1jax.data.errors import DataError
from r1jax.types import PackedBatch, PolicyBatch

HostArray = Any  # np.ndarray, where it goes into a batch whose fields are declared as jax.Array: they hold either


@dataclasses.dataclass(frozen=True)
class RowPlan:
    """Where each document goes. A document with no slots has row -1."""

    row: np.ndarray  # [N] int64
    offset: np.ndarray  # [N] int64, first slot in the row
    slots: np.ndarray  # [N] int64
    segment: np.ndarray  # [N] int64, 1, 2, ... by offset within the row
    num_rows: int
    row_length: int

    @property
    def fill(self) -> float:
        """Share of the slots that hold a token."""
        return float(self.slots.sum() / max(self.num_rows * self.row_length, 1))


def plan_rows(slots: np.ndarray, row_length: int, rows: int = 1, what: str = "document") -> RowPlan:
    """Best-fit decreasing: longest document first, each into the fullest row that can take it; ties by index.

    Args:
      slots: [N] slots each document takes; 0 = it is left out.
      row_length: slots in a row.
      rows: the number of rows is rounded up to a multiple of this with empty rows (at least one multiple).
      what: how an error calls a document.
    """
    slots = np.asarray(slots, np.int64)
    if row_length < 1 or rows < 1:
        raise ValueError(f"row_length and rows must be positive, got {row_length} and {rows}")
    if slots.size and slots.max() > row_length:
        worst = int(slots.argmax())
        raise DataError(f"{what} {worst} takes {slots[worst]} slots, a row has {row_length}: it would have to be cut")
    row, offset = np.full(slots.shape, -1, np.int64), np.zeros(slots.shape, np.int64)
    segment = np.zeros(slots.shape, np.int64)
    # Rows by free slots. Bit f of `free` says that by_free[f] is not empty, so the best fit is the lowest bit >= need.
    by_free: list[list[int]] = [[] for _ in range(row_length + 1)]
    free = 0
    documents_in_row: list[int] = []
    for index in np.argsort(-slots, kind="stable").tolist():
        need = int(slots[index])
        if need == 0:
            break  # sorted: only empty ones follow
        enough = free >> need
        if enough:
            left = need + (enough & -enough).bit_length() - 1
            target = by_free[left].pop()
            if not by_free[left]:
                free ^= 1 << left
        else:
            left, target = row_length, len(documents_in_row)
            documents_in_row.append(0)
        row[index], offset[index] = target, row_length - left
        documents_in_row[target] += 1
        segment[index] = documents_in_row[target]
        by_free[left - need].append(target)
        free |= 1 << (left - need)
    num_rows = max(-(-len(documents_in_row) // rows), 1) * rows
    return RowPlan(row, offset, slots, segment, num_rows, row_length)


def _slots_of(plan: RowPlan, documents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns for every slot, document after document: its place in the document and its index in [R * T]."""
    slots = plan.slots[documents]
    place = np.arange(slots.sum()) - np.repeat(np.cumsum(slots) - slots, slots)
    flat = np.repeat(plan.row[documents] * plan.row_length + plan.offset[documents], slots) + place
    return place, flat


@dataclasses.dataclass(frozen=True)
class Documents:
    """Tokenized documents in two flat arrays: document i is `tokens[starts[i]:starts[i + 1]]`."""

    tokens: np.ndarray  # [S] int32
    loss_mask: np.ndarray  # [S] bool, True where the token is trained as a target
    starts: np.ndarray  # [N + 1] int64

    @classmethod
    def from_pairs(cls, pairs: Sequence[tuple[Sequence[int], Sequence[float] | None]]) -> Documents:
        """From (tokens, loss_mask) pairs; a mask has one 0 or 1 per token, None trains every token.

        Raises DataError naming the document for fewer than two tokens (nothing to predict) or a mask of another length.
        """
        tokens, masks = [], []
        for index, (ids, mask) in enumerate(pairs):
            if len(ids) < 2:
                raise DataError(f"document {index} has {len(ids)} tokens, at least 2 are needed to predict one")
            if mask is not None and len(mask) != len(ids):
                raise DataError(f"document {index} has {len(ids)} tokens and a loss mask of {len(mask)}")
            tokens.append(np.asarray(ids, np.int32))
            masks.append(np.ones(len(ids), bool) if mask is None else np.asarray(mask, bool))
        if not tokens:
            raise DataError("no documents")
        starts = np.concatenate([[0], np.cumsum([len(t) for t in tokens])]).astype(np.int64)
        return cls(np.concatenate(tokens), np.concatenate(masks), starts)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def digest(self) -> str:
        """Returns a hash of everything in here, the same on every machine."""
        digest = hashlib.sha256()
        for array, dtype in ((self.tokens, "<i4"), (self.loss_mask, "u1"), (self.starts, "<i8")):
            digest.update(array.astype(dtype).tobytes())
        return digest.hexdigest()[:16]

    def plan(self, row_length: int, rows: int = 1) -> RowPlan:
        """Places every document; see `plan_rows`."""
        return plan_rows(np.diff(self.starts) - 1, row_length, rows)

    def fill_rows(self, plan: RowPlan, row_ids: np.ndarray, documents_by_row: Sequence[np.ndarray]) -> PackedBatch:
        """Returns the packed rows `row_ids` of a plan over these documents, in that order."""
        row_ids = np.asarray(row_ids, np.int64)
        documents = np.concatenate([np.zeros(0, np.int64), *(documents_by_row[r] for r in row_ids)])
        place, flat = _slots_of(plan, documents)
        slots = plan.slots[documents]
        # Same columns, but the rows count from 0 in the order asked for.
        new_row = np.repeat(np.arange(len(row_ids)), [len(documents_by_row[r]) for r in row_ids])
        flat += np.repeat((new_row - plan.row[documents]) * plan.row_length, slots)
        source = np.repeat(self.starts[documents], slots) + place
        segment = np.repeat(plan.segment[documents], slots)
        target_mask = self.loss_mask[source + 1]
        targets = np.where(target_mask, self.tokens[source + 1], 0)
        shape = (len(row_ids), plan.row_length)
        return PackedBatch(
            tokens=_rows(shape, flat, self.tokens[source], np.int32),
            targets=_rows(shape, flat, targets, np.int32),
            segment_ids=_rows(shape, flat, segment, np.int32),
            positions=_rows(shape, flat, place, np.int32),
            loss_mask=_rows(shape, flat, target_mask, np.float32),
        )


def documents_by_row(plan: RowPlan) -> list[np.ndarray]:
    """Returns for each row the indices of its documents, by offset."""
    placed = np.flatnonzero(plan.row >= 0)
    order = placed[np.lexsort((plan.offset[placed], plan.row[placed]))]
    return np.split(order, np.searchsorted(plan.row[order], np.arange(1, plan.num_rows)))


def _rows(shape: tuple[int, int], flat: np.ndarray, values: np.ndarray, dtype: Any, fill: int = 0) -> HostArray:
    out = np.full(shape, fill, dtype)
    out.reshape(-1)[flat] = values
    return out


def pack_documents(
    documents: Sequence[tuple[Sequence[int], Sequence[float] | None]], row_length: int, rows: int = 1
) -> PackedBatch:
    """Packs (tokens, loss_mask) documents into rows; `rows`: their number is padded to a multiple of this.

    A document of n tokens takes n - 1 slots. Raises DataError naming a document that does not fit a row.
    """
    store = Documents.from_pairs(documents)
    plan = store.plan(row_length, rows)
    return store.fill_rows(plan, np.arange(plan.num_rows), documents_by_row(plan))


@dataclasses.dataclass(frozen=True)
class PackedPolicy:
    """Rows of prompt + response, and the way from response arrays [N, L] to rows [R, T] and back.

    A slot belongs to response token j of response n if that token is its target: this is where the model predicts it.
    """

    tokens: HostArray  # [R, T] int32
    targets: HostArray  # [R, T] int32, the response token to predict; 0 elsewhere
    segment_ids: HostArray  # [R, T] int32
    positions: HostArray  # [R, T] int32
    loss_mask: HostArray  # [R, T] float32, 1 exactly where the target is a response token
    sequence_ids: HostArray  # [R, T] int32, index of the response in 0..N-1 where loss_mask is 1; -1 elsewhere
    to_rows: HostArray  # [R, T] int64, index into the flattened [N, L]; -1 where no response token is predicted
    to_responses: HostArray  # [N, L] int64, index into the flattened [R, T]; -1 after the end of a response
    parent_ids: HostArray | None = None  # [R, T] int32, the shared prompt's segment; see `pack_shared_prompts`

    @property
    def packed(self) -> PackedBatch:
        """The rows as a model sees them."""
        return PackedBatch(self.tokens, self.targets, self.segment_ids, self.positions, self.loss_mask, self.parent_ids)

    def scatter_to_rows(self, values: np.ndarray, fill: float = 0) -> HostArray:
        """[N, L, ...] per response token -> [R, T, ...]; `fill` where no response token is predicted."""
        return _take(values, self.to_rows, self.to_responses.shape, fill)

    def gather_from_rows(self, values: np.ndarray, fill: float = 0) -> HostArray:
        """[R, T, ...] -> [N, L, ...] per response token; `fill` after the end of a response."""
        return _take(values, self.to_responses, self.to_rows.shape, fill)

    def spread_to_rows(self, values: np.ndarray, fill: float = 0) -> HostArray:
        """[N, ...] per response -> [R, T, ...]: every token of the response gets its value."""
        values = np.asarray(values)
        return _take(values, self.sequence_ids, values.shape[:1], fill)

    def policy_batch(
        self,
        advantages: np.ndarray,
        weights: np.ndarray,
        sampler_logprobs: np.ndarray,
        old_logprobs: np.ndarray,
        ref_logprobs: np.ndarray,
    ) -> PolicyBatch:
        """Assembles the batch of a policy update.

        Args:
          advantages, weights: [N], spread over the tokens of each response.
          sampler_logprobs: [N, L] as sampled.
          old_logprobs, ref_logprobs: [R, T] as the trainer computes them on these rows; zeroed off the responses.
        """
        on = self.loss_mask > 0
        return PolicyBatch(
            packed=self.packed,
            sequence_ids=self.sequence_ids,
            advantages=self.spread_to_rows(np.asarray(advantages, np.float32)),
            weights=self.spread_to_rows(np.asarray(weights, np.float32)),
            sampler_logprobs=self.scatter_to_rows(np.asarray(sampler_logprobs, np.float32)),
            old_logprobs=_where(on, old_logprobs),
            ref_logprobs=_where(on, ref_logprobs),
        )


def _where(mask: np.ndarray, values: np.ndarray) -> HostArray:
    return np.where(mask, np.asarray(values, np.float32), np.float32(0))


def _take(values: np.ndarray, index: np.ndarray, leading: tuple[int, ...], fill: float) -> HostArray:
    values = np.asarray(values)
    if values.shape[: len(leading)] != leading:
        raise ValueError(f"expected leading axes {leading}, got an array of shape {values.shape}")
    trailing = values.shape[len(leading) :]
    flat = values.reshape(-1, *trailing)
    out = flat[np.maximum(index, 0)] if len(flat) else np.zeros((*index.shape, *trailing), values.dtype)
    out[index < 0] = fill
    return out


def pack_policy(
    prompt_tokens: np.ndarray,
    prompt_lengths: np.ndarray,
    response_tokens: np.ndarray,
    response_lengths: np.ndarray,
    row_length: int,
    rows: int = 1,
) -> PackedPolicy:
    """Packs sampled responses with their prompts into rows for a policy update. A response is never split.

    Args:
      prompt_tokens: [N, P] left-padded.
      prompt_lengths: [N], at least 1.
      response_tokens: [N, L] right-padded.
      response_lengths: [N]; a response of length 0 trains nothing and is left out.
      row_length: slots of a row; prompt + response - 1 must fit.
      rows: the number of rows is padded to a multiple of this with empty rows.

    Raises:
      DataError: a prompt is empty, a length exceeds its array, or a sequence does not fit a row (it is named).
    """
    prompt_tokens, response_tokens = np.asarray(prompt_tokens), np.asarray(response_tokens)
    prompt, response = np.asarray(prompt_lengths, np.int64), np.asarray(response_lengths, np.int64)
    (count, prompt_width), response_width = prompt_tokens.shape, response_tokens.shape[1]
    if response_tokens.shape[0] != count or prompt.shape != (count,) or response.shape != (count,):
        raise ValueError(
            f"{count} prompts, but {response_tokens.shape[0]} responses and lengths of shapes {prompt.shape} and "
            f"{response.shape}"
        )
    wrong = (prompt < 1) | (prompt > prompt_width) | (response < 0) | (response > response_width)
    if wrong.any():
        first = int(wrong.argmax())
        raise DataError(
            f"sequence {first} has prompt length {prompt[first]} and response length {response[first]}; the arrays "
            f"allow 1..{prompt_width} and 0..{response_width}"
        )
    plan = plan_rows(np.where(response > 0, prompt + response - 1, 0), row_length, rows, "sequence")
    documents = np.flatnonzero(plan.slots)
    place, flat = _slots_of(plan, documents)
    n = np.repeat(documents, plan.slots[documents])
    # Prompt and response lie side by side in [N, P + L]: a sequence starts after the prompt's padding.
    both = np.concatenate([prompt_tokens, response_tokens], axis=1).astype(np.int32)
    column = prompt_width - prompt[n] + place
    in_response = column + 1 - prompt_width  # index in the response of the target, negative inside the prompt
    on = in_response >= 0
    shape = (plan.num_rows, row_length)
    to_responses = np.full((count, response_width), -1, np.int64)
    to_responses[n[on], in_response[on]] = flat[on]
    return PackedPolicy(
        tokens=_rows(shape, flat, both[n, column], np.int32),
        targets=_rows(shape, flat, np.where(on, both[n, column + 1], 0), np.int32),
        segment_ids=_rows(shape, flat, plan.segment[n], np.int32),
        positions=_rows(shape, flat, place, np.int32),
        loss_mask=_rows(shape, flat, on, np.float32),
        sequence_ids=_rows(shape, flat, np.where(on, n, -1), np.int32, fill=-1),
        to_rows=_rows(shape, flat, np.where(on, n * response_width + in_response, -1), np.int64, fill=-1),
        to_responses=to_responses,
    )


def split_microbatches(batch: Any, rows: int) -> list[Any]:
    """Cuts a tree of arrays [R, ...] (PackedBatch, PolicyBatch) into trees of `rows` rows; R must be a multiple."""
    sizes = {np.shape(leaf)[0] for leaf in jax.tree.leaves(batch)}
    if len(sizes) != 1:
        raise ValueError(f"the leaves have different numbers of rows: {sorted(sizes)}")
    total = sizes.pop()
    if rows < 1 or total % rows:
        raise ValueError(f"{total} rows cannot be cut into micro-batches of {rows}")
    return [jax.tree.map(lambda x, s=start: x[s : s + rows], batch) for start in range(0, total, rows)]
