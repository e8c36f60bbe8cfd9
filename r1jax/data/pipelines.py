"""Endless, seeded, checkpointable streams of batches (grain).

The stream is global: batch k holds the same elements whatever the number of processes, and each process takes every
`process_count`-th of them. The state is the number of batches taken and the identity of the pipeline, as plain JSON;
a stream set to a state goes on exactly as the first one did, also on another number of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar

import grain
import numpy as np

from r1jax.data.errors import DataError
from r1jax.data.packing import Documents, documents_by_row
from r1jax.types import Example, PackedBatch

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

_ENDLESS = 2**50  # elements; grain's own endless repeat overflows with batches of one


class RandomAccess(Protocol[T_co]):
    """What a source offers: a length and elements by index, the same ones every time."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> T_co: ...


class BatchIterator(Generic[T]):
    """An iterator over batches whose position can be saved and restored."""

    def __init__(self, dataset: grain.IterDataset, identity: dict[str, Any], finish: Callable[[Any], T]):
        self._iterator = iter(dataset)
        self._identity = identity
        self._finish = finish

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        return self._finish(next(self._iterator))

    def get_state(self) -> dict[str, Any]:
        """Returns a JSON-able state: after `set_state` of it, `next` gives the batch that it would give now."""
        return {"next_batch": int(self._iterator.get_state()["next_index"]), "pipeline": dict(self._identity)}

    def set_state(self, state: dict[str, Any]) -> None:
        """Moves to a saved state. Raises ValueError naming the fields that differ if it is another pipeline's."""
        saved = state["pipeline"]
        different = [
            f"{key} (saved {saved.get(key)!r}, here {self._identity.get(key)!r})"
            for key in sorted(saved.keys() | self._identity.keys())
            if saved.get(key) != self._identity.get(key)
        ]
        if different:
            raise ValueError(f"this iterator state belongs to another pipeline: {', '.join(different)}")
        self._iterator.set_state({"next_index": int(state["next_batch"])})


def _order(source: RandomAccess[Any], seed: int) -> grain.MapDataset:
    """Every epoch all elements once, in a new order each."""
    return grain.MapDataset.source(source).shuffle(seed=seed).repeat(_ENDLESS // len(source) + 1)


def _batches(
    source: RandomAccess[Any],
    seed: int,
    batch_size: int,
    process: tuple[int, int],
    num_threads: int,
) -> grain.IterDataset:
    index, count = process
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must be in 0..2**32-1, got {seed}")
    if not 0 <= index < count:
        raise ValueError(f"process_index {index} is not in 0..{count - 1}")
    if batch_size < 1 or batch_size % count:
        raise ValueError(f"batch size {batch_size} is not a positive multiple of {count} processes")
    if len(source) == 0:
        raise DataError("the source is empty")
    # repeat before slicing: otherwise the processes' epochs would differ in length
    stream = _order(source, seed)[index::count]
    stream = stream.batch(batch_size // count, batch_fn=list)
    return stream.to_iter_dataset(grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=2 * num_threads))


def example_iterator(
    source: RandomAccess[Example],
    seed: int,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int = 0,
) -> BatchIterator[list[Example]]:
    """Returns an endless iterator over batches of examples: every epoch once, in a new order each.

    Args:
      source: the examples. If it has a `fingerprint` (str), the state of the iterator carries it.
      seed: of the order.
      batch_size: of all processes together; each gets `batch_size / process_count`.
      process_index, process_count: this process.
      num_threads: threads that read ahead; 0 reads when asked. The order is the same.
    """
    identity = {
        "kind": "examples",
        "source_length": len(source),
        "source": getattr(source, "fingerprint", ""),
        "seed": seed,
        "batch_size": batch_size,
    }
    dataset = _batches(source, seed, batch_size, (process_index, process_count), num_threads)
    return BatchIterator(dataset, identity, list)


def packed_iterator(
    documents: Documents | Sequence[tuple[Sequence[int], Sequence[float] | None]],
    row_length: int,
    rows: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int = 0,
) -> BatchIterator[PackedBatch]:
    """Returns an endless iterator over packed batches [rows / process_count, row_length] of documents.

    The (tokens, loss_mask) documents are packed once (best fit, nothing cut); the rows are drawn in a new order each
    epoch. Segment ids keep the documents of a row apart, so it does not matter which ones share a row.
    """
    store = documents if isinstance(documents, Documents) else Documents.from_pairs(documents)
    plan = store.plan(row_length)
    members = documents_by_row(plan)
    identity = {
        "kind": "packed",
        "documents": len(store),
        "digest": store.digest(),
        "packed_rows": plan.num_rows,
        "row_length": row_length,
        "rows": rows,
        "seed": seed,
    }
    dataset = _batches(range(plan.num_rows), seed, rows, (process_index, process_count), num_threads)
    return BatchIterator(dataset, identity, lambda ids: store.fill_rows(plan, np.asarray(ids), members))


def tokens_drawn(documents: Documents, row_length: int, rows: int, seed: int, batches: int) -> int:
    """Tokens, padding left out, in the first `batches` batches of a `packed_iterator` with these arguments."""
    plan = documents.plan(row_length)
    by_row = np.bincount(plan.row, weights=plan.slots, minlength=plan.num_rows).astype(np.int64)
    epochs, rest = divmod(batches * rows, plan.num_rows)
    order = _order(range(plan.num_rows), seed)
    begun = sum(int(by_row[order[i]]) for i in range(epochs * plan.num_rows, epochs * plan.num_rows + rest))
    return epochs * int(by_row.sum()) + begun
