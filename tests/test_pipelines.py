from __future__ import annotations

import json

import jax
import numpy as np
import pytest

from r1jax.data.errors import DataError
from r1jax.data.packing import Documents
from r1jax.data.pipelines import example_iterator, packed_iterator, tokens_drawn
from r1jax.types import Example


def examples(count: int) -> list[Example]:
    return [Example(id=f"e{i}", question=f"{i} + {i} = ?", answer=str(2 * i), task="double") for i in range(count)]


def documents(count: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    return [(rng.integers(1, 99, n), rng.integers(0, 2, n)) for n in rng.integers(2, 20, count)]


def ids(iterator, batches: int) -> list[list[str]]:
    return [[e.id for e in next(iterator)] for _ in range(batches)]


def test_each_epoch_has_every_example_once_in_a_new_order():
    flat = [i for batch in ids(example_iterator(examples(10), seed=3, batch_size=5), 6) for i in batch]
    epochs = [flat[:10], flat[10:20], flat[20:]]
    assert all(sorted(epoch) == sorted(e.id for e in examples(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_batches_run_over_the_end_of_an_epoch_and_drop_nothing():
    flat = [i for batch in ids(example_iterator(examples(10), seed=3, batch_size=4), 5) for i in batch]
    assert sorted(flat) == sorted([e.id for e in examples(10)] * 2)


def test_the_seed_decides_the_order():
    first, again, other = (ids(example_iterator(examples(30), s, 6), 5) for s in (1, 1, 2))
    assert first == again != other


def test_reading_ahead_with_threads_changes_nothing():
    assert ids(example_iterator(examples(30), 1, 6, num_threads=2), 12) == ids(example_iterator(examples(30), 1, 6), 12)


def test_the_global_batches_do_not_depend_on_the_number_of_processes():
    alone = ids(example_iterator(examples(11), 5, 4), 9)
    parts = [ids(example_iterator(examples(11), 5, 4, process_index=p, process_count=2), 9) for p in range(2)]
    for whole, first, second in zip(alone, *parts, strict=True):
        assert len(first) == len(second) == 2
        assert sorted(whole) == sorted(first + second)


def test_resume_at_every_step_gives_the_same_examples():
    iterator = example_iterator(examples(13), 7, 4)
    states, batches = [], []
    for _ in range(10):
        states.append(json.dumps(iterator.get_state()))
        batches.append(next(iterator))
    for step, state in enumerate(states):
        resumed = example_iterator(examples(13), 7, 4)
        resumed.set_state(json.loads(state))
        assert resumed.get_state() == json.loads(state)
        assert [next(resumed) for _ in range(step, 10)] == batches[step:]
    iterator.set_state(json.loads(states[2]))  # also backwards on a used iterator
    assert next(iterator) == batches[2]


@pytest.mark.parametrize("num_threads", [0, 2])
def test_resume_at_every_step_gives_bit_identical_rows(num_threads):
    def fresh():
        return packed_iterator(documents(40), 32, rows=4, seed=9, num_threads=num_threads)

    iterator = fresh()
    states, batches = [], []
    for _ in range(8):  # more than one epoch: 40 documents make about 13 rows
        states.append(json.dumps(iterator.get_state()))
        batches.append(next(iterator))
    for step, state in enumerate(states):
        resumed = fresh()
        resumed.set_state(json.loads(state))
        for expected in batches[step:]:
            jax.tree.map(np.testing.assert_array_equal, next(resumed), expected)


def test_a_state_of_another_pipeline_is_refused_with_the_fields_that_differ():
    state = example_iterator(examples(13), 7, 4).get_state()
    with pytest.raises(ValueError, match=r"batch_size \(saved 4, here 2\), seed \(saved 7, here 8\)"):
        example_iterator(examples(13), 8, 2).set_state(state)
    with pytest.raises(ValueError, match=r"source_length \(saved 13, here 12\)"):
        example_iterator(examples(12), 7, 4).set_state(state)
    rows = packed_iterator(documents(40), 32, 4, 9).get_state()
    with pytest.raises(ValueError, match="digest"):
        packed_iterator(documents(40, seed=1), 32, 4, 9).set_state(rows)
    with pytest.raises(ValueError, match="kind"):
        packed_iterator(documents(40), 32, 4, 9).set_state(state)


def test_a_source_with_a_fingerprint_puts_it_into_the_state():
    class Named(list):
        fingerprint = "abc"

    state = example_iterator(Named(examples(5)), 0, 1).get_state()
    assert state["pipeline"]["source"] == "abc"
    Named.fingerprint = "abd"
    with pytest.raises(ValueError, match=r"source \(saved 'abc', here 'abd'\)"):
        example_iterator(Named(examples(5)), 0, 1).set_state(state)


def test_one_epoch_of_packed_rows_trains_every_token_once():
    docs = documents(200)
    wanted = sum(int(mask[1:].sum()) for _, mask in docs)
    iterator = packed_iterator(docs, 32, rows=1, seed=0)
    num_rows = iterator.get_state()["pipeline"]["packed_rows"]
    assert sum(int(next(iterator).loss_mask.sum()) for _ in range(num_rows)) == wanted


def test_processes_share_the_packed_rows_of_a_batch():
    whole = next(packed_iterator(documents(40), 32, 4, 9))
    parts = [next(packed_iterator(documents(40), 32, 4, 9, p, 2)) for p in range(2)]
    both = np.concatenate([p.tokens for p in parts])
    assert both.shape == whole.tokens.shape
    assert sorted(map(tuple, both.tolist())) == sorted(map(tuple, whole.tokens.tolist()))


def test_bad_arguments_are_named():
    with pytest.raises(DataError, match="the source is empty"):
        example_iterator([], 0, 1)
    with pytest.raises(ValueError, match="batch size 5 is not a positive multiple of 2 processes"):
        example_iterator(examples(5), 0, 5, 0, 2)
    with pytest.raises(ValueError, match=r"process_index 2 is not in 0\.\.1"):
        example_iterator(examples(5), 0, 4, 2, 2)
    with pytest.raises(ValueError, match="seed"):
        example_iterator(examples(5), -1, 4)


def test_the_tokens_of_a_run_are_counted_without_making_its_batches():
    store = Documents.from_pairs(documents(40))
    iterator = packed_iterator(store, row_length=32, rows=5, seed=5)
    rows = iterator.get_state()["pipeline"]["packed_rows"]
    assert rows % 5, "epochs end inside batches"
    counted, so_far = [], 0
    for _ in range(2 * rows):
        counted.append(so_far)
        so_far += int(np.count_nonzero(next(iterator).segment_ids))
    assert [tokens_drawn(store, 32, 5, 5, batches) for batches in range(2 * rows)] == counted
