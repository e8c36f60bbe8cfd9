"""Truncation masks against numpy, and draws against the probabilities they should have."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.sampling.logits import block_width, draw_index, sample_token, top_k_mask, top_p_mask

sample = jax.jit(sample_token, static_argnames=("temperature", "top_k", "top_p"))


def random_logits(seed: int, rows: int, vocab: int, scale: float = 3.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, vocab), scale=scale).astype(np.float32)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def nucleus(probs: np.ndarray, p: float) -> np.ndarray:
    """Row by row with a sort: the most likely tokens up to the one that reaches p."""
    keep = np.zeros(probs.shape, bool)
    for row, values in enumerate(probs):
        order = np.argsort(-values)
        enough = np.argmax(np.cumsum(values[order]) >= p * values.sum())
        keep[row, order[: enough + 1]] = True
    return keep


@pytest.mark.parametrize("vocab", [5, 257, 5000])
def test_top_k_keeps_the_k_largest(vocab):
    logits = random_logits(0, 16, vocab)
    for k in (1, 3, 4):
        keep = np.asarray(top_k_mask(jnp.asarray(logits), k))
        assert (keep.sum(-1) == k).all()
        assert (np.where(keep, logits, np.inf).min(-1) == np.sort(logits)[:, -k]).all()
    assert np.asarray(top_k_mask(jnp.asarray(logits), 0)).all()
    assert np.asarray(top_k_mask(jnp.asarray(logits), vocab + 1)).all()


def test_top_k_keeps_what_equals_the_kth():
    keep = top_k_mask(jnp.array([[1.0, 2.0, 2.0, 3.0]]), 2)
    assert keep.tolist() == [[False, True, True, True]]


@pytest.mark.parametrize("vocab", [5, 257, 3000])
@pytest.mark.parametrize("p", [0.05, 0.5, 0.95, 0.999])
def test_top_p_keeps_the_nucleus(vocab, p):
    weights = np.exp(random_logits(1, 64, vocab))
    keep = np.asarray(top_p_mask(jnp.asarray(weights), p))
    expected = nucleus(weights.astype(np.float64), p)
    rounding = 2e-7  # where the share is that near to p, float32 may decide otherwise
    clear = (
        nucleus(weights.astype(np.float64), p - rounding) == nucleus(weights.astype(np.float64), p + rounding)
    ).all(-1)
    assert clear.mean() > 0.7
    np.testing.assert_array_equal(keep[clear], expected[clear])


def test_top_p_on_dyadic_weights_worked_by_hand():
    weights = jnp.array([[1.0, 8.0, 0.0, 4.0, 2.0, 1.0]])  # of 16
    assert top_p_mask(weights, 0.5).tolist() == [[False, True, False, False, False, False]]
    assert top_p_mask(weights, 0.5001).tolist() == [[False, True, False, True, False, False]]
    assert top_p_mask(weights, 0.875).tolist() == [[False, True, False, True, True, False]]
    assert top_p_mask(weights, 0.9).tolist() == [[True, True, False, True, True, True]]  # equal ones together
    assert top_p_mask(weights, 1.0).tolist() == [[True, True, False, True, True, True]]
    assert top_p_mask(weights, 1e-9).tolist() == [[False, True, False, False, False, False]]


def test_top_p_is_taken_of_what_top_k_left():
    logits = jnp.log(jnp.array([[8.0, 4.0, 2.0, 1.0, 1.0]]))
    keys = jax.random.split(jax.random.key(0), 4000)
    tokens, _ = sample(jnp.tile(logits, (4000, 1)), keys, top_k=2, top_p=0.6)
    assert set(np.asarray(tokens).tolist()) == {0}  # 8 of 12 is 0.67; of all 16 it would be 0.5, and 1 be kept too
    tokens, _ = sample(jnp.tile(logits, (4000, 1)), keys, top_p=0.6)
    assert set(np.asarray(tokens).tolist()) == {0, 1}


@pytest.mark.parametrize("vocab", [3, 50, 515])
def test_drawn_frequencies_are_the_probabilities(vocab):
    draws = 50_000
    logits = random_logits(2, 1, vocab, scale=2.0)
    probs = np.exp(log_softmax(logits / 0.8))[0]
    keys = jax.random.split(jax.random.key(3), draws)
    tokens, _ = jax.jit(lambda z, k: sample_token(jnp.broadcast_to(z, (draws, vocab)), k, temperature=0.8))(
        logits, keys
    )
    counts = np.bincount(np.asarray(tokens), minlength=vocab)
    expected = probs * draws
    common = expected > 20
    chi2 = ((counts - expected) ** 2 / expected)[common].sum()
    degrees = common.sum() - 1
    assert chi2 < degrees + 5 * np.sqrt(2 * degrees) + 5


def test_draw_index_at_the_edges():
    vocab = 40
    width = block_width(vocab)
    assert width == 8
    weights = np.zeros((4, vocab), np.float32)
    weights[:, 17] = 1.0
    weights[:, 30] = 3.0
    just_below_one = 1 - 2**-23
    uniform = jnp.array([[0.0, 0.0], [0.2499, 0.99], [0.25, 0.0], [just_below_one, just_below_one]])
    assert draw_index(jnp.asarray(weights), uniform).tolist() == [17, 17, 30, 30]


def test_a_token_of_weight_zero_is_never_drawn():
    rng = np.random.default_rng(4)
    weights = np.where(rng.random((2000, 777)) < 0.7, 0, rng.random((2000, 777))).astype(np.float32)
    for value in (0.0, 1 - 2**-23, None):
        uniform = rng.random((2000, 2)) if value is None else np.full((2000, 2), value)
        index = np.asarray(draw_index(jnp.asarray(weights), jnp.asarray(uniform, jnp.float32)))
        assert (weights[np.arange(2000), index] > 0).all()


@pytest.mark.parametrize("options", [{}, {"top_k": 5}, {"top_p": 0.7}, {"top_k": 20, "top_p": 0.9}])
def test_logprobs_are_untruncated_and_tokens_are_kept_ones(options):
    temperature, rows, vocab = 0.6, 512, 300
    logits = random_logits(5, rows, vocab)
    keys = jax.random.split(jax.random.key(6), rows)
    tokens, logprobs = sample(jnp.asarray(logits), keys, temperature=temperature, **options)
    tokens = np.asarray(tokens)
    expected = log_softmax(logits / np.float32(temperature))
    np.testing.assert_allclose(logprobs, expected[np.arange(rows), tokens], atol=2e-6)
    probs = np.exp(expected)
    k = options.get("top_k", vocab)
    probs = np.where(probs >= np.sort(probs)[:, -k][:, None], probs, 0)
    keep = nucleus(probs, options["top_p"] + 1e-6) if "top_p" in options else probs > 0
    assert keep[np.arange(rows), tokens].all()
    assert logprobs.dtype == jnp.float32


def test_temperature_zero_takes_the_first_of_the_largest():
    logits = jnp.array([[0.0, 2.0, 2.0], [3.0, 1.0, 2.0]])
    tokens, logprobs = sample(logits, jax.random.split(jax.random.key(0), 2), temperature=0.0)
    assert tokens.tolist() == [1, 0]
    np.testing.assert_allclose(logprobs, log_softmax(np.asarray(logits))[[0, 1], [1, 0]], rtol=1e-6)


def test_a_draw_depends_on_its_own_logits_and_key_only():
    logits = jnp.asarray(random_logits(7, 64, 512))
    keys = jax.random.split(jax.random.key(8), 64)
    step = jax.jit(lambda z, k: sample_token(z, k, top_p=0.9))
    tokens, logprobs = step(logits, keys)
    order = np.random.default_rng(9).permutation(64)
    tokens_permuted, logprobs_permuted = step(logits[order], keys[order])
    np.testing.assert_array_equal(tokens_permuted, np.asarray(tokens)[order])
    np.testing.assert_array_equal(logprobs_permuted, np.asarray(logprobs)[order])


def test_bfloat16_logits_give_float32_logprobs():
    logits = jnp.asarray(random_logits(10, 4, 64)).astype(jnp.bfloat16)
    tokens, logprobs = sample(logits, jax.random.split(jax.random.key(0), 4))
    expected = log_softmax(np.asarray(logits.astype(jnp.float32)))
    np.testing.assert_allclose(logprobs, expected[np.arange(4), np.asarray(tokens)], atol=2e-6)
