from __future__ import annotations

import time

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1jax.data.errors import DataError
from r1jax.data.packing import (
    Documents,
    documents_by_row,
    pack_documents,
    pack_policy,
    plan_rows,
    split_microbatches,
)
from r1jax.types import PackedBatch


def random_rollout(rng, count, prompt_width, response_width, shortest=0):
    """Left-padded prompts and right-padded responses; token values are unique, padding is -7."""
    prompt = rng.integers(1, prompt_width + 1, count)
    response = rng.integers(shortest, response_width + 1, count)
    ids = np.arange(1, count * (prompt_width + response_width) + 1).reshape(count, -1)
    prompts = np.where(np.arange(prompt_width) >= prompt_width - prompt[:, None], ids[:, :prompt_width], -7)
    responses = np.where(np.arange(response_width) < response[:, None], ids[:, prompt_width:], -7)
    return prompts, prompt, responses, response


def test_two_documents_in_one_row_by_hand():
    packed = pack_documents([([5, 6, 7], [0, 1, 1]), ([1, 2, 3, 4], [0, 0, 0, 1])], row_length=6)
    # The longer one goes first; its first two predictions are not trained, so their targets are 0.
    np.testing.assert_array_equal(packed.tokens, [[1, 2, 3, 5, 6, 0]])
    np.testing.assert_array_equal(packed.targets, [[0, 0, 4, 6, 7, 0]])
    np.testing.assert_array_equal(packed.segment_ids, [[1, 1, 1, 2, 2, 0]])
    np.testing.assert_array_equal(packed.positions, [[0, 1, 2, 0, 1, 0]])
    np.testing.assert_array_equal(packed.loss_mask, [[0, 0, 1, 1, 1, 0]])
    assert [a.dtype for a in (packed.tokens, packed.segment_ids, packed.loss_mask)] == [np.int32, np.int32, np.float32]


def test_best_fit_takes_the_fullest_row_that_has_room():
    # 7 opens row 0, 6 opens row 1; 4 fits row 1 only; 2 fits row 0 only; 0 is left out.
    plan = plan_rows(np.array([2, 6, 7, 0, 4]), row_length=10)
    assert plan.row.tolist() == [0, 1, 0, -1, 1]
    assert plan.offset.tolist() == [7, 0, 0, 0, 6]
    assert plan.segment.tolist() == [2, 1, 1, 0, 2]
    assert plan.num_rows == 2
    assert plan.fill == pytest.approx(19 / 20)
    # With 7 and 6 open, 3 fits both (3 and 4 slots free) and takes the fuller row.
    assert plan_rows(np.array([3, 6, 7]), row_length=10).row.tolist() == [0, 1, 0]


def unpack(packed: PackedBatch):
    """Independent inverse: the (tokens, targets, mask) of every segment, with its positions checked."""
    found = []
    for row in range(packed.tokens.shape[0]):
        segments = packed.segment_ids[row]
        for segment in range(1, segments.max(initial=0) + 1):
            (where,) = np.nonzero(segments == segment)
            assert len(where)
            assert (np.diff(where) == 1).all()
            assert packed.positions[row, where].tolist() == list(range(len(where)))
            found.append(
                (
                    tuple(packed.tokens[row, where].tolist()),
                    tuple(packed.targets[row, where].tolist()),
                    tuple(packed.loss_mask[row, where].tolist()),
                )
            )
        empty = segments == 0
        for field in (packed.tokens, packed.targets, packed.positions, packed.loss_mask):
            assert not field[row, empty].any()
    return found


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(2, 12), min_size=1, max_size=30), st.integers(11, 25), st.integers(1, 4), st.integers(0, 99)
)
def test_every_document_is_whole_in_one_row_exactly_once(lengths, row_length, multiple, seed):
    rng = np.random.default_rng(seed)
    documents = [(rng.integers(1, 1000, n), rng.integers(0, 2, n)) for n in lengths]
    packed = pack_documents(documents, row_length, rows=multiple)
    assert packed.tokens.shape[0] % multiple == 0
    expected = [
        (
            tuple(tokens[:-1].tolist()),
            tuple((tokens[1:] * mask[1:]).tolist()),
            tuple(mask[1:].astype(float).tolist()),
        )
        for tokens, mask in documents
    ]
    assert sorted(unpack(packed)) == sorted(expected)


def test_a_document_that_does_not_fit_is_an_error_that_names_it():
    with pytest.raises(DataError, match="document 1 takes 11 slots, a row has 10"):
        pack_documents([([1] * 11, None), ([1] * 12, None)], row_length=10)
    assert pack_documents([([1] * 11, None)], row_length=10).loss_mask.sum() == 10  # the last token needs no slot


def test_malformed_documents_are_named():
    with pytest.raises(DataError, match="document 1 has 1 tokens"):
        pack_documents([([1, 2], None), ([1], None)], 8)
    with pytest.raises(DataError, match="document 0 has 2 tokens and a loss mask of 3"):
        pack_documents([([1, 2], [1, 1, 1])], 8)
    with pytest.raises(DataError, match="no documents"):
        pack_documents([], 8)


def test_sixty_thousand_documents_pack_in_seconds_densely_and_the_same_twice():
    rng = np.random.default_rng(0)
    documents = [(rng.integers(1, 99, n), None) for n in rng.integers(10, 80, 60_000)]
    start = time.perf_counter()
    store = Documents.from_pairs(documents)
    plan = store.plan(136, rows=16)
    packed = store.fill_rows(plan, np.arange(plan.num_rows), documents_by_row(plan))
    assert time.perf_counter() - start < 10
    assert plan.fill > 0.99
    assert packed.loss_mask.sum() == sum(len(tokens) - 1 for tokens, _ in documents)
    again = store.plan(136, rows=16)
    np.testing.assert_array_equal(plan.row, again.row)
    np.testing.assert_array_equal(plan.offset, again.offset)


def test_rows_can_be_filled_in_any_order():
    rng = np.random.default_rng(1)
    store = Documents.from_pairs([(rng.integers(1, 99, n), None) for n in rng.integers(2, 20, 40)])
    plan = store.plan(24)
    members = documents_by_row(plan)
    whole = store.fill_rows(plan, np.arange(plan.num_rows), members)
    chosen = np.array([3, 0, 5])
    part = store.fill_rows(plan, chosen, members)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[chosen], b), whole, part)


def test_policy_rows_by_hand():
    # Response 0: prompt [1 2], response [3 4]. Response 1: prompt [5], response [6 7 8].
    packed = pack_policy(
        prompt_tokens=np.array([[1, 2], [0, 5]]),
        prompt_lengths=np.array([2, 1]),
        response_tokens=np.array([[3, 4, 0], [6, 7, 8]]),
        response_lengths=np.array([2, 3]),
        row_length=7,
        rows=2,
    )
    np.testing.assert_array_equal(packed.tokens, [[1, 2, 3, 5, 6, 7, 0], [0] * 7])
    np.testing.assert_array_equal(packed.targets, [[0, 3, 4, 6, 7, 8, 0], [0] * 7])
    np.testing.assert_array_equal(packed.loss_mask, [[0, 1, 1, 1, 1, 1, 0], [0] * 7])
    np.testing.assert_array_equal(packed.segment_ids, [[1, 1, 1, 2, 2, 2, 0], [0] * 7])
    np.testing.assert_array_equal(packed.positions, [[0, 1, 2, 0, 1, 2, 0], [0] * 7])
    np.testing.assert_array_equal(packed.sequence_ids, [[-1, 0, 0, 1, 1, 1, -1], [-1] * 7])
    values = np.array([[10.0, 11.0, 99.0], [12.0, 13.0, 14.0]])  # 99 is past the end
    np.testing.assert_array_equal(packed.scatter_to_rows(values), [[0, 10, 11, 12, 13, 14, 0], [0] * 7])
    np.testing.assert_array_equal(
        packed.gather_from_rows(packed.scatter_to_rows(values), fill=-1), [[10, 11, -1], [12, 13, 14]]
    )
    np.testing.assert_array_equal(packed.spread_to_rows(np.array([0.5, -2.0])), [[0, 0.5, 0.5, -2, -2, -2, 0], [0] * 7])


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 40), st.integers(1, 9), st.integers(1, 12), st.integers(0, 8), st.integers(1, 5), st.integers(0, 99)
)
def test_policy_rows_hold_every_sequence_and_scatter_and_gather_are_inverse(
    count, prompt_width, response_width, spare, multiple, seed
):
    rng = np.random.default_rng(seed)
    prompts, prompt, responses, response = random_rollout(rng, count, prompt_width, response_width)
    packed = pack_policy(prompts, prompt, responses, response, prompt_width + response_width - 1 + spare, rows=multiple)
    assert packed.tokens.shape[0] % multiple == 0
    expected = []
    for n in range(count):
        if response[n]:
            tokens = [*prompts[n, prompt_width - prompt[n] :], *responses[n, : response[n]]]
            mask = [0] * (prompt[n] - 1) + [1] * response[n]
            targets = [t * m for t, m in zip(tokens[1:], mask, strict=True)]
            expected.append((tuple(tokens[:-1]), tuple(targets), tuple(mask)))
    assert sorted(unpack(packed.packed)) == sorted(expected)
    alive = np.arange(response_width) < response[:, None]
    # Each slot that is trained carries the very token of its response, and the response's index.
    np.testing.assert_array_equal(packed.gather_from_rows(packed.targets, fill=-7), responses)
    np.testing.assert_array_equal(packed.scatter_to_rows(responses), packed.targets)
    np.testing.assert_array_equal(
        packed.gather_from_rows(packed.sequence_ids, fill=-1), np.where(alive, np.arange(count)[:, None], -1)
    )
    values = rng.normal(size=(count, response_width, 2, 3)).astype(np.float32)  # trailing axes: e.g. chosen experts
    back = packed.gather_from_rows(packed.scatter_to_rows(values))
    np.testing.assert_array_equal(back, np.where(alive[..., None, None], values, 0))
    rows = rng.normal(size=packed.tokens.shape)
    np.testing.assert_array_equal(
        packed.scatter_to_rows(packed.gather_from_rows(rows)), np.where(packed.loss_mask > 0, rows, 0)
    )


def test_policy_batch_puts_every_value_on_its_token():
    rng = np.random.default_rng(2)
    prompts, prompt, responses, response = random_rollout(rng, 6, 4, 5, shortest=1)
    packed = pack_policy(prompts, prompt, responses, response, row_length=12, rows=2)
    sampler = rng.normal(size=(6, 5))
    old, ref = rng.normal(size=(2, *packed.tokens.shape))
    batch = packed.policy_batch(np.arange(6.0) - 3, 1.0 / response, sampler, old, ref)
    np.testing.assert_allclose(batch.weights.sum(), 6, rtol=1e-6)  # 1/|o| on each of |o| tokens, for six responses
    np.testing.assert_array_equal(batch.old_logprobs, np.where(packed.loss_mask > 0, old.astype(np.float32), 0))
    for n in range(6):
        here = batch.sequence_ids == n
        assert here.sum() == response[n]
        assert set(batch.advantages[here]) == {n - 3.0}
        np.testing.assert_array_equal(batch.sampler_logprobs[here], sampler[n, : response[n]].astype(np.float32))


def test_policy_packing_is_fast_for_8192_responses():
    rng = np.random.default_rng(3)
    rollout = random_rollout(rng, 8192, 20, 100)
    start = time.perf_counter()
    packed = pack_policy(*rollout, row_length=256, rows=8)
    packed.gather_from_rows(packed.scatter_to_rows(np.zeros((8192, 100), np.float32)))
    assert time.perf_counter() - start < 5


def test_policy_errors_name_the_sequence():
    tokens, ones = np.ones((2, 3), np.int32), np.ones(2, np.int32)
    with pytest.raises(DataError, match="sequence 1 has prompt length 0"):
        pack_policy(tokens, np.array([1, 0]), tokens, ones, 8)
    with pytest.raises(DataError, match="sequence 0 has prompt length 1 and response length 4"):
        pack_policy(tokens, ones, tokens, np.array([4, 1]), 8)
    with pytest.raises(DataError, match="sequence 1 takes 5 slots, a row has 4"):
        pack_policy(tokens, np.array([1, 3]), tokens, np.array([1, 3]), 4)
    with pytest.raises(ValueError, match="2 prompts, but 1 responses"):
        pack_policy(tokens, ones, tokens[:1], ones, 8)


def test_values_of_another_shape_are_refused():
    packed = pack_policy(np.ones((2, 3)), np.ones(2), np.ones((2, 4)), np.ones(2), 8)
    with pytest.raises(ValueError, match=r"expected leading axes \(2, 4\), got an array of shape \(4, 2\)"):
        packed.scatter_to_rows(np.zeros((4, 2)))


def test_microbatches_are_consecutive_rows():
    packed = pack_documents([([1, 2, 3], None)] * 6, row_length=2)
    parts = split_microbatches(packed, 2)
    assert [p.tokens.shape for p in parts] == [(2, 2)] * 3
    whole = jax.tree.map(lambda *xs: np.concatenate(xs), *parts)
    jax.tree.map(np.testing.assert_array_equal, whole, packed)
    with pytest.raises(ValueError, match="6 rows cannot be cut into micro-batches of 4"):
        split_microbatches(packed, 4)
