"""Next-token and MTP losses: which targets count, sums that add up, and the normalization of V3 eq. 24."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import grpo_numpy as oracle

from r1jax.algorithms import cross_entropy
from r1jax.types import PackedBatch

WIDTH, VOCAB = 5, 9
# Two documents in row 0 (lengths 4 and 3, then padding), one of 8 in row 1 whose first three targets are not trained.
SEGMENTS = np.array([[1, 1, 1, 1, 2, 2, 2, 0], [1] * 8], np.int32)
TOKENS = np.array([[1, 2, 3, 4, 5, 6, 7, 0], [8, 7, 6, 5, 4, 3, 2, 1]], np.int32)
TARGETS = np.array([[2, 3, 4, 0, 6, 7, 0, 0], [7, 6, 5, 4, 3, 2, 1, 0]], np.int32)
LOSS_MASK = np.array([[1, 1, 1, 0, 1, 1, 0, 0], [0, 0, 0, 1, 1, 1, 1, 0]], np.float32)
POSITIONS = np.array([[0, 1, 2, 3, 0, 1, 2, 0], list(range(8))], np.int32)
PACKED = PackedBatch(TOKENS, TARGETS, SEGMENTS, POSITIONS, LOSS_MASK)


def states(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(2, 8, WIDTH)).astype(np.float32)


HIDDEN, DRAFT = states(0), states(1)
UNEMBED = np.random.default_rng(2).normal(size=(WIDTH, VOCAB)).astype(np.float32)


def log_softmax(hidden) -> np.ndarray:
    return oracle.log_softmax(hidden.astype(float) @ UNEMBED.astype(float))


@pytest.mark.parametrize("chunk", [512, 4, 2])
def test_next_token_loss_is_a_sum_over_trained_positions(chunk):
    expected = -sum(log_softmax(HIDDEN)[r, t, TARGETS[r, t]] for r, t in np.argwhere(LOSS_MASK > 0))
    loss, metrics = cross_entropy.next_token_loss(HIDDEN, UNEMBED, PACKED, chunk)
    assert float(loss) == pytest.approx(expected, rel=1e-6)
    assert float(metrics["ce_sum"]) == float(loss)
    assert float(metrics["ce_tokens"]) == 9


def test_uniform_predictions_cost_log_v_per_token():
    loss, metrics = cross_entropy.next_token_loss(np.zeros_like(HIDDEN), UNEMBED, PACKED)
    assert float(loss / metrics["ce_tokens"]) == pytest.approx(np.log(VOCAB), rel=1e-6)
    assert float(metrics["entropy_sum"]) == pytest.approx(9 * np.log(VOCAB), rel=1e-6)


def test_second_next_targets_by_hand():
    # Row 0: position 0 predicts 3, 1 predicts 4 (document 1), 4 predicts 7 (document 2). Nothing crosses a border.
    # Row 1: t + 1 must be trained, so 2..5 count, predicting tokens 4..7.
    targets, mask = cross_entropy.second_next(PACKED)
    np.testing.assert_array_equal(mask, [[1, 1, 0, 0, 1, 0, 0, 0], [0, 0, 1, 1, 1, 1, 0, 0]])
    np.testing.assert_array_equal(np.asarray(targets)[np.asarray(mask) > 0], [3, 4, 7, 4, 3, 2, 1])
    for row, t in np.argwhere(np.asarray(mask) > 0):
        assert targets[row, t] == TOKENS[row, t + 2]
        assert SEGMENTS[row, t] == SEGMENTS[row, t + 2]


def test_mtp_never_crosses_documents_even_if_the_mask_would_allow():
    # Document 2's very first target is trained, and the last position of document 1 must not predict it.
    _, mask = cross_entropy.second_next(PACKED.replace(loss_mask=np.ones_like(LOSS_MASK)))
    assert mask[0, 3] == 0
    assert mask[0, 6] == 0


@pytest.mark.parametrize("chunk", [512, 4])
def test_mtp_loss_equals_float64_and_is_not_silently_zero(chunk):
    logp = log_softmax(DRAFT)
    counted = [(0, 0), (0, 1), (0, 4), (1, 2), (1, 3), (1, 4), (1, 5)]
    expected = -sum(logp[r, t, TOKENS[r, t + 2]] for r, t in counted)
    correct = sum(int(logp[r, t].argmax() == TOKENS[r, t + 2]) for r, t in counted)

    def loss(draft):
        return cross_entropy.mtp_loss(draft, UNEMBED, PACKED, chunk)

    (found, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(DRAFT)
    assert float(found) == pytest.approx(expected, rel=1e-6)
    assert float(metrics["mtp_tokens"]) == 7
    assert float(metrics["mtp_correct"]) == correct
    moved = np.abs(np.asarray(gradient)).sum(-1) > 0
    assert {tuple(index) for index in np.argwhere(moved).tolist()} == set(counted)


def test_mtp_accuracy_is_one_when_the_module_is_right():
    eye = np.eye(VOCAB, dtype=np.float32)
    targets, _ = cross_entropy.second_next(PACKED)
    _, metrics = cross_entropy.mtp_loss(5 * eye[np.asarray(targets)], eye, PACKED)
    assert float(metrics["mtp_correct"]) == float(metrics["mtp_tokens"]) == 7


def test_micro_batches_add_up():
    def total(packed, hidden, draft):
        loss, metrics = cross_entropy.next_token_loss(hidden, UNEMBED, packed)
        extra, more = cross_entropy.mtp_loss(draft, UNEMBED, packed)
        accepted = cross_entropy.mtp_acceptance(draft, hidden, UNEMBED, packed)
        return {"loss": loss, "mtp": extra, **metrics, **more, **accepted}

    total = jax.jit(total)
    whole = total(PACKED, HIDDEN, DRAFT)
    parts = [
        total(jax.tree.map(lambda x, r=r: x[r : r + 1], PACKED), HIDDEN[r : r + 1], DRAFT[r : r + 1]) for r in (0, 1)
    ]
    for name, value in whole.items():
        assert float(parts[0][name] + parts[1][name]) == pytest.approx(float(value), rel=1e-5), name


@pytest.mark.parametrize("chunk", [512, 4])
def test_acceptance_compares_the_draft_with_the_main_models_next_position(chunk):
    _, mask = cross_entropy.second_next(PACKED)
    q, p = np.exp(log_softmax(DRAFT)), np.exp(log_softmax(HIDDEN))
    pairs = [(q[r, t], p[r, t + 1]) for r, t in np.argwhere(np.asarray(mask) > 0)]
    metrics = cross_entropy.mtp_acceptance(DRAFT, HIDDEN, UNEMBED, PACKED, chunk)
    assert float(metrics["accept_tokens"]) == 7
    assert float(metrics["accept_greedy"]) == sum(a.argmax() == b.argmax() for a, b in pairs)
    assert float(metrics["accept_sampled"]) == pytest.approx(sum(np.minimum(a, b).sum() for a, b in pairs), rel=1e-5)


def test_a_draft_equal_to_the_main_model_is_always_accepted():
    shifted = np.roll(HIDDEN, -1, axis=1)
    metrics = cross_entropy.mtp_acceptance(shifted, HIDDEN, UNEMBED, PACKED)
    assert float(metrics["accept_greedy"]) == 7
    assert float(metrics["accept_sampled"]) == pytest.approx(7, rel=1e-5)


def test_broken_states_at_padding_break_nothing():
    hidden = HIDDEN.copy()
    hidden[0, 7] = 1e30
    (loss, _), gradient = jax.value_and_grad(
        lambda h: cross_entropy.next_token_loss(h, jnp.asarray(UNEMBED), PACKED), has_aux=True
    )(jnp.asarray(hidden))
    assert np.isfinite(float(loss))
    assert np.isfinite(np.asarray(gradient)).all()
