"""Rows that hold a shared prompt once give every response the log-probs of a row of its own."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from r1jax.algorithms.logprobs import token_logprobs
from r1jax.data.errors import DataError
from r1jax.data.packing import PackedPolicy, pack_policy
from r1jax.data.shared_prompts import pack_shared_prompts
from r1jax.model.heads import unembedding
from r1jax.model.presets import get_preset
from r1jax.model.transformer import Transformer, init_params
from r1jax.stages.state import forward


def sequences(seed: int, prompts: int = 3, samples: int = 4, vocab: int = 50) -> tuple[np.ndarray, ...]:
    """Left-padded prompts [N, 7], their lengths, responses [N, 9] and theirs."""
    rng = np.random.default_rng(seed)
    lengths = np.repeat(rng.integers(1, 8, prompts), samples)
    base = np.repeat(rng.integers(1, vocab, (prompts, 7)), samples, axis=0)
    tokens = np.where(np.arange(7) >= 7 - lengths[:, None], base, 0)
    responses, response_lengths = rng.integers(1, vocab, (len(lengths), 9)), rng.integers(1, 10, len(lengths))
    return tokens, lengths, responses, response_lengths


def test_a_prompt_of_three_with_two_responses_worked_by_hand():
    packed = pack_shared_prompts(
        np.array([[5, 6, 7], [5, 6, 7]]), np.array([3, 3]), np.array([[1, 2], [3, 0]]), np.array([2, 1]), 8
    )
    assert packed.tokens.tolist() == [[5, 6, 7, 1, 7, 0, 0, 0]]
    assert packed.targets.tolist() == [[0, 0, 1, 2, 3, 0, 0, 0]]
    assert packed.segment_ids.tolist() == [[1, 1, 2, 2, 3, 0, 0, 0]]
    assert packed.parent_ids is not None
    assert packed.parent_ids.tolist() == [[0, 0, 1, 1, 1, 0, 0, 0]]
    assert packed.positions.tolist() == [[0, 1, 2, 3, 2, 0, 0, 0]]
    assert packed.loss_mask.tolist() == [[0, 0, 1, 1, 1, 0, 0, 0]]
    assert packed.sequence_ids.tolist() == [[-1, -1, 0, 0, 1, -1, -1, -1]]
    assert packed.gather_from_rows(packed.targets).tolist() == [[1, 2], [3, 0]]


def test_a_family_that_does_not_fit_one_row_is_spread_over_several_and_nothing_is_lost():
    tokens, lengths, responses, response_lengths = sequences(1, prompts=2, samples=6)
    packed = pack_shared_prompts(tokens, lengths, responses, response_lengths, 20, rows=2)
    valid = np.arange(9) < response_lengths[:, None]
    assert np.array_equal(packed.gather_from_rows(packed.targets)[valid], responses[valid])
    assert packed.loss_mask.sum() == response_lengths.sum()
    assert len(packed.tokens) % 2 == 0


def test_a_sequence_longer_than_a_row_is_refused_by_name():
    with pytest.raises(DataError, match="sequence 1 takes 5 slots, a row has 4"):
        pack_shared_prompts(
            np.array([[1, 2, 3]] * 2), np.array([3, 3]), np.array([[1, 2, 0], [1, 2, 3]]), np.array([2, 3]), 4
        )


@pytest.mark.parametrize("preset", ["tiny_mla_moe", "tiny_dense"])
def test_shared_prompts_give_the_log_probs_and_gradients_of_separate_rows(preset: str):
    cfg = dataclasses.replace(get_preset(preset, vocab_size=50), mtp_depth=0)
    model, params = Transformer(cfg), init_params(cfg, jax.random.key(0))
    tokens, lengths, responses, response_lengths = sequences(2)
    valid = np.arange(9) < response_lengths[:, None]
    weights = np.where(valid, np.random.default_rng(3).normal(size=valid.shape), 0).astype(np.float32)

    def loss(params, policy: PackedPolicy):
        output = forward(model, params, policy.packed)
        logprobs, _ = token_logprobs(output.hidden, unembedding(params, cfg), policy.targets)
        return (logprobs * policy.scatter_to_rows(weights)).sum(), logprobs

    results = []
    for pack, row_length in ((pack_policy, 16), (pack_shared_prompts, 40)):
        policy = pack(tokens, lengths, responses, response_lengths, row_length)
        (_, logprobs), grads = jax.value_and_grad(loss, has_aux=True)(params, policy)
        results.append((policy.gather_from_rows(np.asarray(logprobs))[valid], grads))
    np.testing.assert_allclose(results[1][0], results[0][0], atol=2e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4, rtol=2e-3), results[1][1], results[0][1])
