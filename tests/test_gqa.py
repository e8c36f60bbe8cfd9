"""Grouped-query attention, with and without a cache, against a plain loop in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from r1jax.model.cache import GQACache
from r1jax.model.gqa import cached_attention
from r1jax.model.layers import causal_attention, masked_softmax

B, T, N, K, H = 2, 6, 4, 2, 8
SCALE = 0.3


def reference(q: np.ndarray, k: np.ndarray, v: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """visible [B, T, S]. Key head j serves query heads 2j and 2j + 1, as consecutive heads do in released weights."""
    out = np.zeros(q.shape)
    for b, t, n in np.ndindex(*q.shape[:3]):
        seen = np.flatnonzero(visible[b, t])
        if len(seen):
            scores = k[b, seen, n // (N // K)].astype(np.float64) @ q[b, t, n] * SCALE
            weights = np.exp(scores - scores.max())
            out[b, t, n] = weights / weights.sum() @ v[b, seen, n // (N // K)]
    return out


def make_inputs() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(B, T, heads, H)).astype(np.float32) for heads in (N, K, K))
    return q, k, v


def test_causal_attention_stays_within_segments() -> None:
    q, k, v = make_inputs()
    ids = np.array([[1, 1, 1, 2, 2, 0], [0, 1, 1, 1, 1, 1]])
    visible = (ids[:, :, None] == ids[:, None]) & (ids != 0)[:, None] & np.tril(np.ones((T, T), bool))
    got = causal_attention(jnp.asarray(q), jnp.asarray(k), jnp.asarray(v), jnp.asarray(ids), None, SCALE)
    np.testing.assert_allclose(got, reference(q, k, v, visible), atol=2e-6)


def test_responses_see_the_prompt_they_share_and_not_each_other() -> None:
    q, k, v = make_inputs()
    ids, parents = np.array([[1, 1, 2, 2, 3, 0]] * B), np.array([[0, 0, 1, 1, 1, 0]] * B)
    visible = np.array(
        [
            [1, 0, 0, 0, 0, 0],
            [1, 1, 0, 0, 0, 0],
            [1, 1, 1, 0, 0, 0],
            [1, 1, 1, 1, 0, 0],
            [1, 1, 0, 0, 1, 0],
            [0, 0, 0, 0, 0, 0],
        ]
    )
    arrays = (jnp.asarray(x) for x in (q, k, v, ids, parents))
    got = causal_attention(*arrays, SCALE)
    np.testing.assert_allclose(got, reference(q, k, v, np.broadcast_to(visible, (B, T, T))), atol=2e-6)


def test_cached_attention_sees_its_slots_and_itself() -> None:
    q, k, v = make_inputs()
    start = np.array([0, 3])
    cached = jnp.zeros((B, K, H, T + 2)).at[..., : T - 1].set(k[:, :-1].transpose(0, 2, 3, 1))
    cache = GQACache(k=cached, v=jnp.zeros((B, K, T + 2, H)).at[:, :, : T - 1].set(v[:, :-1].transpose(0, 2, 1, 3)))
    slot = np.arange(T + 2)
    slots = (slot >= start[:, None]) & (slot < T - 1)
    got = cached_attention(*(jnp.asarray(x[:, -1:]) for x in (q, k, v)), cache, jnp.asarray(slots), SCALE)
    visible = np.broadcast_to((np.arange(T) >= start[:, None])[:, None], (B, 1, T))
    np.testing.assert_allclose(got, reference(q[:, -1:], k, v, visible), atol=2e-6)


def test_masked_softmax_gives_exact_zeros_and_no_nan() -> None:
    scores = jnp.array([[1.0, 2.0, jnp.inf], [5.0, 6.0, 7.0]])
    visible = jnp.array([[True, True, False], [False, False, False]])
    got = np.asarray(masked_softmax(scores, visible))
    np.testing.assert_allclose(got[0, :2], [1 / (1 + np.e), np.e / (1 + np.e)], rtol=1e-6)
    assert got[0, 2] == 0
    assert (got[1] == 0).all()
    assert np.isfinite(jax.grad(lambda s: masked_softmax(s, visible)[..., 0].sum())(scores.at[0, 2].set(0.0))).all()
